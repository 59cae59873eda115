"""Perceiver and Perceiver IO in JAX and Haiku. Import modules by name: this file loads none of them."""

__version__ = '0.1.0'
