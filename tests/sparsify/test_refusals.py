"""``sparsify_`` refuses bad input in one clear line and leaves the model unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsebert import Ticket, plan, sparsify_
from tests.sparsify.models import build, pruned


def other_shapes(ticket: Ticket) -> Ticket:
    return Ticket({key: mask[:, :-1] for key, mask in ticket.masks.items()})


def tied(model: Any) -> None:
    layers = model.bert.encoder.layer
    layers[0].output.dense.weight = layers[1].output.dense.weight


def parametrized(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)


def torch_pruned(model: Any) -> None:
    torch_prune.l1_unstructured(model.bert.encoder.layer[0].output.dense, "weight", 0.5)


def quantised(model: Any) -> None:
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.requires_grad_(False).data = weight.data.to(torch.int8)


def patched(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.forward = lambda x: x


def on_meta(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.to("meta")


class TestRefusals:
    """Always a ValueError in one line, and the model as it was."""

    def refused(self, model: nn.Module, complaint: str, **options: Any) -> None:
        modules = dict(model.named_modules())
        tensors = {name: (t, t._version) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        with pytest.raises(ValueError, match=complaint) as caught:
            sparsify_(model, **options)
        assert "\n" not in str(caught.value)
        assert dict(model.named_modules()) == modules
        after = {name: (t, t._version) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        assert after.keys() == tensors.keys()
        assert all(after[name][0] is t and after[name][1] == v for name, (t, v) in tensors.items())

    def test_nothing_to_sparsify(self) -> None:
        self.refused(
            build(), "nothing to sparsify: BertForSequenceClassification has no linear layer with zeros"
        )
        self.refused(nn.Sequential(nn.ReLU()), "nothing to sparsify: Sequential")
        self.refused(build(), "picked by the filter", filter=lambda name, linear: False)
        model, ticket = pruned()
        self.refused(model, "picked by the filter", ticket=ticket, filter=lambda name, linear: False)

    def test_a_second_time(self) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket)
        self.refused(model, "is sparse already: call densify_ first", ticket=ticket)
        self.refused(model, "is sparse already", filter=lambda name, linear: name == "classifier")

    def test_a_ticket_of_another_model(self) -> None:
        model, ticket = pruned()
        self.refused(model, "ticket of another model", ticket=pruned("DistilBertForQuestionAnswering")[1])
        self.refused(model, "ticket of another model", ticket=other_shapes(ticket))
        self.refused(model, "ticket must be a sparsebert.Ticket, got a dict", ticket=dict(ticket.masks))

    def test_a_ticket_for_what_is_no_linear_layer(self) -> None:
        mask = torch.ones(50, 24, dtype=torch.bool)
        ticket = Ticket({"embeddings.word_embeddings": mask})
        self.refused(build(), "word_embeddings is a Embedding, not a linear layer", ticket=ticket)

    def test_unknown_options(self) -> None:
        model, ticket = pruned()
        self.refused(model, "unknown format 'elemen'.*did you mean 'element'", ticket=ticket, format="elemen")
        for tokens in (0, -1, 1.5, True):
            self.refused(model, "tokens must be a positive integer, got", ticket=ticket, tokens=tokens)

    def test_formats_that_cannot_be_trained(self) -> None:
        model, ticket = pruned()
        for format in ("dense", "vector"):
            self.refused(model, "cannot train", ticket=ticket, format=format, trainable=True)
        self.refused(model.double(), "float64", ticket=ticket, trainable=True)

    def test_a_plan_of_another_model(self) -> None:
        model, ticket = pruned()
        key = "encoder.layer.0.attention.self.key"
        other = plan(model, Ticket({key: ticket.masks[key]}), measure=False)
        self.refused(model, "the plan was made for another model or ticket", ticket=ticket, format=other)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (tied, r"output.dense.weight is tied to bert.encoder.layer.1.output.dense.weight"),
            (parametrized, r"undo its parametrization"),
            (torch_pruned, r"torch.nn.utils.prune.remove"),
            (quantised, r"quantised or holds a special tensor"),
            (patched, r"forward method of bert.encoder.layer.0.output.dense is patched"),
            (on_meta, r"on the meta device"),
        ],
    )
    def test_layers_that_cannot_be_packed(self, change: Callable[[Any], None], complaint: str) -> None:
        model, ticket = pruned()
        half = {key: mask.clone() for key, mask in ticket.masks.items()}
        half["encoder.layer.0.output.dense"] = half["encoder.layer.1.output.dense"]
        change(model)
        self.refused(model, complaint, ticket=Ticket(half))

    def test_a_linear_layer_by_itself(self) -> None:
        linear = nn.Linear(4, 4)
        with torch.no_grad():
            linear.weight[0] = 0
        self.refused(linear, "use SparseLinear.from_linear", filter=lambda name, linear: True)

    def test_a_layer_that_two_modules_use(self) -> None:
        shared = nn.Linear(4, 4)
        with torch.no_grad():
            shared.weight[0] = 0
        model = nn.Sequential(shared, nn.ReLU(), shared)
        self.refused(model, "0.weight is tied to 2.weight", filter=lambda name, linear: True)
        self.refused(model, "nothing to sparsify")

    def test_subclasses_of_linear(self) -> None:
        model = nn.MultiheadAttention(8, 2)
        with torch.no_grad():
            model.out_proj.weight[0] = 0
        self.refused(model, "only a plain nn.Linear can be packed", filter=lambda name, linear: True)
