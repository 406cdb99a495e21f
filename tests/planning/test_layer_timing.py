"""Timing: a layer becomes sparse where that is measured to be faster, and a doubtful figure is marked."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import plan
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import format_candidates
from sparsebert.planning import layer_planner, layer_timing
from sparsebert.planning.layer_decision import LEAST_SPEEDUP, LayerDecision
from sparsebert.planning.layer_timing import MAX_TIMED_FORMATS, MAX_TIMED_TOKENS
from sparsebert.planning.target_layers import TargetLayer
from sparsebert_kernels import formats, ops
from sparsebert_kernels.timing import Paired
from tests.planning.masks import model_with, needs_native, random_mask


@needs_native
class TestMeasurement:
    def test_leaves_a_layer_dense_that_gains_next_to_nothing(self, timed: Callable[..., list[int]]) -> None:
        timed(LEAST_SPEEDUP - 0.01)
        (layer,) = plan(*model_with(random_mask(0.1))).layers
        assert layer.format == "dense"
        assert layer.reason == "element measured 1.04x dense, less than 1.05x"
        assert layer.measured_us == layer.dense_us == pytest.approx(1040)

    def test_takes_a_layer_that_gains(self, timed: Callable[..., list[int]]) -> None:
        timed(LEAST_SPEEDUP + 0.01)
        (layer,) = plan(*model_with(random_mask(0.1))).layers
        assert (layer.format, layer.measured_us, layer.dense_us) == ("element", 1000, pytest.approx(1060))

    def test_keeps_trainable_layers_sparse(self, timed: Callable[..., list[int]]) -> None:
        timed(0.5)
        (layer,) = plan(*model_with(random_mask(0.1)), trainable=True).layers
        assert (layer.format, layer.reason) == ("element", "measured 0.5x dense")

    def test_is_made_once_for_layers_of_a_kind(self, timed: Callable[..., list[int]]) -> None:
        count = timed(30.0)
        masks = [*(random_mask(0.1) for _ in range(4)), random_mask(0.03), random_mask(0.1, 384)]
        made = plan(*model_with(*masks))
        assert len(count) == 3
        assert all(layer.reason == "measured 30.0x dense" for layer in made.layers)

    def test_tries_other_formats_where_the_prediction_was_wrong(
        self, timed: Callable[..., list[int]]
    ) -> None:
        count = timed(1.0, 2.0, 1.5)
        (layer,) = plan(*model_with(random_mask(0.1, height=8))).layers
        assert len(count) == MAX_TIMED_FORMATS
        assert (layer.format, layer.reason) == ("vector", "measured 2.0x dense")
        predicted = plan(*model_with(random_mask(0.1, height=8)), measure=False).layers[0]
        assert layer.label != predicted.label

    def test_is_over_at_once_where_the_prediction_was_right(self, timed: Callable[..., list[int]]) -> None:
        count = timed(30.0)
        plan(*model_with(random_mask(0.1, height=8)))
        assert len(count) == 1

    def test_is_made_on_part_of_long_inputs(self, timed: Callable[..., list[int]]) -> None:
        count = timed(30.0)
        (layer,) = plan(*model_with(random_mask(0.1)), tokens=4 * MAX_TIMED_TOKENS["cpu"]).layers
        assert count == [MAX_TIMED_TOKENS["cpu"]]
        assert layer.measured_us == pytest.approx(4000)

    def test_is_not_disturbed_by_what_lies_in_the_weights(self, timed: Callable[..., list[int]]) -> None:
        timed(3.0)  # compares the two sides
        model, ticket = model_with(random_mask(0.1))
        nn.init.constant_(model[0].weight, torch.nan)
        plan(model, ticket)

    def test_on_a_busy_machine_is_marked_wherever_it_is_shown(
        self, monkeypatch: pytest.MonkeyPatch, timed: Callable[..., list[int]]
    ) -> None:
        timed(3.0)
        steady = layer_timing.paired
        masks = random_mask(0.1), random_mask(0.1, 384)
        assert "?" not in str(plan(*model_with(*masks)))

        def disturbed(mine: Callable[[], Tensor], other: Callable[[], Tensor]) -> Paired:
            return replace(steady(mine, other), busy=mine().shape[1] == 384)

        monkeypatch.setattr(layer_timing, "paired", disturbed)
        made = plan(*model_with(*masks))
        assert [layer.busy for layer in made.layers] == [False, True]
        _, quiet, busy, *captions = str(made).splitlines()
        assert "?" not in quiet
        assert "1000 us?" in busy
        assert "3000 us?" in busy
        assert "measured 3.0x? dense" in busy
        assert any("1 of 2 layers timed while the machine was busy" in line for line in captions)

    def test_on_a_busy_machine_leaves_the_decision_to_the_cost_model(
        self, monkeypatch: pytest.MonkeyPatch, timed: Callable[..., list[int]]
    ) -> None:
        """A timing of chance would keep the first layer dense and make the second sparse."""
        masks = random_mask(0.1), random_mask(0.97, height=8)
        predicted = plan(*model_with(*masks), measure=False).layers
        count = timed(0.3, 20.0)
        steady = layer_timing.paired
        monkeypatch.setattr(layer_timing, "paired", lambda *sides: replace(steady(*sides), busy=True))
        made = plan(*model_with(*masks))
        assert [layer.label for layer in made.layers] == [layer.label for layer in predicted]
        assert [layer.label for layer in predicted] == ["element", "dense"]
        assert len(count) == 1
        first, second = made.layers
        assert first.reason == f"{predicted[0].reason}; measured 0.3x? dense"
        assert (first.busy, first.decided_by) == (True, "cost model")
        assert (second.busy, second.decided_by) == (False, "cost model")
        assert "decided by cost model (2)" in str(made)
        assert "1 of 2 layers timed while the machine was busy" in str(made)
        assert "replan_(model) decides again" in str(made)

    def test_ends_where_the_machine_stays_busy(
        self, monkeypatch: pytest.MonkeyPatch, timed: Callable[..., list[int]]
    ) -> None:
        count = timed(3.0)
        steady = layer_timing.paired
        monkeypatch.setattr(layer_planner, "MAX_BUSY_SECONDS", 0.0)
        monkeypatch.setattr(layer_timing, "paired", lambda *sides: replace(steady(*sides), busy=True))
        made = plan(*model_with(*(random_mask(0.1, rows) for rows in (768, 384, 192))))
        assert len(count) == 1
        assert all(layer.busy and layer.format == "element" for layer in made.layers)
        assert made.layers[-1].reason.endswith("dense; too busy to time")

    @pytest.mark.slow
    def test_under_load_gives_the_plan_of_a_quiet_machine_or_a_better_one_than_dense(self) -> None:
        """Busy processes on every core, as on a shared machine: true times are processor times."""
        masks = random_mask(0.05), random_mask(0.2, height=4), random_mask(0.5), random_mask(0.97)
        model, ticket = model_with(*masks)
        with busy_processes(3 * (os.cpu_count() or 1)):
            made = plan(model, ticket)
        for layer, mask in zip(made.layers, masks, strict=True):
            times = {kind: _processor_seconds(mask, *kind) for kind in _kinds(mask)}
            mine = times[layer.format, tuple(layer.options.items())]
            least, dense = min(times.values()), times["dense", (("tokens", 128),)]
            assert mine <= 1.1 * least or mine <= dense, layer
        assert [layer.format for layer in made.layers[:2]] == ["element", "vector"]
        assert made.layers[3].format == "dense"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _kinds(mask: Tensor) -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Format and options of the layer's candidates and of the dense layer."""
    candidates = format_candidates(mask, torch.float32, torch.device("cpu"), 128)
    for work in {work.kind: work for work in (*candidates.candidates, candidates.dense)}.values():
        options = {"tokens": 128} if work.format in ("dense", "compact") else work.options
        yield work.format, tuple(options.items())


@torch.no_grad()
def _processor_seconds(mask: Tensor, format: str, options: tuple[tuple[str, Any], ...]) -> float:
    packed = formats.pack(torch.randn(mask.shape), mask, format=format, **dict(options))
    x, seconds = torch.randn(128, mask.shape[1]), []
    for _ in range(30):
        start = time.thread_time()
        ops.linear(x, packed, None)
        seconds.append(time.thread_time() - start)
    return min(seconds)

    def test_of_this_machine_finds_a_very_sparse_layer_faster(self) -> None:
        (layer,) = plan(*model_with(random_mask(0.02, 1536, 768))).layers
        assert layer.format in ("element", "vector")
        assert layer.measured_us < layer.dense_us


def test_a_layer_is_timed_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs capture streams of the current device, which may be another one."""
    current = [0]

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device.index)
        yield
        current.pop()

    timing = Paired(1.0, 1.0, 1.0, 9)
    timed_on: list[int] = []
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(layer_timing, "paired_on_gpu", lambda *_: timed_on.append(current[-1]) or timing)
    assert layer_timing.paired_on(torch.device("cuda", 1), int, int) is timing
    assert (timed_on, current) == ([1], [0])


def test_layers_of_a_gpu_share_a_timing_only_with_the_same_activation() -> None:
    """The dense side of a timing runs the activation in a kernel of its own."""
    model, ticket = model_with(random_mask(0.1, 3072, 12, height=64).repeat_interleave(64, 1))
    (mask,) = ticket.masks.values()
    layer = TargetLayer("0", "0", model[0], mask)

    def decision(activation: str) -> LayerDecision:
        choice = format_candidates(
            mask, torch.bfloat16, gpu_roofline.named("h200"), 4096, activation=activation
        )
        return LayerDecision(layer, choice, choice.candidates[0], requested=False)

    plain, again, with_gelu = map(decision, ("none", "none", "gelu"))
    assert plain.work == with_gelu.work
    assert plain.timing_class() == again.timing_class() != with_gelu.timing_class()
