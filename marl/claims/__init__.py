"""Claims of the project and their measurements."""
