"""The ``Conv1D`` of transformers: a linear layer, as in GPT-2, whose weight is stored [in, out].

Keys, masks and scores are those of a linear layer, [out, in], everywhere; only this module and the places
that touch a parameter itself know that it lies the other way round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def is_conv1d(module: nn.Module | None) -> bool:
    """Whether a module is the ``Conv1D`` of transformers."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.")


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """Turn a tensor in the layout of a layer's weight into [out, in], or back; a view where it is turned."""
    return tensor.t() if is_conv1d(module) and tensor.dim() == 2 else tensor


def as_linear(module: nn.Module) -> nn.Linear:
    """Return the linear layer that computes what a ``Conv1D`` computes; they share weight and bias.

    The weight is a transposed view, so writing into it writes into the ``Conv1D``.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    features, outputs = weight.shape
    linear = nn.Linear(features, outputs, bias=False, device="meta")
    if "weight" in module._parameters:
        linear.weight = nn.Parameter(weight.detach().t(), requires_grad=weight.requires_grad)
    else:  # pruned with torch.nn.utils.prune
        del linear._parameters["weight"]
        linear.__dict__["weight"] = weight.t()
    linear.register_parameter("bias", module._parameters.get("bias"))
    return linear.train(module.training)


def conv1d_of(linear: nn.Linear, cls: type[nn.Module]) -> nn.Module:
    """Return the ``Conv1D``, of this class, that computes what a linear layer computes.

    It has a copy of the weight, and the bias itself.
    """
    weight = linear.weight
    # Without its __init__, which would draw random weights.
    conv: Any = cls.__new__(cls)
    nn.Module.__init__(conv)
    conv.nf, conv.nx = linear.out_features, linear.in_features
    conv.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    conv.register_parameter("bias", linear.bias)
    return nn.Module.train(conv, linear.training)


@contextlib.contextmanager
def as_linears(model: nn.Module) -> Iterator[None]:
    """Let every ``Conv1D`` of a model be the linear layer :func:`as_linear` inside the ``with`` block.

    Weights that are changed in place inside the block are changed in the ``Conv1D`` as well.
    """
    convs = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    convs = [(parent, name, child) for parent, name, child in convs if is_conv1d(child)]
    for parent, name, child in convs:
        parent._modules[name] = as_linear(child)
    try:
        yield
    finally:
        for parent, name, child in convs:
            parent._modules[name] = child
