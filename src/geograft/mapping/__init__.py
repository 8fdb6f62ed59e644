"""Maps and polygons of rasters of any size."""
