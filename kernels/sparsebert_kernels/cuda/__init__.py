"""Triton kernels for weights on NVIDIA and AMD GPUs."""

from .backend import on_cpu, supports, why_unavailable

__all__ = ["on_cpu", "supports", "why_unavailable"]
