"""Trained models at work: `load(name or directory)`, then raw input in and predictions out."""
