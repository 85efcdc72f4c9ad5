"""Offline evaluation of sessions and slates."""
