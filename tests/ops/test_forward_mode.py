"""Forward-mode derivatives are those of the dense layer, or an error: a kernel would drop the tangent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, vmap

from sparsebert.nn.fused_qkv import fuse_qkv_
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import formats, ops, reference
from sparsebert_kernels.masked import masked_linear, pack_mask
from tests.ops.problem import Problem

FORMATS = [Problem(M=6, N=8, K=20, format=name, activation="gelu", density=0.5) for name in formats.ANY_MASK]


def _tangent_of(x: Tensor, tangent: Tensor, function: Any) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


def _expected(problem: Problem, x: Tensor, tangent: Tensor) -> Tensor:
    """dL/dx applied to the tangent, of the dense layer in float64."""

    def dense(x: Tensor) -> Tensor:
        return reference.linear(x, problem.kept_weight().double(), problem.bias_vector(), problem.activation)

    return jvp(dense, (x.double(),), (tangent.double(),))[1].float()


@pytest.mark.parametrize("problem", FORMATS, ids=str)
class TestEveryFormat:
    @pytest.mark.parametrize("gradients", [True, False], ids=["grad", "no_grad"])
    def test_jvp_and_dual_tensors(self, problem: Problem, gradients: bool) -> None:
        x, tangent, packed, bias = problem.x(), torch.randn(6, 20), problem.packed(), problem.bias_vector()
        expected = _expected(problem, x, tangent)

        def layer(x: Tensor) -> Tensor:
            return ops.linear(x, packed, bias, problem.activation)

        with torch.set_grad_enabled(gradients):
            y, dy = jvp(layer, (x,), (tangent,))
            assert torch.allclose(y, layer(x), atol=1e-5)
            assert torch.allclose(dy, expected, atol=1e-5)
            dual = _tangent_of(x, tangent, layer)
        assert dual is not None
        assert torch.allclose(dual, expected, atol=1e-5)

    def test_jacobians_and_hessians(self, problem: Problem) -> None:
        x, packed, kept = problem.x()[0], problem.packed(), problem.kept_weight()

        def layer(x: Tensor) -> Tensor:
            return ops.linear(x, packed, None, "gelu")

        def dense(x: Tensor) -> Tensor:
            return reference.linear(x, kept, None, "gelu")

        assert torch.allclose(jacfwd(layer)(x), jacrev(dense)(x), atol=1e-5)
        assert torch.allclose(
            hessian(lambda x: layer(x).sum())(x), hessian(lambda x: dense(x).sum())(x), atol=1e-4
        )

    def test_residual_and_shared_calls(self, problem: Problem) -> None:
        x, tangent, packed = problem.x(), torch.randn(6, 20), problem.packed()
        plain = jvp(lambda x: ops.linear(x, packed), (x,), (tangent,))[1]
        residual = torch.randn(6, 8)
        both = jvp(lambda x, r: ops.linear(x, packed, residual=r), (x, residual), (tangent, residual))[1]
        assert torch.allclose(both, plain + residual, atol=1e-5)
        shared = jvp(lambda x: ops.linear_shared(x, [packed, packed], [None, None]), (x,), (tangent,))[1]
        assert torch.allclose(shared[1], plain, atol=1e-5)


@pytest.mark.parametrize("format", ["element", "vector"])
def test_tangents_of_the_parameters_of_a_sparse_layer(format: str) -> None:
    mask = (torch.rand(2, 20) < 0.5).repeat_interleave(4, 0)
    layer = SparseLinear(torch.randn(8, 20), mask, torch.randn(8), format=format, trainable=True)
    x, parameters = torch.randn(6, 20), {name: p.detach() for name, p in layer.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, dy = jvp(lambda p: functional_call(layer, p, (x,)), (parameters,), (tangents,))
    dense_tangent = layer.packed.replace(values=tangents["values"]).to_dense()
    assert torch.allclose(dy, x @ (dense_tangent * mask).T + tangents["bias"], atol=1e-4)


def test_fused_attention() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = (
                SparseLinear(torch.randn(8, 20), torch.rand(8, 20) < 0.5, torch.randn(8)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x) * self.key(x)

    model, x, tangent = Attention(), torch.randn(6, 20), torch.randn(6, 20)
    expected = jvp(lambda x: model(x.double()).float(), (x,), (tangent,))[1]
    fuse_qkv_(model, ("query", "key"))
    torch.set_num_threads(2)
    with torch.no_grad():
        dual = _tangent_of(x, tangent, model)
    assert dual is not None
    assert torch.allclose(dual, expected, atol=1e-4)


class TestMaskedLinear:
    def test_a_fixed_mask(self) -> None:
        x, weight, mask, bias = (
            torch.randn(6, 20),
            torch.randn(8, 20),
            torch.rand(8, 20) < 0.5,
            torch.randn(8),
        )
        weight[~mask] = torch.nan
        words, tangents = pack_mask(mask), (torch.randn(6, 20), torch.randn(8, 20), torch.randn(8))
        _, dy = jvp(lambda x, w, b: masked_linear(x, w, words, b), (x, weight, bias), tangents)
        kept, dx, dw, db = torch.where(mask, weight, 0), *tangents
        assert torch.allclose(dy, dx @ kept.T + x @ (dw * mask).T + db, atol=1e-5)

    @pytest.mark.parametrize("option", [{"scores": torch.ones(8, 20)}, {"straight_through": True}], ids=str)
    def test_straight_through_estimators_are_refused(self, option: dict[str, Any]) -> None:
        weight, words = torch.randn(8, 20), pack_mask(torch.rand(8, 20) < 0.5)
        with pytest.raises(ValueError, match="no forward-mode derivative with scores or straight_through"):
            jvp(
                lambda x: masked_linear(x, weight, words, **option),
                (torch.randn(6, 20),),
                (torch.randn(6, 20),),
            )


class TestOperatorsRefuse:
    def test_a_direct_call(self) -> None:
        problem = FORMATS[0]
        packed = problem.packed()
        index = [tensor for name, tensor in packed.tensors().items() if name != "values"]

        def operator(x: Tensor) -> Tensor:
            return torch.ops.sparsebert.linear(
                x, packed.values, index, None, [], "element", list(packed.geometry().values()), 8, "none"
            )

        with pytest.raises(ValueError, match="sparsebert::linear has no forward-mode derivative"):
            jvp(operator, (problem.x(),), (problem.x(),))
        with pytest.raises(ValueError, match="sparsebert::linear has no forward-mode derivative"):
            _tangent_of(problem.x(), problem.x(), operator)

    def test_a_backward_pass_of_an_earlier_forward_pass(self) -> None:
        problem = FORMATS[0]
        x = problem.x().requires_grad_()
        y = ops.linear(x, problem.packed())
        with (
            forward_ad.dual_level(),
            pytest.raises(ValueError, match="sparsebert::linear_backward has no forward-mode derivative"),
        ):
            torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))

    def test_the_operator_of_masked_linear(self) -> None:
        words = pack_mask(torch.rand(8, 20) < 0.5)
        with pytest.raises(ValueError, match="sparsebert::masked_linear has no forward-mode derivative"):
            jvp(
                lambda x: torch.ops.sparsebert.masked_linear(x, torch.ones(8, 20), words, None, None, False),
                (torch.randn(6, 20),),
                (torch.randn(6, 20),),
            )


def test_jvp_under_vmap_and_compile() -> None:
    layer = SparseLinear(torch.randn(8, 20), torch.rand(8, 20) < 0.5, torch.randn(8))
    x, tangents = torch.randn(6, 20), torch.randn(3, 6, 20)
    dy = vmap(lambda t: jvp(layer, (x,), (t,))[1])(tangents)
    assert torch.allclose(dy, tangents @ layer.weight.T, atol=1e-4)
    compiled = torch.compile(lambda x, t: jvp(layer, (x,), (t,))[1], backend="eager")
    assert torch.allclose(compiled(x, tangents[0]), dy[0], atol=1e-4)
