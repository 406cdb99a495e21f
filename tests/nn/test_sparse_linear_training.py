"""A trainable ``SparseLinear``: gradients of the masked dense layer, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsebert.nn.sparse_linear import SparseLinear
from tests.nn.sparse_layers import DTYPES, assert_answers, layer_and_mask


class TestTraining:
    @pytest.mark.parametrize(("format", "height"), [("element", 1), ("vector", 4)])
    def test_gives_the_gradients_of_the_masked_dense_layer(self, format: str, height: int) -> None:
        linear, mask = layer_and_mask(height=height)
        layer = SparseLinear.from_linear(linear, mask, format, trainable=True)
        x, target = torch.randn(2, 5, 40, requires_grad=True), torch.randn(2, 5, 24)
        (layer(x) * target).sum().backward()
        own_x, own_bias = x.grad, layer.bias.grad
        own_weight = layer.packed.replace(values=layer.values.grad).to_dense()

        x.grad = linear.bias.grad = None
        weight = torch.where(mask, linear.weight.detach(), 0).requires_grad_()
        (nn.functional.linear(x, weight, linear.bias) * target).sum().backward()
        torch.testing.assert_close(own_x, x.grad)
        torch.testing.assert_close(own_weight, weight.grad * mask)
        torch.testing.assert_close(own_bias, linear.bias.grad)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("format", "height"), [("element", 1), ("vector", 2)])
    def test_learns_within_the_mask(self, format: str, height: int, dtype: torch.dtype) -> None:
        linear, mask = layer_and_mask(height=height)
        options = {} if format == "element" else {"vector_rows": height}
        layer = SparseLinear.from_linear(linear.to(dtype), mask, format, trainable=True, **options)
        target = torch.where(mask, torch.randn(24, 40), 0).to(dtype)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
        x = torch.randn(256, 40, dtype=dtype)
        losses = []
        for _ in range(60):
            loss = (layer(x) - x @ target.t()).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]
        assert not layer.weight[~mask].any()

    def test_is_possible_through_the_dense_weight_as_well(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), trainable=True)
        layer.weight.square().sum().backward()
        grown = layer.packed.replace(values=layer.values.grad).to_dense()
        torch.testing.assert_close(grown, 2 * layer.weight.detach())

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_goes_on_after_a_change_of_dtype(self, dtype: torch.dtype) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, trainable=True)
        layer(torch.randn(3, 40)).sum().backward()
        gradient = layer.packed.replace(values=layer.values.grad).to_dense()
        values = layer.values
        layer.to(dtype)
        assert layer.values is values
        assert_answers(layer, linear.to(dtype), mask, torch.randn(3, 40, dtype=dtype))
        kept = layer.packed.replace(values=layer.values.grad).to_dense()
        torch.testing.assert_close(kept.float(), gradient, rtol=0.01, atol=0.01)
        layer(torch.randn(3, 40, dtype=dtype)).sum().backward()
        assert values.grad.isfinite().all()

    @pytest.mark.parametrize("format", ["dense", "compact", "csr"])
    def test_is_refused_in_other_formats(self, format: str) -> None:
        with pytest.raises(ValueError, match="these can: element, vector"):
            SparseLinear.from_linear(*layer_and_mask(), format, trainable=True)

    def test_is_refused_where_vectors_hold_pruned_weights(self) -> None:
        with pytest.raises(ValueError, match="does not consist of whole vectors"):
            SparseLinear.from_linear(*layer_and_mask(), "vector", trainable=True)

    def test_is_refused_in_float64(self) -> None:
        linear, mask = layer_and_mask()
        with pytest.raises(ValueError, match="got float64: convert the model first"):
            SparseLinear.from_linear(linear.double(), mask, trainable=True)
