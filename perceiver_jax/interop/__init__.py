"""Weights that others trained. The only home of their parameter names."""
