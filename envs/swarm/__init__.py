"""Swarms: worlds of many like agents, from ten to a million, and their mean-field limits."""
