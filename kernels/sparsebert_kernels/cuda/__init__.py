"""Triton kernels for NVIDIA and AMD GPUs, used wherever a weight lies on one."""

from .backend import on_cpu, serves, why_unavailable

__all__ = ["on_cpu", "serves", "why_unavailable"]
