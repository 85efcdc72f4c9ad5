"""Policies that are evaluated on logs."""
