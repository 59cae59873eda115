"""What an experiment will cost, before any of it is run."""
