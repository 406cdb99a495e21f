"""``SparseLinear`` under the transforms of ``torch.func``: as ``nn.Linear`` of the same values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from sparsebert import prune, sparsify_
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import formats

ROWS, COLUMNS = 16, 32
STORED = {"2:4": torch.bfloat16}


def layers(format: str, trainable: bool = False) -> tuple[SparseLinear, nn.Linear]:
    """A sparse layer of whole vectors and panels, which every format stores, and the masked dense layer."""
    torch.manual_seed(0)
    dense = nn.Linear(COLUMNS, ROWS)
    mask = torch.rand(1, COLUMNS).argsort(1) % 4 < 2
    mask = (
        torch.ones(ROWS, 1, dtype=torch.bool) * (torch.arange(COLUMNS) % 4 < 2) if format == "2:4" else mask
    )
    mask = mask.expand(ROWS, COLUMNS).contiguous()
    dense.to(STORED.get(format, torch.float32))
    sparse = SparseLinear.from_linear(dense, mask, format, trainable=trainable)
    with torch.no_grad():
        dense.weight.masked_fill_(~mask, 0)
    return sparse, dense


@pytest.mark.parametrize("format", formats.FORMATS)
def test_every_format(format: str) -> None:
    try:
        sparse, dense = layers(format)
    except ValueError as error:
        pytest.skip(str(error))
    x = torch.randn(3, 5, COLUMNS).to(dense.weight.dtype)
    close = {"rtol": 2e-2, "atol": 2e-2} if format == "2:4" else {"rtol": 1e-5, "atol": 1e-5}

    def loss(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).square().sum()

    for no_grad in (True, False):
        with torch.set_grad_enabled(not no_grad):
            for got, right in (
                (vmap(sparse)(x), dense(x)),
                (vmap(sparse, in_dims=1, out_dims=1)(x), dense(x)),
                (vmap(vmap(sparse))(x), dense(x)),
                (jacrev(sparse)(x[0, 0]), dense.weight),
                (jacfwd(sparse)(x[0, 0]), dense.weight),
                (vmap(grad(lambda x: loss(sparse, x)))(x), grad(lambda x: loss(dense, x))(x)),
            ):
                torch.testing.assert_close(got, right, check_dtype=False, **close)


@pytest.mark.parametrize("format", ["element", "vector", "panel"])
def test_gradients_of_kept_weights(format: str) -> None:
    """Gradients per example, as differentially private training takes them."""
    try:
        sparse, dense = layers(format, trainable=True)
    except ValueError as error:
        pytest.skip(str(error))
    x = torch.randn(6, COLUMNS)

    def gradients(layer: nn.Module) -> dict[str, Tensor]:
        parameters = {name: each.detach() for name, each in layer.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(layer, parameters, (x,)).square().sum()

        return vmap(grad(loss), in_dims=(None, 0))(parameters, x)

    of_sparse, of_dense = gradients(sparse), gradients(dense)
    torch.testing.assert_close(of_sparse["bias"], of_dense["bias"])
    kept = of_dense["weight"].square().sum((1, 2)) - (
        of_dense["weight"].masked_fill(dense.weight != 0, 0).square().sum((1, 2))
    )
    torch.testing.assert_close(of_sparse["values"].square().flatten(1).sum(1), kept)


def test_an_ensemble_of_a_sparse_model() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(2, 7, 8)
    sparsify_(model, prune(model, sparsity=0.5), format="element")
    torch.testing.assert_close(vmap(model)(x), model(x))
