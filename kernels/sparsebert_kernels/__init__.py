"""Sparse matmul for pruned BERTs: packed formats, native CPU kernels and the torch operators over them.

``from sparsebert_kernels import formats, ops, cpu`` loads the parts; importing the package alone loads
nothing.
"""

__version__ = "0.1.0"
