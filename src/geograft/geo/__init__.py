"""Grids, rasters and vector layers: the only code that opens geodata."""
