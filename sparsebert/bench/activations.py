"""Bytes of activations: what a forward pass holds beside the weights."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def peak_activations(model: nn.Module, batch: int, length: int) -> int:
    """The most bytes that results of operations hold at once, in one forward pass without gradients.

    ``batch`` sequences of ``length`` tokens, none of them padding. What an operation takes for itself while
    it runs, such as a kernel's scratch memory, is not counted. The model is left in its mode.

    Raises ValueError for an empty batch, and a length that the model has no positions for.
    """
    config: Any = model.config
    if min(batch, length) < 1:
        raise ValueError(f"batch {batch}, {length} tokens: at least one of each is needed")
    padding = getattr(config, "pad_token_id", None) or 0
    device = next(model.parameters()).device
    tokens = torch.full((batch, length), (padding + 1) % config.vocab_size, device=device)
    training = model.training
    try:
        with _Watch() as watch:
            model.eval()(input_ids=tokens)
    except (IndexError, RuntimeError) as error:
        # How many positions a model has is its own affair: RoBERTa keeps some of them for padding.
        longest = getattr(config, "max_position_embeddings", length)
        if length < longest - padding:
            raise
        raise ValueError(f"{length} tokens are more than the model has positions for: {longest}") from error
    finally:
        model.train(training)
    return watch.peak


class _Watch(TorchDispatchMode):
    """Counts memory that appears as the result of an operation, until nothing refers to it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(storage) for storage in map(_storage, tree_leaves((args, kwargs))) if storage is not None}
        results = func(*args, **(kwargs or {}))
        for storage in map(_storage, tree_leaves(results)):
            if storage is not None and id(storage) not in known | self._known.keys():
                self._hold(storage)
        return results

    def _hold(self, storage: Any) -> None:
        size, name = storage.nbytes(), id(storage)

        def let_go(_: Any) -> None:
            self._held -= size
            del self._known[name]

        self._known[name] = weakref.ref(storage, let_go)
        self._held += size
        self.peak = max(self.peak, self._held)


def _storage(value: Any) -> Any:
    """The memory of a tensor, None for anything else and for opaque ones. It lives as long as the memory."""
    return value.untyped_storage() if isinstance(value, Tensor) and not value.is_mkldnn else None
