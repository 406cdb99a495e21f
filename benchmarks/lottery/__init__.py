"""Tickets of a small model on real tasks: ``python -m benchmarks.lottery``."""
