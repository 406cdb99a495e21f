"""Importance of heads, neurons and MLPs against a literal numpy transcription; units pruned by it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.bert import resolve, structure
from sparsebert.pruning import HeadImportance, prune
from sparsebert.pruning.gates import gate_sites
from sparsebert.pruning.methods.head_importance import gate_importance, normalised
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from tests.pruning.gated_models import (
    FAMILIES,
    FAMILY_AND_KIND,
    HEAD,
    HEADS,
    LAYERS,
    NEURONS,
    batches,
    build,
    logits,
)

KINDS = ("head", "neuron", "mlp")


def context_and_gradient(
    model: Any, batch: dict[str, Tensor], kind: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every layer what a gate would multiply, and dL/d(that): a plain backward pass, no gates."""
    model = copy.deepcopy(model).eval()
    encoder = structure(model)
    keys = [keys[-1] for keys in (encoder.heads if kind == "head" else encoder.neurons)]
    seen: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        seen.append(x if x.requires_grad else x.requires_grad_())
        x.retain_grad()
        return x

    for key in keys:
        module = resolve(model, key)
        if kind == "mlp":
            module.register_forward_hook(lambda m, x, y: record(y))
        else:
            module.register_forward_pre_hook(lambda m, x: (record(x[0]),))
    model(**batch).loss.backward()
    return [(x.detach().numpy(), x.grad.numpy()) for x in seen]


def gate_gradients(model: Any, batch: dict[str, Tensor], kind: str, per_example: bool = False) -> np.ndarray:
    """dL/dgate = sum over tokens and the unit's features of x * dL/dx: [layers, ..., gates]."""
    width = {"head": HEAD, "neuron": 1, "mlp": 24}[kind]
    rows = []
    for x, gradient in context_and_gradient(model, batch, kind):
        product = (x * gradient).reshape(*x.shape[:2], -1, width).sum((1, 3))
        rows.append(product if per_example else product.sum(0))
    return np.stack(rows)


def computed(model: Any, kind: str, data: Any, **options: bool) -> np.ndarray:
    importance = gate_importance(model, gate_sites(structure(model), kind), data, **options)
    return torch.stack(list(importance.values())).numpy()


TOKENS = sum(int(batch["attention_mask"].sum()) for batch in batches())


@pytest.mark.parametrize(("family", "kind"), FAMILY_AND_KIND)
class TestParity:
    def test_sum_over_batches_of_abs_of_the_gradient(self, family: str, kind: str) -> None:
        model = build(family, torch.float64)
        expected = sum(np.abs(gate_gradients(model, batch, kind)) for batch in batches()) / TOKENS
        np.testing.assert_allclose(computed(model, kind, batches()), expected, atol=1e-10, rtol=1e-10)
        assert expected.max() > 1e-5

    def test_the_published_code_never_clears_the_gradient(self, family: str, kind: str) -> None:
        model = build(family, torch.float64)
        total, grad = 0.0, 0.0
        for batch in batches():
            grad = grad + gate_gradients(model, batch, kind)  # mask.grad, which backward() adds to
            total = total + np.abs(grad)
        published = computed(model, kind, batches(), accumulate=True)
        np.testing.assert_allclose(published, total / TOKENS, atol=1e-10, rtol=1e-10)
        assert not np.allclose(published, computed(model, kind, batches()), rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_example_the_batch_size_does_not_matter(kind: str) -> None:
    model = build(dtype=torch.float64)
    expected = sum(
        4 * np.abs(gate_gradients(model, batch, kind, per_example=True)).sum(1) for batch in batches()
    )
    whole = computed(model, kind, batches(), per_example=True)
    np.testing.assert_allclose(whole, expected / TOKENS, atol=1e-10, rtol=1e-10)
    single = [{name: x[i : i + 1] for name, x in batch.items()} for batch in batches() for i in range(4)]
    np.testing.assert_allclose(computed(model, kind, single), whole, atol=1e-10, rtol=1e-10)
    assert not np.allclose(computed(model, kind, batches()), whole, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_of_each_token(kind: str, accumulate: bool) -> None:
    """The sum over tokens of abs(x_t . dL/dx_t), as ``MaskHead.backward`` of Liang et al. 2021 computes it,
    and as their loop, which never clears it, adds it up."""
    model = build(dtype=torch.float64)
    width = {"head": HEAD, "neuron": 1, "mlp": 24}[kind]
    total, grad = np.zeros(()), np.zeros(())
    for batch in batches():
        dots = [
            (x * gradient).reshape(*x.shape[:2], -1, width).sum(-1)
            for x, gradient in context_and_gradient(model, batch, kind)
        ]
        change = 4 * np.stack([np.abs(dot).sum((0, 1)) for dot in dots])  # of 4 examples, for a mean loss
        grad = grad + change if accumulate else change
        total = total + grad
    whole = computed(model, kind, batches(), per_token=True, accumulate=accumulate)
    np.testing.assert_allclose(whole, total / TOKENS, atol=1e-10, rtol=1e-10)
    assert not np.allclose(computed(model, kind, batches(), per_example=True), whole, rtol=1e-2)


@pytest.mark.parametrize("kind", ["head", "mlp"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_of_equal_batches_as_published(kind: str, accumulate: bool) -> None:
    """The loop of ``mt_dnn/inference.py`` of Liang et al. 2021, with a short last batch.

    Each batch gives the absolute parts of the gradient of its mean loss; the published loop never clears
    them, so of B batches the first counts B times; their sum is divided by B.
    """
    model, width = build(dtype=torch.float64), HEAD if kind == "head" else 24
    *whole, last = batches()
    uneven = [*whole, {name: x[:1] for name, x in last.items()}]
    mask_grad: Any = 0
    importance: Any = 0
    for batch in uneven:
        mean_loss = context_and_gradient(model, batch, kind)
        dots = [(x * gradient).reshape(*x.shape[:2], -1, width).sum(-1) for x, gradient in mean_loss]
        change = np.stack([np.abs(dot).sum(1).sum(0) for dot in dots])
        mask_grad = mask_grad + change if accumulate else change
        importance = importance + mask_grad
    options = {"per_token": True, "accumulate": accumulate}
    found = computed(model, kind, uneven, equal_batches=True, **options)
    np.testing.assert_allclose(found, importance / len(uneven), atol=1e-10, rtol=1e-10)
    by_example = computed(model, kind, uneven, **options)
    assert not np.allclose(found / found.sum(), by_example / by_example.sum(), rtol=1e-3)
    with pytest.raises(ValueError, match="equal_batches needs per_token or per_example"):
        computed(model, kind, uneven, equal_batches=True, accumulate=accumulate)


def test_dropout_is_off_and_the_model_stays_as_it_was() -> None:
    model = build(dropout=0.5).train()
    assert np.array_equal(computed(model, "head", batches()), computed(model, "head", batches()))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class TestNormalisation:
    SCORES = np.random.default_rng(0).uniform(1, 2, (LAYERS, HEADS)) * [[1], [10], [100]]

    def normalise(self, scores: np.ndarray, kind: str = "head", **options: bool) -> np.ndarray:
        table = {str(i): torch.from_numpy(row) for i, row in enumerate(scores)}
        return torch.stack(list(normalised(table, dict.fromkeys(table, kind), **options).values())).numpy()

    def test_l2_in_each_layer_then_all_onto_zero_to_one(self) -> None:
        norm = np.power(np.power(self.SCORES, 2).sum(-1), 1 / 2)
        layered = self.SCORES / (norm[:, None] + 1e-20)
        np.testing.assert_allclose(self.normalise(self.SCORES, min_max=False), layered, atol=1e-10)
        mapped = (layered - layered.min()) / (layered.max() - layered.min())
        np.testing.assert_allclose(self.normalise(self.SCORES), mapped, atol=1e-10)

    def test_mlps_have_no_norm_of_a_layer(self) -> None:
        scores = self.SCORES[:, :1]
        mapped = (scores - scores.min()) / (scores.max() - scores.min())
        np.testing.assert_allclose(self.normalise(scores, "mlp"), mapped, atol=1e-10)

    def test_a_layer_without_gradient_divides_by_nothing(self) -> None:
        scores = self.SCORES * [[0], [1], [1]]
        assert (self.normalise(scores)[0] == 0).all()

    def test_equal_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match="every head has importance 1, so they cannot be ranked"):
            self.normalise(np.ones((LAYERS, HEADS)), by_layer=False)


class TestPruning:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_least_important_heads_go(self, family: str) -> None:
        model = build(family)
        ticket = prune(model, "head-importance", sparsity=0.5, granularity="head", data=batches())
        table = gate_importance(model, gate_sites(structure(model), "head"), batches())
        scores = torch.cat(list(normalised(table, dict.fromkeys(table, "head")).values()))
        kept = torch.cat(
            [ticket.masks[keys[3]].view(-1, HEADS, HEAD).all(0).all(1) for keys in structure(model).heads]
        )
        assert int(kept.sum()) == LAYERS * HEADS // 2
        assert scores[kept].min() > scores[~kept].max()

    def test_a_removed_mlp_is_layer_norm_of_its_input(self) -> None:
        """Masked, trained sparse or converted, the model computes what it does without the module."""
        model = build()
        ticket = prune(model, "head-importance", sparsity=1 / 3, granularity="mlp", data=batches())
        gone = [keys for keys in structure(model).neurons if not ticket.masks[keys[0]].any()]
        assert len(gone) == 1
        assert ticket.removed == gone[0]
        other = copy.deepcopy(model)
        resolve(other, gone[0][1]).register_forward_hook(lambda module, x, y: torch.zeros_like(y))
        expected = logits(other)
        torch.testing.assert_close(logits(ticket.apply_(copy.deepcopy(model))), expected)
        torch.testing.assert_close(
            logits(sparsify_(copy.deepcopy(model), ticket)), expected, rtol=1e-4, atol=1e-5
        )
        assert not torch.allclose(logits(model), expected, atol=1e-3)

    def test_removal_survives_the_file(self, tmp_path: Any) -> None:
        ticket = prune(build(), "head-importance", sparsity=0.4, granularity="head+mlp", data=batches())
        ticket.save(tmp_path / "ticket.safetensors")
        loaded = Ticket.load(tmp_path / "ticket.safetensors")
        assert loaded == ticket
        assert loaded.removed == ticket.removed

    def test_heads_and_neurons_together_each_among_their_own(self) -> None:
        model = build()
        ticket = prune(
            model, "head-importance", sparsity=0.5, granularity="head+neuron", scope="type", data=batches()
        )
        encoder = structure(model)
        heads = sum(int(ticket.masks[keys[0]].any(1).sum()) for keys in encoder.heads)
        neurons = sum(int(ticket.masks[keys[0]].any(1).sum()) for keys in encoder.neurons)
        assert (heads, neurons) == (LAYERS * HEADS * HEAD // 2, LAYERS * NEURONS // 2)
        assert ticket.sparsity == 0.5
        assert not ticket.removed

    def test_a_head_of_each_layer_may_be_kept(self) -> None:
        method = HeadImportance(keep_a_head=True)
        ticket = prune(build(), method, sparsity=0.75, granularity="head", data=batches())
        assert all(ticket.masks[keys[0]].any() for keys in structure(build()).heads)

    def test_further_pruning_looks_at_what_is_left(self) -> None:
        first = prune(build(), "head-importance", sparsity=0.25, granularity="head+mlp", data=batches())
        models = [build(), first.apply_(build())]
        later = [
            prune(each, "head-importance", sparsity=0.5, granularity="head+mlp", ticket=first, data=batches())
            for each in models
        ]
        assert later[0] == later[1]
        assert set(first.removed) <= set(later[0].removed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "element", "data": batches()}, "not granularity 'element'"),
        ({"granularity": "head"}, "pass data"),
        ({"granularity": "head", "data": []}, "no batch"),
        ({"granularity": "head", "data": [{"input_ids": torch.ones(2, 3, dtype=torch.long)}]}, "need labels"),
        ({"granularity": "neuron+mlp", "data": batches()}, "covers some weights twice"),
        ({"granularity": "head+head", "data": batches()}, "covers some weights twice"),
        ({"granularity": "head+row", "data": batches()}, "unknown granularity"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(build(), "head-importance", sparsity=0.5, **options)


def test_two_ways_of_summing_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="accumulate sums gradients over batches"):
        computed(build(), "head", batches(), accumulate=True, per_example=True)
    with pytest.raises(ValueError, match="per_token one a token"):
        computed(build(), "head", batches(), per_token=True, per_example=True)
