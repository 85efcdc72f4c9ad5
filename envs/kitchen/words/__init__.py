"""The kitchen in words, and plans of several steps."""
