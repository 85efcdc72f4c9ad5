"""Worlds of many interchangeable agents who are paid as one, from ten agents to a million."""
