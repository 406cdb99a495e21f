"""The choice of the fp16 engine: by time alone, and only where the tolerance and the machine have it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import Ticket, fuse_, plan, prune, replan_, sparsify_
from sparsebert.planning import engine_choice
from sparsebert.planning.encoder_plan import EncoderPlan
from sparsebert_kernels.cpu import fp16, native
from sparsebert_kernels.timing import Paired
from tests.sparsify.models import TOKENS, build

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")
Arrange = Callable[..., list[tuple[str, str]]]


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with fp16.emulation():
        yield


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Arrange:
    """Arrange the seconds of the ways, or why one cannot run; returns the pairs that are timed."""

    def arrange(**ways: float | str) -> list[tuple[str, str]]:
        pairs = []

        def time_ways(model: Any, plans: Any, mine: str, other: str, plan: Any) -> Paired | str:
            pairs.append((mine, other))
            values = [ways[mine], ways[other]]
            for value in values:
                if isinstance(value, str):
                    return value
            first, second = map(float, values)
            return Paired(first, second, second / first, rounds=7, busy="busy" in ways)

        monkeypatch.setattr(engine_choice, "time_ways", time_ways)
        return pairs

    return arrange


def unstructured() -> tuple[Any, Ticket]:
    model = build("BertModel")
    return model, prune(model, sparsity=0.9)


def states(model: Any) -> Tensor:
    with torch.inference_mode():
        answer: Tensor = model(TOKENS)[0]
    return answer


def encoder_plan(model: Any) -> EncoderPlan:
    made = plan(model).encoder
    assert made is not None
    return made


@pytest.mark.parametrize("tolerance", ["bf16", "int8"])
def test_is_taken_where_it_is_the_fastest(seconds: Arrange, tolerance: str) -> None:
    model, ticket = unstructured()
    pairs = seconds(layers=5.0, fp32=2.0, paired=3.0, fp16=1.0)
    expected = states(ticket.apply_(copy.deepcopy(model)))
    sparsify_(model, ticket, tolerance=tolerance)
    assert pairs[-1] == ("fp32", "fp16") or pairs[-1] == ("paired", "fp16")
    made = encoder_plan(model)
    assert made.way == "fp16"
    assert made.decided_by == "timing"
    assert str(made).startswith("one native call (fp16 engine); measured ")
    assert {layer.precision for layer in plan(model).layers} == {""}
    error = (states(model) - expected).norm() / expected.norm()
    assert 0 < error < 2e-3
    assert model.encoder._native.form.engine == torch.float16


def test_is_not_taken_where_it_is_slower_nor_where_values_leave_its_range(seconds: Arrange) -> None:
    for time in (2.5, "values inside the encoder are beyond fp16's range (65504)"):
        model, ticket = unstructured()
        seconds(layers=5.0, fp32=2.0, paired=2.1, fp16=time)
        sparsify_(model, ticket, tolerance="bf16")
        made = encoder_plan(model)
        assert made.way in ("fp32", "paired")
        assert ("beyond fp16's range" in made.reason) == isinstance(time, str)


def test_is_not_timed_in_fp32_nor_predicted(seconds: Arrange) -> None:
    pairs = seconds(layers=5.0, fp32=2.0, paired=3.0, fp16=1.0)
    model, ticket = unstructured()
    sparsify_(model, ticket)
    assert encoder_plan(model).way == "fp32"
    model, ticket = unstructured()
    made = plan(model, ticket, tolerance="bf16", measure=False)
    assert made.encoder is not None
    assert made.encoder.way != "fp16"
    assert "fp16" not in made.encoder.predicted_us
    assert all("fp16" not in pair for pair in pairs)


def test_a_busy_machine_does_not_take_it(seconds: Arrange) -> None:
    seconds(layers=5.0, fp32=2.0, paired=3.0, fp16=1.0, busy=1.0)
    model, ticket = unstructured()
    sparsify_(model, ticket, tolerance="bf16")
    made = encoder_plan(model)
    assert made.way != "fp16"
    assert made.busy


def test_fuse_and_replan_take_it(seconds: Arrange) -> None:
    model, ticket = unstructured()
    sparsify_(model, ticket, format="element", measure=False, fuse=False)
    seconds(layers=5.0, fp32=2.0, paired=3.0, fp16=1.0)
    assert encoder_plan(fuse_(copy.deepcopy(model), tolerance="bf16")).way == "fp16"
    model, ticket = unstructured()
    sparsify_(model, ticket, tolerance="bf16", measure=False)
    assert encoder_plan(model).way != "fp16"
    replan_(model)
    assert encoder_plan(model).way == "fp16"


def test_folders_keep_it_on_such_a_machine_and_lose_it_on_others(
    seconds: Arrange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ticket = unstructured()
    seconds(layers=5.0, fp32=2.0, paired=3.0, fp16=1.0)
    sparsify_(model, ticket, tolerance="bf16")
    expected = states(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert encoder_plan(loaded).way == "fp16"
    assert torch.equal(states(loaded), expected)
    monkeypatch.setattr(fp16, "why_unavailable", lambda: native.CPU_LACKS_IT)
    loaded = type(model).from_pretrained(tmp_path)
    assert encoder_plan(loaded).way != "fp16"
    assert (states(loaded) - expected).norm() < 0.02 * expected.norm()


def test_is_really_timed_where_it_runs() -> None:
    """The emulation is far slower than fp32, and its time is in the plan."""
    model, ticket = unstructured()
    sparsify_(model, ticket, tolerance="bf16")
    made = encoder_plan(model)
    assert made.way != "fp16"
    assert made.busy or "fp16" in made.measured_us
