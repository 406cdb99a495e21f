"""The plan: the format each layer gets, the times it is expected to take, and why."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import rich.console
import torch
from torch import Tensor, nn

from sparsebert import SparseLinear, Ticket, plan, sparsify_
from sparsebert.cost import candidates, cpu_cost
from sparsebert.cost.work import MaskStatistics, estimate_work
from sparsebert.planning import planner
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.planner import LEAST_SPEEDUP, MAX_TIMED_FORMATS, MAX_TIMED_TOKENS
from sparsebert_kernels import cpu, formats
from sparsebert_kernels.cpu import native
from sparsebert_kernels.timing import Paired

needs_native = pytest.mark.skipif(not cpu.available(), reason="sparse formats need the native library")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda *_: False)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes the timings find these speedups, the last one from then on; gives the tokens of each timing."""

    def arrange(*speedups: float) -> list[int]:
        count: list[int] = []

        def paired(mine: Callable[[], Tensor], other: Callable[[], Tensor]) -> Paired:
            torch.testing.assert_close(mine(), other(), rtol=1e-3, atol=1e-3)
            speedup = speedups[min(len(count), len(speedups) - 1)]
            count.append(mine().shape[0])
            return Paired(mine=1e-3, other=speedup * 1e-3, speedup=speedup, rounds=7)

        monkeypatch.setattr(planner, "paired", paired)
        monkeypatch.setattr(candidates, "cost_model", built_in)
        return count

    def built_in(dtype: torch.dtype, tokens: int, *, measure: bool) -> cpu_cost.CostModel:
        return cpu_cost.cost_model(dtype, tokens, measure=False)

    return arrange


def model_with(*masks: Tensor) -> tuple[nn.Sequential, Ticket]:
    model = nn.Sequential(*(nn.Linear(mask.shape[1], mask.shape[0]) for mask in masks))
    return model, Ticket({str(i): mask for i, mask in enumerate(masks)})


def random_mask(density: float, rows: int = 768, columns: int = 768, height: int = 1) -> Tensor:
    return (torch.rand(rows // height, columns) < density).repeat_interleave(height, 0)


def dead_rows(density: float) -> Tensor:
    mask = torch.zeros(768, 768, dtype=torch.bool)
    mask[torch.randperm(768)[: int(768 * density)]] = True
    return mask


class TestChoice:
    """With the built-in costs, which depend on the arguments and the instruction set alone."""

    @needs_native
    @pytest.mark.parametrize(
        ("mask", "format"),
        [
            (lambda: random_mask(0.1), "element"),
            (lambda: random_mask(0.1, height=4), "vector 4x1"),
            (lambda: random_mask(0.1, height=16), "vector 8x1"),
            (lambda: random_mask(0.1, height=2), "vector 2x1"),
            (lambda: dead_rows(0.3), "compact"),
            (lambda: random_mask(0.97), "dense"),
            (lambda: random_mask(1.0), "dense"),
        ],
    )
    def test_follows_the_structure_of_the_mask(self, mask: Callable[[], Tensor], format: str) -> None:
        (layer,) = plan(*model_with(mask()), measure=False).layers
        assert layer.label == format

    @pytest.mark.parametrize("density", [0.3, 0.6, 0.7, 0.8, 0.9, 0.99])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_never_takes_more_bytes_than_dense(self, density: float, dtype: torch.dtype) -> None:
        model, ticket = model_with(random_mask(density))
        (layer,) = plan(model.to(dtype), ticket, measure=False).layers
        assert layer.nbytes <= layer.dense_nbytes

    @pytest.mark.usefixtures("without_native")
    def test_without_the_native_library_still_trains(self) -> None:
        (layer,) = plan(*model_with(random_mask(0.1, 48, 40)), trainable=True, measure=False).layers
        assert (layer.format, layer.predicted_us) == ("element", None)
        assert layer.reason == "no figures: the format that stores least"

    @pytest.mark.parametrize(("density", "format"), [(0.05, "csr"), (0.5, "dense")])
    @pytest.mark.usefixtures("without_native")
    def test_without_the_native_library_is_csr_or_dense(self, density: float, format: str) -> None:
        (layer,) = plan(*model_with(random_mask(density)), measure=False).layers
        assert layer.format == format

    def test_is_the_same_every_time(self) -> None:
        arguments = model_with(random_mask(0.1), random_mask(0.4), dead_rows(0.2))
        assert plan(*arguments, measure=False) == plan(*arguments, measure=False)

    def test_depends_on_tokens_and_dtype(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        few, many = (plan(model, ticket, tokens=tokens, measure=False).layers[0] for tokens in (32, 1024))
        assert few.predicted_us < many.predicted_us
        half = plan(model.bfloat16(), ticket, tokens=1024, measure=False).layers[0]
        assert half.dense_us < many.dense_us
        assert half.nbytes < many.nbytes

    def test_leaves_the_model_alone(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        plan(model, ticket, measure=False)
        assert type(model[0]) is nn.Linear

    @pytest.mark.parametrize(("height", "formats"), [(1, {"element"}), (2, {"element", "vector 2x1"})])
    def test_for_training_is_a_format_that_can_be_trained(self, height: int, formats: set[str]) -> None:
        mask = random_mask(0.3, 48, 40, height)
        for density in (mask, torch.ones_like(mask)):
            (layer,) = plan(*model_with(density), measure=False, trainable=True).layers
            assert layer.format in ("element", "vector")
        (layer,) = plan(*model_with(mask), measure=False, trainable=True).layers
        assert layer.label in formats

    def test_reads_zeros_where_there_is_no_ticket(self) -> None:
        model, ticket = model_with(random_mask(0.1), random_mask(1.0))
        ticket.apply_(model)
        (layer,) = plan(model, measure=False).layers
        assert layer.key == "0"
        assert layer.sparsity == ticket.layer_sparsity["0"]

    def test_of_fp64_and_fp16_says_how_they_are_computed(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        (layer,) = plan(model.double(), ticket, measure=False).layers
        assert (layer.format, layer.predicted_us) == ("dense", None)
        assert layer.reason.startswith("float64 stays a plain matrix")
        (layer,) = plan(model.half(), ticket, measure=False).layers
        assert layer.reason.endswith("computed in float32")

    def test_may_be_asked_for(self, timed: Callable[..., list[int]]) -> None:
        count = timed(0.1)
        for format in formats.FORMATS:
            (layer,) = plan(*model_with(random_mask(0.5, 96, 80)), format=format).layers
            assert (layer.format, layer.reason) == (format, "asked for")
        assert not count

    def test_refuses_unknown_formats_and_tokens(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'vector'"):
            plan(*model_with(random_mask(0.1)), format="vektor")
        with pytest.raises(ValueError, match="tokens is 0"):
            plan(*model_with(random_mask(0.1)), tokens=0)


class TestForAGpuThatIsNotHere:
    def made(self, mask: Tensor, tokens: int = 4096, **options: Any) -> LayerPlan:
        model, ticket = model_with(mask)
        (layer,) = plan(model.bfloat16(), ticket, tokens=tokens, device="h200", **options).layers
        return layer

    def test_blocks_become_panels_of_their_size(self) -> None:
        mask = random_mask(0.1, 3072, 768 // 64, height=64).repeat_interleave(64, 1)
        layer = self.made(mask)
        assert layer.label in ("panel 64x64", "panel 64x32", "panel 64x16", "panel 64x8", "panel 128x64")
        assert layer.predicted_us is not None
        assert layer.dense_us is not None
        assert layer.reason == f"predicted {layer.dense_us / layer.predicted_us:.1f}x dense"

    def test_elements_stay_dense_and_the_plan_says_what_blocks_would_bring(self) -> None:
        layer = self.made(random_mask(0.1, 3072))
        assert layer.format == "dense"
        assert re.fullmatch(
            r"no format is predicted to be faster; as \d+x\d+ blocks up to [234]\.\dx predicted", layer.reason
        )

    def test_layers_that_read_one_input_agree_on_a_block_size(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(num_hidden_layers=1, vocab_size=9)
        model = transformers.BertModel(config).bfloat16()
        masks = {
            f"encoder.layer.0.attention.self.{name}": random_mask(0.1, 768, 768 // width, height)
            .repeat_interleave(width, 1)
            for name, height, width in (("query", 64, 64), ("key", 128, 64), ("value", 64, 8))
        }  # fmt: skip
        alone = [self.made(mask).block for mask in masks.values()]
        together = plan(model, Ticket(masks), tokens=4096, device="h200").layers
        assert len(set(alone)) > 1
        assert len({layer.block for layer in together}) == 1

    def test_says_what_its_figures_are(self) -> None:
        made = plan(*model_with(random_mask(0.1)), device="h200")
        assert made.machine.startswith("float32 on NVIDIA H200, built-in figures; modelled, not measured")

    def test_formats_without_gpu_kernels_stay_dense(self) -> None:
        layer = self.made(random_mask(0.1), format="element")
        assert (layer.format, layer.reason) == ("dense", "format 'element' has no GPU kernels")

    def test_unknown_gpus_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no figures for a device 'h300'"):
            plan(*model_with(random_mask(0.1)), device="h300")


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
        steady = planner.paired
        masks = random_mask(0.1), random_mask(0.1, 384)
        assert "?" not in str(plan(*model_with(*masks)))

        def disturbed(mine: Callable[[], Tensor], other: Callable[[], Tensor]) -> Paired:
            return replace(steady(mine, other), busy=mine().shape[1] == 384)

        monkeypatch.setattr(planner, "paired", disturbed)
        made = plan(*model_with(*masks))
        assert [layer.busy for layer in made.layers] == [False, True]
        _, quiet, busy, *captions = str(made).splitlines()
        assert "?" not in quiet
        assert "1000 us?" in busy
        assert "3000 us?" in busy
        assert "measured 3.0x? dense" in busy
        assert any("1 of 2 layers timed while the machine was busy" in line for line in captions)

    def test_of_this_machine_finds_a_very_sparse_layer_faster(self) -> None:
        (layer,) = plan(*model_with(random_mask(0.02, 1536, 768))).layers
        assert layer.format in ("element", "vector")
        assert layer.measured_us < layer.dense_us


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "mask_of",
    [
        lambda: random_mask(0.1),
        lambda: random_mask(0.5),
        lambda: random_mask(0.02, 3072),
        lambda: random_mask(0.1, height=8),
        lambda: dead_rows(0.2),
    ],
    ids=["90%", "50%", "98%", "8x1", "dead rows"],
)
def test_predicted_bytes_are_those_of_the_packed_weight(
    mask_of: Callable[[], Tensor], dtype: torch.dtype
) -> None:
    mask = mask_of()
    weight = torch.randn(mask.shape).to(dtype)
    for work in estimate_work(MaskStatistics.of(mask), dtype, formats.ANY_MASK):
        packed = formats.pack(weight, mask, format=work.format, **work.options)
        assert work.nbytes == pytest.approx(packed.nbytes, rel=0.05), work


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (48, 40), (17, 300)])
def test_mask_statistics_count_what_they_say(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape) < 0.2
    found = MaskStatistics.of(mask)
    assert (found.rows, found.columns, found.kept) == (*shape, int(mask.sum()))
    assert found.live_rows == int(mask.any(1).sum())
    assert found.live_columns == int(mask.any(0).sum())
    for height, vectors in found.vectors.items():
        packed = formats.pack(torch.ones(shape), mask, format="vector", vector_rows=height)
        assert vectors == len(packed.vectors()[0])


class TestReport:
    def made(self) -> Plan:
        return plan(*model_with(random_mask(0.1), random_mask(0.97)), measure=False)

    def test_is_a_table(self) -> None:
        header, first, second, summary, machine = str(self.made()).splitlines()
        assert header.split()[:4] == ["layer", "shape", "sparsity", "format"]
        assert first.split()[:3] == ["0", "768x768", f"{self.made().layers[0].sparsity:.1%}"]
        assert second.endswith("no format is predicted to be faster")
        assert "ms instead of" in summary
        assert machine.endswith("built-in costs")

    def test_is_a_rich_table(self) -> None:
        console = rich.console.Console(file=io.StringIO(), width=200)
        console.print(self.made())
        assert "768x768" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_is_json(self) -> None:
        content = json.loads(json.dumps(self.made().to_dict()))
        assert [layer["key"] for layer in content["layers"]] == ["0", "1"]
        assert content["machine"] == self.made().machine

    def test_of_times_that_are_unknown_leaves_them_out(self) -> None:
        model, ticket = model_with(random_mask(0.1, 48, 40))
        assert "instead of" not in plan(model.double(), ticket, measure=False).summary


class TestUse:
    def test_sparsify_follows_a_plan_to_the_letter(self, timed: Callable[..., list[int]]) -> None:
        count = timed(3.0)
        model, ticket = model_with(random_mask(0.1, 96, 80), random_mask(0.1, 96, 96))
        made = plan(model, ticket, measure=False)
        wanted = Plan(
            (
                replace(made.layers[0], format="vector", block=(2, 1)),
                replace(made.layers[1], format="csr", block=None),
            ),
            made.machine,
        )
        sparsify_(model, ticket, format=wanted)
        assert [layer.format for layer in model] == ["vector", "csr"]
        assert model[0].packed.vector_rows == 2
        assert not count

    def test_a_sparse_model_carries_its_plan(self) -> None:
        model, ticket = model_with(random_mask(0.1), random_mask(0.5))
        sparsify_(model, ticket, format="element")
        carried: Any = plan(model)
        assert [layer.key for layer in carried.layers] == ["0", "1"]
        assert [layer.nbytes for layer in carried.layers] == [layer.nbytes for layer in model]
        assert all(layer.reason == "asked for" for layer in carried.layers)

    def test_sparse_layers_made_by_hand_have_none(self) -> None:
        linear = nn.Linear(8, 8)
        model = nn.Sequential(SparseLinear.from_linear(linear, torch.rand(8, 8) < 0.5))
        assert not plan(model).layers
