"""Classifiers by their names: which there are, what can be said against a choice, and how they are built."""
