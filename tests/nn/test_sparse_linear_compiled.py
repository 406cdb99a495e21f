"""``SparseLinear`` under compilers, exporters and autocast."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from sparsebert.nn.sparse_linear import SparseLinear
from tests.nn.sparse_layers import FORMATS, assert_answers, layer_and_mask, masked


class TestCompilers:
    @pytest.mark.parametrize("format", FORMATS)
    def test_compile_without_a_graph_break(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        torch._dynamo.reset()
        compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for tokens in (3, 5):
            assert_answers(compiled, linear, mask, torch.randn(tokens, 40))

    def test_compile_the_backward_pass(self) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, trainable=True)
        x = torch.randn(3, 40)
        layer(x).square().sum().backward()
        expected, layer.values.grad = layer.values.grad, None
        torch._dynamo.reset()
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
        torch.testing.assert_close(layer.values.grad, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("format", FORMATS)
    def test_compile_with_inductor(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        torch._dynamo.reset()
        compiled: Any = torch.compile(layer, fullgraph=True)
        assert_answers(compiled, linear, mask, torch.randn(3, 40))

    @pytest.mark.parametrize("format", FORMATS)
    def test_export(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        tokens = torch.export.Dim("tokens", min=2, max=64)
        program = torch.export.export(
            layer, (torch.randn(3, 40),), dynamic_shapes=({0: tokens},), strict=False
        )
        assert_answers(program.module(), linear, mask, torch.randn(7, 40))

    @pytest.mark.parametrize("format", ["element", "vector"])
    def test_export_to_a_file(self, format: str) -> None:
        linear, mask = layer_and_mask()
        program = torch.export.export(SparseLinear.from_linear(linear, mask, format), (torch.randn(3, 40),))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        assert_answers(torch.export.load(file).module(), linear, mask, torch.randn(3, 40))

    @pytest.mark.parametrize("format", FORMATS)
    def test_autocast(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        x = torch.randn(3, 40)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = layer(x)
        assert answer.dtype == torch.bfloat16
        torch.testing.assert_close(answer.double(), masked(linear, mask, x), rtol=3e-2, atol=3e-2)
