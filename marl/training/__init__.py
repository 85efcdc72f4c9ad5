"""Runs: the training loop, checkpoints, logs and environments."""
