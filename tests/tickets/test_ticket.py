"""Tickets: masks with their provenance, and set algebra."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert.tickets.ticket import Ticket

KEYS = ("encoder.layer.0.output.dense", "encoder.layer.1.attention.self.query")


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(bits).view(rows, columns)


@st.composite
def alike(draw: st.DrawFn, number: int) -> list[Ticket]:
    """Tickets over the same two matrices, one of which has its biases masked."""
    shapes = [(draw(st.integers(1, 5)), draw(st.integers(1, 5))) for _ in KEYS]
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=number, max_size=number))
    tickets = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            key: torch.rand(shape, generator=generator) < 0.5 for key, shape in zip(KEYS, shapes, strict=True)
        }
        bias = torch.rand(shapes[0][0], generator=generator) < 0.5
        tickets.append(Ticket(drawn, bias_masks={KEYS[0]: bias}))
    return tickets


def ticket(*rows: list[int], **options: Any) -> Ticket:
    return Ticket({KEYS[0]: torch.tensor(rows, dtype=torch.bool)}, **options)


class TestDigest:
    @given(alike(2))
    def test_it_is_the_same_for_what_prunes_the_same(self, both: list[Ticket]) -> None:
        one, other = both
        assert (one.digest == other.digest) == (one == other)
        assert copy.deepcopy(one).digest == one.digest

    def test_it_never_changes_between_versions(self) -> None:
        mask = torch.tensor([[True, False], [False, True]])
        made = Ticket({"b": mask, "a": ~mask, "c": mask & ~mask}, bias_masks={"a": mask[0]}, removed=["c"])
        assert made.digest == "sha256:672d2bdf73c473cac00410f528577f8273e1720551d7ea4a3d7aa322bff0a52e"

    def test_metadata_do_not_count_and_all_else_does(self) -> None:
        plain = ticket([1, 0], [0, 1])
        assert ticket([1, 0], [0, 1], metadata={"method": "snip"}).digest == plain.digest
        bias = {KEYS[0]: torch.ones(2, dtype=torch.bool)}
        empty = ticket([0, 0], [0, 0])
        others = [
            plain,
            ticket([1, 0, 0, 1]),
            ticket([1, 0], [0, 1], bias_masks=bias),
            empty,
            ticket([0, 0], [0, 0], removed=(KEYS[0],)),
        ]
        assert len({each.digest for each in others}) == len(others)


class TestShares:
    def test_sparsity_counts_weights_and_not_matrices(self) -> None:
        small = torch.zeros(1, 2, dtype=torch.bool)
        large = torch.ones(3, 6, dtype=torch.bool)
        both = Ticket({KEYS[0]: small, KEYS[1]: large})
        assert both.sparsity == 0.1
        assert both.density == 0.9
        assert both.layer_sparsity == {KEYS[0]: 1.0, KEYS[1]: 0.0}

    def test_without_masks_nothing_is_pruned(self) -> None:
        assert (Ticket({}).sparsity, Ticket({}).density) == (0.0, 1.0)

    @given(masks())
    def test_sparsity_is_the_share_of_false(self, mask: Tensor) -> None:
        assert Ticket({KEYS[0]: mask}).sparsity == (~mask).sum().item() / mask.numel()

    def test_repr_prints_sparsity_and_density(self) -> None:
        shown = repr(ticket([1, 0, 0, 0], metadata={"method": "magnitude"}))
        assert shown == "Ticket(1 matrices, sparsity 75.00%, density 25.00%, magnitude)"


class TestConstruction:
    @pytest.mark.parametrize(
        "name",
        ["module.bert." + KEYS[0], "_orig_mod.roberta." + KEYS[0], "encoder._orig_mod.layer.0.output.dense"],
    )
    def test_wrappers_and_base_model_prefixes_are_stripped(self, name: str) -> None:
        assert list(Ticket({name: torch.ones(2, 2, dtype=torch.bool)}).masks) == [KEYS[0]]

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(2, 2), "must be a torch.bool tensor, got torch.float32"),
            ([[True]], "must be a torch.bool tensor, got list"),
            (torch.ones(4, dtype=torch.bool), r"must be \[out, in\] and not empty, got 4"),
            (torch.ones(0, 4, dtype=torch.bool), r"must be \[out, in\] and not empty, got 0x4"),
            (
                torch.ones(2, 2, dtype=torch.bool, device="meta"),
                "is on the meta device, which holds no values",
            ),
        ],
    )
    def test_a_mask_of_another_kind_is_refused(self, mask: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Ticket({KEYS[0]: mask})

    @pytest.mark.parametrize("name", ["", ".", "a..b", "a b", "module", "a\n", 3, "x" * 300])
    def test_an_odd_name_is_refused(self, name: Any) -> None:
        with pytest.raises(ValueError, match="is not a module path"):
            Ticket({name: torch.ones(2, 2, dtype=torch.bool)})

    def test_two_names_of_one_matrix_are_refused(self) -> None:
        mask = torch.ones(2, 2, dtype=torch.bool)
        with pytest.raises(ValueError, match=f"masks has two entries for {KEYS[0]}"):
            Ticket({KEYS[0]: mask, "bert." + KEYS[0]: mask})

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"seed": "3"}, "'seed' must be of type int, got str"),
            ({"seed": True}, "'seed' must be of type int, got bool"),
            ({"history": {}}, "'history' must be of type list, got dict"),
            ({"model": "bert"}, "'model' must be of type dict, got str"),
            ({"loss": math.nan}, "must be JSON"),
            ({"mask": torch.ones(1)}, "must be JSON"),
        ],
    )
    def test_metadata_of_another_type_is_refused(self, metadata: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ticket([1], metadata=metadata)

    def test_a_bias_mask_needs_its_matrix_and_its_length(self) -> None:
        with pytest.raises(ValueError, match="needs a weight mask of the same key"):
            ticket([1], bias_masks={KEYS[1]: torch.tensor([True])})
        with pytest.raises(ValueError, match="has 2 entries, its weight mask 1 rows"):
            ticket([1], bias_masks={KEYS[0]: torch.tensor([True, False])})

    def test_a_removed_module_keeps_nothing(self) -> None:
        assert ticket([0, 0], removed=["encoder.layer.0.output"]).removed == ("encoder.layer.0.output",)
        with pytest.raises(ValueError, match="still keeps weights"):
            ticket([0, 1], removed=["encoder.layer.0.output"])
        with pytest.raises(ValueError, match="has no mask below it"):
            ticket([0, 0], removed=["encoder.layer.0.out"])

    def test_copies_and_pickles_are_equal(self) -> None:
        made = ticket([1, 0], metadata={"method": "magnitude"})
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert other == made
            assert other.metadata == made.metadata


class TestSetAlgebra:
    @given(alike(3))
    def test_laws(self, three: list[Ticket]) -> None:
        a, b, c = three
        assert ~~a == a
        assert a & a == a == a | a
        assert a & b == b & a
        assert a | b == b | a
        assert (a & b) & c == a & (b & c)
        assert (a | b) | c == a | (b | c)
        assert a & (b | c) == (a & b) | (a & c)
        assert ~(a & b) == ~a | ~b
        assert ~(a | b) == ~a & ~b
        assert (a & ~a).sparsity == 1
        assert (a | ~a).sparsity == 0

    @given(alike(2))
    def test_overlap_is_the_jaccard_index_of_what_is_kept(self, two: list[Ticket]) -> None:
        a, b = two
        kept_a = {(k, i) for k in KEYS for i in a.masks[k].flatten().nonzero().flatten().tolist()}
        kept_b = {(k, i) for k in KEYS for i in b.masks[k].flatten().nonzero().flatten().tolist()}
        expected = len(kept_a & kept_b) / len(kept_a | kept_b) if kept_a | kept_b else 1.0
        assert a.overlap(b) == b.overlap(a) == expected
        assert a.overlap(a) == 1.0

    def test_removed_modules_follow_the_algebra(self) -> None:
        without = ticket([0, 0], removed=["encoder.layer.0.output"])
        whole = ticket([1, 0])
        assert (without & whole).removed == ("encoder.layer.0.output",)
        assert (without | whole) == whole
        assert (without | without) == without
        with pytest.raises(ValueError, match="has no complement"):
            operator.invert(without)

    def test_the_history_tells_the_operation(self) -> None:
        origin = {"id": "some-bert"}
        a = ticket([1, 0], metadata={"method": "magnitude", "model": origin, "history": [{"step": 1}]})
        made = a & ticket([1, 1], metadata={"method": "random", "model": origin})
        assert made.metadata["method"] == "intersection"
        assert made.metadata["model"] == origin
        assert made.metadata["history"] == [
            {"step": 1},
            {
                "operation": "intersection",
                "of": [{"method": "magnitude", "sparsity": 0.5}, {"method": "random", "sparsity": 0.0}],
            },
        ]

    def test_tickets_of_different_models_do_not_mix(self) -> None:
        one = ticket([1, 0])
        for other, message in (
            (ticket([1, 0, 1]), f"{KEYS[0]} is 1x2 in one and 1x3 in the other"),
            (
                Ticket({KEYS[1]: torch.ones(1, 2, dtype=torch.bool)}),
                f"only one of them has masks of {KEYS[0]}",
            ),
            (ticket([1, 0], bias_masks={KEYS[0]: torch.tensor([True])}), "bias_masks"),
        ):
            assert one != other
            for operation in (one.__and__, one.__or__, one.overlap):
                with pytest.raises(ValueError, match=message):
                    operation(other)

    def test_equality_is_about_what_is_kept_and_not_about_where_it_comes_from(self) -> None:
        assert ticket([1, 0], metadata={"seed": 1}) == ticket([1, 0], metadata={"seed": 2})
        assert ticket([1, 0]) != ticket([0, 1])
        assert ticket([1, 0]) != "ticket"
