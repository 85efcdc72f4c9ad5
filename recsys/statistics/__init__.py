"""Intervals, diagnostics, verdicts and selection of estimators."""
