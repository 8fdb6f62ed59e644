"""Raster files, read and written by windows."""
