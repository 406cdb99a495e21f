"""Pruning methods that need no training, one file each. Importing a file registers its methods by name."""
