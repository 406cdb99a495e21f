"""Names of dtypes: long, short and torch's own, in one parser and wherever dtypes are options."""

from __future__ import annotations

import pytest
import torch

from sparsebert.bench.workload import Workload
from sparsebert.training.settings import TrainingSettings
from sparsebert_kernels.dtype_names import SHORT_NAMES, long_name, short_name


@pytest.mark.parametrize(("long", "short"), SHORT_NAMES.items())
def test_every_form_of_a_name_is_understood(long: str, short: str) -> None:
    for name in (long, short, getattr(torch, long)):
        assert long_name(name) == long
        assert short_name(name) == short


@pytest.mark.parametrize(("name", "nearest"), [("float23", "float32"), ("bfloat", "bfloat16")])
def test_another_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown dtype '{name}'.*did you mean '{nearest}'"):
        long_name(name)


def test_a_dtype_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown precision 'fp64'; known: "):
        short_name("fp64", ("float32", "bfloat16"), "precision")


def test_options_take_every_form_and_records_keep_one() -> None:
    assert {Workload("bert-tiny", dtype=name).dtype for name in ("bf16", "bfloat16")} == {"bfloat16"}
    assert Workload("bert-tiny", dtype="fp64") == Workload("bert-tiny", dtype="float64")
    assert {TrainingSettings(precision=name).precision for name in ("bf16", "bfloat16")} == {"bf16"}
    with pytest.raises(ValueError, match="unknown precision 'fp64'"):
        TrainingSettings(precision="fp64")
