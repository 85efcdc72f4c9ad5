"""Logs: tables of decisions, their columns, users and splits."""
