"""Planners to compare with: the same loop without a part of it, and other people's loops."""

from planners.baselines.uniform import uniform_prior

__all__ = ["uniform_prior"]
