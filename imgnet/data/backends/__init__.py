"""From the keys of a batch to its tensors."""
