"""``sparsebert::linear`` as torch sees it: registration, autograd, compile and export."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import formats, ops
from sparsebert_kernels.formats.transpose import transposed_index
from tests.ops.problem import Layer, Problem, gradient_of

FP32 = [Problem(M=9, format=name, activation="gelu") for name in formats.ANY_MASK]
BF16 = [replace(problem, dtype=torch.bfloat16) for problem in FP32]
TRAINABLE = [p for p in (*FP32, *BF16) if formats.FORMATS[p.format] in ops.TRAINABLE]


def _arguments(problem: Problem, *, gradients: bool) -> tuple[Any, ...]:
    """Of the operator behind ``ops.linear``."""
    packed = problem.packed()
    trainable = isinstance(packed, formats.ElementSparse | formats.VectorSparse)
    bias = problem.bias_vector()
    assert bias is not None
    return (
        problem.x().requires_grad_(gradients),
        packed.values.clone().requires_grad_(gradients) if trainable else packed.values,
        [tensor for name, tensor in packed.tensors().items() if name != "values"],
        bias.requires_grad_(gradients),
        transposed_index(packed) if trainable and gradients else [],  # type: ignore[arg-type]
        problem.format,
        [int(value) for value in packed.geometry().values()],
        problem.N,
        problem.activation,
    )


class TestRegistration:
    @pytest.mark.parametrize(
        ("problem", "gradients"), [*((p, True) for p in FP32), *((p, False) for p in BF16)], ids=str
    )
    def test_opcheck(self, problem: Problem, gradients: bool) -> None:
        arguments = _arguments(problem, gradients=gradients)
        if arguments[1].is_mkldnn:
            # opcheck copies its arguments in a way that opaque tensors do not allow.
            arguments = (arguments[0], arguments[1].to_dense(), *arguments[2:])
        torch.library.opcheck(torch.ops.sparsebert.linear, arguments)

    @pytest.mark.parametrize("problem", TRAINABLE, ids=str)
    def test_opcheck_of_the_gradient(self, problem: Problem) -> None:
        x, values, index, _, transposed, name, geometry, *_ = _arguments(problem, gradients=True)
        tensors = (problem.gradient(), x.detach(), values.detach(), index, transposed)
        some = ((True, False), (False, True)) if problem.dtype == torch.float32 else ()
        for needs in ((True, True), *some):
            torch.library.opcheck(torch.ops.sparsebert.linear_backward, (*tensors, name, geometry, *needs))


class TestGradients:
    @pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision:UserWarning")
    @pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
    @pytest.mark.parametrize("problem", [p for p in TRAINABLE if p.dtype == torch.float32], ids=str)
    def test_gradcheck(self, problem: Problem, activation: str, backend: str) -> None:
        """In float32: wide steps, which a linear function does not mind, and wide tolerances."""
        packed, bias = problem.packed(), problem.bias_vector()
        transposed = transposed_index(packed)  # type: ignore[arg-type]
        step = 1e-1 if activation == "none" else 1e-2

        def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
            return ops.linear(x, packed.replace(values=values), bias, activation, transposed)

        assert bias is not None
        inputs = [tensor.requires_grad_() for tensor in (problem.x(), packed.values.clone(), bias)]
        assert torch.autograd.gradcheck(
            function, inputs, eps=step, atol=2e-2, rtol=2e-2, nondet_tol=0.0, fast_mode=True
        )

    @pytest.mark.parametrize("problem", FP32, ids=str)
    def test_gradcheck_in_float64(self, problem: Problem) -> None:
        packed, bias = problem.packed(), problem.bias_vector()
        assert bias is not None
        inputs = problem.x().double().requires_grad_(), bias.double().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, b: ops.linear(x, packed, b, "gelu"), inputs, fast_mode=True, nondet_tol=1e-12
        )

    @pytest.mark.parametrize("problem", TRAINABLE, ids=str)
    def test_a_kept_transposed_index_changes_nothing(self, problem: Problem, backend: str) -> None:
        packed = problem.packed()
        gradients = []
        for transposed in ([], transposed_index(packed)):  # type: ignore[arg-type]
            x = problem.x().requires_grad_()
            ops.linear(x, packed, None, problem.activation, transposed).backward(problem.gradient())
            gradients.append(gradient_of(x))
        assert torch.equal(*gradients)

    @pytest.mark.parametrize("problem", TRAINABLE, ids=str)
    def test_only_requested_ones_are_computed(self, problem: Problem) -> None:
        for requested in range(3):
            packed, bias = problem.packed(), problem.bias_vector()
            assert bias is not None
            leaves = [problem.x(), packed.values.clone(), bias]
            leaves[requested].requires_grad_()
            x, values, bias = leaves
            ops.linear(x, packed.replace(values=values), bias, problem.activation).sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == requested for i in range(3)]


# Compilers and exporters reject the opaque tensors of oneDNN, which the other formats hold.
PLAIN = [p for p in FP32 if p.format in ("element", "vector", "csr")]
PLAIN += [p for p in BF16 if p.format == "element"]


class TestCompile:
    @pytest.mark.parametrize("problem", PLAIN, ids=str)
    def test_without_a_graph_break(self, problem: Problem) -> None:
        torch.compiler.reset()
        layer, x = Layer(problem), problem.x()
        with torch.no_grad():
            expected = layer(x)
            assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)

    @pytest.mark.parametrize("problem", PLAIN, ids=str)
    def test_gradients(self, problem: Problem) -> None:
        torch.compiler.reset()
        layer = Layer(problem)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        gradients = []
        for function in (layer, compiled):
            layer.zero_grad()
            x = problem.x().requires_grad_()
            function(x).backward(problem.gradient())
            assert layer.bias is not None
            gradients.append((gradient_of(x), gradient_of(layer.bias)))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    @pytest.mark.parametrize("problem", PLAIN, ids=str)
    def test_any_number_of_tokens_without_a_recompilation(self, problem: Problem) -> None:
        torch.compiler.reset()
        layer = Layer(problem)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            compiled(problem.x())
            with torch._dynamo.config.patch(error_on_recompile=True):
                for tokens in (2, 33, 100):
                    x = replace(problem, M=tokens).x()
                    assert torch.equal(compiled(x), layer(x))

    @pytest.mark.slow
    @pytest.mark.parametrize("problem", PLAIN, ids=str)
    def test_inductor(self, problem: Problem) -> None:
        torch.compiler.reset()
        layer = Layer(problem)
        (y, gradient), (expected, expected_gradient) = (
            self._answer_and_gradient(function, problem)
            for function in (torch.compile(layer, fullgraph=True), layer)
        )
        assert torch.equal(y, expected)
        torch.testing.assert_close(gradient, expected_gradient)  # the derivative of GELU is compiled as well

    @staticmethod
    def _answer_and_gradient(function: Callable[[Tensor], Tensor], problem: Problem) -> tuple[Tensor, Tensor]:
        x = problem.x().requires_grad_()
        y = function(x * 2)
        y.backward(problem.gradient())
        return y.detach(), gradient_of(x)


class TestExport:
    @pytest.mark.parametrize("problem", PLAIN, ids=str)
    def test_round_trip_with_any_number_of_tokens(self, problem: Problem) -> None:
        layer = Layer(problem).requires_grad_(False)
        shapes = ({0: torch.export.Dim("tokens")},)
        program = torch.export.export(layer, (problem.x(),), dynamic_shapes=shapes)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for tokens in (2, 9, 100):
            x = replace(problem, M=tokens).x()
            assert torch.equal(loaded(x), layer(x))
