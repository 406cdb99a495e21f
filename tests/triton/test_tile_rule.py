"""The rule for block sizes: fits into shared memory, and is what is compiled ahead of time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sparsebert_kernels.cuda import tile_rule
from sparsebert_kernels.cuda.aot.targets import TARGETS, Target
from sparsebert_kernels.cuda.hardware import LEAST_SHARED_MEMORY, SHARED_MEMORY_AMD
from sparsebert_kernels.cuda.tile_rule import (
    TOKEN_BUCKETS,
    Configuration,
    Shape,
    by_rule,
    by_target,
    splits,
)
from sparsebert_kernels.formats.panel import PANEL_ROWS

SHAPE = Shape("panel forward", 64, 64, 4096, 12, 30, "bfloat16")
CPU = torch.device("cpu")


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


class TestShortLoops:
    """Where a panel keeps few tiles, programs are small and several of them share a multiprocessor."""

    @pytest.mark.parametrize("tiles", [0, 1, 12, 14, 24, 35, 36, 60, 144])
    @pytest.mark.parametrize("height", PANEL_ROWS)
    def test_have_one_stage_more_than_steps_at_most(self, tiles: int, height: int) -> None:
        shape = replace(SHAPE, tiles=tiles, panel_rows=height)
        assert by_rule(shape).num_stages <= max(2, shape.steps + 1)

    def test_are_cut_into_128_tokens_with_two_stages(self) -> None:
        assert by_rule(replace(SHAPE, tiles=14)) == Configuration(128, 8, 4, 2)
        assert by_rule(replace(SHAPE, tiles=60), 227 * 1024) == Configuration(256, 8, 8, 4)

    @pytest.mark.parametrize(("tiles", "chunk"), [(12, 1), (19, 1), (20, 2), (144, 2)])
    def test_have_chunks_of_one_tile_in_the_values_gradient(self, tiles: int, chunk: int) -> None:
        for height in PANEL_ROWS:
            shape = replace(SHAPE, kernel="panel values gradient", panel_rows=height, tiles=tiles)
            assert by_rule(shape).group == chunk


class TestNeighbours:
    @pytest.mark.parametrize(
        ("height", "panels", "expected"), [(16, 48, 4), (32, 24, 2), (64, 12, 1), (128, 6, 1)]
    )
    def test_store_64_columns_together(self, height: int, panels: int, expected: int) -> None:
        assert by_rule(replace(SHAPE, panel_rows=height, panels=panels)).neighbours == expected

    @pytest.mark.parametrize(("panels", "expected"), [(1, 1), (2, 2), (3, 2), (4, 4)])
    def test_are_no_more_than_there_are(self, panels: int, expected: int) -> None:
        assert by_rule(replace(SHAPE, panel_rows=16, panels=panels)).neighbours == expected

    def test_share_no_program_where_programs_are_few_or_sums_exact(self) -> None:
        narrow = replace(SHAPE, panel_rows=16)
        assert by_rule(replace(narrow, tokens=512)).neighbours == 1
        assert by_rule(replace(narrow, dtype="float32")).neighbours == 1


class TestBucket:
    @pytest.mark.parametrize(("tokens", "bucket"), [(0, 1), (1, 1), (3, 4), (512, 512), (513, 1024)])
    def test_is_the_next_power_of_two(self, tokens: int, bucket: int) -> None:
        assert replace(SHAPE, tokens=tokens).bucket() == replace(SHAPE, tokens=bucket)


class TestSplits:
    def test_fill_the_device_without_splitting_small_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tile_rule, "multiprocessors", lambda device: 132)
        assert splits(400, 16384, 64, CPU) == 1
        assert splits(33, 16384, 64, CPU) == 8
        assert splits(1, 16384, 64, CPU) == 32
        assert splits(1, 100, 64, CPU) == 1
        assert splits(0, 0, 64, CPU) == 1
