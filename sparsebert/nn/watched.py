"""``Watched``: the modules and tensors that a native description was made from, and whether they changed.

Changes that torch does not count, through ``.data``, are noticed by a sample of each weight.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparsebert.nn.plain_path import FOREIGN_CODE, RECORDED_GRADIENTS, PlainPath, is_foreign
from sparsebert.nn.sparse_linear import SparseLinear

# Values of each weight that are compared in every call: about 2 % of the time of 16 tokens through MiniLM-L6.
SAMPLED = 61
# Tensors with at most so many values are compared as a whole, as every bias is.
COMPARED_WHOLE = 16_384
# Entries of the attributes of a module, and a tensor's count of in-place changes.
_TRAINING, _HOOKS, _PRE_HOOKS = map(operator.itemgetter, ("training", "_forward_hooks", "_forward_pre_hooks"))
_COUNT = operator.attrgetter("_version")


class Watched:
    """Modules and tensors that a native description was made from."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        copied: Sequence[Tensor],
        settings: Sequence[Any],
        in_place: Container[int] = (),
    ) -> None:
        """Remember the present state.

        Args:
            modules: The modules; hooks of the first are nobody's business.
            copied: Tensors that the description holds copies of.
            settings: Dictionaries of attributes, each with the name of one that was read.
            in_place: Addresses that the native library reads in each call. Changes of the values there need
                no new description.
        """
        self._modules = [vars(module) for module in modules]
        self._harmless: list[dict[Any, Any]] = []  # hooks that are known not to matter
        self._children = [module._modules for module in modules]
        self._children_before = [dict(children) for children in self._children]
        sparse = [vars(module) for module in modules if isinstance(module, SparseLinear)]
        settings = [*settings, *((owner, "activation") for owner in sparse)]
        self._settings = _Entries(settings)
        self._set = self._settings.now()
        # The values of a prepacked dense layer are neither a parameter nor a buffer.
        prepacked = [(owner, "values") for owner in sparse if "values" in owner]
        held = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._held = _Entries([*prepacked, *held])
        self._holding = self._held.now()
        self._tensors = self._holding[len(prepacked) :]
        self._addresses = [*map(Tensor.data_ptr, self._tensors)]
        # Inference tensors count no changes.
        self._counted = [
            tensor
            for tensor, address in zip(self._tensors, self._addresses, strict=True)
            if address not in in_place and not tensor.is_inference()
        ]
        self._counts = [*map(_COUNT, self._counted)]
        with torch.inference_mode(False), torch.no_grad():
            self._samples = [_sample(tensor.detach()) for tensor in copied]
            self._sampled = torch.cat(self._samples) if copied else torch.empty(0)

    def is_current(self) -> bool:
        """Whether modules and tensors are those that the description was made from, unchanged.

        Hundreds of tensors are looked at in each call: no line of Python runs for each of them.
        """
        return (
            self._children == self._children_before
            and all(map(operator.is_, self._held.now(), self._holding))
            and [*map(_COUNT, self._counted)] == self._counts
            and [*map(Tensor.data_ptr, self._tensors)] == self._addresses
            and self._settings.now() == self._set
            and (not self._samples or torch.equal(torch.cat(self._samples), self._sampled))
        )

    def require_undisturbed(self) -> None:
        """Raise ``PlainPath`` if the layers train, record gradients or run foreign code."""
        if every_module._has_any_global_hook():
            raise PlainPath("there are hooks on all modules")
        if any(map(_TRAINING, self._modules)):
            raise PlainPath("the encoder is in training mode")
        inner = self._modules[1:]
        hooks = [*filter(None, map(_HOOKS, inner)), *filter(None, map(_PRE_HOOKS, inner))]
        if hooks != self._harmless:
            if any(map(is_foreign, itertools.chain.from_iterable(map(dict.values, hooks)))):
                raise PlainPath(FOREIGN_CODE)
            self._harmless = [dict(each) for each in hooks]
        if any(map(operator.contains, inner, itertools.repeat("forward"))):
            raise PlainPath(FOREIGN_CODE)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors):
            raise PlainPath(RECORDED_GRADIENTS)


class _Entries:
    """Entries of dictionaries, read together."""

    def __init__(self, entries: Sequence[tuple[dict[str, Any], str]]) -> None:
        self._owners = [owner for owner, _ in entries]
        self._names = [name for _, name in entries]

    def now(self) -> list[Any]:
        """Return their present values; None for missing ones."""
        return [*map(dict.get, self._owners, self._names)]


def _sample(tensor: Tensor) -> Tensor:
    """Return a view of values spread over a weight, or of all values of a bias.

    The kept weights of a layer have one dimension too, so the size decides.
    """
    if tensor.dim() == 1 and tensor.numel() <= COMPARED_WHOLE:
        return tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = span // SAMPLED | 1  # odd: meets more columns than a power of two
    return tensor.as_strided((-(-span // step),), (step,))
