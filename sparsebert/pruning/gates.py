"""Gates: factors on the outputs of heads, neurons and whole MLPs, put on by hooks and taken off again.

A gate of 1 leaves the model's logits as they are, to the bit; a gate of 0 is the unit's absence. The gradient
of a gate is to first order what its unit is worth (Michel et al. 2019, "Are Sixteen Heads Really Better than
One?", equation 2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, resolve
from sparsebert_kernels.errors import unknown

GATED = ("head", "neuron", "mlp")


@dataclass(frozen=True)
class GateSite:
    """Where the gates of one attention or feed-forward network act.

    ``key``: the matrix whose input they multiply (heads: the attention's context; neurons: the activations),
    or whose output, bias included, for a whole MLP: with a gate of 0 the layer's output is LN(input).
    ``width``: neighbouring features that share a gate; None for all of them.
    """

    key: str
    kind: str
    width: int | None

    def count(self, model: nn.Module) -> int:
        """How many gates there are."""
        features = torch.as_tensor(resolve(model, self.key).weight).shape[1]
        return 1 if self.width is None else features // self.width

    def hook(self, model: nn.Module, gates: Tensor) -> Any:
        """Let these gates act; the handle to remove them. [gates], or [batch, gates] to tell examples apart,
        or [batch, tokens, gates] to tell tokens apart.

        They take the dtype of what they multiply.
        """
        module = resolve(model, self.key)
        if self.width is None:
            return module.register_forward_hook(partial(_after, gates))
        return module.register_forward_pre_hook(partial(_before, gates, self.width))


def gate_sites(structure: Structure, kind: str) -> dict[str, GateSite]:
    """The sites of one kind by the key of the first matrix of their units (see :class:`UnitGroup`).

    ``kind``: "head", "neuron" or "mlp". Raises ValueError for any other.
    """
    if kind == "head":
        return {keys[0]: GateSite(keys[-1], kind, structure.head_size) for keys in structure.heads}
    if kind == "neuron":
        return {keys[0]: GateSite(keys[-1], kind, 1) for keys in structure.neurons}
    if kind == "mlp":
        return {keys[0]: GateSite(keys[-1], kind, None) for keys in structure.neurons}
    raise unknown("kind of gate", kind, GATED)


@contextlib.contextmanager
def gated(
    model: nn.Module, sites: Mapping[str, GateSite], gates: Mapping[str, Tensor]
) -> Iterator[nn.Module]:
    """The model with gates at these sites, for the time of the block."""
    handles = [site.hook(model, gates[name]) for name, site in sites.items()]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _before(gates: Tensor, width: int, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = arguments
    return (x * _over_tokens(gates.repeat_interleave(width, -1), x), *rest)


def _after(gates: Tensor, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return output * _over_tokens(gates, output)


def _over_tokens(factors: Tensor, x: Tensor) -> Tensor:
    """[batch, features] are the same for every token of an example; all others are as they are."""
    return (factors.unsqueeze(1) if factors.dim() == 2 else factors).to(x.dtype)
