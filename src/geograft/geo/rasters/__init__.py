"""Raster files, read and written window by window."""
