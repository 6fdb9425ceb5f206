"""Runs and topologies as pictures."""
