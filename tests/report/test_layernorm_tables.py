"""Tables of folded LayerNorms: errors of all forms side by side, and times that are labelled as modelled."""

from __future__ import annotations

from typing import Any

from sparsebert.bench.environment import detect
from sparsebert.report.layernorm_tables import FORMS, layernorm_tables
from sparsebert.report.sections import sections
from sparsebert.results import Record, stamp

TIME = {
    "part": "time",
    "device": "NVIDIA H200",
    "source": "built-in figures",
    "tokens": 4096,
    "hidden": 768,
    "layernorm_us": 4.0,
    "kernel_us": 2.0,
    "dense_us": 72.0,
    "sparse_us": 24.0,
    "sparsity": 0.9,
    "block": [64, 64],
}


def row(layer: int, product: str, parameters: str, *largest: float, **changes: Any) -> Record:
    errors = {form: {"largest": value, "rms": value / 2} for form, value in zip(FORMS, largest, strict=True)}
    fields = {
        "part": "error",
        "environment": detect().record(),
        "model": "tiny",
        "layer": layer,
        "product": product,
        "shape": [64, 32],
        "tokens": 1170,
        "mean_over_deviation": 0.25,
        "parameters": parameters,
        "errors": errors,
    }
    return stamp("layernorm_folding", fields | changes)


def errors_of(model: str = "tiny") -> list[Record]:
    return [
        row(layer, product, parameters, 0.004, 0.002, 0.003 + layer / 500, 0.001, model=model)
        for layer in (0, 1)
        for product in ("query", "key", "value", "ffn_up")
        for parameters in ("fp32", "bf16")
    ]


def test_the_forms_stand_in_one_cell_the_worst_layer_and_the_rms_of_all() -> None:
    (table,) = layernorm_tables(errors_of())
    assert table.title.endswith("10^-3, tiny: " + " / ".join(FORMS.values()))
    assert table.rows[0] == (
        "query",
        "rounded",
        "4.00 / 2.00 / 5.00 / 1.00",
        "2.00 / 1.00 / 2.06 / 0.50",
        "1 / 1 of 2",
        "2 / 2 of 2",
    )
    assert [row[:2] for row in table.rows[4:6]] == [("all", "rounded"), ("query", "in bf16")]
    assert table.rows[4][4] == "4 / 4 of 8"
    assert "1,170 tokens" in table.notes[0]
    assert "at most 0.25 of their deviation" in table.notes[1]


def test_the_times_say_that_nothing_was_measured() -> None:
    (table,) = layernorm_tables([stamp("layernorm_folding", TIME)])
    assert "modelled" in table.title
    assert "nothing was measured" in table.notes[0]
    assert table.rows == (("4096", "4.0", "8.0", "72.0", "24.0", "10%", "25%"),)


def test_models_do_not_share_a_table() -> None:
    rows = [*errors_of(), *errors_of("other"), stamp("layernorm_folding", TIME)]
    (section,) = sections(rows)
    assert section.title == "LayerNorm folded into products"
    assert ["tiny" in table.title for table in section.tables] == [True, False, False]
