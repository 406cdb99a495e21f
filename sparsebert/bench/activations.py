"""Peak memory of the activations of a forward pass."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def peak_activations(model: nn.Module, batch: int, length: int) -> int:
    """Return the peak bytes held by results of operations in one forward pass without gradients.

    Memory that an operation allocates internally, such as a kernel's scratch buffer, does not count; a fused
    encoder runs its layers one by one. The model keeps its training or evaluation mode.

    Args:
        model: A transformers model.
        batch: Number of sequences.
        length: Tokens of each sequence, none of them padding.

    Raises:
        ValueError: ``batch`` or ``length`` is below 1, or the model has too few positions for ``length``.
    """
    config: Any = model.config
    if min(batch, length) < 1:
        raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
    padding = getattr(config, "pad_token_id", None) or 0
    device = next(model.parameters()).device
    tokens = torch.full((batch, length), (padding + 1) % config.vocab_size, device=device)
    training = model.training
    try:
        with _ActivationCounter() as counter, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the fused encoder runs its layers one by one")
            model.eval()(input_ids=tokens)
    except (IndexError, RuntimeError) as error:
        # Models count positions differently: RoBERTa reserves some of them for padding.
        longest = getattr(config, "max_position_embeddings", length)
        if length < longest - padding:
            raise
        raise ValueError(
            f"length {length} exceeds the {longest} positions of the model; choose a shorter one"
        ) from error
    finally:
        model.train(training)
    return counter.peak


class _ActivationCounter(TorchDispatchMode):
    """Counts the memory of each operation's results until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._counted: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {
            id(storage) for storage in map(_storage, tree_leaves((args, kwargs))) if storage is not None
        }
        results = func(*args, **(kwargs or {}))
        for storage in map(_storage, tree_leaves(results)):
            if storage is not None and id(storage) not in inputs | self._counted.keys():
                self._hold(storage)
        return results

    def _hold(self, storage: Any) -> None:
        size, name = storage.nbytes(), id(storage)

        def release(_: Any) -> None:
            self._held -= size
            del self._counted[name]

        self._counted[name] = weakref.ref(storage, release)
        self._held += size
        self.peak = max(self.peak, self._held)


def _storage(value: Any) -> Any:
    """Return the storage of a tensor; None for an opaque tensor and for anything else."""
    return value.untyped_storage() if isinstance(value, Tensor) and not value.is_mkldnn else None
