"""Sparse layers: `SparseLinear`, how it takes the place of `nn.Linear`, and what of it is stored."""
