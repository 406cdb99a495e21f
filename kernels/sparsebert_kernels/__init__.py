"""Sparse matmul for pruned BERTs: packed formats, native CPU kernels and the torch operators over them."""

from . import cpu, formats, ops

__version__ = "0.1.0"
__all__ = ["cpu", "formats", "ops"]
