"""A raster of any size as tiles, and tiles blended into a map."""
