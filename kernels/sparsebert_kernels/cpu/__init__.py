"""The native CPU kernels: availability and instruction sets."""

from .native import available, instruction_set, instruction_sets, warn_if_unavailable, why_unavailable

__all__ = ["available", "instruction_set", "instruction_sets", "warn_if_unavailable", "why_unavailable"]
