"""Kernels compiled ahead of time: the figures, the problems, and that our kernels have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsebert_kernels.cuda.aot import command
from sparsebert_kernels.cuda.aot.targets import TARGETS

ROOT = Path(__file__).parents[2]
SAMPLES = "tests.triton.matmul_cases"
KERNELS = "sparsebert_kernels.cuda"
INSTRUCTIONS = {
    "sm_80": "mma.sync m16n8k16",
    "sm_90": "wgmma m64n64k16",
    "sm_100": "tcgen05 m128n64k64",
    "gfx942": "mfma 32x32x8",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process: this one may have imported the kernels for the interpreter."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "sparsebert_kernels.cuda.aot", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs() -> list[subprocess.CompletedProcess[str]]:
    """All samples for one target, and the default ones for the others."""
    others = [word for target in INSTRUCTIONS if target != "sm_90" for word in ("--target", target)]
    return [
        run("--module", SAMPLES, "--check", "--target", "sm_90"),
        run("--module", SAMPLES, "--check", "--default", *others),
    ]


@pytest.fixture(scope="module")
def samples(runs: list[subprocess.CompletedProcess[str]]) -> dict[tuple[str, str], dict]:
    """The records of all samples by target and label."""
    rows = [json.loads(line) for done in runs for line in done.stdout.splitlines()]
    return {(row["target"], row["label"]): row for row in rows}


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_a_good_kernel_has_the_tensor_core_instruction_of_its_target(samples, target):
    record = samples[target, "good"]
    assert record["problems"] == []
    assert list(record["tensor"]) == [INSTRUCTIONS[target]]
    assert record["spill_stores"] == record["spill_loads"] == 0
    assert 32 <= record["registers"] <= 255
    assert record["buffers"] >= 2
    assert 0 < record["shared_memory"] <= record["shared_memory_limit"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_ceiling_follows_from_the_main_loop(samples, target):
    record = samples[target, "good"]
    cycles = 128 * 64 * 64 / TARGETS[target].products
    assert 20 < record["loop_instructions"] < 300
    assert record["ceiling"] == pytest.approx(min(1, cycles / record["loop_instructions"]), abs=0.01)


def test_amd_loops_are_counted_and_their_ceiling_is_left_open(samples):
    assert samples["gfx942", "good"]["loop_instructions"] > 20
    assert samples["gfx942", "good"]["ceiling"] is None


def test_spills_and_a_lost_instruction_are_problems(samples):
    (spilling,) = samples["sm_90", "spilling"]["problems"]
    assert spilling.startswith("spills registers (")
    (lost,) = samples["sm_90", "too low"]["problems"]
    assert lost == "has no wgmma (mma.sync m16n8k16)"


def test_shared_memory_must_fit_the_target(samples):
    problems = samples["sm_90", "too much shared memory"]["problems"]
    assert any("bytes of shared memory, sm_90 has 232448" in each for each in problems)


def test_whole_float32_needs_no_tensor_cores(samples):
    for target in INSTRUCTIONS:
        record = samples[target, "whole float32"]
        assert (record["precision"], record["problems"]) == ("ieee", [])


def test_a_kernel_without_a_product_has_no_loop_to_count(samples):
    record = samples["sm_90", "copy"]
    assert (record["tensor"], record["loop_instructions"], record["problems"]) == ({}, None, [])


def test_a_case_that_does_not_fit_its_kernel_says_so(samples):
    assert "disagree on the arguments BLOCK, SIZE" in samples["sm_90", "misnamed"]["error"]


def test_check_fails_on_a_problem(runs):
    assert [done.returncode for done in runs] == [1, 0]


def test_default_compiles_the_default_cases_only(samples):
    labels = [label for target, label in samples if target == "sm_80"]
    assert labels == ["good", "whole float32", "copy"]


def test_labels_can_be_selected():
    _, work = command.parse(["--module", SAMPLES, "--target", "sm_90", "--match", "^copy$"])
    assert work == [(SAMPLES, 5, "sm_90")]


def test_one_configuration_of_each_kernel_is_fast_on_sm_90():
    labels = (
        "h64 g8 256x64x64 w8 s4 bf16 residual",
        "h64 g8 128x64x64 w4 s2 bf16",
        "h64 g8 128x64x64 w4 s4 bf16",
        "h16 g8 128x16x64 w4 s2 n4 bf16",
        "h32 g8 256x32x64 w8 s4 n2 bf16 residual",
        "h64 g8 w4 bf16",
        "1024 w4 bf16",
        "h64 64x128x64 w4 s3 bf16",
        "256x128x64 w8 s3 x bf16 weight bf16 half",
        "256x64x128 w8 s3 x bf16 weight bf16 half",
        "64x128x128 w8 s3 x bf16 weight bf16 half",
        "8x128 weight bf16",
        "32x64 w4 bf16",
    )
    done = run("--target", "sm_90", "--default", "--check", "--match", f"^({'|'.join(labels)})$")
    assert done.returncode == 0, done.stderr
    families = {json.loads(line)["family"] for line in done.stdout.splitlines()}
    assert families == {
        "panel forward",
        "panel values gradient",
        "panel transpose",
        "sum of splits",
        "column panel",
        "masked forward",
        "masked dX",
        "masked dW",
        "masked dW split",
        "masked dW reduction",
        "bitmap decompression",
    }


def test_masked_products_of_uneven_shapes_spill_no_register_on_blackwell():
    """There, the compiler leaves a thread the fewest registers."""
    labels = (
        "128x32x64 w8 s3 x fp32 weight fp32 ieee 1200x1200",
        "64x32x64 w8 s3 x fp32 weight fp32 ieee 1200x1200",
        "64x128x128 w8 s3 x bf16 weight fp32 half 1200x1200",
        "64x128x64 w8 s3 x bf16 weight bf16 half 30522x768",
        "32x64x64 w8 s3 x fp32 weight fp32 tf32 312x312",
        "32x64x32 w4 s2 x fp32 weight fp32 ieee 312x312",
    )
    done = run("--target", "sm_100", "--check", "--match", f"^({'|'.join(labels)})$")
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["label"] for each in compiled} == {*labels}
    assert {each["family"] for each in compiled} == {"masked dX", "masked dW", "masked dW split"}


@pytest.mark.slow
def test_our_default_configurations_are_fast_on_sm_90():
    # Groups of 16 and 32 columns compile to the loop of 8 and 64: `make aot` compiles all.
    most = ("--default", "--match", r"^(?!.*\bg(16|32)\b)")
    done = run("--target", "sm_90", *most, "--check", "--jobs", str(len(os.sched_getaffinity(0))))
    assert done.returncode == 0, done.stderr
    assert done.stdout
