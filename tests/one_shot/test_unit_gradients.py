"""Gradients of gates against plain backward passes, and label-free ones against the Jacobian."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from sparsebert.bert import structure
from sparsebert.one_shot.unit_gradients import compared_outputs, unit_gradients
from sparsebert.pruning.gates import GateSite, gate_sites, gated
from tests.pruning.gated_models import HEADS, LAYERS, NEURONS, batches, build

transformers = pytest.importorskip("transformers")


def sites(model: Any) -> dict[str, GateSite]:
    encoder = structure(model)
    return {**gate_sites(encoder, "head"), **gate_sites(encoder, "neuron")}


def joined(samples: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(samples.values()), 1)


def gradient_of_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The gradient of the loss with respect to all gates, one set for the batch."""
    places = sites(model)
    gates = {name: torch.ones(site.count(model)).double() for name, site in places.items()}
    leaves = [each.requires_grad_() for each in gates.values()]
    with gated(model.eval(), places, gates):
        loss = model(**batch).loss
    return torch.cat(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra", "DistilBert"])
def test_one_sample_an_example(family: str) -> None:
    model = build(family, torch.float64)
    samples = joined(unit_gradients(model, sites(model), batches(2)))
    assert samples.shape == (8, LAYERS * (HEADS + NEURONS))
    single = [{name: x[i : i + 1] for name, x in batch.items()} for batch in batches(2) for i in range(4)]
    expected = torch.stack([gradient_of_loss(model, batch) for batch in single])
    torch.testing.assert_close(samples, expected, rtol=1e-10, atol=1e-12)


def test_one_sample_a_batch_as_in_the_published_code() -> None:
    model = build(dtype=torch.float64)
    samples = joined(unit_gradients(model, sites(model), batches(3), per_example=False))
    expected = torch.stack([gradient_of_loss(model, batch) for batch in batches(3)])
    torch.testing.assert_close(samples, expected, rtol=1e-10, atol=1e-12)


def test_without_labels_the_samples_tend_to_the_hessian_of_the_distance() -> None:
    """E[g g^T] = J^T J, summed over the examples."""
    model, batch = build(dtype=torch.float64).eval(), batches(1)[0]
    places = {name: site for name, site in sites(model).items() if "layer.2" in name}
    inputs = {name: each for name, each in batch.items() if name != "labels"}

    def logits(*gates: Tensor) -> Tensor:
        with gated(model, places, dict(zip(places, gates, strict=True))):
            return model(**inputs).logits

    ones = tuple(torch.ones(site.count(model)).double() for site in places.values())
    of_gates = torch.cat(jacobian(logits, ones), -1)
    exact = torch.einsum("xfi,xfj->ij", of_gates, of_gates)
    samples = joined(unit_gradients(model, places, [batch], loss="outputs", probes=400))
    estimate = samples.t() @ samples / 400
    assert samples.shape[0] == 4 * 400
    assert float((estimate - exact).norm() / exact.norm()) < 0.1


def test_a_seed_gives_the_same_samples_and_others_give_others() -> None:
    model = build()
    first, same, other = (
        joined(unit_gradients(model, sites(model), batches(1), loss="outputs", seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_the_model_does_not_change() -> None:
    model = build().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    unit_gradients(model, sites(model), batches(1), loss="outputs")
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


class TestComparedOutputs:
    def test_embeddings_are_normalised_means_over_the_tokens(self) -> None:
        model = build().base_model.eval()
        inputs = {name: each for name, each in batches(1)[0].items() if name != "labels"}
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
        means = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(states, mask, strict=True)])
        expected = torch.nn.functional.normalize(means, dim=-1)
        torch.testing.assert_close(compared_outputs(model, inputs), expected)

    def test_logits_of_padding_do_not_count(self) -> None:
        base = build()
        model = transformers.BertForTokenClassification(base.config).eval()
        inputs = {name: each for name, each in batches(1)[0].items() if name != "labels"}
        outputs = compared_outputs(model, inputs).view(4, 7, 2)
        assert not outputs[0, 5:].any()
        assert outputs[1].all()

    def test_both_logits_of_question_answering(self) -> None:
        model = transformers.BertForQuestionAnswering(build().config).eval()
        inputs = {name: each for name, each in batches(1)[0].items() if name != "labels"}
        assert compared_outputs(model, inputs).shape == (4, 14)


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        ("label", batches(1), "unknown loss 'label'"),
        ("labels", [{name: x for name, x in batches(1)[0].items() if name != "labels"}], "gives no loss"),
        ("labels", [], "data holds no batch"),
    ],
)
def test_bad_input(loss: str, data: Any, message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        unit_gradients(model, sites(model), data, loss=loss)
    assert "\n" not in str(error.value)


def test_gradients_that_overflow_name_their_matrix() -> None:
    model = build()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] = torch.inf
    with pytest.raises(ValueError, match=r"^the gradients of the gates of encoder.* hold NaN or inf$"):
        unit_gradients(model, sites(model), batches(1))
