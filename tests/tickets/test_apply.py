"""Tickets meet models: applied, read from zeros and from torch's pruning, refused where they do not fit."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve, structure
from sparsebert.one_shot import prune_
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.tickets.models import bert

KEYS = ("encoder.layer.0.output.dense", "encoder.layer.1.attention.self.query")

transformers = pytest.importorskip("transformers")


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class TestApply:
    def test_masked_weights_become_zero_and_the_others_keep_their_bits(self) -> None:
        model = bert()
        made = prune(model, sparsity=0.6)
        before = values(model)
        assert made.apply_(model) is model
        for key, mask in made.masks.items():
            weight = model.state_dict()[f"bert.{key}.weight"]
            assert torch.equal(
                weight.view(torch.int32)[mask], before.pop(f"bert.{key}.weight").view(torch.int32)[mask]
            )
            assert not weight.view(torch.int32)[~mask].any()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, -1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_whatever_is_pruned_becomes_positive_zero(self, value: float, dtype: torch.dtype) -> None:
        model = bert().to(dtype)
        made = prune(model, sparsity=0.5)
        for key, mask in made.masks.items():
            resolve(model, key).get_parameter("weight").data[~mask] = value
        made.apply_(model)
        for key, mask in made.masks.items():
            pruned = resolve(model, key).get_parameter("weight").detach()[~mask]
            assert not pruned.any()
            assert not pruned.signbit().any()

    def test_a_ticket_moves_between_task_heads_and_wrappers(self) -> None:
        made = prune(bert("BertForMaskedLM"), sparsity=0.7)
        compiled: Any = torch.compile(bert())
        for model in (bert("BertModel"), bert(), bert("BertForMaskedLM"), nn.DataParallel(bert()), compiled):
            assert Ticket.from_model(made.apply_(model)) == made

    def test_biases_are_masked_where_the_ticket_says_so(self) -> None:
        model = bert()
        for layer in model.bert.encoder.layer:
            nn.init.ones_(layer.output.dense.bias)
        mask = torch.ones(16, 24, dtype=torch.bool)
        bias = torch.arange(16) % 2 == 0
        Ticket({KEYS[0]: mask}, bias_masks={KEYS[0]: bias}).apply_(model)
        assert torch.equal(model.bert.encoder.layer[0].output.dense.bias, bias.float())
        assert model.bert.encoder.layer[1].output.dense.bias.all()

    def test_a_removed_mlp_leaves_the_layer_norm_of_its_input(self) -> None:
        model = bert("BertModel")
        layer = model.encoder.layer[0]
        nn.init.normal_(layer.output.dense.bias)
        nothing = torch.zeros(16, 24, dtype=torch.bool)
        Ticket({KEYS[0]: nothing}, removed=["encoder.layer.0.output"]).apply_(model)
        x = torch.randn(1, 3, 16)
        assert torch.equal(layer.feed_forward_chunk(x), layer.output.LayerNorm(x))

    def test_training_state_is_left_alone(self) -> None:
        model = bert()
        weight = model.bert.encoder.layer[0].output.dense.weight
        prune(model, sparsity=0.5).apply_(model)
        assert model.bert.encoder.layer[0].output.dense.weight is weight
        assert weight.requires_grad
        assert weight.grad_fn is None


class TestTicketsThatDoNotFit:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 1}, "BertModel has no module 'encoder.layer.1.attention.self.query'"),
            ({"num_hidden_layers": 3}, "made for 12 encoder matrices, BertModel has 18"),
            (
                {"intermediate_size": 32},
                "intermediate.dense.weight is 24x16 in the ticket and 32x16 in BertModel",
            ),
        ],
    )
    def test_another_size_is_refused_by_its_first_mismatch(
        self, changes: dict[str, int], message: str
    ) -> None:
        made = prune(bert(), sparsity=0.5)
        model = bert("BertModel", **changes)
        before = values(model)
        for use in (made.check, made.apply_):
            with pytest.raises(ValueError, match=f"ticket of another model: .*{message}"):
                use(model)
        assert unchanged(model, before)

    def test_another_family_is_refused(self) -> None:
        config = transformers.DistilBertConfig(dim=16, n_heads=2, hidden_dim=24, n_layers=2, vocab_size=40)
        with pytest.raises(ValueError, match="DistilBertModel has no module"):
            prune(bert(), sparsity=0.5).check(transformers.DistilBertModel(config))

    def test_other_weights_are_refused_on_request(self) -> None:
        model = bert()
        made = prune(model, sparsity=0.5)
        made.check(model, weights=True)
        made.check(bert("BertModel"), weights=True)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
        made.check(model)
        with pytest.raises(ValueError, match="ticket of another model: made for weights sha256:"):
            made.check(model, weights=True)
        with pytest.raises(ValueError, match="does not record which weights"):
            Ticket(made.masks).check(model, weights=True)

    def test_one_side_of_tied_weights_is_refused(self) -> None:
        model = bert("BertForMaskedLM")
        before = values(model)
        mask = torch.rand(40, 16) < 0.5
        one_side = Ticket({"cls.predictions.decoder": mask})
        with pytest.raises(
            ValueError, match=r"decoder.weight is tied to bert.embeddings.word_embeddings.weight"
        ):
            one_side.apply_(model)
        different = Ticket({"cls.predictions.decoder": mask, "embeddings.word_embeddings": ~mask})
        with pytest.raises(ValueError, match="is tied to"):
            different.apply_(model)
        assert unchanged(model, before)
        Ticket({"cls.predictions.decoder": mask, "embeddings.word_embeddings": mask}).apply_(model)
        padding = 0
        assert torch.equal(model.get_input_embeddings().weight[padding + 1 :] != 0, mask[padding + 1 :])

    def test_tied_layers_are_refused_when_their_masks_differ(self) -> None:
        model = bert("BertModel")
        model.encoder.layer[1] = model.encoder.layer[0]
        made = prune(model, sparsity=0.5, scope="matrix")
        assert made.sparsity == 0.5
        with pytest.raises(ValueError, match="is tied to"):
            prune(model, method="random", sparsity=0.5)

    def test_weights_under_somebody_elses_pruning_are_refused(self) -> None:
        model = bert()
        made = prune(model, sparsity=0.5)
        torch_prune.l1_unstructured(model.bert.encoder.layer[1].output.dense, "weight", amount=0.5)
        before = values(model)
        with pytest.raises(
            ValueError, match=r"encoder.layer.1.output.dense.weight of .* is not a plain parameter"
        ):
            made.apply_(model)
        assert unchanged(model, before)

    def test_a_bias_mask_needs_a_bias(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        mask = torch.ones(2, 2, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"0\.bias is 2 in the ticket and missing in Sequential"):
            Ticket({"0": mask}, bias_masks={"0": mask[0]}).check(model)


class TestFromModel:
    def test_reads_the_zeros_of_the_encoder_only(self) -> None:
        model = bert()
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight[3] = 0
            model.bert.pooler.dense.weight[0] = 0
        read = Ticket.from_model(model)
        assert tuple(read.masks) == structure(model).linears
        assert read.masks[KEYS[0]].sum() == 15 * 24
        assert not read.masks[KEYS[0]][3].any()
        assert Ticket.from_model(model, include_pooler=True).layer_sparsity["pooler.dense"] == 1 / 16

    def test_refuses_a_pooler_that_is_not_there_and_other_models(self) -> None:
        with pytest.raises(ValueError, match="BertForMaskedLM has no pooler"):
            Ticket.from_model(bert("BertForMaskedLM"), include_pooler=True)
        with pytest.raises(ValueError, match="Conv1d has no linear layer to prune"):
            Ticket.from_model(nn.Conv1d(2, 2, 1))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.99))
def test_applying_twice_or_in_any_order_is_applying_the_intersection(seed: int, sparsity: float) -> None:
    model = bert()
    a = prune(model, "random", sparsity=sparsity, seed=seed)
    b = prune(model, "magnitude", sparsity=0.5)
    assert Ticket.from_model(a.apply_(b.apply_(bert()))) == a & b
    assert Ticket.from_model(b.apply_(a.apply_(bert()))) == a & b


def test_masks_by_names_of_training_code_fit_the_model() -> None:
    model = bert()
    made = prune(model, sparsity=0.5)
    for prefix in ("model.bert.", "net.", "base_model.model.bert.", "0.auto_model.", "module.model.bert."):
        assert Ticket({f"{prefix}{key}": mask for key, mask in made.masks.items()}) == made


def test_a_key_that_may_belong_to_either_of_two_encoders_is_refused() -> None:
    towers = nn.ModuleDict({"query": bert("BertModel"), "passage": bert("BertModel")})
    made = prune(towers["query"], sparsity=0.5)
    with pytest.raises(ValueError, match=r"contains 2 encoders, and encoder\.layer\.0\S+ does not say which"):
        made.check(towers)
    named = Ticket({f"passage.{key}": mask for key, mask in made.masks.items()})
    before = values(towers["query"])
    named.apply_(towers)
    assert unchanged(towers["query"], before)
    assert Ticket.from_model(towers["passage"]).sparsity == pytest.approx(0.5)


def test_a_ticket_of_a_method_that_changed_weights_says_so_on_other_weights():
    model = bert()
    ids = torch.arange(24).view(2, 12)
    dense = copy.deepcopy(model)
    ticket = prune_(model, "sparsegpt", data=[{"input_ids": ids}], sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ticket.check(model)
    with pytest.warns(UserWarning, match=r"sparsegpt changed the weights that this ticket keeps") as noted:
        ticket.apply_(dense)
    assert "\n" not in str(noted[0].message)
