"""Vector layers: read and written, measured on the ground."""
