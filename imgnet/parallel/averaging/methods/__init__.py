"""The ways to average, one file for each: its settings, what is wrong with them, and what a worker does."""
