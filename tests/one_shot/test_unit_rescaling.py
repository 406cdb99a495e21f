"""Rescaling of Kwon et al. 2022 against a literal numpy transcription of their code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.one_shot.moments import Moments
from sparsebert.one_shot.unit_rescaling import normal_equations, unit_factors

TOKENS, OUT = 60, 40


def case(units: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, inputs of the units, and the dense model's inputs of the same units and residual."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, x = random(OUT, units * width), random(TOKENS, units * width)
    return weight, x, x + 0.4 * random(TOKENS, units * width), 0.3 * random(TOKENS, OUT)


def moments(x: Tensor, dense: Tensor, residual: Tensor | None) -> Moments:
    """Means over the tokens, in float64."""
    with_residual = (
        {}
        if residual is None
        else {
            "residual_second": residual.t() @ x / TOKENS,
            "residual_mean": residual.mean(0),
        }
    )
    return Moments(
        TOKENS, x.t() @ x / TOKENS, x.mean(0), dense.t() @ x / TOKENS, dense.mean(0), **with_residual
    )


def published_heads(
    weight: np.ndarray, x: np.ndarray, b: np.ndarray, kept: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """``get_mha_lstsq`` for one batch: hidden_states x and B."""
    nonzero_heads = kept.nonzero()[0]
    weights_per_head = weight.T.reshape(len(kept), width, OUT)[nonzero_heads]
    hidden_states = x.reshape(-1, len(kept), width).transpose(1, 0, 2)[nonzero_heads]
    outputs_per_head = (hidden_states @ weights_per_head).reshape(len(nonzero_heads), -1)
    a = np.concatenate([outputs_per_head.T, np.ones((TOKENS * OUT, 1))], axis=1)
    return a.T @ a, a.T @ b.flatten()


def published_neurons(
    weight: np.ndarray, x: np.ndarray, b: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``get_ffn_lstsq`` for one batch."""
    nonzero_neurons = kept.nonzero()[0]
    weights_per_neuron = weight.T[nonzero_neurons]
    w = weights_per_neuron @ weights_per_neuron.T
    hidden_states = x.T[nonzero_neurons]
    ata = w * (hidden_states @ hidden_states.T)
    atb = (hidden_states[:, None] @ (weights_per_neuron @ b.T)[:, :, None]).squeeze()
    return ata, np.atleast_1d(atb)


def published_solver(ata: np.ndarray, atb: np.ndarray) -> np.ndarray:
    """``lsmr_cupy_solver``, with scipy's LSMR and the iterations of cupyx's."""
    linalg = pytest.importorskip("scipy.sparse.linalg")
    atb = atb - ata.sum(1)
    if len(atb) == 1:
        return atb / ata[0, 0] + 1
    return linalg.lsmr(ata, atb, damp=1, maxiter=5 * len(atb))[0] + 1


@pytest.mark.parametrize("residual", [True, False])
class TestParity:
    @pytest.mark.parametrize("heads", [[True, False, True, True], [False, True, False]])
    def test_heads(self, heads: list[bool], residual: bool) -> None:
        width, kept = 3, torch.tensor(heads)
        weight, x, dense, lost = case(len(kept), width)
        lost = lost if residual else torch.zeros_like(lost)
        x = x * kept.repeat_interleave(width)
        b = (dense @ weight.t() + lost).numpy()
        ata, atb = published_heads(weight.numpy(), x.numpy(), b, kept.numpy(), width)
        gathered = moments(x, dense, lost if residual else None)
        ours = normal_equations(gathered, weight, kept, offset=True)
        for each, expected in zip(ours, (ata, atb), strict=True):
            np.testing.assert_allclose(each.numpy(), expected, atol=1e-8, rtol=1e-8)
        factors = unit_factors(gathered, weight, kept, offset=True)
        np.testing.assert_allclose(factors.numpy(), published_solver(ata, atb)[:-1], atol=1e-8, rtol=1e-8)

    @pytest.mark.parametrize("neurons", [9, 1])
    def test_neurons(self, neurons: int, residual: bool) -> None:
        kept = torch.arange(11) < neurons
        weight, x, dense, lost = case(11, 1)
        lost = lost if residual else torch.zeros_like(lost)
        x = x * kept
        b = (dense @ weight.t() + lost).numpy()
        ata, atb = published_neurons(weight.numpy(), x.numpy(), b, kept.numpy())
        gathered = moments(x, dense, lost if residual else None)
        equations, target = normal_equations(gathered, weight, kept)
        np.testing.assert_allclose(equations.numpy(), np.reshape(ata, equations.shape), atol=1e-8, rtol=1e-8)
        np.testing.assert_allclose(target.numpy(), atb, atol=1e-8, rtol=1e-8)
        factors = unit_factors(gathered, weight, kept)
        np.testing.assert_allclose(factors.numpy(), published_solver(ata, atb), atol=1e-8, rtol=1e-8)


ALL = torch.ones(5, dtype=torch.bool)


def test_what_the_pruned_model_scaled_is_scaled_back() -> None:
    weight, x, _, _ = case(5, 3)
    wrong = torch.tensor([0.5, 2.0, 1.0, 0.8, 1.25], dtype=torch.float64)
    factors = unit_factors(moments(x * wrong.repeat_interleave(3), x, None), weight, ALL, damping=0.0)
    torch.testing.assert_close(factors, 1 / wrong, rtol=1e-5, atol=1e-5)


def test_equal_models_need_no_factors() -> None:
    weight, x, _, _ = case(5, 3)
    factors = unit_factors(moments(x, x, None), weight, ALL, offset=True)
    torch.testing.assert_close(factors, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_unit_that_is_always_0_has_no_factor() -> None:
    weight, x, dense, lost = case(1, 6)
    assert unit_factors(moments(torch.zeros_like(x), dense, lost), weight, ALL[:1]) is None
