"""Earlier names of `recsys.problems`, by which saved runs call their recipes."""
