"""How devices and processes work together."""
