"""The rules by themselves, on matrices: what goes, what is folded, and where it is put."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsebert.compaction import live_rectangle as live_rectangle_module
from sparsebert.compaction.attention_folding import compact_attention
from sparsebert.compaction.heads import (
    DIMENSIONS_OF_A_GROUP,
    DIMENSIONS_OF_A_PACKED_GROUP,
    Head,
    HeadGroup,
    group_heads,
    slots,
    total,
)
from sparsebert.compaction.live_rectangle import RectangleLinear, live_rectangle, rectangle_linear
from sparsebert.compaction.masked_matrix import EMPTY, Matrix, round_up
from sparsebert.compaction.neurons import compact_neurons
from sparsebert.compaction.thin_rows import without_thin_rows

HIDDEN, HEADS, SIZE = 6, 3, 4
ROWS = HEADS * SIZE
NONE = slice(0)


def matrix(rows: int, columns: int) -> Matrix:
    weight = torch.randn(rows, columns, dtype=torch.float64)
    return Matrix(weight, torch.ones_like(weight, dtype=torch.bool), torch.randn(rows, dtype=torch.float64))


def without(full: Matrix, *, rows: list[int] | slice = NONE, columns: list[int] | slice = NONE) -> Matrix:
    mask = full.mask.clone()
    mask[rows] = False
    mask[:, columns] = False
    return Matrix(full.weight, mask, full.bias)


def feed_forward(x: Tensor, up: Matrix, down: Matrix) -> Tensor:
    return F.linear(F.gelu(F.linear(x, up.kept(), up.bias)), down.kept(), down.bias)


class TestNeurons:
    def test_constant_ones_are_folded_and_unread_ones_go(self) -> None:
        up, down = without(matrix(8, HIDDEN), rows=[1, 5]), without(matrix(HIDDEN, 8), columns=[2, 5])
        left = compact_neurons(up, down, F.gelu)
        assert left.removed == 3
        assert left.up.weight.equal(up.weight[[0, 3, 4, 6, 7]])
        torch.testing.assert_close(left.down.bias, down.bias + down.weight[:, 1] * F.gelu(up.bias[1]))
        x = torch.randn(5, HIDDEN, dtype=torch.float64)
        torch.testing.assert_close(feed_forward(x, left.up, left.down), feed_forward(x, up, down))

    def test_rounding_up_adds_neurons_of_zeros(self) -> None:
        up, down = without(matrix(8, HIDDEN), rows=[1, 4, 5]), matrix(HIDDEN, 8)
        left = compact_neurons(up, down, F.gelu, round_to=3)
        assert left.up.weight.shape == (6, HIDDEN)
        assert not left.up.weight[5].any()
        assert not left.up.bias[5]
        assert not left.down.weight[:, 5].any()

    def test_nothing_changes_where_rounding_up_leaves_nothing_to_gain(self) -> None:
        up, down = without(matrix(8, HIDDEN), rows=[1]), matrix(HIDDEN, 8)
        left = compact_neurons(up, down, F.gelu, round_to=8)
        assert (left.up, left.down, left.removed) == (up, down, 0)

    def test_without_any_neuron_one_of_zeros_is_left(self) -> None:
        up, down = without(matrix(8, HIDDEN), rows=slice(None)), matrix(HIDDEN, 8)
        left = compact_neurons(up, down, F.gelu)
        assert left.up.weight.shape == (1, HIDDEN)
        x = torch.randn(5, HIDDEN, dtype=torch.float64)
        torch.testing.assert_close(feed_forward(x, left.up, left.down), feed_forward(x, up, down))


class TestHeads:
    def full(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        return matrix(ROWS, HIDDEN), matrix(ROWS, HIDDEN), matrix(ROWS, HIDDEN), matrix(HIDDEN, ROWS)

    def test_a_dimension_whose_key_is_constant_goes_from_both(self) -> None:
        query, key, value, output = self.full()
        left = compact_attention(query, without(key, rows=[1]), value, output, HEADS)
        assert left.heads[0].score == (0, 2, 3)
        assert left.heads[0].key_bias == ()

    def test_constant_queries_become_one_key(self) -> None:
        query, key, value, output = self.full()
        left = compact_attention(without(query, rows=[0, 2]), without(key, rows=[4, 8]), value, output, HEADS)
        assert (left.heads[0].score, left.heads[0].key_bias) == ((1, 3), (0, 2))
        slot = slots(left.groups, "score")[0][0] + 2
        assert not left.query.weight[slot].any()
        assert left.query.bias[slot] == 1
        expected = query.bias[0] * key.weight[0] + query.bias[2] * key.weight[2]
        torch.testing.assert_close(left.key.weight[slot], expected)
        assert left.key.bias[slot] == 0

    def test_a_single_constant_query_stays_as_it_is(self) -> None:
        query, key, value, output = self.full()
        left = compact_attention(without(query, rows=[0]), without(key, rows=[3, 4, 8]), value, output, HEADS)
        slot = slots(left.groups, "score")[0][0] + 2
        assert left.query.bias[slot] == query.bias[0]
        assert left.key.weight[slot].equal(key.weight[0])

    def test_a_query_of_zero_needs_no_key(self) -> None:
        query, key, value, output = self.full()
        bias = query.bias.clone()
        bias[0] = 0
        query = without(Matrix(query.weight, query.mask, bias), rows=[0])
        left = compact_attention(query, key, value, output, HEADS)
        assert (left.heads[0].score, left.heads[0].key_bias) == ((1, 2, 3), ())

    def test_values_that_nothing_reads_go_and_constant_ones_are_carried(self) -> None:
        query, key, value, output = self.full()
        value, output = without(value, rows=[0, 5]), without(output, columns=[1, 5, 8])
        left = compact_attention(query, key, value, output, HEADS)
        assert [head.value for head in left.heads] == [(2, 3), (4, 6, 7), (9, 10, 11)]
        assert [head.carrier for head in left.heads] == [True, False, False]
        slot = slots(left.groups, "value")[0][0] + 2
        assert (left.value.weight[slot].any(), left.value.bias[slot]) == (False, 1)
        torch.testing.assert_close(left.output.weight[:, slot], output.weight[:, 0] * value.bias[0])

    def test_nothing_changes_while_one_head_needs_the_full_width(self) -> None:
        query, key, value, output = self.full()
        left = compact_attention(query, without(key, rows=[1]), value, output, HEADS)
        assert left.groups == ()
        assert left.matrices[::2] == (query, value)

    @pytest.mark.parametrize("which", ["value", "output"])
    def test_a_head_goes_with_its_values_or_their_readers(self, which: str) -> None:
        query, key, value, output = self.full()
        part = slice(SIZE, 2 * SIZE)
        if which == "value":
            value = without(Matrix(value.weight, value.mask, torch.zeros(ROWS)), rows=part)
        else:
            output = without(output, columns=part)
        left = compact_attention(query, key, value, output, HEADS)
        assert left.groups == (HeadGroup((0, 2), SIZE, SIZE),)

    @pytest.mark.parametrize("which", ["query", "key"])
    def test_a_head_without_query_or_key_still_takes_a_mean(self, which: str) -> None:
        query, key, value, output = self.full()
        part = slice(0, SIZE)
        query, key = (
            (without(query, rows=part), key) if which == "query" else (query, without(key, rows=part))
        )
        left = compact_attention(query, key, value, output, HEADS)
        assert left.heads[0].score_width == (which == "query")
        assert left.heads[0].value_width == SIZE

    def test_a_constant_head_runs_for_its_constant_alone_where_no_other_has_room(self) -> None:
        query, key, value, output = self.full()
        left = compact_attention(query, key, without(value, rows=slice(0, SIZE)), output, HEADS)
        assert left.heads[0] == Head(0, (), (), (), carrier=True)
        assert [head.value_width for head in left.heads] == [1, SIZE, SIZE]


def head(index: int, width: int) -> Head:
    return Head(index, tuple(range(width)), (), tuple(range(width)))


class TestGroups:
    def test_heads_of_like_widths_are_padded_to_the_widest(self) -> None:
        heads = [head(0, 60), head(1, 64), head(2, 62)]
        assert group_heads(heads, 64) == (HeadGroup((0, 1, 2), 64, 64),)

    def test_heads_of_very_different_widths_are_split(self) -> None:
        heads = [head(0, 64), head(1, 3), head(2, 64), head(3, 4)]
        assert group_heads(heads, 64) == (HeadGroup((0, 2), 64, 64), HeadGroup((1, 3), 4, 4))

    def test_widths_are_rounded_up_but_not_beyond_the_models(self) -> None:
        assert group_heads([head(0, 3), head(1, 5)], 6, round_to=4) == (HeadGroup((0, 1), 6, 6),)
        assert round_up(0, 1, 9) == 1

    def test_where_padding_is_free_few_tokens_are_worth_one_call_and_many_are_not(self) -> None:
        heads = [head(0, 64), head(1, 3), head(2, 64), head(3, 4)]
        assert group_heads(heads, 64, packed_for=24) == (HeadGroup((0, 1, 2, 3), 64, 64),)
        many = DIMENSIONS_OF_A_PACKED_GROUP // 8
        assert group_heads(heads, 64, packed_for=many) == (HeadGroup((0, 2), 64, 64), HeadGroup((1, 3), 4, 4))

    def test_where_padding_is_free_value_is_as_wide_as_query_and_key(self) -> None:
        narrow_keys = Head(0, (0, 1), (), tuple(range(7)))
        assert group_heads([narrow_keys], 64) == (HeadGroup((0,), 2, 7),)
        assert group_heads([narrow_keys], 64, packed_for=24) == (HeadGroup((0,), 7, 7),)
        narrow_values = Head(0, tuple(range(5)), (), (0,))
        assert group_heads([narrow_values], 8, round_to=4, packed_for=24) == (HeadGroup((0,), 8, 8),)

    @given(st.lists(st.integers(1, 64), min_size=1, max_size=12))
    def test_no_grouping_in_order_of_width_is_cheaper(self, widths: list[int]) -> None:
        heads = [head(index, width) for index, width in enumerate(widths)]
        groups = group_heads(heads, 64)
        assert sorted(index for group in groups for index in group.heads) == list(range(len(widths)))

        def cost(found: tuple[HeadGroup, ...]) -> int:
            padded = sum(total(found, kind) for kind in ("score", "value"))
            return padded + DIMENSIONS_OF_A_GROUP * len(found)

        one = (HeadGroup(tuple(range(len(widths))), max(widths), max(widths)),)
        assert cost(groups) <= cost(one)
        for cut in range(1, len(widths)):
            narrow, wide = sorted(heads, key=lambda each: each.score_width)[:cut], sorted(widths)[cut:]
            two = (
                HeadGroup(tuple(range(cut)), narrow[-1].score_width, narrow[-1].score_width),
                HeadGroup(tuple(range(cut, len(widths))), wide[-1], wide[-1]),
            )
            assert cost(groups) <= cost(two)


class TestRectangle:
    @pytest.mark.parametrize("round_to", [1, 4])
    def test_answers_and_gradients_are_those_of_the_whole_matrix(self, round_to: int) -> None:
        whole = without(matrix(10, 12), rows=[0, 3, 4], columns=[1, 2, 11])
        live = live_rectangle(whole, round_to)
        assert live is not None
        layer = rectangle_linear(whole, live)
        assert layer.weight.shape == ((7, 9) if round_to == 1 else (8, 12))
        x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
        y, expected = layer(x), F.linear(x, whole.kept(), whole.bias)
        torch.testing.assert_close(y, expected)
        gradient = torch.randn_like(y)
        mine = torch.autograd.grad(y, (x, layer.bias), gradient)
        assert torch.autograd.gradcheck(layer, (x,))
        torch.testing.assert_close(mine[0], gradient @ whole.kept())
        torch.testing.assert_close(mine[1], gradient.sum((0, 1)))
        torch.testing.assert_close(layer.whole(layer.weight), whole.kept())
        torch.testing.assert_close(layer.to_linear()(x), expected)

    @pytest.mark.parametrize(
        ("rows", "columns", "left"),
        [
            (0, 0, None),
            (15, 0, None),
            (30, 0, (70, 100)),
            (0, 3, None),
            (0, 10, (100, 90)),
            (15, 40, (100, 60)),
            (40, 3, (60, 100)),
            (40, 40, (60, 60)),
            (100, 100, (100, 1)),
        ],
    )
    def test_it_has_to_pay(
        self, monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, left: tuple[int, int] | None
    ) -> None:
        """A row of the output costs a fifth of its products to be placed, a column of x a twentieth."""
        monkeypatch.setattr(live_rectangle_module, "PLACED", 20)
        monkeypatch.setattr(live_rectangle_module, "PICKED", 5)
        live = live_rectangle(without(matrix(100, 100), rows=slice(rows), columns=slice(columns)))
        assert (live and tuple(map(len, live))) == left

    def test_in_models_of_real_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        for size, least in ((384, 100), (768, 100)):
            whole = matrix(size, size)
            assert live_rectangle(without(whole, rows=slice(least // 2))) is None
            live = live_rectangle(without(whole, rows=slice(least)))
            assert live is not None
            assert len(live[0]) == size - least

    def test_in_autocast(self) -> None:
        whole = without(matrix(8, 8), rows=[1, 2])
        live = live_rectangle(whole)
        assert live is not None
        layer: RectangleLinear = rectangle_linear(whole, live).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(3, 8)).dtype == torch.bfloat16

    def test_taking_rows_and_columns_of_nothing(self) -> None:
        taken = matrix(3, 3).rows([2, EMPTY, 0]).columns([EMPTY, 1])
        assert taken.weight.shape == (3, 2)
        assert not taken.kept()[1].any()
        assert not taken.kept()[:, 0].any()
        assert not taken.mask[:, 0].any()


class TestThinRows:
    def test_one_row_empties_another_until_none_is_thin(self) -> None:
        up, down = torch.ones(3, 4, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
        up[0, 1:] = False  # one weight: neuron 0 goes
        down[1] = torch.tensor([True, True, False])  # then this row has one weight that counts
        down[2] = torch.tensor([False, True, True])
        left = without_thin_rows({"up": up, "down": down}, 2, [("up", "down")], [])
        assert not left["up"][0].any()
        assert left["up"][1:].all()
        assert left["down"].any(1).tolist() == [True, False, True, True]

    def test_a_column_emptied_by_rows_takes_its_weights_along(self) -> None:
        """Rows of ``down`` go, so nothing reads a neuron; other rows are not thinner by that."""
        up, down = torch.ones(2, 4, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
        down[0] = True
        down[1, 0] = True
        left = without_thin_rows({"up": up, "down": down}, 2, [("up", "down")], [])
        assert left["down"].any(1).tolist() == [True, False, False]

    def test_nothing_is_thinner_than_nothing(self) -> None:
        masks = {"up": torch.rand(5, 4) < 0.2, "down": torch.rand(4, 5) < 0.2}
        left = without_thin_rows(masks, 0, [("up", "down")], [])
        assert all(left[key].equal(mask) for key, mask in masks.items())

    @given(seed=st.integers(0, 999), least=st.integers(1, 4))
    def test_a_second_time_changes_nothing(self, seed: int, least: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "query": (6, 5),
            "key": (6, 5),
            "value": (6, 5),
            "output": (5, 6),
            "up": (8, 5),
            "down": (5, 8),
        }
        masks = {key: torch.rand(shape, generator=generator) < 0.5 for key, shape in shapes.items()}
        units = [("up", "down")], [("query", "key", "value", "output")]
        once = without_thin_rows(masks, least, *units)
        twice = without_thin_rows(once, least, *units)
        assert all(twice[key].equal(mask) for key, mask in once.items())
        assert all((masks[key] | ~mask).all() for key, mask in once.items())
