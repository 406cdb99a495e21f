"""The rule for block sizes: fits into shared memory, and is what is compiled ahead of time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sparsebert_kernels.cuda import tile_rule
from sparsebert_kernels.cuda.aot.targets import TARGETS, Target
from sparsebert_kernels.cuda.hardware import LEAST_SHARED_MEMORY, SHARED_MEMORY_AMD
from sparsebert_kernels.cuda.tile_rule import TOKEN_BUCKETS, Shape, by_rule, by_target, splits
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


class TestSplits:
    def test_fill_the_device_without_splitting_small_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tile_rule, "multiprocessors", lambda device: 132)
        assert splits(400, 16384, 64, CPU) == 1
        assert splits(33, 16384, 64, CPU) == 8
        assert splits(1, 16384, 64, CPU) == 32
        assert splits(1, 100, 64, CPU) == 1
        assert splits(0, 0, 64, CPU) == 1
