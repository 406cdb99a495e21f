"""Tables in a notebook: escaped, legible on any ground, with headings that a screen reader announces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsebert
from sparsebert import Ticket
from sparsebert.bench.timer import Timings
from sparsebert.html_table import table_html
from sparsebert.report.optimize_tables import optimize_tables
from sparsebert.report.page import Report
from sparsebert.report.sections import sections
from sparsebert.report.table import Table
from sparsebert.results import read
from sparsebert.workflows.form_choice import Optimized
from tests.html_elements import Elements

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HOSTILE = "<script>alert('x')</script>&"


def test_no_text_is_taken_for_html() -> None:
    text = table_html(HOSTILE, (HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)], [HOSTILE])
    assert not [tag for tag, _ in Elements(text).found if tag == "script"]
    assert text.count("&lt;script&gt;") == 6


def test_headings_have_a_scope_and_the_title_is_the_caption() -> None:
    elements = Elements(table_html("Title", ("a", "b"), [("1", "2"), ("3", "4")]))
    assert [each["scope"] for each in elements.of("th")] == ["col", "col", "row", "row"]
    assert len(elements.of("caption")) == 1


def test_a_shade_is_clear_enough_for_dark_and_light_text() -> None:
    text = table_html("", ("a", "b", "c"), [("1", "2", "3")], shades=[[1.0, None]])
    assert text.count("rgba(0,114,178,0.45)") == text.count("rgba(") == 1
    assert "color:" not in text.replace("background", "")


@pytest.mark.parametrize("prose", [True, False])
def test_a_table_of_a_report_shows_itself(prose: bool) -> None:
    text = Table("Title", ("name", "value"), (("x", HOSTILE),), ("a note",), prose)._repr_html_()
    assert text.count("text-align:right") == (0 if prose else 2)
    assert "a note" in text
    Elements(text)


class TestTickets:
    def test_a_ticket_shows_its_densities_and_its_model(self) -> None:
        masks = {
            f"encoder.layer.{layer}.attention.self.{name}": torch.eye(4) > layer
            for layer in range(2)
            for name in ("query", "key")
        }
        ticket = Ticket(masks, metadata={"method": HOSTILE, "model": {"id": HOSTILE}})
        text = ticket._repr_html_()
        assert [each["scope"] for each in Elements(text).of("th")].count("row") == 3
        assert ">query</th>" in text
        assert ">25.0</td>" in text
        assert "<script" not in text
        assert f"Model: {'&lt;script&gt;'}" in text

    def test_a_ticket_of_any_model_shows_itself(self) -> None:
        for masks in ({}, {"0": torch.ones(2, 2, dtype=torch.bool)}):
            Elements(Ticket(masks)._repr_html_())

    def test_a_plan_shows_its_layers_and_what_its_text_says_below(self) -> None:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        ticket = sparsebert.prune(model, "magnitude", sparsity=0.5)
        plan = sparsebert.plan(model, ticket, tokens=8, measure=False)
        text = plan._repr_html_()
        assert [each["scope"] for each in Elements(text).of("th")].count("row") == 2
        assert plan.machine.replace("'", "&#x27;").replace("&", "&amp;") in text or plan.machine in text


class TestSpeed:
    def test_timings_show_each_side_beside_the_first(self) -> None:
        timings = Timings({"dense": [0.02, 0.02], HOSTILE: [0.01, 0.01]}, threads=1)
        text = timings._repr_html_()
        assert [each["scope"] for each in Elements(text).of("th")] == ["col"] * 4 + ["row"] * 2
        assert "2.00x" in text
        assert "Medians of 2 paired rounds, 1 thread." in text
        assert "<script" not in text

    def test_timings_without_a_round_show_no_figure(self) -> None:
        assert "<td" not in Timings({}, threads=2)._repr_html_()

    def test_a_search_shows_every_form_that_it_tried(self) -> None:
        records = [row for row in read(RESULTS / "arena.jsonl") if row["kind"] == "optimize"]
        text = Optimized(None, Ticket({}), records, "dense int8", f"chosen: {HOSTILE}")._repr_html_()
        assert text.count("<table>") == len(optimize_tables(records)) > 1
        assert text.count("chosen: &lt;script&gt;") == text.count("<table>")

    def test_a_report_shows_its_tables(self) -> None:
        records = read(RESULTS / "serving.jsonl")
        made = Report("Serving", records, sections(records))
        assert made._repr_html_().count("<table>") == len(made.tables)
