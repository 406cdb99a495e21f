"""Removing for good what a ticket empties: `compact_`, its description, and the way back from that."""

from __future__ import annotations

from typing import Any

from torch import nn


def compaction_description(model: nn.Module) -> dict[str, Any]:
    """What :func:`compact_` made of a model, as plain values for JSON; empty for a model as configured."""
    raise NotImplementedError


def rebuild_(model: nn.Module, description: dict[str, Any]) -> nn.Module:
    """Give a freshly made model of the same configuration the shapes that the description names."""
    raise NotImplementedError
