"""Grids, rasters and vector layers. All reading and writing of geodata happens here."""
