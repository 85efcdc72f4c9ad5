"""Rules of a kitchen: what it is made of, and what a step makes of it."""
