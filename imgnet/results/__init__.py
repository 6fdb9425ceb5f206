"""Run directories made readable: tables and plots."""
