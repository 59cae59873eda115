"""What is measured: one command each, its figures in results/."""
