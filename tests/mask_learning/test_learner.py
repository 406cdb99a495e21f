"""Rules at work in a BERT: against plain autograd on products, what is trained, and what is left behind."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.func import functional_call

from sparsebert.bert import full_name, resolve
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.masked_layers import MaskedLinear
from sparsebert.mask_learning.movement import GradualMagnitudeRule, MovementRule, SoftMovementRule
from sparsebert.mask_learning.rule import Goal, Rule
from sparsebert.pruning import prune
from sparsebert.training.snapshot import Snapshot

transformers = pytest.importorskip("transformers")
GOAL = Goal(steps=4, warmup=0, density=Fraction(1, 2))
UP, DOWN = "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"
UNITS: dict[str, dict[str, Any]] = {
    "element": {},
    "block": {"granularity": "block", "block_size": (4, 8)},
    "panel": {"granularity": "panel", "block_size": (8, 2), "round_to": 4},
    "row": {"granularity": "row"},
    "neuron": {"granularity": "neuron"},
    "head": {"granularity": "head"},
}


def classifier(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2
    )
    return transformers.BertForSequenceClassification(config).to(dtype).eval()


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, 30, (4, 6), generator=generator),
        "labels": torch.randint(0, 2, (4,), generator=generator),
    }


def learner(model: Any, rule: Rule | None = None, goal: Goal = GOAL, **units: Any) -> Learner:
    units = {"scope": "matrix"} | units
    return Learner(
        model, rule or MovementRule(), goal, prune(model, sparsity=0, **units), method="movement", **units
    )


@pytest.mark.parametrize("units", UNITS)
def test_gradients_are_those_of_a_product_with_the_mask(units: str) -> None:
    """A unit's score gets the gradient of all masks of its weights, in whatever matrix they are."""
    model = classifier()
    learning = learner(model, **UNITS[units])
    for scores in learning.parameters():
        torch.nn.init.normal_(scores)
    learning.derive_(3)
    model(**batch()).loss.backward()
    score_gradients = {key: scores.grad for key, scores in learning.scores().items()}
    weight_gradients = {key: resolve(model, key).weight.grad for key in learning.masks()}
    plain = classifier()
    weights = {key: resolve(plain, key).weight for key in learning.masks()}
    masks = {key: mask.double().requires_grad_() for key, mask in learning.masks().items()}
    products = {f"{full_name(plain, key)}.weight": masks[key] * weights[key] for key in masks}
    functional_call(plain, products, (), batch()).loss.backward()
    for key, weight in weights.items():
        torch.testing.assert_close(weight_gradients[key], weight.grad, rtol=0, atol=1e-12)
    for group in learning.units.groups:
        total = sum(
            cut.tiles(masks[key].grad, 0.0).sum(-1).view(group.grid) for key, cut in group.parts.items()
        )
        assert total.any()
        torch.testing.assert_close(score_gradients[group.name], total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_the_result_is_exact_and_in_the_weights(units: str) -> None:
    model = classifier(torch.float32)
    before = Snapshot.of(model)
    learning = learner(model, **UNITS[units])
    for scores in learning.parameters():
        torch.nn.init.normal_(scores)
    ticket = learning.close_()
    assert ticket.density == 0.5
    assert ticket.metadata["granularity"] == UNITS[units].get("granularity", "element")
    assert Snapshot.of(model).tensors.keys() == before.tensors.keys()
    for key, mask in ticket.masks.items():
        kept = before.tensors[f"bert.{key}.weight"] * mask
        assert torch.equal(resolve(model, key).weight, kept)
    assert not any(isinstance(module, MaskedLinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_of_weights_stay_and_scores_are_beside_them() -> None:
    model = classifier()
    names = set(model.state_dict())
    learning = learner(model)
    added = set(model.state_dict()) - names
    assert added == {f"bert.{key}.mask_scores" for key in learning.masks()}
    assert names <= set(model.state_dict())


def test_neurons_share_their_scores() -> None:
    model = classifier()
    learning = learner(model, granularity="neuron")
    added = [name for name in model.state_dict() if "mask_scores" in name]
    assert added == [f"bert.encoder.layer.{i}.intermediate.dense.mask_scores" for i in range(2)]
    torch.nn.init.normal_(learning.parameters()[0])
    ticket = learning.close_()
    assert torch.equal(ticket.masks[UP].all(1), ticket.masks[DOWN].all(0))
    assert ticket.metadata["encoder_sparsity"] == pytest.approx(0.5 * 2 * 24 / (2 * 24 + 4 * 16))


def test_magnitudes_need_no_scores() -> None:
    model = classifier()
    names = set(model.state_dict())
    learning = learner(model, GradualMagnitudeRule())
    assert learning.parameters() == []
    assert set(model.state_dict()) == names
    ticket = learning.close_()
    plain = prune(classifier(), sparsity=0.5, scope="matrix")
    assert ticket == plain


def test_embeddings_do_not_learn() -> None:
    model = classifier()
    learner(model)
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {name for name in dict(model.named_parameters()) if name.startswith("bert.embeddings.")}


def test_scores_are_fp32_under_autocast_and_their_gradients_too() -> None:
    model = classifier(torch.float32)
    learning = learner(model)
    learning.derive_(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch()).loss.backward()
    assert {each.dtype for each in learning.parameters()} == {torch.float32}
    assert {each.grad.dtype for each in learning.parameters()} == {torch.float32}
    assert all(each.grad.ne(0).float().mean() > 0.5 for each in learning.parameters())


def test_the_model_s_precision_does_not_reach_the_scores() -> None:
    learning = learner(classifier(torch.bfloat16))
    assert {each.dtype for each in learning.parameters()} == {torch.float32}


def test_scores_come_back_from_a_checkpoint(tmp_path: Any) -> None:
    model = classifier(torch.float32)
    learning = learner(model, granularity="neuron")
    for scores in learning.parameters():
        torch.nn.init.normal_(scores)
    model.save_pretrained(tmp_path)
    again = learner(classifier(torch.float32), granularity="neuron")
    again.load_(tmp_path / "model.safetensors")
    assert again.close_() == learning.close_()


def test_a_run_without_room_for_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="a run of 4 steps has no room for the ramp"):
        learner(classifier(), goal=Goal(4, 2, Fraction(1, 2)))


def test_the_penalty_reaches_the_scores() -> None:
    model = classifier()
    learning = learner(model, SoftMovementRule())
    learning.derive_(4)
    penalty = learning.penalty()
    assert penalty is not None
    penalty.backward()
    assert penalty.item() == pytest.approx(200)
    assert all(each.grad.gt(0).all() for each in learning.parameters())
