"""What the workers of a cluster do in a step, one thing after the other, and when."""
