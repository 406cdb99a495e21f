"""Tables of compiled kernels: the range of a family, and every configuration with its problems."""

import pytest

from sparsebert.report.aot_tables import aot_tables, configuration_tables


def compiled(label="h64", target="sm_90", **changes):
    fields = {
        "kind": "aot",
        "family": "panel forward",
        "label": label,
        "target": target,
        "triton": "3.6.0",
        "default": True,
        "precision": "half",
        "registers": 100,
        "spill_stores": 0,
        "spill_loads": 0,
        "shared_memory": 65536,
        "tensor": {"wgmma m64n64k16": 8},
        "buffers": 4,
        "loop_instructions": 96.0,
        "element_instructions": 15.3,
        "ceiling": 0.87,
        "error": None,
        "problems": [],
    }
    return {**fields, **changes}


def cells(table, row=0):
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_a_family_shows_the_range_of_its_configurations():
    rows = [compiled(), compiled("h128", registers=126, ceiling=1.0, shared_memory=131072)]
    (table,) = aot_tables(rows)
    shown = cells(table)
    assert shown["registers"] == "100 to 126"
    assert shown["ceiling"] == "87% to 100%"
    assert shown["most shared KB"] == "128"
    assert shown["instructions an output element"] == "15"
    assert (shown["configurations"], shown["with spills"], shown["with problems"]) == ("2", "0", "0")


def test_exact_float32_is_said_to_be_without_tensor_cores():
    exact = compiled("h64 fp32", precision="ieee", tensor={})
    assert cells(aot_tables([compiled(), exact])[0])["tensor cores"] == "wgmma, none in 1 of exact fp32"
    assert cells(configuration_tables([exact])[0])["tensor cores"] == "none, exact fp32"
    copying = compiled("copy", precision=None, tensor={})
    assert cells(aot_tables([copying])[0])["tensor cores"] == "-"
    matrix_cores = compiled("h64 fp32", precision="ieee", tensor={"mfma 32x32x2": 8})
    assert cells(aot_tables([matrix_cores])[0])["tensor cores"] == "mfma"


def test_targets_and_compilers_are_kept_apart():
    (table,) = aot_tables([compiled(), compiled(target="sm_80"), compiled(triton="3.9.0")])
    assert len(table.rows) == 3


def test_a_configuration_says_what_is_wrong_with_it():
    problems = ["spills registers (3 stores, 3 loads)"]
    (table,) = configuration_tables([compiled(spill_stores=3, spill_loads=3, problems=problems)])
    assert cells(table)["spills"] == "3/3"
    assert cells(table)["problems"] == problems[0]


def test_what_does_not_compile_has_dashes():
    none = dict.fromkeys(("registers", "spill_stores", "spill_loads", "shared_memory", "buffers"))
    none |= {"loop_instructions": None, "element_instructions": None, "ceiling": None, "tensor": {}}
    row = compiled(**none, error="no", problems=["does not compile (no)"])
    assert cells(configuration_tables([row])[0])["spills"] == "-"
    assert cells(aot_tables([row])[0])["registers"] == "-"


def test_the_latest_record_of_a_configuration_counts():
    (table,) = configuration_tables([compiled(registers=1), compiled(registers=2)])
    assert [row[3] for row in table.rows] == ["2"]


@pytest.mark.parametrize("make", [aot_tables, configuration_tables])
def test_no_records_make_no_table(make):
    assert make([{"kind": "environment"}]) == []
