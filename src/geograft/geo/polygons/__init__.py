"""A class map of any size as polygons."""
