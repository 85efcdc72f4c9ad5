"""Two-stage constrained actor-critic: a main goal raised, and the others held."""
