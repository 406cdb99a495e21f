"""The cost model of GPUs: a roofline where nobody has measured yet."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsebert.cost import gpu_roofline
from sparsebert.cost.gpu_roofline import KNOWN, Bounds, Roofline
from sparsebert.cost.mask_statistics import BlockStatistics, MaskStatistics
from sparsebert.cost.work import WorkEstimate, estimate_panel_work, estimate_work
from sparsebert_kernels.cuda import epilogue_cost, tile_configs
from sparsebert_kernels.cuda.tile_rule import Configuration

H200 = KNOWN["h200"]


def speedup(rows: int, columns: int, tokens: int, density: float, height: int, device: str = "h200") -> float:
    """Return the predicted speedup of evenly spread h x 64 blocks over the dense layer, in bf16."""
    model = Roofline(KNOWN[device], torch.bfloat16, tokens)
    mask = MaskStatistics.of(torch.ones(rows, columns, dtype=torch.bool))
    (dense,) = estimate_work(mask, torch.bfloat16, ("dense",))
    return model.seconds(dense) / model.seconds(panels(rows, columns, density, height))


def panels(rows: int, columns: int, density: float, height: int) -> WorkEstimate:
    """Return the work of evenly spread h x 64 blocks in bf16."""
    mask = MaskStatistics.of(torch.ones(rows, columns, dtype=torch.bool))
    blocks = BlockStatistics.spread(rows, columns, density)
    works = estimate_panel_work(mask, blocks, torch.bfloat16)
    return next(work for work in works if work.block == (height, 64))


def bounds(
    rows: int, columns: int, tokens: int, density: float, height: int, activation: str = "none"
) -> Bounds:
    model = Roofline(H200, torch.bfloat16, tokens, activation)
    return model.panel_bounds(panels(rows, columns, density, height))


def at_once(rows: int, columns: int, tokens: int, density: float, height: int) -> int:
    """Return the programs that a multiprocessor of an H200 runs at once."""
    model = Roofline(H200, torch.bfloat16, tokens)
    return model.programs_at_once(panels(rows, columns, density, height))


def test_dense_layers_come_near_the_rate_of_the_tensor_cores() -> None:
    dense = WorkEstimate("dense", 0, 0, 3072 * 768 * 2, shape=(3072, 768))
    seconds = Roofline(H200, torch.bfloat16, 16384).seconds(dense)
    assert 0.8 < 2 * 16384 * 3072 * 768 / seconds / H200.matmul < 1


def test_an_incomplete_wave_of_tiles_costs_as_much_as_a_full_one() -> None:
    """Two processors so slow that arithmetic alone counts; 64 x 64 is the smallest tile."""
    device = replace(H200, matmul=1e12, processors=2)

    def seconds(tokens: int, rows: int) -> float:
        dense = WorkEstimate("dense", 0, 0, rows * 4096 * 2, shape=(rows, 4096))
        return Roofline(device, torch.bfloat16, tokens).seconds(dense)

    wave = seconds(128, 64)
    assert seconds(64, 64) == seconds(65, 1) == wave
    assert seconds(129, 64) == pytest.approx(2 * wave, rel=0.1)


@pytest.mark.parametrize(("height", "sparsity"), [(16, 0.87), (32, 0.76), (64, 0.57), (128, 0.47)])
def test_blocks_break_even_where_the_l2_cache_lets_them(height: int, sparsity: float) -> None:
    assert (
        speedup(3072, 3072, 16384, 1 - sparsity + 0.08, height)
        < 1
        < speedup(3072, 3072, 16384, 1 - sparsity - 0.08, height)
    )


@pytest.mark.parametrize("tokens", [512, 4096, 16384])
def test_taller_blocks_are_faster_where_tiles_are_what_takes_time(tokens: int) -> None:
    """With few tokens and few tiles, programs only wait, for as long with blocks of any height."""
    for density in (0.25, 0.5) if tokens == 512 else (0.05, 0.1, 0.25, 0.5):
        gains = [speedup(3072, 768, tokens, density, height) for height in (16, 32, 64)]
        assert gains == sorted(gains)


def test_groups_of_8_columns_cost_what_64_wide_blocks_do() -> None:
    mask = MaskStatistics.of(torch.ones(768, 768, dtype=torch.bool))
    blocks = BlockStatistics.spread(768, 768, 0.25)
    seconds = {
        work.block: Roofline(H200, torch.bfloat16, 4096).seconds(work)
        for work in estimate_panel_work(mask, blocks, torch.bfloat16)
    }
    assert seconds[64, 8] == pytest.approx(seconds[64, 64], rel=0.01)


def test_activations_bound_what_sparsity_can_bring() -> None:
    few, many = (bounds(3072, 768, 16384, density, 128) for density in (0.02, 0.08))
    assert few.traffic == pytest.approx(many.traffic, rel=0.05)
    assert few.seconds >= few.traffic
    assert speedup(3072, 768, 16384, 0.02, 128) < 4


@pytest.mark.parametrize(("tokens", "least", "most"), [(4096, 16e-6, 19e-6), (16384, 64e-6, 74e-6)])
def test_an_exact_erf_in_the_epilogue_takes_longer_than_all_else(
    tokens: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 32 instructions of an erf for each of the outputs of an up-projection."""
    monkeypatch.setitem(epilogue_cost.ACTIVATION, "gelu", 32.0)
    erf, plain = (bounds(3072, 768, tokens, 0.1, 64, activation=name) for name in ("gelu", "none"))
    assert least < erf.issue < most
    assert erf.issue > 2 * erf.l2 > 2 * erf.tensor_cores
    assert erf.issue > 3 * plain.issue
    assert erf.seconds > plain.seconds


@pytest.mark.parametrize("tokens", [4096, 16384])
def test_several_programs_on_a_multiprocessor_hide_what_one_waits_for(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 90 %, a program of 256 tokens and four stages has a multiprocessor for itself."""

    def bounds_of(block_m: int, warps: int, stages: int) -> tuple[int, Bounds]:
        config = Configuration(block_m, 8, warps, stages)
        monkeypatch.setattr(Roofline, "configuration", lambda self, work: config)
        return at_once(3072, 768, tokens, 0.1, 64), bounds(3072, 768, tokens, 0.1, 64)

    alone, one = bounds_of(256, 8, 4)
    together, four = bounds_of(128, 4, 2)
    assert (alone, together) == (1, 4)
    assert one.tightest == "programs"
    assert four.tightest == "l2"
    assert one.seconds > 1.4 * four.seconds


@pytest.mark.parametrize(
    ("block_m", "height", "warps", "stages", "programs"),
    [
        (256, 64, 8, 4, 1),  # 164 KB of shared memory
        (256, 64, 8, 2, 2),  # 82 KB, and 128 registers for each of 256 threads
        (128, 64, 4, 2, 4),  # 128 registers for each of 128 threads
        (64, 16, 4, 2, 10),  # registers
    ],
)
def test_the_programs_at_once_fit_into_shared_memory_and_registers(
    block_m: int, height: int, warps: int, stages: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Configuration(block_m, 8, warps, stages)
    monkeypatch.setattr(Roofline, "configuration", lambda self, work: config)
    assert at_once(3072, 768, 4096, 0.1, height) == programs


def test_a_program_waits_for_its_first_loads_however_little_it_computes() -> None:
    """Four loads, one after the other, in each of three waves of programs of 128 tokens."""
    few = bounds(3072, 768, 4096, 0.01, 64)
    waves = math.ceil(32 * 48 / (132 * at_once(3072, 768, 4096, 0.01, 64)))
    assert waves * 4 * gpu_roofline.LOAD_SECONDS < few.programs < 2 * waves * 4 * gpu_roofline.LOAD_SECONDS


def test_the_rest_of_the_layer_needs_a_kernel_for_its_activation() -> None:
    """The dense layer reads and writes its output once more; packed panels do not."""
    dense = WorkEstimate("dense", 0, 0, 3072 * 768 * 2, shape=(3072, 768))
    plain, with_gelu = (
        Roofline(H200, torch.bfloat16, 16384, name).seconds(dense) for name in ("none", "gelu")
    )
    assert with_gelu - plain == pytest.approx(2 * 16384 * 3072 * 2 / H200.memory + H200.kernel)


def test_an_a100_gains_earlier_than_an_h200() -> None:
    assert speedup(3072, 768, 4096, 0.25, 64, "a100") > 1.3 * speedup(3072, 768, 4096, 0.25, 64)


def test_compaction_shrinks_the_product() -> None:
    model = Roofline(H200, torch.bfloat16, 16384)
    dense = WorkEstimate("dense", 0, 0, 3072 * 768 * 2, shape=(3072, 768))
    compact = WorkEstimate("compact", 0, 0, 768 * 768 * 2, shape=(768, 768))
    assert model.seconds(compact) < model.seconds(dense) / 1.5
    assert model.seconds(WorkEstimate("compact", 0, 0, 0, shape=(0, 768))) > 0


def test_formats_without_a_model_are_unknown() -> None:
    model = Roofline(H200, torch.bfloat16, 128)
    work = WorkEstimate("element", 1, 1, 1)
    assert not model.supports(work)
    with pytest.raises(KeyError):
        model.seconds(work)


@pytest.mark.parametrize("name", ["h200", "NVIDIA H200", "NVIDIA A100-SXM4-80GB"])
def test_devices_are_found_by_name(name: str) -> None:
    assert gpu_roofline.named(name).name in name or name == "h200" or "A100" in name


def test_unknown_devices_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="no figures for device 'tpu'; known: h200, h100"):
        gpu_roofline.named("tpu")


class Properties:
    """The properties of a GPU as torch reports them."""

    def __init__(self, name: str, multi_processor_count: int) -> None:
        self.name, self.multi_processor_count = name, multi_processor_count
        self.major, self.minor = 9, 0


@pytest.mark.parametrize(("name", "scale"), [("NVIDIA H100 80GB HBM3", 1.0), ("NVIDIA L40S", 0.5)])
def test_a_device_nobody_knows_is_scaled_by_its_processors(
    name: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = Properties(name, round(scale * KNOWN["h100"].processors))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = gpu_roofline.present.__wrapped__(torch.device("cuda"))
    assert (device.name, device.processors) == (name, properties.multi_processor_count)
    for rate in ("matmul", "matmul_fp32", "memory", "l2"):
        assert getattr(device, rate) == scale * getattr(KNOWN["h100"], rate)
    assert ("scaled" in device.source) == (scale != 1)


def test_measured_limits_of_a_device_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tile_configs.Limits(matmul=1e14, matmul_fp32=1e13, memory=2e12, l2=9e12, kernel=3e-6)
    (tmp_path / "nvidia_h200.json").write_text(tile_configs.record("NVIDIA H200", [], limits))
    monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
    properties = Properties("NVIDIA H200", 132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = gpu_roofline.present.__wrapped__(torch.device("cuda"))
    assert (device.matmul, device.memory, device.l2, device.kernel) == (1e14, 2e12, 9e12, 3e-6)
    assert device.source == "figures measured on such a device"
