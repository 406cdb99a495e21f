"""Moments of inputs, and the least-squares problems that they pose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsebert.one_shot.moments import Moments

TOKENS, IN, OUT = 400, 6, 4


@pytest.fixture
def streams():
    """x (pruned model), y (dense model) and r (lost by the residual connection), in two batches each."""
    x = torch.randn(TOKENS, IN) + 0.5
    y = x + 0.3 * torch.randn(TOKENS, IN)
    r = torch.randn(TOKENS, OUT) * 0.2 + 0.1
    return x, y, r


def in_batches(states):
    return [states[:150], states[150:]]


def test_as_published_the_hessian_is_that_of_the_squared_error(streams):
    x, _, _ = streams
    weight = torch.randn(OUT, IN, dtype=torch.float64)
    problem = Moments.of(in_batches(x)).problem("key", weight, has_bias=True)
    x = x.double().numpy()
    np.testing.assert_allclose(problem.hessian, 2 * x.T @ x / TOKENS, rtol=1e-5)
    assert torch.equal(problem.weight, weight)
    assert problem.tokens == TOKENS


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_weights_to_prune_are_the_least_squares_solution(streams, has_bias, has_residual):
    x, y, r = streams
    weight, bias = torch.randn(OUT, IN, dtype=torch.float64), torch.randn(OUT, dtype=torch.float64)
    moments = Moments.of(in_batches(x), in_batches(y), in_batches(r) if has_residual else None)
    problem = moments.problem("key", weight, has_bias)

    # min |W y + r - V x - c|^2 + pull |V - W|^2, solved by stacking rows; c only where there is a bias.
    x, y, r = (states.double().numpy() for states in (x, y, r))
    wanted = y @ weight.numpy().T + (r if has_residual else 0)
    if has_bias:
        x, wanted = x - x.mean(0), wanted - wanted.mean(0)
    pull = 0.01 * np.trace(x.T @ x) / IN
    design = np.vstack([x, np.sqrt(pull) * np.eye(IN)])
    aim = np.vstack([wanted, np.sqrt(pull) * weight.numpy().T])
    expected = np.linalg.lstsq(design, aim, rcond=None)[0].T
    np.testing.assert_allclose(problem.weight, expected, rtol=1e-4, atol=1e-5)

    if has_bias:
        pruned = torch.randn(OUT, IN, dtype=torch.float64)
        means = streams[0].double().mean(0), streams[1].double().mean(0), streams[2].double().mean(0)
        outputs = weight @ means[1] + bias + (means[2] if has_residual else 0)
        got = pruned @ means[0] + moments.bias(bias, weight, pruned)
        torch.testing.assert_close(got, outputs, rtol=1e-5, atol=1e-5)


def test_where_nothing_was_pruned_before_the_weights_to_prune_are_the_dense_ones(streams):
    x, _, _ = streams
    weight = torch.randn(OUT, IN, dtype=torch.float64)
    moments = Moments.of(in_batches(x), in_batches(x), in_batches(torch.zeros(TOKENS, OUT)))
    torch.testing.assert_close(moments.problem("key", weight, True).weight, weight, rtol=1e-5, atol=1e-6)
