"""What makes a converted Hugging Face model one that is saved, and pushed to the hub, as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from sparsebert.compaction.manifest import record_of
from sparsebert.nn.sparse_linear import SparseLinear

# The name that folders call this project by, in `quantization_config.quant_method` of their config.json.
METHOD = "sparsebert"


def attach_quantizer_(model: nn.Module, **asked: Any) -> None:
    """Tell each Hugging Face model in ``model`` that is sparse or compacted how it is saved; and one that is
    neither any more to be saved as before.

    ``asked``: fields of `sparsebert.hf.config.SparseConfig` that the layers themselves do not tell, such as
    ``format`` and ``origin``; those that are not given stay as they are known. Other models are left alone,
    and so is one that another quantizer has claimed.
    """
    for each in _pretrained(model):
        quantizer = getattr(each, "hf_quantizer", None)
        if quantizer is not None and quantizer.quantization_config.quant_method != METHOD:
            continue
        if record_of(each) or any(isinstance(module, SparseLinear) for module in each.modules()):
            quantizer = quantizer or _new_quantizer()
            quantizer.quantization_config.update(**asked)
            each.hf_quantizer, each.config.quantization_config = quantizer, quantizer.quantization_config
            each.push_to_hub = quantizer.push_to_hub_of(each)
        elif quantizer is not None:
            for name in ("hf_quantizer", "push_to_hub"):
                vars(each).pop(name, None)
            if hasattr(each.config, "quantization_config"):
                del each.config.quantization_config


def _pretrained(model: nn.Module) -> Iterator[Any]:
    # A model of theirs cannot be here without the library that made it.
    if "transformers" in sys.modules:
        from transformers import PreTrainedModel

        yield from (each for each in model.modules() if isinstance(each, PreTrainedModel))


def _new_quantizer() -> Any:
    """The plug-in that importing sparsebert has registered (`sparsebert.hf`)."""
    from transformers.quantizers import AutoHfQuantizer

    return AutoHfQuantizer.from_config({"quant_method": METHOD})
