"""Models fitted to logs: rewards and propensities."""
