"""What is said of runs, wherever they are: states, logs, and waiting for their ends."""
