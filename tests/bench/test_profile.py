"""The profile: every part is measured once, and the parts are the whole call."""

import dataclasses
import time
import types

import pytest
import torch

from sparsebert.bench import profile, runner
from sparsebert.bench.cpu_ceilings import Ceilings
from sparsebert.bench.environment import detect
from sparsebert.bench.profile import PARTS, Profiler
from sparsebert.fuse import fuse_
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.laps import LAPS, recorded_laps

QUICK = runner.Settings(budget=0.0, min_rounds=2, max_rounds=2)
LINEARS = ("qkv", "output", "up", "down")
CEILINGS = Ceilings(
    flops={"fp32": 1e11},
    products={"fp32": "oneDNN fp32 512x512x512"},
    read=1e10,
    copy=1e10,
    cache_read=None,
    cache_bytes=None,
    array_bytes=2**28,
    threads=1,
    rounds=5,
    medians={},
)
needs_native = pytest.mark.skipif(not native.available(), reason="no native library")


def test_parts_of_a_plain_model_are_all_measured_and_add_up_to_its_call(even):
    profiler = Profiler(even.workload.load_model(), threads=1)
    profiler.run(even.batches)
    start = time.perf_counter()
    parts = profiler.run(even.batches)
    seconds = time.perf_counter() - start
    assert tuple(parts) == PARTS
    assert all(parts[part] > 0 for part in (*LINEARS, "attention", "norm", "embeddings", "python"))
    assert parts["layout"] == 0
    assert 0.5 * seconds < sum(parts.values()) <= seconds


@needs_native
def test_a_fused_encoder_measures_its_parts_itself(even, recwarn):
    profiler = Profiler(fuse_(even.workload.load_model()), threads=1)
    profiler.run(even.batches)
    start = time.perf_counter()
    parts = profiler.run(even.batches)
    seconds = time.perf_counter() - start
    assert all(parts[part] > 0 for part in (*LINEARS, "attention", "norm", "layout", "embeddings"))
    assert sum(parts.values()) <= seconds
    assert not [warning for warning in recwarn if "one by one" in str(warning.message)]


@needs_native
def test_laps_are_recorded_only_on_request_and_change_no_answer(even):
    model = fuse_(even.workload.load_model())
    with torch.inference_mode():
        before = model(**even.batches[0]).last_hidden_state
        with recorded_laps() as laps:
            during = model(**even.batches[0]).last_hidden_state
        recorded = laps.clone()
        model(**even.batches[0])
    torch.testing.assert_close(during, before, atol=0, rtol=0)
    assert torch.equal(laps, recorded)
    assert len(LAPS) == len(laps)
    assert (laps >= 0).all()


def test_a_record_for_each_side_with_the_time_of_one_batch(tiny):
    rows = profile.run(tiny, detect(), QUICK, ceilings=CEILINGS)
    sides = ["sparse", *(["dense, fused", "sparse, fused"] if native.available() else [])]
    assert [row["side"] for row in rows][1:] == sides
    for row in rows:
        assert row["kind"] == "profile"
        assert tuple(row["parts_ms"]) == PARTS
        assert row["rounds"] == 2
        assert row["ticket"]["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_each_side_has_the_operations_of_its_own_weights_under_the_same_ceilings(tiny):
    rows = profile.run(tiny, detect(), QUICK, ceilings=CEILINGS)
    assert all(row["ceilings"] == CEILINGS.record() for row in rows)
    flops = {row["side"]: sum(each["flops"] for each in row["operations"]) for row in rows}
    stored = {row["side"]: sum(each["weight_bytes"] for each in row["operations"]) for row in rows}
    dense = rows[0]["side"]
    assert all(flops[side] < 0.2 * flops[dense] for side in flops if side.startswith("sparse"))
    assert all(stored[side] < 0.5 * stored[dense] for side in stored if side.startswith("sparse"))
    assert all(row["parts_ms"][each["part"]] > 0 for row in rows for each in row["operations"])


def test_only_a_cpu_is_profiled(tiny):
    elsewhere = dataclasses.replace(tiny, workload=types.SimpleNamespace(device="cuda"))
    with pytest.raises(ValueError, match="a profile needs the device cpu, got cuda"):
        profile.run(elsewhere, detect(), QUICK)


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match=r"a profile needs a BERT, .* model; Linear has no encoder"):
        Profiler(torch.nn.Linear(2, 2), threads=1)
