"""Gradient checkpointing: activations are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from typing import Any


def enable_gradient_checkpointing(model: Any) -> None:
    """Make a model recompute its activations in the backward pass.

    Args:
        model: A PreTrainedModel, or a module with ``activation_checkpointing_enable``.
    """
    # Before transformers 5.23 the method has the second name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
