"""Algorithms: each package holds its Config, its pieces and its recipe, and imports no other algorithm."""
