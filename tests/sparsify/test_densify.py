"""``densify_``: the way back."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsebert import densify_, sparsify_
from tests.sparsify.models import TOKENS, answers, build, masked_answers, pruned


class TestDensify:
    @pytest.mark.parametrize(
        ("format", "dtype"),
        [
            *((format, torch.float32) for format in ("element", "vector", "dense", "compact", "csr")),
            *((format, torch.bfloat16) for format in ("element", "vector", "dense")),
            ("element", torch.float16),
            ("dense", torch.float16),
            ("element", torch.float64),
        ],
        ids=str,
    )
    def test_gives_the_values_back_bit_for_bit(self, format: str, dtype: torch.dtype) -> None:
        model, ticket = pruned()
        model.to(dtype)
        expected = ticket.apply_(copy.deepcopy(model))
        assert densify_(sparsify_(model, ticket, format=format)) is model
        restored = model.state_dict()
        assert all(torch.equal(restored[name], tensor) for name, tensor in expected.state_dict().items())
        assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]
        assert all(torch.equal(*pair) for pair in zip(answers(model), answers(expected), strict=True))

    def test_keeps_hooks_and_training_flag(self) -> None:
        model, ticket = pruned()
        fired: list[str] = []
        sparsify_(model.train(), ticket)
        handle = model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: fired.append("x"))
        densify_(model)
        assert all(module.training for module in model.modules())
        answers(model)
        handle.remove()
        answers(model)
        assert fired == ["x"]

    def test_keeps_frozen_weights_frozen(self) -> None:
        model, ticket = pruned()
        model.bert.requires_grad_(False)
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        densify_(sparsify_(model, ticket))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before

    def test_in_inference_mode_gives_a_model_that_can_be_trained(self) -> None:
        model, ticket = pruned()
        with torch.inference_mode():
            sparsify_(model, ticket, format="element")
        model(TOKENS).logits.sum().backward()
        with torch.inference_mode():
            densify_(model)
        model(TOKENS).logits.sum().backward()
        assert model.bert.encoder.layer[0].output.dense.weight.grad is not None

    def test_leaves_a_dense_model_alone(self) -> None:
        model = build()
        modules = list(model.modules())
        assert all(a is b for a, b in zip(densify_(model).modules(), modules, strict=True))

    def test_and_sparsify_again(self) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(densify_(sparsify_(model, ticket)), format="element")
        torch.testing.assert_close(answers(model), expected)
