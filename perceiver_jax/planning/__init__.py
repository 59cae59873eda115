"""Plans the cost of an experiment before any of it is run."""
