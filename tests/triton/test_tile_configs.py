"""Configurations: the nearest measured one, else a rule that fits into shared memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsebert_kernels.cuda import tile_configs
from sparsebert_kernels.cuda.aot.targets import TARGETS, Target
from sparsebert_kernels.cuda.tile_configs import (
    LEAST_SHARED_MEMORY,
    SHARED_MEMORY_AMD,
    TOKEN_BUCKETS,
    Configuration,
    Shape,
    by_rule,
    by_target,
    configuration,
    measured,
    nearest,
    record,
    splits,
)
from sparsebert_kernels.formats.panel import PANEL_ROWS

SHAPE = Shape("panel forward", 64, 64, 4096, 12, 30, "bfloat16")
CPU = torch.device("cpu")


def config(block_m: int) -> Configuration:
    return Configuration(block_m, 8, 4, 3)


class TestNearest:
    def test_is_the_shape_itself_where_it_was_measured(self) -> None:
        entries = ((replace(SHAPE, tokens=2048), config(64)), (SHAPE, config(128)))
        assert nearest(SHAPE, entries) == config(128)

    def test_tokens_decide_before_the_size_of_the_weight(self) -> None:
        entries = (
            (replace(SHAPE, tokens=512), config(64)),
            (replace(SHAPE, panels=48, tiles=60), config(128)),
        )
        assert nearest(SHAPE, entries) == config(128)

    @pytest.mark.parametrize(
        "other",
        [{"kernel": "panel values gradient"}, {"panel_rows": 32}, {"dtype": "float32"}],
        ids=str,
    )
    def test_never_has_another_kernel_height_or_dtype(self, other: dict[str, object]) -> None:
        assert nearest(SHAPE, ((replace(SHAPE, **other), config(64)),)) is None

    def test_takes_weights_that_keep_nothing(self) -> None:
        assert nearest(replace(SHAPE, tiles=0), ((SHAPE, config(64)),)) == config(64)


class TestFiles:
    def test_are_read_by_the_name_of_the_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
        entries = [(SHAPE, config(128)), (replace(SHAPE, tokens=512), config(64))]
        (tmp_path / "nvidia_h200_141gb.json").write_text(record("NVIDIA H200-141GB", entries))
        assert measured("NVIDIA H200-141GB") == tuple(entries)
        assert measured("NVIDIA A100") == ()

    def test_that_hold_something_else_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
        (tmp_path / "gpu.json").write_text('{"configurations": [{"kernel": "panel forward"}]}')
        with pytest.raises(ValueError, match=r"gpu\.json does not hold measured configurations"):
            measured("GPU")

    def test_of_the_package_can_be_read(self) -> None:
        for path in tile_configs.FOLDER.glob("*.json"):
            assert measured(path.stem)


class TestRule:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    @pytest.mark.parametrize("tokens", [1, 64, 65, 4096, 10**6])
    @pytest.mark.parametrize("memory", [227 * 1024, 163 * 1024, LEAST_SHARED_MEMORY, SHARED_MEMORY_AMD])
    def test_fits_into_shared_memory(self, dtype: str, tokens: int, memory: int) -> None:
        for height in PANEL_ROWS:
            shape = replace(SHAPE, panel_rows=height, tokens=tokens, dtype=dtype)
            forward = by_rule(shape, memory)
            gradient = by_rule(replace(shape, kernel="panel values gradient"), memory)
            steps = {
                forward: (forward.block_m + height) * 64,
                gradient: (64 * gradient.group + height) * gradient.block_m,
            }
            for rule, elements in steps.items():
                # Compilers for AMD keep one buffer less than there are stages.
                buffers = rule.num_stages - (memory == SHARED_MEMORY_AMD)
                assert rule.num_stages >= 2
                assert elements * shape.itemsize * buffers <= memory

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32", "tensorfloat32"])
    @pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
    def test_is_compiled_ahead_of_time_as_each_target_gets_it(self, dtype: str, target: Target) -> None:
        for height, tokens in itertools.product(PANEL_ROWS, TOKEN_BUCKETS):
            shape = replace(SHAPE, panel_rows=height, tokens=tokens, dtype=dtype)
            compiled = by_target(shape)[by_rule(shape, target.shared_memory)]
            assert not compiled or target.name in compiled

    def test_is_what_a_device_without_a_file_gets(self) -> None:
        assert configuration(SHAPE, CPU) == by_rule(SHAPE)


class TestSplits:
    def test_fill_the_device_without_splitting_small_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tile_configs, "multiprocessors", lambda device: 132)
        assert splits(400, 16384, 64, CPU) == 1
        assert splits(33, 16384, 64, CPU) == 8
        assert splits(1, 16384, 64, CPU) == 32
        assert splits(1, 100, 64, CPU) == 1
        assert splits(0, 0, 64, CPU) == 1
