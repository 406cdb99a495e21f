"""Sparse layers: `SparseLinear`, its way into a model, and its form in checkpoints."""
