"""Worlds: tensors only, knowing nothing of learning."""
