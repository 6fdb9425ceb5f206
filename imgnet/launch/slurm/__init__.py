"""Runs as jobs of Slurm: what is asked of it, the batch script, and the first process of a job."""
