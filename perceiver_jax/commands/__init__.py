"""The commands of `python -m perceiver_jax`: flags, and whom to hand over to."""
