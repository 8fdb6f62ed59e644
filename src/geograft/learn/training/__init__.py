"""The loop, its optimizer and schedule, what it keeps and what it tells."""
