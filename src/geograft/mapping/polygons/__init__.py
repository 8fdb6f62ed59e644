"""Polygons from class maps, block by block."""
