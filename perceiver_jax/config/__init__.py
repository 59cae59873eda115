"""Configs: their defaults, what overrides them, what their values may be, and the copy that a run keeps."""
