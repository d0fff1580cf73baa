"""Sample grids, and numbers that say how good samples are."""
