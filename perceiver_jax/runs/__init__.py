"""A run on disk: its folder, lock, log, checkpoints and weights."""
