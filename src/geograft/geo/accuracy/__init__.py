"""Where a map is right and where it is not: counts that add up."""
