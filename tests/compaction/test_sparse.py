"""Compaction and sparse layers together: one call, one plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sparsebert import Ticket, compact_, compaction_description, densify_, plan, prune, sparsify_
from sparsebert.bert import resolve, structure
from sparsebert.compaction.narrow_attention import NarrowAttention
from sparsebert.nn.sparse_linear import SparseLinear
from tests.compaction.models import FAMILIES, RECIPES, Recipe, answers, error, masked, model_of, ticket_of
from tests.sparsify.models import weights

RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(1,), mlp=False, biases=False)
SPARSE = RAGGED._replace(rows=0.3, columns=0.3)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def model32(name: str = FAMILIES[0]) -> Any:
    return model_of(name, torch.float32)


class TestOneCall:
    @pytest.mark.parametrize("format", ["auto", "element", "dense", "compact"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_answers_and_the_way_back(self, family: str, format: str) -> None:
        model = model32(family)
        ticket = ticket_of(model, SPARSE)
        expected = answers(masked(model, ticket), "nothing")
        sparsify_(model, ticket, format=format)
        assert error(answers(model, "nothing"), expected) < 1e-5
        assert compaction_description(model)["weights"]["stored"] < 6000
        densify_(model)
        assert not any(isinstance(module, SparseLinear) for module in model.modules())
        assert error(answers(model, "nothing"), expected) < 1e-5

    @given(recipe=RECIPES)
    @settings(max_examples=15)
    def test_any_ticket(self, recipe: Recipe) -> None:
        model = model32()
        ticket = ticket_of(model, recipe)
        expected = answers(masked(model, ticket), "padded")
        assert error(answers(sparsify_(model, ticket, format="element"), "padded"), expected) < 1e-5

    def test_heads_and_neurons_are_gone(self) -> None:
        model = model32()
        ticket = prune(model, "random", sparsity=0.5, granularity="neuron")
        sparsify_(model, ticket)
        for up, down in structure(model).neurons:
            kept = int(ticket.masks[up].any(1).sum())
            stored = resolve(model, up).out_features
            assert kept <= stored < kept + 8
            assert resolve(model, down).in_features == stored

    def test_only_what_the_ticket_names_is_packed(self) -> None:
        """Neurons go from both matrices; the one without a mask stays a plain layer, only smaller."""
        model = model32()
        up, down = structure(model).neurons[0]
        mask = torch.ones(40, 24, dtype=torch.bool)
        mask[:25] = False
        ticket = Ticket({up: mask})
        expected = answers(masked(model, ticket))
        sparsify_(model, ticket, format="element")
        assert error(answers(model), expected) < 1e-5
        assert isinstance(resolve(model, up), SparseLinear)
        assert type(resolve(model, down)) is nn.Linear
        assert resolve(model, down).in_features == 16

    def test_fused_calls_and_hooks_as_without_it(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        fired: list[str] = []
        for key in (*structure(model).linears, "encoder.layer.0.attention.self"):
            resolve(model, key).register_forward_hook(lambda *_, key=key: fired.append(key))
        sparsify_(model, ticket, format="element")
        answers(model)
        assert sorted(fired) == sorted((*structure(model).linears, "encoder.layer.0.attention.self"))

    def test_never(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        expected = weights(masked(model, ticket))
        sparsify_(model, ticket, format="element", compact=False)
        assert compaction_description(model) == {}
        assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())

    def test_training_keeps_shapes_unless_told_otherwise(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        sparsify_(model, ticket, format="element", trainable=True)
        assert compaction_description(model) == {}
        model = model32()
        expected = answers(masked(model, ticket))
        sparsify_(model, ticket, format="element", trainable=True, compact=True)
        assert error(answers(model), expected) < 1e-5
        assert compaction_description(model)
        model.train()(torch.arange(2, 14).view(2, 6)).logits.sum().backward()
        assert resolve(model, structure(model).neurons[0][0]).values.grad.any()

    def test_what_is_full_after_it_trains_as_a_plain_layer(self) -> None:
        model = model32()
        ticket = prune(model, "random", sparsity=0.4, granularity="neuron", scope="matrix")
        assert {int(mask.any(1).sum()) for mask in ticket.masks.values()} == {24}
        sparsify_(model, ticket | ticket_with_zeros(model, ticket), trainable=True, compact=True)
        kinds = {type(resolve(model, key)) for pair in structure(model).neurons for key in pair}
        assert kinds == {nn.Linear}

    def test_a_decoder_is_made_sparse_without_it(self) -> None:
        model = model32()
        model.config.is_decoder = True
        ticket = ticket_of(model, SPARSE)
        assert plan(model, ticket, measure=False).removal_note.startswith("not compacted: BertFor")
        before = weights(model)
        with pytest.raises(ValueError, match="is a decoder"):
            sparsify_(model, ticket, compact=True)
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
        sparsify_(model, ticket, format="element")
        assert compaction_description(model) == {}

    def test_a_filter_leaves_neighbours_alone(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        with pytest.raises(ValueError, match="compact=True takes no filter"):
            sparsify_(model, ticket, filter=lambda name, _: "output" in name, compact=True)
        sparsify_(model, ticket, filter=lambda name, _: "output" in name, format="element")
        assert compaction_description(model) == {}

    def test_a_refused_format_leaves_the_model_alone(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        before, modules = weights(model), list(model.modules())
        with pytest.raises(ValueError, match="cannot train"):
            sparsify_(model, ticket, format="csr", trainable=True, compact=True)
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
        assert all(old is new for old, new in zip(modules, model.modules(), strict=True))


def ticket_with_zeros(model: Any, ticket: Ticket) -> Ticket:
    """A ticket of the same matrices that keeps nothing: the union with it is the other one."""
    return Ticket({key: torch.zeros_like(mask) for key, mask in ticket.masks.items()})


class TestAfterwards:
    """A model compacted before, with whatever options, is made sparse by the same ticket or by its zeros."""

    @pytest.mark.parametrize("by", ["ticket", "zeros", "its own ticket"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_sparsify_after_compact(self, family: str, by: str) -> None:
        model = model32(family)
        ticket = ticket_of(model, SPARSE)
        expected = answers(masked(model, ticket), "nothing")
        compact_(model, ticket)
        given = {"ticket": ticket, "zeros": None, "its own ticket": Ticket.from_model(model)}[by]
        sparsify_(model, given, format="element")
        assert error(answers(model, "nothing"), expected) < 1e-5
        assert len([module for module in model.modules() if isinstance(module, SparseLinear)]) == 12
        densify_(model)
        assert error(answers(model, "nothing"), expected) < 1e-5

    def test_another_ticket_does_not_fit(self) -> None:
        model = model32()
        compact_(model, ticket_of(model, SPARSE))
        with pytest.raises(ValueError, match="ticket of another model"):
            sparsify_(model, ticket_of(model32(), SPARSE._replace(seed=9)))


def wide_model() -> Any:
    """Three heads of 32."""
    transformers = pytest.importorskip("transformers")
    config = model32().config
    config.hidden_size, config.intermediate_size = 96, 64
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


class TestPlan:
    def test_it_says_what_was_removed_and_what_is_sparse_and_why(self) -> None:
        model = model32()
        ticket = ticket_of(model, SPARSE)
        made = plan(model, ticket, measure=False)
        up, down = structure(model).neurons[0]
        entry = next(layer for layer in made.layers if layer.key == up)
        kept = int((ticket.masks[up].any(1) & ticket.masks[down].any(0)).sum())
        assert entry.removal_note == f"{40 - kept} of 40 neurons"
        assert entry.shape == (-(-kept // 8) * 8, 24)
        assert entry.dense_nbytes == 40 * 24 * 4
        query = next(layer for layer in made.layers if layer.key.endswith("0.attention.self.query"))
        assert "of 3 heads" in query.removal_note
        assert "encoder weights removed" in made.removal_note
        header = str(made).splitlines()[0].split()
        assert header[:3] == ["layer", "shape", "removed"]
        assert made.removal_note in str(made).splitlines()
        assert made.to_dict()["layers"][0]["removal_note"] == made.layers[0].removal_note

    def test_what_removal_gains_is_part_of_the_speed_up(self) -> None:
        """A layer of half the size that stays dense takes half the time of the layer that was there."""
        model = model32()
        ticket = prune(model, "magnitude", sparsity=0.5, granularity="neuron")
        made = plan(model, ticket, format="dense", measure=False)
        up = structure(model).neurons[0][0]
        entry = next(layer for layer in made.layers if layer.key == up)
        assert entry.predicted_us is not None
        assert entry.dense_us == pytest.approx(entry.predicted_us * 40 / entry.shape[0])

    def test_it_is_followed(self) -> None:
        for compact in (True, False):
            model = model32()
            ticket = ticket_of(model, SPARSE)
            expected = answers(masked(model, ticket))
            made = plan(model, ticket, format="element", compact=compact)
            sparsify_(model, ticket, format=made)
            assert error(answers(model), expected) < 1e-5
            assert bool(compaction_description(model)) is compact
            assert [entry.shape for entry in plan(model).layers] == [entry.shape for entry in made.layers]
            assert [entry.removal_note for entry in plan(model).layers] == [
                entry.removal_note for entry in made.layers
            ]
            assert plan(model).removal_note == made.removal_note

    def test_without_removal_there_is_no_such_column(self) -> None:
        model = model32()
        made = plan(model, prune(model, "magnitude", sparsity=0.3, scope="matrix"), measure=False)
        assert made.removal_note == ""
        assert "removed" not in str(made).splitlines()[0]

    def test_the_tokens_decide_how_heads_are_grouped_and_a_plan_brings_its_own(self) -> None:
        def ragged() -> tuple[Any, Ticket]:
            """The second and third head keep eight of their dimensions."""
            model = wide_model()
            keys = structure(model).heads[0]
            masks = {key: torch.rand_like(resolve(model, key).weight) < 0.3 for key in keys}
            for key in keys[:3]:
                masks[key].view(3, 32, -1)[1:, 8:] = False
            masks[keys[3]].view(-1, 3, 32)[:, 1:, 8:] = False
            return model, Ticket(masks)

        def groups(model: Any) -> int:
            found = [module for module in model.modules() if isinstance(module, NarrowAttention)]
            return sum(len(module.groups) for module in found)

        few, many = (sparsify_(*ragged(), format="element", tokens=tokens) for tokens in (8, 100_000))
        assert (groups(few), groups(many)) == (0, 2)
        model, ticket = ragged()
        expected = answers(masked(model, ticket), "padded")
        for sparse in (few, many):
            assert error(answers(sparse, "padded"), expected) < 1e-5
        made = plan(model, ticket, format="element", tokens=100_000)
        assert groups(sparsify_(model, ticket, format=made)) == 2

    def test_dense_heads_are_not_padded_for_fewer_calls(self) -> None:
        model = wide_model()
        keys = structure(model).heads[0]
        masks = {key: torch.ones_like(resolve(model, key).weight, dtype=torch.bool) for key in keys}
        for key in keys[:3]:
            masks[key].view(3, 32, -1)[1:, 8:] = False
        sparsify_(model, Ticket(masks), format="dense", tokens=8)
        (attention,) = (module for module in model.modules() if isinstance(module, NarrowAttention))
        assert [group.score for group in attention.groups] == [32, 8]

    def test_ragged_heads_run_in_an_attention_of_their_own(self) -> None:
        """Head size 16, so that multiples of eight leave something narrower."""
        transformers = pytest.importorskip("transformers")
        config = model32().config
        config.hidden_size, config.intermediate_size = 48, 64
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config).eval()
        ticket = ticket_of(model, SPARSE)
        expected = answers(masked(model, ticket), "padded")
        sparsify_(model, ticket, format="element")
        assert error(answers(model, "padded"), expected) < 1e-5
        found = [module for module in model.modules() if isinstance(module, NarrowAttention)]
        assert found
        assert {group.score % 8 for module in found for group in module.groups} == {0}
