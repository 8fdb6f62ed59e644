"""Vector layers, read and written."""
