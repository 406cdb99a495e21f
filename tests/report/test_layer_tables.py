"""Tables: the same rows for terminal and document, oneDNN first, doubt shown where there is any."""

import io

import pytest
from rich.console import Console

from sparsebert.report.layer_tables import (
    goal_tables,
    int8_tables,
    layer_tables,
    selection_tables,
    stack_tables,
)
from sparsebert.report.model_tables import bench_tables, sweep_tables
from sparsebert.report.table import Table


def shown(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table.rich(width))
    return console.file.getvalue()


def test_ratios_against_onednn_stand_first_and_eager_names_its_blas(bench_record):
    (table,) = bench_tables([bench_record(), bench_record(provider="eager")])
    assert table.columns[:2] == ("side", "vs oneDNN")
    assert table.columns[2].startswith("vs eager (")
    assert table.rows[0][:3] == ("sparse", "3.50x", "7.00x")


def test_random_weights_sparsity_and_density_are_said_in_the_title(bench_record):
    (table,) = bench_tables([bench_record(sparsity=0.9)])
    assert "bert-base, random weights" in table.title
    assert "90.0% element-sparse (density 10.0%)" in table.title


def test_runs_are_kept_apart_and_the_latest_of_a_side_counts(bench_record):
    old, new, other = bench_record(rounds=1), bench_record(rounds=2), bench_record(sparsity=0.5)
    tables = bench_tables([old, new, other, {"kind": "environment"}])
    assert [len(table.rows) for table in tables] == [1, 1]
    assert "2 paired rounds" in tables[0].notes[0]


def test_figures_of_a_busy_machine_are_doubted(bench_record):
    (table,) = bench_tables([bench_record(busy=True, busy_reasons=["somebody is compiling"])])
    assert table.rows[0][1] == "3.50x?"
    assert "TOO BUSY TO MEASURE" in table.notes[-1]
    assert "somebody is compiling" in table.notes[-1]


def test_without_the_usual_bars_the_ratio_is_against_whoever_took_part(bench_record):
    (table,) = bench_tables([bench_record(ratio={"onnxruntime": {"median": 4.0}})])
    assert table.columns[1] == "vs onnxruntime"


def test_a_side_in_a_worker_is_marked(bench_record):
    (table,) = bench_tables([bench_record(), bench_record(provider="deepsparse", in_worker=True)])
    assert table.rows[1][0] == "deepsparse*"
    assert any("worker process" in note for note in table.notes)


def test_a_fused_encoder_is_said_below_the_table(bench_record):
    (table,) = bench_tables([bench_record(notes={"formats": "72 element", "encoder": "fused"})])
    assert "Layers of the sparse side: 72 element; the encoder runs in one native call." in table.notes


def test_what_was_not_measured_is_a_dash(bench_record):
    (table,) = bench_tables([bench_record(weight_bytes=None)])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["weights MB"] == "-"


def test_memory_has_a_column_where_it_was_measured(bench_record):
    measured = bench_record(memory={"running_over_baseline": 2_000_000})
    (table,) = bench_tables([measured, bench_record(provider="onednn")])
    column = table.columns.index("memory MB")
    assert [row[column] for row in table.rows] == ["2.0", "-"]
    (without,) = bench_tables([bench_record()])
    assert "memory MB" not in without.columns
    assert "memory" not in without.notes[0]


def test_terminal_and_document_hold_the_same_cells(bench_record):
    (table,) = bench_tables([bench_record()])
    for cell in table.rows[0]:
        assert cell in shown(table)
        assert cell in table.markdown()


def test_square_brackets_survive_the_terminal():
    assert "[p20, p80]" in shown(Table("", ("a",), (("1 [0, 2]",),), notes=("median [p20, p80]",)))
    assert "1 [0, 2]" in shown(Table("", ("a",), (("1 [0, 2]",),)))


def test_a_table_too_wide_for_the_terminal_is_turned(bench_record):
    (table,) = bench_tables([bench_record(), bench_record(provider="eager")])
    wide, narrow = shown(table), shown(table, width=80)
    assert next(line for line in wide.splitlines() if "sparse" in line and "3.50x" in line)
    assert next(line for line in narrow.splitlines() if "vs oneDNN" in line and line.count("3.50x") == 2)
    assert max(map(len, narrow.splitlines())) <= 80


def test_markdown_is_a_table_with_notes_below():
    table = Table("Title", ("name", "value|x"), (("a|b\nc", "1"),), notes=("note",))
    assert table.markdown().splitlines() == [
        "**Title**",
        "",
        "| name | value\\|x |",
        "| --- | ---: |",
        "| a\\|b c | 1 |",
        "",
        "note  ",
    ]


def test_a_sweep_has_one_row_a_ticket_sorted_by_granularity_and_sparsity(bench_record):
    blocks = {"granularity": "block", "block_size": [4, 1], "sparsity": 0.9, "density": 0.1}
    rows = [bench_record(sparsity=0.95), bench_record(ticket=blocks), bench_record(sparsity=0.7)]
    (table,) = sweep_tables([*rows, bench_record(sparsity=0.7, provider="onednn", weight_bytes=340_000_000)])
    assert [row[0] for row in table.rows] == [
        "70% element",
        "95% element",
        "90% 4x1",
    ]
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["sparse weights MB"], cells["dense weights MB"]) == ("44.0", "340.0")


def test_a_sweep_has_one_table_a_workload_and_none_without_our_side(bench_record):
    workload = {**bench_record()["workload"], "batch": 8}
    assert len(sweep_tables([bench_record(), bench_record(workload=workload)])) == 2
    assert sweep_tables([bench_record(provider="eager")]) == []


def test_a_sweep_shows_memory_where_it_was_measured(bench_record):
    memory = {"running_over_baseline": 185_000_000}
    with_memory, without = (sweep_tables([bench_record(memory=held)])[0] for held in (memory, None))
    assert with_memory.columns[-1] == "sparse memory MB"
    assert with_memory.rows[0][-1] == "185.0"
    assert "memory MB" not in without.columns[-1]


def layer_summary(environment, **changes):
    fields = {
        "kind": "layer_summary",
        "environment": environment,
        "threads": 1,
        "method": "how",
        "case": "element fp32 90 %",
        "geomean": 5.0,
        "equal_turns": 5.5,
        "worst": 4.5,
        "worst_cell": "768x768, M = 128",
        "must": 4.6,
        "aim": 5.5,
        "passed": True,
        "busy_cells": 0,
    }
    return {**fields, **changes}


def test_layers_show_what_is_reached_and_what_must_be(bench_record):
    environment = bench_record()["environment"]
    rows = [
        layer_summary(environment, geomean=1.0),
        layer_summary(environment),
        layer_summary(environment, case="b", must=None, passed=None, busy_cells=2),
        layer_summary(environment, case="c", passed=False),
    ]
    (table,) = layer_tables(rows)
    assert [row[-1] for row in table.rows] == ["yes", "-", "NO"]
    assert table.rows[0][1] == "5.00x"
    assert table.rows[1][1] == "5.00x?"


def test_goals_say_which_way_is_good(bench_record):
    fields = {"kind": "goal", "environment": bench_record()["environment"], "unit": "s", "busy": False}
    rows = [{**fields, "goal": "packing", "value": 1.2, "must": 3, "aim": 1, "at_most": True, "passed": True}]
    (table,) = goal_tables(rows)
    assert table.rows == (("packing", "1.2 s", "at most 3 s", "1 s", "yes"),)


def test_stacks_are_sorted_by_size(bench_record):
    fields = {"kind": "stack", "environment": bench_record()["environment"], "threads": 1, "busy": False}
    fields |= {"ratio": {"onednn": {"median": 5.0}}, "latency_ms": {"sparse": {"median": 14.1}}}
    (table,) = stack_tables([{**fields, "tokens": tokens, "sparsity": 0.9} for tokens in (512, 128)])
    assert [row[0] for row in table.rows] == ["128 tokens, 90%", "512 tokens, 90%"]
    assert table.rows[0][1:] == ("5.00x", "14.1")


@pytest.mark.parametrize("make", [sweep_tables, layer_tables, goal_tables, stack_tables, bench_tables])
def test_no_records_of_a_kind_make_no_table(make):
    assert make([{"kind": "environment"}]) == []


def test_ways_to_choose_weights_say_what_they_cost_and_whether_they_are_exact(bench_record):
    environment = bench_record()["environment"]
    shared = {"kind": "selection", "environment": environment, "threads": 1, "entries": 1000, "kept": 300}
    shared |= {"score_bytes": 4000, "tied": False, "beyond": 0, "busy": []}
    rows = [
        shared | {"side": "ours", "seconds": 0.25, "peak_bytes": 5000},
        shared | {"side": "theirs", "seconds": 4.0, "peak_bytes": 16_000, "busy": ["waited"]},
        shared | {"side": "theirs", "seconds": 3.0, "peak_bytes": 16_000, "tied": True, "beyond": 7},
    ]
    (table,) = selection_tables(rows)
    assert table.rows == (
        ("ours", "0.25", "1.25x", "exact"),
        ("theirs", "4.00?", "4.00x", "exact"),
        ("theirs, tied scores", "3.00", "4.00x", "+7"),
    )
    assert "busy" in table.notes[-1]
    assert selection_tables([]) == []


def test_a_table_that_fits_in_neither_way_comes_in_pieces_that_do() -> None:
    columns = ("ticket", *(f"column number {i}" for i in range(12)))
    rows = tuple((f"row {i}", *["1.00x"] * 12) for i in range(12))
    text = shown(Table("wide", columns, rows, ("a note",)), width=60)
    assert max(map(len, text.splitlines())) <= 60
    cells = [line.split("┃" if "┃" in line else "│")[1:-1] for line in text.splitlines() if line[:1] in "┃│"]
    heads = [cell.strip() for line in cells[::13] for cell in line[1:]]
    assert heads == [row[0] for row in rows]
    assert [line[0].strip() for line in cells[1:13]] == list(columns[1:])
    assert text.count("wide") == text.count("a note") == 1


def test_formats_that_were_asked_for_are_named(bench_record) -> None:
    planned, asked = bench_record(sparsity=0.9), bench_record(sparsity=0.1, format="element")
    (table,) = sweep_tables([planned, asked])
    assert table.notes[1].startswith("Break-even with the fastest dense form, oneDNN: element")
    assert table.notes[2] == "The format was requested, so no layer could stay dense: 10% element."
    (table,) = sweep_tables([planned, bench_record(sparsity=0.5)])
    assert len(table.notes) == 2


def test_int8_layers_show_the_speed_of_every_side_that_ran():
    environment = {"cpu": "CPU", "cores": 2, "gpu": None, "onednn": "v3", "kernels": "avx512"}
    environment["versions"] = {"torch": "2.13"}
    cell = {
        "kind": "int8_layer",
        "environment": environment,
        "unit": "avx512_vnni",
        "shape": [768, 3072],
        "tokens": 80,
        "sparsity": 0.9,
        "threads": 1,
        "busy": True,
        "tops": {"layer": 3.512, "added": 4.2, "dense": 0.41, "vector_fp32": 0.9, "onednn_fp32": 0.13},
    }
    (table,) = int8_tables([cell])
    assert table.rows == (("768x3072, M = 80?", "3.51", "4.20", "0.41", "0.90", "0.13", "-"),)
    assert "int8 by avx512_vnni. 90% zeros" in table.notes[0]
    assert int8_tables([]) == []
