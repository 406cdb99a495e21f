"""Counts of kept weights by matrix, layer, head and block, and the survivors over several tickets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sparsebert import Ticket
from sparsebert.tickets.density_grid import DensityGrid, MatrixCount, density_cells, layer_names, percent
from sparsebert.tickets.kept_weights import KeptWeights, block_counts
from sparsebert.tickets.survivors import Survivors

LAYERS, WIDTH, HEADS = 2, 8, 2
SHAPES = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (12, WIDTH),
    "output.dense": (WIDTH, 12),
}


def ticket(**changes: object) -> Ticket:
    """Everything is kept; ``changes`` are (layer, path) -> the part to prune, as an index of the mask."""
    masks = {
        f"encoder.layer.{layer}.{path}": torch.ones(shape, dtype=torch.bool)
        for layer in range(LAYERS)
        for path, shape in SHAPES.items()
    }
    return Ticket(masks, metadata={"model": {"heads": HEADS, "linears": len(masks)}, **changes})


def prune(pruned: Ticket, layer: int, path: str, part: object = slice(None)) -> Ticket:
    pruned.masks[f"encoder.layer.{layer}.{path}"][part] = False
    return pruned


def count(pruned: Ticket) -> KeptWeights:
    return KeptWeights.of(pruned)


class TestMatrices:
    def test_kept_weights_and_live_lines_of_a_matrix(self) -> None:
        mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
        each = MatrixCount.of("encoder.layer.3.attention.self.key", mask)
        assert (each.layer, each.type) == ("encoder.layer.3", "key")
        assert (each.weights, each.kept, each.live_rows, each.live_columns) == (9, 3, 2, 2)

    @pytest.mark.parametrize(
        ("key", "place"),
        [
            ("transformer.layer.0.ffn.lin1", ("transformer.layer.0", "ffn_up")),
            ("pooler.dense", ("", "pooler")),
            ("model.layers.11.mlp.Wi", ("model.layers.11", "mlp.Wi")),
            ("0", ("", "0")),
            ("2.linear", ("2", "linear")),
        ],
    )
    def test_the_layer_and_type_follow_from_the_key(self, key: str, place: tuple[str, str]) -> None:
        each = MatrixCount.of(key, torch.ones(2, 2, dtype=torch.bool))
        assert (each.layer, each.type) == place

    def test_densities_by_layer_and_type_are_weighted_by_the_matrices_sizes(self) -> None:
        grid = count(prune(ticket(), 1, "intermediate.dense")).grid
        assert grid.types[-2:] == ("ffn_up", "ffn_down")
        assert grid.density[:, -2].tolist() == [1, 0]
        assert grid.by_type[-2] == 0.5
        assert grid.by_layer.tolist() == [1, 1 - 96 / (4 * 64 + 2 * 96)]

    def test_a_layer_without_a_matrix_has_a_hole_and_not_a_zero(self) -> None:
        masks = ticket().masks
        del masks["encoder.layer.1.output.dense"]
        grid = count(Ticket(masks)).grid
        assert np.isnan(grid.density[1, -1])
        assert grid.by_type[-1] == 1
        assert density_cells(grid)[1][1][-2:] == ("-", "100.0")

    def test_a_matrix_outside_of_layers_has_a_row_of_its_own(self) -> None:
        masks = {**ticket().masks, "pooler.dense": torch.zeros(4, 4, dtype=torch.bool)}
        columns, rows, shades = density_cells(DensityGrid.of(map(MatrixCount.of, masks, masks.values())))
        assert columns == ("layer", *count(ticket()).grid.types, "all")
        assert [row[0] for row in rows] == ["0", "1", "all", "pooler"]
        assert rows[-1][-2:] == ("-", "0")
        assert shades[-1][-2:] == [None, 0]

    def test_layers_of_one_stack_are_named_by_number_and_others_by_path(self) -> None:
        assert layer_names(["encoder.layer.0", "encoder.layer.10"]) == ["0", "10"]
        assert layer_names(["text.layers.0", "image.layers.0"]) == ["text.layers.0", "image.layers.0"]

    def test_a_little_differs_from_nothing(self) -> None:
        assert [percent(share) for share in (0, 0.0004, 0.0999, 1, None)] == [
            "0",
            "0.04",
            "10.0",
            "100.0",
            "-",
        ]


class TestHeads:
    def test_a_head_has_rows_of_query_key_and_value_and_columns_of_the_output(self) -> None:
        pruned = prune(ticket(), 0, "attention.self.query", slice(0, 4))
        heads = count(prune(pruned, 0, "attention.output.dense", (slice(None), slice(4, 8)))).heads
        assert heads is not None
        assert heads.density("query")[0].tolist() == [0, 1]
        assert heads.density("attention_output")[0].tolist() == [1, 0]
        assert heads.density()[0].tolist() == [0.75, 0.75]
        assert heads.density()[1].tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("path", "part", "survives"),
        [
            ("attention.self.query", slice(0, 4), True),
            ("attention.self.value", slice(0, 4), False),
            ("attention.self.value", slice(0, 3), True),
            ("attention.output.dense", (slice(None), slice(0, 4)), False),
            ("attention.output.dense", slice(0, 4), True),
        ],
    )
    def test_a_head_survives_while_its_value_and_its_output_keep_a_weight(
        self, path: str, part: object, survives: bool
    ) -> None:
        heads = count(prune(ticket(), 0, path, part)).heads
        assert heads is not None
        assert heads.survives.tolist() == [[survives, True], [True, True]]

    def test_the_number_of_heads_is_the_tickets_or_the_callers(self) -> None:
        other = Ticket(ticket().masks)
        assert count(other).heads is None
        counted = KeptWeights.of(other, heads=4).heads
        assert counted is not None
        assert counted.density().shape == (LAYERS, 4)

    @pytest.mark.parametrize("heads", [3, 0, -2])
    def test_a_number_that_does_not_divide_the_rows_is_refused(self, heads: int) -> None:
        with pytest.raises(ValueError, match=rf"^{heads} heads do not divide the 8 rows of heads in encoder"):
            KeptWeights.of(ticket(), heads=heads)

    def test_a_matrix_without_a_mask_does_not_count(self) -> None:
        masks = prune(ticket(), 0, "attention.self.key").masks
        del masks["encoder.layer.0.attention.self.query"]
        heads = KeptWeights.of(Ticket(masks), heads=HEADS).heads
        assert heads is not None
        assert np.isnan(heads.density("query")[0]).all()
        assert heads.density()[0].tolist() == pytest.approx([2 / 3, 2 / 3])


class TestBlocks:
    def test_blocks_count_their_kept_weights_and_may_be_cut_at_the_edges(self) -> None:
        mask = torch.zeros(5, 3, dtype=torch.bool)
        mask[0, 0] = mask[1, 1] = mask[4, 2] = True
        assert block_counts(mask, 2).tolist() == [[2, 0], [0, 0], [0, 1]]

    def test_all_kept_weights_are_in_a_block(self) -> None:
        mask = torch.rand(37, 61, generator=torch.Generator().manual_seed(0)) < 0.3
        for size in (1, 4, 8, 64):
            assert block_counts(mask, size).sum() == mask.sum()

    def test_the_size_is_a_power_of_two_that_gives_at_most_that_many_blocks(self) -> None:
        sizes = {cells: KeptWeights.of(ticket(), cells=cells).block for cells in (64, 12, 11, 3, 1)}
        assert sizes == {64: 1, 12: 1, 11: 2, 3: 4, 1: 16}


class TestSurvivors:
    def test_units_are_counted_over_the_tickets(self) -> None:
        without_head = prune(ticket(), 0, "attention.self.value", slice(0, 4))
        without_mlp = prune(ticket(), 1, "output.dense")
        survivors = Survivors.of([count(each) for each in (ticket(), without_head, without_mlp)])
        assert survivors is not None
        assert not survivors.all_survive
        assert survivors.heads.tolist() == [[2, 3], [3, 3]]
        assert survivors.mlps.tolist() == [3, 2]

    def test_densities_are_means_with_the_deviation_of_a_sample(self) -> None:
        pruned = prune(ticket(), 0, "attention.self.query", slice(0, 4))
        survivors = Survivors.of([count(ticket()), count(pruned)])
        assert survivors is not None
        assert survivors.all_survive
        assert survivors.head_density[0].tolist() == [0.875, 1]
        assert survivors.head_std[0].tolist() == pytest.approx([0.25 / 2**0.5, 0])
        assert survivors.mlp_density.tolist() == [1, 1]

    def test_a_record_holds_all_of_it_as_plain_json(self) -> None:
        masks = {key: mask for key, mask in ticket().masks.items() if "attention" in key}
        counts = [KeptWeights.of(Ticket(masks), heads=HEADS)] * 2
        survivors = Survivors.of(counts)
        assert survivors is not None
        text = json.dumps({"names": ["a", "b"], **survivors.record()}, allow_nan=False)
        again = Survivors.of_record(json.loads(text))
        assert again.tickets == 2
        assert np.isnan(again.mlp_density).all()
        assert (again.heads == survivors.heads).all()

    def test_without_heads_there_is_nothing_to_count(self) -> None:
        assert Survivors.of([count(Ticket(ticket().masks))] * 2) is None

    def test_one_ticket_is_too_few(self) -> None:
        with pytest.raises(ValueError, match=r"^survivors need at least two tickets, got 1$"):
            Survivors.of([count(ticket())])


def test_a_record_holds_all_counts_as_plain_json() -> None:
    counts = count(prune(ticket(), 0, "attention.self.query", slice(0, 3)))
    again = KeptWeights.of_record(json.loads(json.dumps(counts.record())))
    assert again.matrices == counts.matrices
    assert again.heads == counts.heads
    assert again.blocks.keys() == counts.blocks.keys()
    assert all((again.blocks[key] == blocks).all() for key, blocks in counts.blocks.items())
