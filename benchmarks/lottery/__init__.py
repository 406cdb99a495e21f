"""Real tickets, small enough for a laptop: `python -m benchmarks.lottery`."""
