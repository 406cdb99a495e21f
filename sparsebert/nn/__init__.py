"""Sparse layers: ``SparseLinear``, its installation in a model, and its form in checkpoints."""
