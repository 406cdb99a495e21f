"""The native CPU kernels: found, loaded and described."""

from .native import available, instruction_set, instruction_sets, why_unavailable

__all__ = ["available", "instruction_set", "instruction_sets", "why_unavailable"]
