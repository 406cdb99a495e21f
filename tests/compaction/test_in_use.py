"""Compacted models in other people's machinery: compilers, exporters, onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_
from sparsebert.bench.onnx_export import export_module
from tests.compaction.models import ATTEND, FAMILIES, TOKENS, Recipe, model_of, ticket_of

# Ragged heads in two groups, a constant part of value, empty rows and columns.
RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(8,), heads=(), mlp=False, biases=False)


class Answer(nn.Module):
    """The first tensor of a model's answer to two plain arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask=attention_mask).to_tuple()[0]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


# The other families share BERT's layout.
@pytest.fixture(
    params=[
        pytest.param(family, marks=[] if family.startswith(("Bert", "DistilBert")) else pytest.mark.slow)
        for family in FAMILIES
    ]
)
def compacted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Answer:
    monkeypatch.setattr("sparsebert.compaction.heads.DIMENSIONS_OF_A_GROUP", 4)
    model = model_of(request.param, torch.float32)
    return Answer(compact_(model, ticket_of(model, RAGGED))).eval()


def expected(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return model(*inputs)


INPUTS = (TOKENS, ATTEND["padded"])
LONGER = (torch.arange(2, 26).view(3, 8), torch.ones(3, 8, dtype=torch.int64))


def test_compile_without_a_break(compacted: Answer) -> None:
    compiled = torch.compile(compacted, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*INPUTS), expected(compacted, INPUTS))


@pytest.mark.slow
def test_inductor() -> None:
    model = model_of(dtype=torch.float32)
    compacted = Answer(compact_(model, ticket_of(model, RAGGED)))
    compiled = torch.compile(compacted, fullgraph=True)
    for inputs in (INPUTS, LONGER):
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), expected(compacted, inputs))
    compiled(*INPUTS).sum().backward()
    assert all(p.grad is not None for name, p in compacted.named_parameters() if "encoder.layer" in name)


def test_export_with_free_sizes(compacted: Answer) -> None:
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("length", min=2, max=16)
    sizes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    exported = torch.export.export(compacted, INPUTS, dynamic_shapes=sizes)
    for inputs in (INPUTS, LONGER):
        torch.testing.assert_close(exported.module()(*inputs), expected(compacted, inputs))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_onnx(compacted: Answer, tmp_path: Path, implementation: str) -> None:
    """A compacted model is a plain dense one: standard operators, free sizes, the same answers."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model: Any = compacted.model
    model.set_attn_implementation(implementation)
    inputs = dict(zip(("input_ids", "attention_mask"), INPUTS, strict=True))
    path = export_module(compacted, inputs, tmp_path / "compacted.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for tensors in (INPUTS, LONGER):
        feed = {each.name: tensors[0 if "ids" in each.name else 1].numpy() for each in session.get_inputs()}
        (found,) = session.run(None, feed)
        torch.testing.assert_close(
            torch.from_numpy(found), expected(compacted, tensors), atol=1e-5, rtol=1e-5
        )
