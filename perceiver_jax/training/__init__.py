"""Knows a Task; knows no task."""
