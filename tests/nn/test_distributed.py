"""Two processes train sparse layers under DistributedDataParallel as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.nn.two_processes import FROZEN, TRAINABLE, WIDTH, batch, gradients, model

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
    ],
}  # fmt: skip


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_gloo_processes_have_the_mean_gradient(tmp_path: Path, launcher: str) -> None:
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "tests.nn.two_processes", str(tmp_path), launcher]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    rows = batch().view(4, 2, WIDTH)
    alone = [gradients(model(), rows.roll(rank, 1)[:, 0]) for rank in range(2)]
    assert sum("values" in name for name in alone[0]) == len(TRAINABLE)
    assert sum("bias" in name for name in alone[0]) == 1 + len(TRAINABLE) + len(FROZEN)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert together.keys() == alone[0].keys()
        for name, gradient in together.items():
            mean = (alone[0][name] + alone[1][name]) / 2
            assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-6), name
