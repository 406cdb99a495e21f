"""Gates: factors on the outputs of heads, neurons and whole MLPs, applied by hooks that can be removed.

A gate of 1 leaves the model's logits unchanged, bit for bit; a gate of 0 removes the unit. The gradient of a
gate is, to first order, the importance of its unit (Michel et al. 2019, "Are Sixteen Heads Really Better than
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

from sparsebert.bert import Structure, resolve, weight_of
from sparsebert_kernels.errors import unknown

GATED = ("head", "neuron", "mlp")


@dataclass(frozen=True)
class GateSite:
    """The place of the gates of one attention or feed-forward network.

    Attributes:
        key: The matrix whose input the gates multiply (the attention's context for heads, the activations for
            neurons). For a whole MLP, the matrix whose output, bias included, the gate multiplies: a gate of
            0 makes the layer's output LN(input).
        kind: "head", "neuron" or "mlp".
        width: Number of neighbouring features that share a gate; None if all share one.
    """

    key: str
    kind: str
    width: int | None

    def count(self, model: nn.Module) -> int:
        """Return the number of gates."""
        features = weight_of(model, self.key).shape[1]
        return 1 if self.width is None else features // self.width

    def hook(self, model: nn.Module, gates: Tensor) -> Any:
        """Apply gates and return the handle to remove them.

        Args:
            model: The model that contains the site.
            gates: [gates]; [batch, gates], one set an example; or [batch, tokens, gates], one set a token.
                They are converted to the dtype of the features that they multiply.
        """
        module = resolve(model, self.key)
        if self.width is None:
            return module.register_forward_hook(partial(_after, gates))
        return module.register_forward_pre_hook(partial(_before, gates, self.width))


def gate_sites(
    structure: Structure, kind: str, shapes: Mapping[str, torch.Size] | None = None
) -> dict[str, GateSite]:
    """Return the sites of one kind by the key of the first matrix of their units (see :class:`UnitGroup`).

    Args:
        structure: Structure of the model.
        kind: "head", "neuron" or "mlp".
        shapes: key -> [out, in], needed where the sizes of heads differ between layers.

    Raises ValueError unless ``kind`` is "head", "neuron" or "mlp".
    """
    if kind == "head":
        widths = {
            keys[0]: structure.head_size or (shapes or {})[keys[-1]][1] // structure.heads_of(keys)
            for keys in structure.heads
        }
        return {keys[0]: GateSite(keys[-1], kind, widths[keys[0]]) for keys in structure.heads}
    if kind == "neuron":
        return {keys[0]: GateSite(keys[-1], kind, 1) for keys in structure.neurons}
    if kind == "mlp":
        return {keys[0]: GateSite(keys[-1], kind, None) for keys in structure.neurons}
    raise unknown("kind of gate", kind, GATED)


@contextlib.contextmanager
def gated(
    model: nn.Module, sites: Mapping[str, GateSite], gates: Mapping[str, Tensor]
) -> Iterator[nn.Module]:
    """Apply gates at these sites inside the ``with`` block."""
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
    """Repeat factors [batch, features] for every token of an example; other shapes fit as they are."""
    return (factors.unsqueeze(1) if factors.dim() == 2 else factors).to(x.dtype)
