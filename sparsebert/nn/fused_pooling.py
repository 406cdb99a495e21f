"""Pooling and normalisation of sentence-transformers, each as one native call."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.pooling import MASK_DTYPES, pool
from sparsebert_kernels.ops import plain_inference

PACKAGE = "sentence_transformers"
# Features that change what a pooling returns.
WITH_EFFECT = ("cu_seq_lens_q", "token_weights_sum", "cls_token_embeddings")


class FusedPooling(nn.Module):
    """The forward method of a pooling, mixed into its class: the mean of the tokens, or the first of them."""

    plain_class: Any
    pooling_mode: str
    include_prompt: bool

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Pool natively where the result is the same, else as the plain class does."""
        states, mask = features.get("token_embeddings"), features.get("attention_mask")
        if (
            self.pooling_mode in ("mean", "cls")
            and (self.include_prompt or "prompt_length" not in features)
            and not any(name in features for name in WITH_EFFECT)
            and _is_plain(states, 3)
            and type(mask) is Tensor
            and mask.dtype in MASK_DTYPES
            and mask.is_cpu
            and mask.shape == states.shape[:2]  # type: ignore[union-attr]
        ):
            pooled = pool(states, mask, mean=self.pooling_mode == "mean")  # type: ignore[arg-type]
            if pooled is not None:
                features["sentence_embedding"] = pooled
                return features
        return super().forward(features, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_module, (self.plain_class,), dict(self.__dict__)


class FusedNormalize(nn.Module):
    """The forward method of a normalisation, mixed into its class."""

    plain_class: Any
    module_input_name: str
    module_output_name: str

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Divide vectors by their lengths, natively where the result is the same."""
        vectors = features.get(self.module_input_name)
        if not _is_plain(vectors, 2):
            return super().forward(features)
        normalized = pool(vectors[:, None], None, mean=False, normalize=True)  # type: ignore[index]
        features[self.module_output_name] = normalized
        return features

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_module, (self.plain_class,), dict(self.__dict__)


_MIXINS = {"Pooling": FusedPooling, "Normalize": FusedNormalize}
# Attributes without which a class is that of another version of the package.
_ATTRIBUTES = {"Pooling": ("pooling_mode", "include_prompt"), "Normalize": ("module_input_name",)}
_FUSED_CLASSES: dict[type, type[nn.Module]] = {}


def can_fuse(module: nn.Module) -> bool:
    """Whether a module is a pooling or a normalisation of sentence-transformers."""
    cls = type(module)
    name = cls.__name__
    return (
        cls.__module__.partition(".")[0] == PACKAGE
        and name in _MIXINS
        and vars(sys.modules[cls.__module__]).get(name) is cls
        and all(hasattr(module, attribute) for attribute in _ATTRIBUTES[name])
    )


def fused_pooling_class(plain_class: type) -> type[nn.Module]:
    """Return the fused class, always the same; it bears the name that sentence-transformers saves."""
    if plain_class not in _FUSED_CLASSES:
        attributes = {
            "plain_class": plain_class,
            "__module__": plain_class.__module__,
            "__qualname__": plain_class.__qualname__,
            "__doc__": plain_class.__doc__,
        }
        bases = (_MIXINS[plain_class.__name__], plain_class)
        _FUSED_CLASSES[plain_class] = type(plain_class.__name__, bases, attributes)
    return _FUSED_CLASSES[plain_class]


def _new_module(plain_class: type) -> nn.Module:
    """Make a module for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = fused_pooling_class(plain_class)
    return cls.__new__(cls)


def _is_plain(tensor: Any, dimensions: int) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.dim() == dimensions
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and native.why_unavailable() is None
        and plain_inference(tensor)
    )
