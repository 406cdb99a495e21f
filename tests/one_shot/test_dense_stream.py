"""The dense model shows its activations stage by stage, from one pass; outputs that are final are read."""

from __future__ import annotations

import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.one_shot.calibration import Residuals, TokenFilter
from sparsebert.one_shot.dense_stream import DenseStream
from sparsebert.one_shot.segments import segments_of
from tests.one_shot.test_prune_in_place import STAGES, batches, bert, inputs_of


@torch.no_grad()
@pytest.mark.parametrize("with_residuals", [True, False])
def test_a_stage_shows_its_inputs_or_the_narrower_outputs(with_residuals):
    model, data = bert(), batches(3)
    tokens = TokenFilter(data)
    first, second = segments_of(model, structure(model).linears, data)
    stream = DenseStream(first, tokens, Residuals(model) if with_residuals else None)
    for index, segment in enumerate((first, second)):
        if index:
            stream.follow(segment)
        layer = model.encoder.layer[index]
        for keys, names in zip(segment.stages, STAGES, strict=True):
            shown = stream.of(keys)
            inputs = inputs_of(layer.get_submodule(names[0]), model, data).float()
            if with_residuals and names[0].endswith("output.dense"):
                assert shown.inputs is None
                expected = layer.get_submodule(names[0])(inputs)
                torch.testing.assert_close(torch.cat(shown.outputs), expected, rtol=1e-4, atol=1e-4)
            else:
                assert shown.outputs is None
                torch.testing.assert_close(torch.cat(shown.inputs), inputs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_final_matrix_is_not_computed_again():
    model, data = bert(), batches(2)
    segment, _ = segments_of(model, structure(model).linears, data)
    queries = segment.stages[0]
    segment = segment.with_final(queries)
    expected = list(segment.outputs())
    for key in queries:
        resolve(model, key).weight.zero_()
    for got, states in zip(segment.outputs(), expected, strict=True):
        assert torch.equal(got, states)
    assert not torch.equal(next(segments_of(model, structure(model).linears, data)[0].outputs()), expected[0])


@torch.no_grad()
def test_a_module_that_changes_its_activations_in_place_is_shown_as_it_was():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            y = self.first(x)
            z = self.second(y)
            y.add_(1)
            return z.mul_(2) + y

    class Stack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([InPlace(), InPlace()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model, data = Stack(), [{"x": torch.randn(4, 8)}, {"x": torch.randn(2, 8)}]
    keys = [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("first", "second")]
    segment, _ = segments_of(model, keys, data)
    expected = list(segment.outputs())
    between = [model.layers[0].first(batch["x"]) for batch in data]
    for seen, inputs in zip(segment.passes(inputs=["layers.0.second"]), between, strict=True):
        assert torch.equal(seen.inputs["layers.0.second"], inputs)
    segment = segment.with_final(["layers.0.first", "layers.0.second"])
    for _ in range(3):
        assert all(map(torch.equal, segment.outputs(), expected))
