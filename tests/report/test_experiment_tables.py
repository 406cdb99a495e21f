"""Tables of experiments: ours beside theirs over seeds, what is relative to a row, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.report.experiment_tables import experiment_tables
from sparsebert.report.sections import KINDS

PLACES = {("dense", "sst2"): [0, 0], ("imp", "sst2"): [1, 0], ("imp", "mnli"): [1, 1]}
SPEED = {
    "ratio": {"onednn": {"median": 1.25, "p20": 1.2, "p80": 1.3}},
    "weight_bytes": 2e6,
    "batch": 8,
    "lengths": [5, 40],
    "threads": 1,
    "busy": False,
}


def row(name: str = "imp", column: str = "sst2", seed: int = 1, **changes: Any) -> dict[str, Any]:
    """The record of a run that is done."""
    return {
        "schema": 1,
        "kind": "experiment",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "options": {"method": name},
        "sources": {},
        "experiment": "chen",
        "title": "Winning tickets",
        "small": False,
        "source": {"paper": "Chen et al. 2020", "title": "", "url": "", "table": "Table 2", "page": "5"},
        "notes": "",
        "unit": "percent",
        "relative_to": None,
        "row": name,
        "column": column,
        "row_label": {"imp": "IMP"}.get(name, name),
        "column_label": column.upper(),
        "place": PLACES[name, column],
        "seed": seed,
        "model": "bert-base-uncased",
        "published": None,
        "status": "done",
        "reason": None,
        "metric": "accuracy",
        "value": 0.9,
        "sparsity": 0.7,
        "ticket_bytes": 10.6e6,
        "seconds": 90.0,
        "environment": None,
    } | changes


def hole(*place: str, reason: str, **changes: Any) -> dict[str, Any]:
    whole = row(*place, status="not run", reason=reason, **changes)
    return {name: value for name, value in whole.items() if name not in ("metric", "value", "sparsity")}


def test_ours_stand_beside_theirs_and_holes_have_their_reason() -> None:
    published = {"mean": 89.5, "std": 0.25}
    rows = [
        row(seed=1, value=0.90, published=published),
        row(seed=2, value=0.91, published=published),
        row("dense", sparsity=0.0),
        hole("imp", "mnli", reason="no data"),
    ]
    overview, details, missing = experiment_tables(rows)
    assert overview.title == "Winning tickets"
    assert overview.columns == ("", "SST2 (accuracy)", "MNLI")
    assert overview.rows == (("dense", "90.00", ""), ("IMP", "90.50 ± 0.71 [89.50 ± 0.25]", "-"))
    assert overview.notes[-1] == "In brackets: Chen et al. 2020 (Table 2, page 5)."
    shown = dict(zip(details.columns, details.rows[1], strict=True))
    assert shown == {
        "cell": "IMP, SST2",
        "ours": "90.50 ± 0.71",
        "theirs": "89.50 ± 0.25",
        "difference": "+1.00",
        "sparsity": "70.0%",
        "ticket MB": "10.6",
        "minutes": "3.0",
        "runs": "2 of 2",
    }
    assert missing.rows == (("imp/mnli", "1 run", "no data"),)


def test_the_small_preset_is_another_model_and_has_no_difference() -> None:
    small = {"small": True, "model": "some/minilm", "published": {"mean": 80.0, "std": None}}
    # The second row trains the model of another cell.
    overview, details = experiment_tables([row(**small), row("dense", **small | {"model": None})])
    assert overview.title == "Winning tickets: small preset on minilm, another model than the paper's"
    assert dict(zip(details.columns, details.rows[0], strict=True))["difference"] == ""
    assert "Difference is empty: another model." in details.notes


def test_a_preset_with_another_column_names_the_papers_and_without_numbers_there_are_no_brackets() -> None:
    small = {"small": True, "published": {"mean": 80.0, "std": None, "column": "SST-2 60 %"}}
    assert (
        "In brackets: Chen et al. 2020 (Table 2, page 5), column SST-2 60 %."
        in experiment_tables([row(**small)])[0].notes
    )
    overview, details = experiment_tables([row(small=True)])
    assert "The experiment is that of Chen et al. 2020 (Table 2, page 5)." in overview.notes
    assert not any("Difference" in note for note in details.notes)


def test_runs_of_several_machines_are_named() -> None:
    def machine(cpu: str) -> dict[str, Any]:
        versions = {"torch": "2.13"}
        return {"cpu": cpu, "cores": 2, "gpu": None, "onednn": "3", "kernels": "avx2", "versions": versions}

    rows = [row(seed=1, environment=machine("A")), row(seed=2, environment=machine("B"))]
    _, details = experiment_tables(rows)
    (note,) = (note for note in details.notes if note.startswith("Of several machines"))
    assert "A, cores: 2, avx2 kernels, torch 2.13, oneDNN 3: imp/sst2/seed-1; B, " in note
    assert not any("machines" in note for note in experiment_tables(rows[:1])[1].notes)


def test_cells_are_told_apart_by_name_where_two_versions_of_a_file_place_them_differently() -> None:
    overview, *_ = experiment_tables([row("dense", value=0.5), row("imp", value=0.25, place=[0, 0])])
    assert sorted(cells[1] for cells in overview.rows) == ["25.00", "50.00"]


def test_numbers_may_be_relative_to_a_row_with_the_same_seed() -> None:
    relative = {"relative_to": "dense", "published": {"mean": -1.0, "std": None}}
    rows = [
        row("dense", seed=1, value=0.92, relative_to="dense"),
        row("dense", seed=2, value=0.90, relative_to="dense"),
        row(seed=1, value=0.91, **relative),
        row(seed=2, value=0.87, **relative),
    ]
    overview, details = experiment_tables(rows)
    assert [cells[1] for cells in overview.rows] == ["91.00 ± 1.41", "-2.00 ± 1.41 [-1.00]"]
    assert dict(zip(details.columns, details.rows[1], strict=True))["difference"] == "-1.00"
    assert any("Minus the metric of the row 'dense'" in note for note in overview.notes)
    without_dense = experiment_tables(rows[2:])[0]
    assert without_dense.rows == (("IMP", "- [-1.00]"),)


def test_the_gain_of_zeros_alone_is_named() -> None:
    speed = SPEED | {"ratio": SPEED["ratio"] | {"fused": {"median": 1.0, "p20": 1.0, "p80": 1.0}}}
    (_, before), (_, details) = experiment_tables([row(speed=SPEED)]), experiment_tables([row(speed=speed)])
    assert dict(zip(details.columns, details.rows[0], strict=True))["vs fused"] == "1.00x"
    assert len([note for note in details.notes if "gain of zeros" in note]) == 1
    assert not any("gain of zeros" in note for note in before.notes)


def test_speed_stands_in_the_details_and_its_failure_among_what_is_missing() -> None:
    _, details = experiment_tables([row(speed=SPEED)])
    shown = dict(zip(details.columns, details.rows[0], strict=True))
    assert (shown["vs oneDNN"], shown["weights MB"]) == ("1.25x", "2.0")
    assert any("batches of 8 with 5 to 40 tokens, 1 thread" in note for note in details.notes)
    _, details, missing = experiment_tables([row(speed={"failed": "wrong outputs"})])
    assert "vs oneDNN" not in details.columns
    assert missing.rows == (("imp/sst2", "1 run", "no speed: wrong outputs"),)


def test_a_busy_measurement_is_marked() -> None:
    _, details = experiment_tables([row(speed=SPEED | {"busy": True})])
    assert "1.25x?" in details.rows[0]
    assert any("do not quote" in note for note in details.notes)


def test_perplexities_and_fractions_are_shown_as_they_are() -> None:
    assert experiment_tables([row(metric="perplexity", value=12.345)])[0].rows[0][1] == "12.35"
    assert experiment_tables([row(unit="fraction", value=0.5)])[0].rows[0][1] == "0.5000"


def test_what_one_sweep_left_out_is_a_result_of_another() -> None:
    later = "2026-01-02T00:00:00+00:00"
    left_out = hole(reason="not asked for (--only)", timestamp=later)
    for rows in ([row(value=0.8), left_out], [left_out, row(value=0.8)]):
        overview, *others = experiment_tables(rows)
        assert overview.rows == (("IMP", "80.00"),)
        assert len(others) == 1  # nothing is missing
    # A result with other options is not that of the later sweep.
    overview, _, missing = experiment_tables([row(value=0.8, options={"method": "snip"}), left_out])
    assert overview.rows == (("IMP", "-"),)
    assert missing.rows == (("imp/sst2", "1 run", "not asked for (--only)"),)


def test_the_latest_record_of_a_run_counts_and_presets_stay_apart() -> None:
    rows = [row(value=0.5), row(value=0.75), row(value=0.25, small=True)]
    tables = experiment_tables(rows)
    assert [table.rows[0][1] for table in tables if table.title.endswith("each cell")] == ["75.00", "25.00"]


def test_a_damaged_record_is_named() -> None:
    damaged = row()
    del damaged["place"]
    with pytest.raises(ValueError, match="a record for the tables of kind 'experiments' is not as"):
        KINDS["experiments"].tables([damaged])
