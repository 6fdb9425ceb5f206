"""What a run tells while it goes on: files in its directory, a line or a bar, Weights & Biases, TensorBoard."""
