"""What Hydra wants to find in its own namespace: the classes are thin, and the work is in ``imgnet.launch``."""
