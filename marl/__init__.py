"""The shared actor-critic core and the algorithms that learn in simulation."""
