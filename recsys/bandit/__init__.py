"""Offline evaluation of single decisions."""
