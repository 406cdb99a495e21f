"""Pooling and normalisation of sentence-transformers: in the encoder's native call, or each in its own."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.sentence_call import attached_vectors, is_normalized, running
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import Reduction
from sparsebert_kernels.cpu.pooling import MASK_DTYPES, pool
from sparsebert_kernels.ops import plain_inference

PACKAGE = "sentence_transformers"
# Features that change what a pooling returns.
WITH_EFFECT = ("cu_seq_lens_q", "token_weights_sum", "cls_token_embeddings")


def fuse_pooling_(module: Any) -> None:
    """Let a module run natively, in place, if it is of sentence-transformers.

    It is a pooling, a normalisation or a whole model, which lets its base model compute both.
    """
    cls = type(module)
    name = cls.__name__
    is_of_package = (
        cls.__module__.partition(".")[0] == PACKAGE
        and name in _FORWARDS
        and vars(sys.modules[cls.__module__]).get(name) is cls
        and all(hasattr(module, attribute) for attribute in _ATTRIBUTES[name])
    )
    if is_of_package:
        module.__class__ = _fused_class(cls)


def unfuse_pooling_(module: Any) -> None:
    """Undo ``fuse_pooling_``."""
    plain_class = _plain_class(module)
    if _FUSED_CLASSES.get(plain_class) is type(module):
        module.__class__ = plain_class


def _plain_class(module: Any) -> Any:
    return type(module).__bases__[0]


def _run(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the modules of a model in turn, and let its base model know them."""
    with running([*module._modules.values()]):
        return _plain_class(module).forward(module, *args, **kwargs)


def _reduction(module: Any) -> Reduction | None:
    """How a pooling reduces the states of a sequence; None for a way without a native form."""
    if module.pooling_mode not in ("mean", "cls"):
        return None
    return Reduction(mean=module.pooling_mode == "mean", normalize=False)


def _normalizes_sentences(module: Any) -> bool:
    """Whether a normalisation replaces the vectors of sentences."""
    return bool(module.module_input_name == module.module_output_name == "sentence_embedding")


def _pool(module: Any, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the features with the mean of the tokens or the first, natively where that is the same."""
    states, mask = features.get("token_embeddings"), features.get("attention_mask")
    reduction = module.reduction
    if (
        reduction is not None
        and (module.include_prompt or "prompt_length" not in features)
        and not any(name in features for name in WITH_EFFECT)
        and _is_plain(states, 3)
        and type(mask) is Tensor
        and mask.dtype in MASK_DTYPES
        and mask.is_cpu
        and mask.shape == states.shape[:2]  # type: ignore[union-attr]
    ):
        pooled = attached_vectors(states, mask, mean=reduction.mean)
        if pooled is None:
            pooled = pool(states, mask, mean=reduction.mean)  # type: ignore[arg-type]
        if pooled is not None:
            features["sentence_embedding"] = pooled
            return features
    return _plain_class(module).forward(module, features, **kwargs)


def _normalize(module: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Return the features with vectors divided by their lengths, natively where the result is the same."""
    vectors = features.get(module.module_input_name)
    if module.normalizes_sentences and is_normalized(vectors):
        return features
    if not _is_plain(vectors, 2):
        return _plain_class(module).forward(module, features)
    normalized = pool(vectors[:, None], None, mean=False, normalize=True)  # type: ignore[index]
    features[module.module_output_name] = normalized
    return features


_FORWARDS = {"SentenceTransformer": _run, "Pooling": _pool, "Normalize": _normalize}
# Properties of the fused classes, for ``sentence_call.wanted_reduction``.
_PROPERTIES = {
    "Pooling": {"reduction": property(_reduction)},
    "Normalize": {"normalizes_sentences": property(_normalizes_sentences)},
}
# Attributes without which a class is that of another version of the package.
_ATTRIBUTES = {
    "SentenceTransformer": (),
    "Pooling": ("pooling_mode", "include_prompt"),
    "Normalize": ("module_input_name", "module_output_name"),
}
_FUSED_CLASSES: dict[type, type[nn.Module]] = {}


def _fused_class(plain_class: type) -> type[nn.Module]:
    """Return the fused class, always the same; it bears the name that sentence-transformers saves.

    It has one base, whose objects may become its own.
    """
    if plain_class not in _FUSED_CLASSES:
        attributes = {
            **_PROPERTIES.get(plain_class.__name__, {}),
            "forward": _FORWARDS[plain_class.__name__],
            "__module__": plain_class.__module__,
            "__qualname__": plain_class.__qualname__,
            "__doc__": plain_class.__doc__,
            "__reduce_ex__": lambda self, _: (_new_module, (plain_class,), dict(vars(self))),
        }
        _FUSED_CLASSES[plain_class] = type(plain_class.__name__, (plain_class,), attributes)
    return _FUSED_CLASSES[plain_class]


def _new_module(plain_class: type) -> nn.Module:
    """Make a module for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = _fused_class(plain_class)
    return cls.__new__(cls)


def _is_plain(tensor: Any, dimensions: int) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.dim() == dimensions
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and native.why_unavailable() is None
        and plain_inference(tensor)
    )
