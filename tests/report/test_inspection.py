"""``sparsebert.inspect``: where the weights of tickets stay, as records, tables, pictures and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsebert
from sparsebert import Ticket
from sparsebert.report.inspect_csv import csv_files
from sparsebert.report.inspect_plots import inspect_pictures
from sparsebert.report.inspect_tables import PARTS, inspect_tables
from sparsebert.report.inspection import Inspection, inspect_labelled
from sparsebert.report.page import Report
from sparsebert.report.sections import passed_over, sections
from sparsebert.report.table import Table
from sparsebert.report.ticket_labels import TicketLabel, differences, seed_groups

LAYERS, HEADS = 2, 2
SHAPES = {
    "attention.self.query": (8, 8),
    "attention.self.key": (8, 8),
    "attention.self.value": (8, 8),
    "attention.output.dense": (8, 8),
    "intermediate.dense": (12, 8),
    "output.dense": (8, 12),
}


def ticket(seed: int = 0, method: str = "random", density: float = 0.25, **metadata: Any) -> Ticket:
    generator = torch.Generator().manual_seed(seed)
    masks = {
        f"encoder.layer.{layer}.{path}": torch.rand(shape, generator=generator) < density
        for layer in range(LAYERS)
        for path, shape in SHAPES.items()
    }
    described = {"method": method, "seed": seed, "sparsity": 1 - density, "model": {"heads": HEADS}}
    return Ticket(masks, metadata=described | metadata)


def headless(seed: int = 0) -> Ticket:
    """A ticket in which the first head of the first layer and the second MLP are pruned out."""
    pruned = ticket(seed, "snip", 1.0)
    pruned.masks["encoder.layer.0.attention.self.value"][:4] = False
    pruned.masks["encoder.layer.1.output.dense"][:] = False
    return pruned


def titles(tables: list[Table]) -> list[str]:
    return [table.title for table in tables]


def named(tables: list[Table], start: str) -> Table:
    return next(table for table in tables if table.title.startswith(start))


@pytest.fixture(scope="module")
def several() -> Inspection:
    tickets = {f"r{seed}": ticket(seed) for seed in (1, 2)}
    return sparsebert.inspect(tickets | {"m": ticket(1, "magnitude", task="sst2"), "s": headless()})


class TestTables:
    def test_one_ticket_shows_matrices_heads_and_what_is_empty(self) -> None:
        tables = sparsebert.inspect(headless()).tables
        assert titles(tables) == [
            "Tickets",
            "Density by layer and matrix: ticket 1",
            "What the masks leave empty: ticket 1",
            "Density by head: ticket 1",
        ]
        _, density, empty, heads = tables
        assert density.rows[0] == ("0", "100.0", "100.0", "50.0", "100.0", "100.0", "100.0", "92.9")
        assert density.rows[-1][0] == "all"
        assert empty.rows[2][0:4] == ("value", "128", "75.0", "25.0")
        assert heads.rows[0] == ("0", "75.0", "100.0")
        assert "percentage points: query 0.00, key 0.00, value 43.30," in heads.notes[1]

    def test_several_tickets_are_compared(self, several: Inspection) -> None:
        tables = inspect_tables(several.records, brief=True)
        assert titles(tables) == [
            "Tickets",
            "Density by layer",
            "Density by matrix",
            "Density by head over 2 tickets (random, element, 75% sparse)",
            "Overlap of tickets",
            "Overlap by difference",
        ]
        assert tables[1].columns == ("layer", "r1", "r2", "m", "s")
        square = named(tables, "Overlap of tickets")
        assert square.rows[0][1] == "1"
        assert square.rows[0][3].startswith("1.000 (")  # the same seed draws the same mask
        rows = {row[0]: row for row in named(tables, "Overlap by difference").rows}
        assert rows["seed"][1] == "1"
        assert rows["method, task"][1:3] == ("1", "1.000")

    def test_a_page_also_has_the_tables_of_each(self, several: Inspection) -> None:
        each = [title for title in titles(several.tables) if title.startswith("Density by layer and matrix")]
        assert each == [f"Density by layer and matrix: {name}" for name in ("r1", "r2", "m", "s")]

    def test_pruned_out_units_are_counted_over_seeds(self) -> None:
        whole = ticket(3, "snip", 1.0)
        tables = sparsebert.inspect([headless(1), headless(2), whole]).tables
        survivors = named(tables, "Survivors in 3 tickets (snip, element, 0% sparse)")
        assert survivors.columns == ("layer", "0", "1", "MLP")
        assert survivors.rows == (("0", "1", "3", "3"), ("1", "3", "3", "1"))

    def test_tickets_of_other_methods_are_one_group_if_no_two_differ_in_the_seed_alone(self) -> None:
        tables = sparsebert.inspect({"a": headless(), "b": ticket(0)}).tables
        assert named(tables, "Survivors in 2 tickets (all tickets)")

    def test_unknown_heads_are_said_and_left_out(self) -> None:
        bare = Ticket(ticket().masks)
        tables = sparsebert.inspect({"bare": bare}).tables
        assert tables[0].notes == ("Without heads, whose number is not recorded: bare. Pass the model.",)
        assert not [title for title in titles(tables) if "by head" in title]
        assert named(sparsebert.inspect(bare, heads=HEADS).tables, "Density by head")

    def test_only_what_is_asked_for_is_shown(self, several: Inspection) -> None:
        assert titles(inspect_tables(several.records, ["overlap"])) == [
            "Tickets",
            "Overlap of tickets",
            "Overlap by difference",
        ]
        assert "Density by head: s" in titles(inspect_tables(several.records, ["heads"]))

    def test_tickets_of_one_name_have_a_column_each(self) -> None:
        """Records of two files may name two tickets alike."""
        records = [sparsebert.inspect({"t": ticket(seed)}).records[0] for seed in (1, 2)]
        by_layer = named(inspect_tables(records, brief=True), "Density by layer")
        assert by_layer.columns == ("layer", "t", "t")
        assert by_layer.rows[0][1] != by_layer.rows[0][2]

    def test_very_many_tickets_are_summarised(self) -> None:
        tables = sparsebert.inspect([ticket(seed) for seed in range(13)]).tables
        assert "Overlap of tickets" not in titles(tables)
        assert named(tables, "Overlap by difference").rows[0][:2] == ("seed", "78")


class TestLabels:
    def test_seeds_are_grouped_and_rounds_of_other_sparsities_are_not(self) -> None:
        labels = [
            TicketLabel.of(f"{seed} {density}", ticket(seed, density=density))
            for density in (0.5, 0.25)
            for seed in (1, 2)
        ]
        assert [[each.name for each in group] for group in seed_groups(labels)] == [
            ["1 0.5", "2 0.5"],
            ["1 0.25", "2 0.25"],
        ]
        assert differences(labels[0], labels[3]) == ("seed", "sparsity")
        decided = TicketLabel.of("learned", ticket(1, sparsity=None))
        assert differences(decided, TicketLabel.of("asked", ticket(1))) == ()

    def test_a_search_that_decides_the_sparsity_may_find_another_one_for_each_seed(self) -> None:
        labels = [
            TicketLabel.of(str(seed), ticket(seed, density=density, sparsity=None))
            for seed, density in ((1, 0.3), (2, 0.5))
        ]
        assert len(seed_groups(labels)) == 1
        assert differences(*labels) == ("seed",)

    def test_tickets_that_differ_in_nothing_else_differ_in_the_sparsity_that_they_reach(self) -> None:
        labels = [
            TicketLabel.of(str(density), ticket(1, density=density, sparsity=None)) for density in (0.3, 0.5)
        ]
        assert differences(*labels) == ("sparsity",)

    def test_the_run_says_more_than_the_ticket(self) -> None:
        label = TicketLabel.of("a", ticket(1), {"method": "imp", "task": "sst2", "seed": 7})
        assert (label.method, label.task, label.seed) == ("imp", "sst2", 7)
        assert label.without_seed == "imp, element, sst2, 75% sparse"


class TestRecords:
    def test_they_are_plain_json_that_makes_the_same_tables(self, several: Inspection) -> None:
        again = [json.loads(json.dumps(row, allow_nan=False)) for row in several.records]
        assert inspect_tables(again) == several.tables
        assert [row["kind"] for row in again] == ["inspect"] * 4 + ["inspect_survivors", "inspect_overlap"]
        assert passed_over(again) == []

    def test_a_damaged_record_is_one_line(self, several: Inspection) -> None:
        for row in several.records:
            with pytest.raises(ValueError, match=r"^a record for the tables of kind 'inspect' is not"):
                sections([{"kind": row["kind"], "name": "x"}])

    def test_tickets_of_two_models_are_refused_or_kept_apart(self) -> None:
        small = {key: mask[:4, :4] for key, mask in ticket().masks.items()}
        tickets = {"a": ticket(1), "b": Ticket(small), "c": ticket(2)}
        with pytest.raises(ValueError, match=r"^tickets of different models: .* is 8x8 in a and 4x4 in b$"):
            sparsebert.inspect(tickets)
        labelled = [(TicketLabel.of(name, each), each) for name, each in tickets.items()]
        records = inspect_labelled(labelled, one_model=False).records
        (overlap,) = (row for row in records if row["kind"] == "inspect_overlap")
        assert [each["name"] for each in overlap["tickets"]] == ["a", "c"]

    @pytest.mark.parametrize(
        ("tickets", "message"),
        [
            ([], "no ticket to inspect: pass at least one"),
            ("t.safetensors", "ticket must be a sparsebert.Ticket, got a str"),
            (3, "ticket must be a sparsebert.Ticket, got a int"),
            ([ticket().masks], "ticket must be a sparsebert.Ticket, got a dict"),
        ],
        ids=["none", "a path", "a number", "masks"],
    )
    def test_anything_but_tickets_is_refused(self, tickets: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            sparsebert.inspect(tickets)


class TestCsv:
    def test_a_line_for_each_figure(self, several: Inspection) -> None:
        files = csv_files(several.records)
        assert list(files) == ["density.csv", "heads.csv", "blocks.csv", "survivors.csv", "overlap.csv"]
        rows = list(csv.DictReader(io.StringIO(files["density.csv"])))
        assert len(rows) == 4 * LAYERS * len(SHAPES)
        first = rows[0]
        assert int(first["kept"]) / (int(first["rows"]) * int(first["columns"])) == float(first["density"])
        heads = list(csv.DictReader(io.StringIO(files["heads.csv"])))
        assert len(heads) == 4 * LAYERS * HEADS * 4
        overlaps = list(csv.DictReader(io.StringIO(files["overlap.csv"])))
        assert len(overlaps) == 6
        assert overlaps[0]["differ_in"] == "seed"

    def test_every_line_of_a_file_has_its_columns(self, several: Inspection) -> None:
        for name, text in csv_files(several.records).items():
            assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1, name

    def test_only_what_is_asked_for(self, several: Inspection) -> None:
        assert list(csv_files(several.records, ["masks"])) == ["blocks.csv"]


class TestPictures:
    @pytest.fixture(autouse=True)
    def _with_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    def test_every_part_is_drawn_and_described(self, several: Inspection) -> None:
        pictures = several.pictures
        assert [picture.title.split(":")[0] for picture in pictures] == [
            "Density by layer and matrix",
            *["Density by head"] * 3,
            "Survivors",
            "Overlap of tickets",
            *["Masks"] * 3,
        ]
        for picture in pictures:
            assert len(picture.alt) > 60
        assert "from 0." in next(each.alt for each in pictures if "Overlap" in each.title)

    def test_a_cell_of_the_map_of_heads_is_the_mean_over_the_seeds(self) -> None:
        inspection = sparsebert.inspect([headless(1), ticket(2, "snip", 1.0)])
        (picture,) = inspect_pictures(inspection.records, ["heads"])
        value = next(axes for axes in picture.draw().axes if axes.get_title(loc="left") == "value")
        assert value.images[0].get_array().tolist() == [[0.5, 1], [1, 1]]
        assert [text.get_text() for text in value.texts] == ["50", "100", "100", "100"]

    def test_the_map_of_survivors_counts_tickets(self) -> None:
        inspection = sparsebert.inspect([headless(1), headless(2), ticket(3, "snip", 1.0)])
        (picture,) = inspect_pictures(inspection.records, ["survivors"])
        heads, mlps, _ = picture.draw().axes
        assert [text.get_text() for text in heads.texts] == ["1", "3", "3", "3"]
        assert [text.get_text() for text in mlps.texts] == ["3", "1"]
        assert "3 heads survive in all of them, 0 in none; 1 MLPs survive in all" in picture.alt

    def test_lines_by_layer_are_densities_in_per_cent(self) -> None:
        (picture,) = inspect_pictures(sparsebert.inspect(headless()).records, ["density"])
        panels = {axes.get_title(loc="left"): axes for axes in picture.draw().axes}
        assert panels["value"].lines[0].get_ydata().tolist() == [50, 100]
        assert panels["ffn_down"].lines[0].get_ydata().tolist() == [100, 0]

    def test_every_block_of_every_mask_is_drawn_once(self) -> None:
        (picture,) = inspect_pictures(sparsebert.inspect(headless()).records, ["masks"])
        first, *_ = picture.draw().axes
        drawn = first.images[0].get_array().compressed()
        assert len(drawn) == 4 * 64 + 2 * 96
        assert drawn.sum() == len(drawn) - 32
        assert "14.3% of the blocks keep nothing" in picture.alt

    def test_a_page_draws_the_first_groups_alone(self, several: Inspection) -> None:
        few = inspect_pictures(several.records, most=1)
        assert [(each.title, each.caption) for each in few if each.title.startswith("Masks")] == [
            ("Masks: random, element, 75% sparse, 2 seeds, the first", "The last one drawn: 1 of 3.")
        ]

    def test_files_stand_beside_each_other(self, tmp_path: Path) -> None:
        files = sparsebert.inspect({"a/b": ticket()}).save(tmp_path / "new" / "folder", ["overlap", "masks"])
        assert [file.name for file in files] == ["blocks.csv", "masks-a-b.png", "masks-a-b.svg"]
        assert (files[1].read_bytes()[:4], files[2].read_text()[:5]) == (b"\x89PNG", "<?xml")

    def test_names_that_look_alike_have_files_of_their_own(self, tmp_path: Path) -> None:
        files = sparsebert.inspect({"a b": ticket(1), "a-b": ticket(1, "m")}).save(tmp_path, ["masks"])
        assert len({file.name for file in files}) == len(files) == 5

    def test_models_without_layers_or_heads_are_drawn(self) -> None:
        other = Ticket({"0": torch.eye(4) > 0, "blocks.1.mixer": torch.eye(6) > 0})
        for picture in sparsebert.inspect([other, other]).pictures:
            picture.draw()

    def test_seeds_of_two_models_are_drawn_apart(self) -> None:
        """As in a report of runs of two models by the same method."""

        def of_model(name: str, layers: int, seed: int) -> Ticket:
            whole = ticket(seed, model={"heads": HEADS, "id": name})
            masks = {key: mask for key, mask in whole.masks.items() if int(key.split(".")[2]) < layers}
            return Ticket(masks, metadata=whole.metadata)

        tickets = [of_model(name, layers, seed) for name, layers in (("a", 1), ("b", 2)) for seed in (1, 2)]
        labelled = [(TicketLabel.of(str(number), each), each) for number, each in enumerate(tickets)]
        records = inspect_labelled(labelled, one_model=False).records
        pictures = inspect_pictures(records, ["density", "heads"])
        group = "random, element, 75% sparse, 2 seeds"
        assert [picture.title for picture in pictures] == [
            "Density by layer and matrix",
            f"Density by head: {group}, a",
            f"Density by head: {group}, b",
        ]
        lines = pictures[0].draw().axes[0].lines
        assert [len(line.get_ydata()) for line in lines] == [1, 2]

    def test_a_report_shows_all_of_it(self, several: Inspection) -> None:
        pytest.importorskip("jinja2")
        text = Report("Results", several.records, sections(several.records)).html()
        assert text.count('role="img"') == len(several.pictures)
        assert len(text) < 3e6


def test_a_notebook_shows_the_tables(several: Inspection) -> None:
    text = several._repr_html_()
    assert text.count("<table>") == len(several.tables)


def test_the_parts_are_those_of_the_documents() -> None:
    assert PARTS == ("density", "heads", "survivors", "overlap", "masks")
