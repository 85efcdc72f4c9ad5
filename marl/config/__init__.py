"""Configs: checked sections, YAML, messages for wrong keys, and the catalog of shipped configs."""
