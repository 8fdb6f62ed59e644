"""Geography: grids, rasters, vectors, splits, tiles. Imports no torch."""
