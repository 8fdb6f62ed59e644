"""Rasters: read, resampled while they are read, joined, written; polygons burnt into them."""
