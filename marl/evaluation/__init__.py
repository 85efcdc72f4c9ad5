"""From a trained policy to its report, curves and films."""
