"""Language-model planners."""
