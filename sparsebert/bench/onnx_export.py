"""Export of the masked dense model as an ONNX graph, for the baselines that read one."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sparsebert.bench.pruned_model import PrunedModel

OPSET = 14


class LastHiddenState(nn.Module):
    """A model as a function of its inputs alone that returns one tensor, for exporters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids, attention_mask=attention_mask, **types).last_hidden_state


def export(pruned: PrunedModel, path: Path) -> Path:
    """Write the model in float32 to ``path``, with free batch size and length, and return ``path``.

    The graph returns the last hidden state, [sequences, tokens, hidden]. Attention is exported as matmul,
    softmax and matmul, which the runtimes fuse.
    """
    model = copy.deepcopy(pruned.model).float()
    model.set_attn_implementation("eager")
    return export_module(LastHiddenState(model), pruned.batches[0], path)


def export_module(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> Path:
    """Write the graph of ``module(*inputs)``; the first two dimensions of inputs and output are free."""
    with torch.inference_mode(), silence():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["answer"],
            dynamic_axes={name: {0: "sequences", 1: "tokens"} for name in (*inputs, "answer")},
            dynamo=False,
        )
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress the warnings and prints of exporters and quantizers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
