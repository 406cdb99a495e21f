"""Skeletons: copies of modules that share all tensors, to run a model on stand-ins without touching it.

Names and classes do not tell what a module computes. A skeleton whose linear layers are replaced by stand-ins
shows it for the price of a few small tensors: no weight is read, and the model does not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sparsebert.nn.module_swap import HOOKS


def skeleton(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a module in eval mode and without hooks; parameters and buffers are shared.

    Args:
        module: The module; it does not change.
        copies: Filled with every submodule -> its copy, the module itself included.
    """
    if module in copies:
        return copies[module]
    copy = copies[module] = module.__class__.__new__(module.__class__)
    copy.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        # Copied, so that a forward method that registers a buffer leaves the model alone.
        if name in ("_parameters", "_buffers", "_modules"):
            copy.__dict__[name] = dict(value)
        elif name in HOOKS:
            copy.__dict__[name] = None if value is None or isinstance(value, bool) else OrderedDict()
    copy.__dict__["training"] = False
    if "chunk_size_feed_forward" in copy.__dict__:  # would have to divide the number of tokens
        copy.__dict__["chunk_size_feed_forward"] = 0
    for name, child in module._modules.items():
        if child is not None:
            copy._modules[name] = skeleton(child, copies)
    return copy


def stand_in_(copy: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Let a module of a skeleton run ``forward`` in place of its own forward method.

    Returns:
        The inputs of its calls, appended as the calls are made.
    """
    inputs: list[Tensor] = []

    def record(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inputs.append(x)
        return forward(x)

    copy.__dict__["forward"] = record
    return inputs
