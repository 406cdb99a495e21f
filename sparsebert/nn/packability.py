"""Packability: whether a linear layer of a model can be replaced by a packed one."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from sparsebert.cost.candidates import STORED


class Packability:
    """Check whether linear layers of a model can be packed; the model's parameters show the tied weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names[_memory(parameter)].append(name)

    def is_tied(self, linear: nn.Linear) -> bool:
        """Whether another module has the same weight."""
        return len(self._names[_memory(linear.weight)]) > 1

    def tie(self, name: str, linear: nn.Linear) -> str:
        """Return the reason why a tied layer of this full name cannot be packed."""
        others = ", ".join(sorted({*self._names[_memory(linear.weight)]} - {f"{name}.weight"}))
        return f"{name}.weight is tied to {others}: packing would untie them"

    def require(self, name: str, linear: nn.Linear) -> None:
        """Raise ValueError with the reason unless the layer of this full name can be packed."""
        if linear is self.model:
            raise ValueError("the model itself is a linear layer: use SparseLinear.from_linear")
        if "weight" not in linear._parameters:
            raise ValueError(
                f"{name}.weight is not a plain parameter: undo its parametrization, "
                "or call torch.nn.utils.prune.remove, first"
            )
        if type(linear) is not nn.Linear:
            raise ValueError(f"{name} is a {type(linear).__name__}; only a plain nn.Linear can be packed")
        self._require_plain_weight(name, linear.weight)
        if self.is_tied(linear):
            raise ValueError(self.tie(name, linear))
        require_unpatched_forward(name, linear)

    def _require_plain_weight(self, name: str, weight: Tensor) -> None:
        if type(weight) is not nn.Parameter or weight.layout != torch.strided or weight.dtype not in STORED:
            raise ValueError(
                f"{name} is quantised or holds a special tensor ({type(weight).__name__}, {weight.dtype}, "
                f"{weight.layout}): a plain floating-point weight is needed"
            )
        if weight.is_meta:
            raise ValueError(f"{name} is on the meta device: load its weights first")
        if not weight.numel():
            raise ValueError(f"{name} has an empty weight, {list(weight.shape)}")


def _memory(weight: Tensor) -> int:
    """Return the address of a weight, which a ``Conv1D`` shares with its linear layer; else its identity."""
    plain = type(weight) in (nn.Parameter, Tensor) and weight.layout == torch.strided
    # Meta and empty tensors have no address.
    return (plain and weight.data_ptr()) or id(weight)


def require_unpatched_forward(name: str, module: nn.Module) -> None:
    """Raise ValueError, with ``name``, if the forward method of the module is patched."""
    if "forward" in module.__dict__:
        raise ValueError(
            f"the forward method of {name} is patched, as by hooks of accelerate: remove the patch first"
        )
