"""Benchmarks on a CUDA GPU, as a queue of points: ``python -m benchmarks.gpu --help``."""
