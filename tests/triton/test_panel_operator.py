"""``sparsebert::linear`` over packed panels as torch sees it: registration, autocast, compile, export."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from sparsebert_kernels import ops
from sparsebert_kernels.cuda import backend, panel_forward, tile_configs
from sparsebert_kernels.cuda.tile_rule import Configuration
from sparsebert_kernels.formats import PanelSparse
from sparsebert_kernels.formats.transpose import transposed_index
from tests.triton.panels import BF16, FP16, FP32, PanelProblem, leaf

PROBLEMS = [
    PanelProblem(M=9, h=16, g=8, N=40, activation="gelu", dtype=dtype, residual=residual)
    for dtype, residual in ((FP32, False), (FP32, True), (FP16, True))
]


class Layer(nn.Module):
    """The least module around ``ops.block_sparse_linear``."""

    def __init__(self, problem: PanelProblem, device: torch.device) -> None:
        super().__init__()
        packed = problem.packed(device)
        self.shape, self.geometry, self.activation = packed.shape, packed.geometry(), problem.activation
        for name, tensor in packed.tensors().items():
            self.register_buffer(name, tensor)
        bias = problem.bias_vector()
        assert bias is not None
        self.bias = nn.Parameter(bias.to(device))

    def forward(self, x: Tensor) -> Tensor:
        tensors: dict[str, Any] = {name: getattr(self, name) for name in PanelSparse.TENSORS}
        packed = PanelSparse(self.shape, tensors, self.geometry)
        return ops.block_sparse_linear(x, packed, self.bias, self.activation)


@pytest.fixture(params=PROBLEMS, ids=str)
def problem(request: pytest.FixtureRequest) -> PanelProblem:
    return request.param


class TestRegistration:
    @pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
    def test_opcheck(self, problem: PanelProblem, gradients: bool, device: torch.device) -> None:
        packed, bias, residual = problem.packed(device), problem.bias_vector(), problem.residual_matrix()
        arguments = (
            problem.x().to(device).requires_grad_(gradients),
            packed.values.clone().requires_grad_(gradients),
            [packed.columns, packed.starts, packed.order],
            None if bias is None else bias.to(device).requires_grad_(gradients),
            transposed_index(packed) if gradients else [],
            "panel",
            [int(value) for value in packed.geometry().values()],
            problem.N,
            problem.activation,
            None if residual is None else residual.to(device).requires_grad_(gradients),
        )
        torch.library.opcheck(torch.ops.sparsebert.linear, arguments)

    def test_opcheck_of_the_gradient(self, problem: PanelProblem, device: torch.device) -> None:
        packed = problem.packed(device)
        tensors = problem.gradient().to(device), problem.x().to(device), packed.values
        index, transposed = [packed.columns, packed.starts, packed.order], transposed_index(packed)
        geometry = [int(value) for value in packed.geometry().values()]
        some = ((True, False), (False, True)) if problem == PROBLEMS[0] else ()
        for needs in ((True, True), *some):
            torch.library.opcheck(
                torch.ops.sparsebert.linear_backward, (*tensors, index, transposed, "panel", geometry, *needs)
            )

    @pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision:UserWarning")
    @pytest.mark.parametrize("activation", ["none", "gelu", "tanh"])
    def test_gradcheck(self, activation: str, device: torch.device) -> None:
        """In float32: wide steps, which a linear function does not mind, and wide tolerances."""
        problem = PanelProblem(M=3, h=16, g=8, N=40, K=50)
        packed = problem.packed(device)
        step = 1e-1 if activation == "none" else 1e-2

        def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
            return ops.block_sparse_linear(x, packed.replace(values=values), bias, activation)

        real = packed.values != 0  # what only fills up has no gradient
        inputs = [leaf(t, device) for t in (problem.x(), packed.values, problem.bias_vector())]
        assert torch.autograd.gradcheck(
            lambda x, values, bias: function(x, torch.where(real, values, 0), bias),
            inputs, eps=step, atol=2e-2, rtol=2e-2, nondet_tol=0.0, fast_mode=True,
        )  # fmt: skip

    def test_only_requested_ones_are_computed(self, device: torch.device) -> None:
        problem = PanelProblem(M=3, h=16, g=8, N=40, residual=True)
        for requested in range(4):
            packed = problem.packed(device)
            leaves = [problem.x(), packed.values, problem.bias_vector(), problem.residual_matrix()]
            leaves = [leaf(t, device) for t in leaves]
            for i, tensor in enumerate(leaves):
                tensor.requires_grad_(i == requested)  # type: ignore[union-attr]
            x, values, bias, residual = leaves
            assert x is not None
            assert values is not None
            weight = packed.replace(values=values)
            ops.block_sparse_linear(x, weight, bias, "gelu", residual).sum().backward()
            assert [t.grad is not None for t in leaves] == [i == requested for i in range(4)]  # type: ignore[union-attr]


class TestAutocast:
    def test_computes_in_autocasts_dtype_and_keeps_gradients_in_the_weights(
        self, device: torch.device
    ) -> None:
        problem = PanelProblem(M=9, h=16, g=8, N=40, residual=True)
        packed, x = problem.packed(device), leaf(problem.x(), device)
        values, residual = leaf(packed.values, device), problem.residual_matrix()
        assert values is not None
        assert x is not None
        assert residual is not None
        with torch.autocast(device.type, BF16):
            answer = ops.block_sparse_linear(
                x, packed.replace(values=values), None, "gelu", residual.to(device)
            )
        assert answer.dtype == BF16
        cast = replace(problem, dtype=BF16)
        weight = packed.replace(values=packed.values.bfloat16())
        expected = ops.block_sparse_linear(
            cast.x().to(device), weight, None, "gelu", residual.to(device, BF16)
        )
        assert torch.equal(answer, expected)
        answer.backward(torch.ones_like(answer))
        for tensor in (x, values):
            assert tensor.grad is not None
            assert tensor.grad.dtype == FP32

    def test_leaves_float64_to_the_dense_matrix(self, device: torch.device) -> None:
        problem = PanelProblem(M=9)
        x = problem.x().to(device).double()
        with torch.autocast(device.type, BF16):
            answer = ops.linear(x, problem.packed(device))
        exact = problem.x().double() @ problem.kept_weight().double().t()
        torch.testing.assert_close(answer.cpu(), exact, rtol=1e-12, atol=1e-12)


class TestCompile:
    @pytest.fixture(autouse=True)
    def _afresh(self) -> Iterator[None]:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    def test_without_a_graph_break(self, problem: PanelProblem, device: torch.device) -> None:
        layer, x = Layer(problem, device), problem.x().to(device)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x))

    def test_gradients(self, device: torch.device) -> None:
        layer = Layer(PROBLEMS[0], device)
        gradients = []
        for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            layer.zero_grad()
            x = leaf(PROBLEMS[0].x(), device)
            assert x is not None
            function(x).backward(PROBLEMS[0].gradient().to(device))
            assert x.grad is not None
            assert layer.bias.grad is not None
            gradients.append((x.grad, layer.bias.grad.clone()))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    def test_any_number_of_tokens_without_a_recompilation(self, device: torch.device) -> None:
        layer = Layer(PROBLEMS[0], device)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            compiled(PROBLEMS[0].x().to(device))
            with torch._dynamo.config.patch(error_on_recompile=True):
                for tokens in (2, 33, 100):
                    x = replace(PROBLEMS[0], M=tokens).x().to(device)
                    assert torch.equal(compiled(x), layer(x))

    @pytest.mark.slow
    def test_inductor(self, device: torch.device) -> None:
        layer, x = Layer(PROBLEMS[0], device), PROBLEMS[0].x().to(device)
        with torch.no_grad():
            assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_export_round_trip_with_any_number_of_tokens(device: torch.device) -> None:
    layer = Layer(PROBLEMS[0], device).requires_grad_(False)
    shapes = ({0: torch.export.Dim("tokens")},)
    program = torch.export.export(layer, (PROBLEMS[0].x().to(device),), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for tokens in (2, 9, 100):
        x = replace(PROBLEMS[0], M=tokens).x().to(device)
        assert torch.equal(loaded(x), layer(x))


class TestWithoutKernels:
    def test_a_gpu_that_is_too_old_computes_through_the_dense_matrix_and_says_so_once(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend, "why_unavailable", lambda device: "it has compute capability 7.5")
        backend._warn_once.cache_clear()
        problem = PanelProblem(M=9, dtype=FP32)
        x, packed = leaf(problem.x(), device), problem.packed(device)
        assert x is not None
        packed = packed.replace(values=packed.values.clone().requires_grad_())
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(2):
                y = ops.block_sparse_linear(x, packed, None, "gelu")
                y.backward(problem.gradient().to(device))
        backend._warn_once.cache_clear()
        (message,) = (str(each.message) for each in seen if each.category is UserWarning)
        assert "use dense weights" in message
        assert "capability 7.5" in message
        exact = torch.nn.functional.gelu(problem.x() @ problem.kept_weight().t())
        torch.testing.assert_close(y.detach().cpu(), exact)

    def test_a_cpu_computes_through_the_dense_matrix_and_trains(self) -> None:
        problem, cpu = PanelProblem(M=9, dtype=BF16), torch.device("cpu")
        assert not backend.covers("panel", cpu)
        packed, x = problem.packed(cpu), leaf(problem.x(), cpu, FP32)
        assert x is not None
        packed = packed.replace(values=packed.values.clone().requires_grad_())
        y = ops.block_sparse_linear(x, packed)
        y.sum().backward()
        torch.testing.assert_close(y, x @ problem.kept_weight().float().t())
        assert packed.values.grad is not None
        gradient = packed.replace(values=packed.values.grad).to_dense().float()
        expected = torch.where(problem.mask(), x.detach().sum(0), 0)
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)


class TestRepeatedCalls:
    """After its first call, a weight has a shorter way to the kernel, for readable arguments."""

    @pytest.fixture
    def packed(self, device: torch.device) -> PanelSparse:
        packed = PanelSparse.from_dense(torch.randn(32, 64).to(device), block_size=(16, 16))
        ops.linear(torch.ones(1, 64, device=device), packed)
        assert packed.quick_call is not None
        return packed

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x,
            lambda x: x[None],
            lambda x: x[:1].expand(6, 64),
            lambda x: x.t().contiguous().t(),
            lambda x: x.repeat(1, 2)[:, 1:65],
            lambda x: x[:, None].transpose(0, 1),
            lambda x: x[0],
            lambda x: x[:0],
        ],
    )
    def test_answer_as_the_first_does(
        self, packed: PanelSparse, device: torch.device, view: Callable[[Tensor], Tensor]
    ) -> None:
        x, bias = view(torch.randn(6, 64).to(device)), torch.randn(64).to(device)[::2]
        first = ops.linear(x, packed.replace(), bias, "gelu")
        assert torch.equal(ops.linear(x, packed, bias, "gelu"), first)
        residual = torch.randn(32, *first.shape[:-1]).to(device).movedim(0, -1)
        again = ops.linear(x, packed.replace(), bias, "gelu", residual=residual)
        assert torch.equal(ops.linear(x, packed, bias, "gelu", residual=residual), again)

    @pytest.mark.parametrize(
        ("message", "arguments"),
        [
            ("last dimension must be 64", {"x": torch.ones(6, 32)}),
            ("x is torch.bfloat16, the weight torch.float32", {"x": torch.ones(6, 64).bfloat16()}),
            ("bias has shape", {"bias": torch.ones(31)}),
            ("residual is", {"residual": torch.ones(6, 31)}),
            ("activation", {"activation": "swish"}),
        ],
    )
    def test_refuse_what_the_first_refuses(
        self, packed: PanelSparse, device: torch.device, message: str, arguments: dict[str, Any]
    ) -> None:
        on_device = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in {"x": torch.ones(6, 64), **arguments}.items()
        }
        with pytest.raises(ValueError, match=message):
            ops.linear(on_device.pop("x"), packed, **on_device)

    def test_read_a_bias_whose_data_is_replaced(self, packed: PanelSparse, device: torch.device) -> None:
        x, bias = torch.ones(6, 64, device=device), torch.nn.Parameter(torch.zeros(32, device=device))
        before = ops.linear(x, packed, bias)
        bias.data = torch.ones(32, device=device)
        torch.testing.assert_close(ops.linear(x, packed, bias), before + 1)

    def test_leave_the_weight_to_be_freed_with_its_last_reference(self, device: torch.device) -> None:
        packed = PanelSparse.from_dense(torch.randn(32, 64).to(device), block_size=(16, 16))
        ops.linear(torch.ones(1, 64, device=device), packed)
        alive = weakref.ref(packed)
        del packed
        assert alive() is None

    def test_launch_the_configuration_in_force(
        self, packed: PanelSparse, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launched: list[Configuration] = []
        launch = panel_forward._launch

        def recorded(*arguments: Any) -> None:
            launched.append(arguments[6])
            launch(*arguments)

        monkeypatch.setattr(panel_forward, "_launch", recorded)
        x = torch.ones(6, 64, device=device)
        first, second = Configuration(64, 8, 4, 2), Configuration(128, 8, 4, 2)
        for config in (first, first, second, second, first):
            with tile_configs.forced(config):
                ops.linear(x, packed)
        ops.linear(x, packed.replace())
        ops.linear(x, packed)
        assert launched == [first, first, second, second, first, launched[-1], launched[-1]]

    def test_leave_nothing_in_copies_and_hold_no_bias(
        self, packed: PanelSparse, device: torch.device
    ) -> None:
        x, bias = torch.ones(6, 64, device=device), torch.zeros(32, device=device, requires_grad=True) * 2
        answer, alive = ops.linear(x, packed, bias), weakref.ref(bias)
        for other in (copy.deepcopy(packed), copy.copy(packed), pickle.loads(pickle.dumps(packed))):
            assert other.quick_call is None
            assert torch.equal(ops.linear(x, other, bias), answer)
        assert packed.quick_call is not None
        del answer, bias
        assert alive() is None

    def test_without_kernels_use_torch(self, device: torch.device) -> None:
        if device.type == "cuda":
            pytest.skip("a weight on a GPU always has kernels")
        packed = PanelSparse.from_dense(torch.randn(32, 64), block_size=(16, 16))
        x = torch.randn(6, 64)
        ops.linear(x, packed)
        assert backend.quick_call(x, packed, None, "none", None) is not None
        with mock.patch.object(backend, "_cpu_too", False):
            assert backend.quick_call(x, packed, None, "none", None) is None
