"""Two processes find the ticket that one finds: rank 0 decides, and sends it to the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.tickets.ticket import Ticket
from tests.lottery import tiny

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path, processes: int, *arguments: str) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "-m", "tests.lottery.tiny"]
    if processes == 1:
        command = [sys.executable, "-m", "tests.lottery.tiny"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    batch = ["--batch-size", str(8 // processes), "--dropout", "0"]
    done = subprocess.run(
        [*command, str(out), *batch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("method", ["cap", "cap-soft"])
def test_two_gloo_processes_contrast_with_the_same_banks(tmp_path: Path, method: str) -> None:
    """Each contrasts the examples of its own half of a batch, so one process learns another ticket."""
    for processes in (1, 2):
        start(tmp_path / str(processes), processes, "--learned", method, "--taught")
    one, two = (Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("1", "2"))
    for rank in range(2):
        assert Ticket.load(tmp_path / "2" / f"rank-{rank}.safetensors") == two
    assert one.overlap(two) > 0.8
    assert not (tmp_path / "2" / "round-00" / "banks").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("rewind", ["pretrained", "none"])
def test_two_gloo_processes_end_with_the_masks_of_one(tmp_path: Path, rewind: str) -> None:
    for processes in (1, 2):
        start(tmp_path / str(processes), processes, "--rewind", rewind)
    for number in range(4):
        name = f"round-{number:02}/ticket.safetensors"
        assert Ticket.load(tmp_path / "2" / name) == Ticket.load(tmp_path / "1" / name)
    (one, two) = (results.read(tmp_path / name / "log.jsonl", "round") for name in ("1", "2"))
    assert [row["processes"] for row in two] == [2] * 4
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize(
    "method",
    [
        "movement",
        "movement --taught",
        "gradual",
        "soft-movement",
        "l0",
        "smp --mask L",
        "smp --mask L --choose-every 2",
        "smp --mask S",
        "smp --mask G",
    ],
)
def test_two_gloo_processes_learn_one_ticket(tmp_path: Path, method: str) -> None:
    """The same on both, and but for rounding that of one process with all the examples of a step."""
    for processes in (1, 2):
        start(tmp_path / str(processes), processes, "--learned", *method.split())
    one, two = (Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("1", "2"))
    for rank in range(2):
        assert Ticket.load(tmp_path / "2" / f"rank-{rank}.safetensors") == two
    # Where a penalty decides how much stays, rounding may too.
    assert one.density == pytest.approx(two.density, abs=0.02 if method in tiny.PENALISED else 0)
    assert 0 < two.density < 1
    assert one.overlap(two) > 0.95  # Adam blows up the rounding of gradients that are about 0
