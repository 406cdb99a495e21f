"""What a run used (time, memory, energy), and digests of what it read, for its records."""
