"""Exact cross-attention by the factors of positions, without the joined array."""
