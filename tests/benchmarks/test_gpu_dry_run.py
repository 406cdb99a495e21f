"""``make gpu`` without a GPU: the code of every kind of point runs, and nothing it writes looks measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.baselines import two_of_four
from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import DryRun
from benchmarks.gpu.layers import Problem
from benchmarks.gpu.tuning import _name, candidates
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert.report.gpu_tables import gpu_tables
from sparsebert.results import read
from sparsebert_kernels.cuda.tile_rule import Configuration, Shape, by_rule

ROOT = Path(__file__).parents[2]
ONE = torch.ones(2, 2)


def side(value: torch.Tensor, **options) -> Side:
    return Side(lambda: lambda: value, **options)


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_kind_of_point_runs(tmp_path):
    done = dry_run(tmp_path, "--minutes", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 points missing, 0 failures" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.jsonl", "gpu.md", "gpu.png", "configs"}
    rows = read(tmp_path / "gpu.jsonl")
    assert all(row["device"]["dry_run"] and "DRY RUN" in row["device"]["name"] for row in rows)
    assert gpu_tables(rows) == []
    assert "every figure is meaningless" in (tmp_path / "gpu.md").read_text()


def test_one_kind_of_point_runs_and_the_next_call_finds_it_done(tmp_path):
    first = dry_run(tmp_path, "--only", "limits")
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(read(tmp_path / "gpu.jsonl")) == 1
    assert "limits" not in dry_run(tmp_path, "--list").stdout.splitlines()


def test_a_side_with_a_wrong_answer_gets_no_figure():
    sides = {"cublas": side(ONE), "panel": side(2 * ONE, required=True)}
    with pytest.raises(OutputMismatchError, match="panel"):
        compare(DryRun(), sides, [ONE.double()], baseline="cublas")


def test_a_baseline_that_is_wrong_or_cannot_run_is_noted_and_left_out():
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'stk'")

    sides = {"cublas": side(ONE), "wrong": side(3 * ONE), "stk": Side(broken)}
    found = compare(DryRun(), sides, [ONE.double()], baseline="cublas")
    assert found["us"].keys() == {"cublas"}
    assert "OutputMismatchError" in found["notes"]["wrong"]
    assert found["notes"]["stk"] == "ModuleNotFoundError: No module named 'stk'"


def test_nan_is_a_wrong_answer():
    sides = {"cublas": side(ONE), "panel": side(ONE * float("nan"), required=True)}
    with pytest.raises(OutputMismatchError):
        compare(DryRun(), sides, [ONE.double()], baseline="cublas")


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_a_problem_keeps_whole_blocks_and_as_many_as_asked_for(sparsity):
    problem = Problem(DryRun(), (128, 320), 4, (64, 8), sparsity)
    blocks = problem.mask.view(2, 64, 40, 8).transpose(1, 2).flatten(2)
    assert torch.equal(blocks.any(2), blocks.all(2))
    assert int(blocks.any(2).sum()) == round((1 - sparsity) * 80)
    assert not problem.weight[~problem.mask].any()


def test_two_of_four_keeps_the_two_largest_of_every_four():
    kept = two_of_four(torch.tensor([[1.0, -4.0, 2.0, 0.5, 1.0, 2.0, 3.0, -4.0]]))
    assert kept.tolist() == [[0, -4, 2, 0, 0, 0, 3, -4]]


@pytest.mark.parametrize("kernel", ["panel forward", "panel values gradient"])
@pytest.mark.parametrize("rows", [16, 32, 64, 128])
def test_candidates_begin_with_the_rule_and_fit_the_device(kernel, rows):
    shape = Shape(kernel, rows, 64, 4096, 12, 48, "bfloat16")
    tried = candidates(shape, 227 * 1024)
    assert tried[0] == by_rule(shape, 227 * 1024)
    assert 3 <= len(tried) <= 40
    assert len(set(tried)) == len(tried) == len({_name(each) for each in tried})


def test_candidates_for_short_loops_are_small_programs_of_two_stages():
    tried = candidates(Shape("panel forward", 64, 64, 4096, 12, 14, "bfloat16"), 227 * 1024)
    assert {Configuration(128, 8, 4, 2), Configuration(256, 8, 8, 2)} <= set(tried)
    assert max(each.num_stages for each in tried) == 2


def test_candidates_for_narrow_panels_take_one_to_four_together():
    tried = candidates(Shape("panel forward", 16, 64, 4096, 48, 56, "bfloat16"), 227 * 1024)
    assert {each.neighbours for each in tried} == {1, 2, 4}
