"""The fastest dense model of a machine: of any library and precision, named wherever a ratio stands."""

from __future__ import annotations

from typing import Any

from sparsebert.report.model_tables import bench_tables, fastest_dense, machine_tables, sweep_tables
from sparsebert.report.sections import sections
from tests.report.conftest import ratio

SECONDS = {"sparse": 10.0, "onednn": 40.0, "onednn-bf16": 25.0, "openvino-int8": 20.0, "deepsparse": 12.0}
PRECISIONS = {"onednn-bf16": "bfloat16", "openvino-int8": "int8"}


def run(bench_record: Any, names: Any = tuple(SECONDS), **changes: Any) -> list[dict[str, Any]]:
    return [
        bench_record(
            provider=name,
            precision=PRECISIONS.get(name, "float32"),
            latency_ms={"median": SECONDS[name], "p20": SECONDS[name], "p80": SECONDS[name]},
            ratio={other: ratio(SECONDS[other] / SECONDS[name]) for other in names if other != "sparse"},
            **changes,
        )
        for name in names
    ]


def machine(bench_record: Any, **changes: Any) -> dict[str, Any]:
    return {**bench_record()["environment"], **changes}


def test_it_may_be_of_any_precision_but_uses_no_zeros(bench_record: Any) -> None:
    assert fastest_dense(run(bench_record)) == "openvino-int8"


def test_the_fastest_of_fp32_libraries_alone_is_not_the_fastest_of_the_machine(bench_record: Any) -> None:
    rows = run(bench_record, ("sparse", "onednn", "deepsparse"))
    assert fastest_dense(rows) is None
    (table,) = bench_tables(rows)
    assert not any("fastest" in column for column in table.columns)


def test_the_table_of_a_run_has_its_ratio_first_and_names_it(bench_record: Any) -> None:
    rows = run(bench_record, notes={"form": "static"})
    (table,) = bench_tables(rows)
    assert table.columns[:4] == ("side", "vs fastest dense", "vs oneDNN", "vs DeepSparse")
    assert table.rows[0][:4] == ("sparse", "2.00x", "4.00x", "1.20x")
    assert "Fastest dense model here: openvino-int8 (static)." in table.notes


def test_baselines_that_were_left_out_are_named_with_their_reasons(bench_record: Any) -> None:
    rows = run(bench_record, left_out={"torchao-int8": "torchao not installed", "openvino": "error 2 > 1"})
    (table,) = bench_tables(rows)
    assert "Not compared: torchao-int8 (torchao not installed); openvino (error 2 > 1)." in table.notes


def test_each_ticket_of_a_sweep_names_it(bench_record: Any) -> None:
    (table,) = sweep_tables(run(bench_record))
    assert table.rows[0][:2] == ("90% element", "2.00x (openvino-int8)")


def test_machines_stand_side_by_side_each_with_its_own_fastest(bench_record: Any) -> None:
    amx = machine(bench_record, cpu="Xeon", kernels="amx", onednn_max_isa=None)
    zen = machine(bench_record, cpu="EPYC", kernels="avx512_bf16", onednn_max_isa=None)
    capped = {**zen, "kernels": "avx2", "onednn_max_isa": "AVX2"}
    rows = [
        *run(bench_record, environment=amx),
        *run(bench_record, ("sparse", "onednn", "onednn-bf16"), environment=zen),
        *run(bench_record, ("sparse", "onednn", "onednn-bf16"), environment=capped, busy=True),
    ]
    (table,) = machine_tables(rows)
    assert table.columns == (
        "ticket",
        "tolerance",
        "batch",
        "Xeon (amx kernels)",
        "EPYC (avx512_bf16 kernels)",
        "EPYC (avx2 kernels, oneDNN capped at AVX2)",
    )
    (row,) = table.rows
    assert row == (
        "90% element",
        "fp32",
        "1, 128 tokens",
        "2.00x of openvino-int8 (10.0 ms)",
        "2.50x of onednn-bf16 (10.0 ms)",
        "2.50x? of onednn-bf16 (10.0 ms)",
    )
    assert table.title == "Machines side by side: bert-base, random weights, float32, 1 thread"
    assert table in [table for each in sections(rows) for table in each.tables]


def test_runs_of_two_tolerances_are_two_runs(bench_record: Any) -> None:
    rows = [*run(bench_record, tolerance="fp32"), *run(bench_record, tolerance="bf16")]
    exact, rounded = bench_tables(rows)
    assert rounded.title == f"{exact.title}, tolerance bf16"
    (table,) = sweep_tables(rows)
    assert [row[0] for row in table.rows] == ["90% element", "90% element, tolerance bf16"]
