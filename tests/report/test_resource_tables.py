"""What runs used, in tables and in a line, with what could not be measured and why."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.accounting.usage import Usage
from sparsebert.report.resource_tables import resource_line, resource_tables
from sparsebert.report.sections import KINDS

CPU = Usage(90.0, 170.0, None, 500_000_000, not_measured={"cpu": "no RAPL counters"})
GPU = Usage(
    4000.0,
    5000.0,
    3900.0,
    2_000_000_000,
    7_000_000_000,
    joules={"package-0": 3.6e5, "gpu-0": 3.24e6},
    resumed=2,
)


def round_of(number: int, usage: Usage, intensity: float | None = None, **changes: Any) -> dict[str, Any]:
    fields = {"kind": "round", "task": "sst2", "model": "tiny", "method": "imp", "seed": 1, "sparsity": 0.5}
    fields |= {"granularity": "element", "round": number, "resources": usage.record(intensity)}
    return fields | changes


def cells(table: Any) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_each_round_has_a_row_and_their_sum_another() -> None:
    (table,) = resource_tables([round_of(0, CPU), round_of(1, CPU)])
    first, _, whole = cells(table)
    assert table.title == "Resources of rounds: tiny on sst2, imp, element"
    assert first == {"round": "0", "seed": "1", "wall": "1.5 min", "CPU time": "2.8 min", "peak MB": "500.0"}
    assert whole == {
        "round": "all",
        "seed": "-",
        "wall": "3.0 min",
        "CPU time": "5.7 min",
        "peak MB": "500.0",
    }


def test_missing_energy_has_a_reason_and_no_column() -> None:
    (table,) = resource_tables([round_of(0, CPU)])
    assert "Wh" not in table.columns
    assert "Energy not available: CPU: no RAPL counters." in table.notes


def test_energy_and_carbon_have_columns_and_say_of_what() -> None:
    (table,) = resource_tables([round_of(0, GPU, 500.0)])
    (row,) = cells(table)
    assert (row["Wh"], row["g CO2"], row["GPU time"], row["resumed"]) == ("1,000", "500", "1.1 h", "2")
    assert row["GPU peak MB"] == "7000.0"
    assert "Energy: package-0, gpu-0, with what other programs used meanwhile." in table.notes
    assert "CO2 of the measured energy, at 500 g/kWh, as the user gave it." in table.notes


def test_energy_of_a_part_of_the_devices_is_marked() -> None:
    (table,) = resource_tables([round_of(0, CPU + GPU)])
    assert cells(table)[0]["Wh"].endswith(" (part)")


def test_commands_share_a_table() -> None:
    pruned = {"kind": "prune", "model": "tiny", "task": "sst2", "resources": CPU.record()}
    cell = {"kind": "transfer", "source": "mnli", "task": "cola", "seeds": [1, 2], "resources": CPU.record()}
    timed = {"kind": "bench", "workload": {"model": "minilm"}, "resources": CPU.record()}
    swept = {"kind": "experiment", "row_label": "IMP", "column_label": "SST-2", "seed": 3}
    swept |= {"model": "tiny", "task": "sst2", "resources": CPU.record()}
    rest = [{"kind": "bench", "resources": None}, {"kind": "heal"}]
    (table,) = resource_tables([pruned, cell, timed, swept, *rest])
    assert [(row["command"], row["on"]) for row in cells(table)] == [
        ("prune", "tiny on sst2"),
        ("transfer", "mnli on cola, 2 seeds"),
        ("bench", "minilm"),
        ("experiment", "IMP, SST-2, seed 3"),
    ]


def test_a_peak_of_the_whole_process_is_said_to_be_one() -> None:
    (table,) = resource_tables([round_of(0, Usage(1.0, 1.0, process_peak=True, peak_rss_bytes=1))])
    assert "Peak: resident memory of the process since the start of the process." in table.notes


def test_a_command_says_in_a_line_what_it_used() -> None:
    assert resource_line({"resources": CPU.record()}) == (
        "used 1.5 min, 2.8 min of CPU time, 500.0 MB of memory at the peak; energy not available: CPU: no "
        "RAPL counters"
    )
    assert resource_line({"resources": GPU.record(500.0)}) == (
        "used 1.1 h, 1.4 h of CPU time, 1.1 h of GPU time, 2000.0 MB of memory at the peak, 7000.0 MB on the "
        "GPU, 1,000 Wh, 500 g of CO2, in 3 sessions"
    )


def test_machines_are_kept_apart() -> None:
    def machine(cpu: str) -> dict[str, Any]:
        versions = {"torch": "2.13"}
        named = {"cpu": cpu, "cores": 2, "gpu": None, "onednn": "3", "kernels": "avx2", "versions": versions}
        return {"environment": named}

    records = [round_of(0, CPU, **machine("A")), round_of(0, CPU, **machine("B")), round_of(0, CPU)]
    tables = KINDS["resources"].tables(records)
    assert [table.notes[0].split(",")[0] for table in tables[:2]] == ["A", "B"]
    assert len(tables) == 3


def test_a_damaged_record_is_named() -> None:
    with pytest.raises(ValueError, match="a record for the tables of kind 'resources'"):
        KINDS["resources"].tables([round_of(0, CPU) | {"resources": {"wall_seconds": 1}}])
