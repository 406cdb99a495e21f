"""One native call for a batch of a sentence-transformers model: who asks for vectors, and who takes them.

The modules of such a model run in turn: transformer, pooling, normalisation. While they do, the base model
inside the transformer finds here that pooling and normalisation follow, computes their results in its own
call, and attaches them to the states that it returns. The pooling takes them if it gets these very states.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparsebert_kernels.cpu.encoder import Reduction

# Attribute of states with the vectors of their sequences, and of vectors that are of length 1.
_VECTORS, _NORMALIZED = "sentence_vectors", "is_normalized"
_running = threading.local()


@contextmanager
def running(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let base models know, on this thread, the modules of a sentence-transformers model that run in turn."""
    before = getattr(_running, "modules", ())
    _running.modules = modules
    try:
        yield
    finally:
        _running.modules = before


def wanted_reduction(model: nn.Module) -> Reduction | None:
    """Return how the modules after a base model reduce its states to vectors; None if none of them does.

    Modules with hooks see what they see without fusing.
    """
    modules: Sequence[nn.Module] = getattr(_running, "modules", ())
    if len(modules) < 2 or not any(child is model for child in modules[0]._modules.values()):
        return None
    reduction = getattr(modules[1], "reduction", None)
    if not isinstance(reduction, Reduction) or any(map(_is_hooked, (model, *modules[:2]))):
        return None
    follows = len(modules) > 2 and getattr(modules[2], "normalizes_sentences", False) is True
    return Reduction(reduction.mean, normalize=follows and not _is_hooked(modules[2]))


def attach_vectors(states: Tensor, vectors: Tensor, mask: Tensor, reduction: Reduction) -> None:
    """Attach the vectors of sequences to their states [B, T, hidden]."""
    setattr(states, _VECTORS, (vectors, mask, reduction, _changes(states)))


def attached_vectors(states: Any, mask: Any, *, mean: bool) -> Any:
    """Return the vectors that were attached to states for this mask; None if there are none, or no longer."""
    attached = getattr(states, _VECTORS, None)
    if attached is None:
        return None
    vectors, of_mask, reduction, changes = attached
    if of_mask is not mask or reduction.mean != mean or changes != _changes(states):
        return None
    if reduction.normalize:
        setattr(vectors, _NORMALIZED, True)
    return vectors


def is_normalized(vectors: Any) -> bool:
    """Whether vectors come from a call that has normalised them."""
    return getattr(vectors, _NORMALIZED, False)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _changes(tensor: Tensor) -> int:
    """Return the count of in-place changes; inference tensors keep none."""
    return 0 if tensor.is_inference() else tensor._version
