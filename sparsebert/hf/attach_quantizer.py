"""Attach the quantizer that saves, loads and pushes sparse and compacted Hugging Face models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from sparsebert.compaction.manifest import record_of
from sparsebert.nn.sparse_linear import SparseLinear

# Name of the format in config.json: `quantization_config.quant_method`.
METHOD = "sparsebert"


def attach_quantizer_(model: nn.Module, **fields: Any) -> None:
    """Attach a quantizer to every sparse or compacted Hugging Face model in ``model``; detach it from others.

    Models with another library's quantizer do not change.

    Args:
        model: A Hugging Face model, or a module that contains some.
        fields: Fields of ``sparsebert.hf.config.SparseConfig`` that the layers do not hold, such as
            ``format`` and ``origin``. Omitted fields keep their values.
    """
    for each in _pretrained(model):
        quantizer = getattr(each, "hf_quantizer", None)
        if quantizer is not None and quantizer.quantization_config.quant_method != METHOD:
            continue
        if record_of(each) or any(isinstance(module, SparseLinear) for module in each.modules()):
            quantizer = quantizer or _new_quantizer()
            quantizer.quantization_config.update(**fields)
            each.hf_quantizer, each.config.quantization_config = quantizer, quantizer.quantization_config
            each.push_to_hub = quantizer.push_to_hub_of(each)
            each.save_pretrained = quantizer.save_pretrained_of(each)
        elif quantizer is not None:
            for name in ("hf_quantizer", "push_to_hub", "save_pretrained"):
                vars(each).pop(name, None)
            if hasattr(each.config, "quantization_config"):
                del each.config.quantization_config


def recorded_option(model: nn.Module, name: str, default: Any) -> Any:
    """Return a field that ``attach_quantizer_`` recorded of the model; ``default`` for other models."""
    for each in _pretrained(model):
        if has_quantizer(each):
            return getattr(each.hf_quantizer.quantization_config, name)
    return default


def has_quantizer(model: Any) -> bool:
    """Whether a Hugging Face model has the quantizer of ``attach_quantizer_``."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer is not None and quantizer.quantization_config.quant_method == METHOD


def _pretrained(model: nn.Module) -> Iterator[Any]:
    """Yield the Hugging Face models in ``model``, without importing transformers for other models."""
    if "transformers" in sys.modules:
        from transformers import PreTrainedModel

        yield from (each for each in model.modules() if isinstance(each, PreTrainedModel))


def _new_quantizer() -> Any:
    """Create the quantizer that ``sparsebert.hf.import_hook`` has registered with transformers."""
    from transformers.quantizers import AutoHfQuantizer

    return AutoHfQuantizer.from_config({"quant_method": METHOD})
