"""All that needs a CUDA GPU, as a queue of points in order of worth: `python -m benchmarks.gpu --help`."""
