"""Recommendation: logged data, estimators and learners."""
