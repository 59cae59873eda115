"""A modality's door in and out of a Perceiver."""
