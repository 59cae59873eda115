"""Devices and processes that work together."""
