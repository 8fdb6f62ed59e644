"""Networks: built, filled with weights, described."""
