"""Triton kernels for NVIDIA and AMD GPUs, used for weights on a GPU."""

from .backend import on_cpu, supports, why_unavailable

__all__ = ["on_cpu", "supports", "why_unavailable"]
