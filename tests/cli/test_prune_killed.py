"""``kill -9`` of ``sparsebert prune``: the command, repeated, ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsebert.cli import app
from tests.cli.tiny import WORDS

pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

# Kills the process at call number COUNT of a function, before or after the call.
KILLER = """
import importlib, os, signal, sys
from sparsebert.cli import app
module, name, count, when = sys.argv[1:5]
parts = module.split(":")
home = importlib.import_module(parts[0])
for part in parts[1:]:
    home = getattr(home, part)
function, calls = getattr(home, name), 0
def dying(*arguments, **options):
    global calls
    calls += 1
    if calls == int(count) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **options)
    if calls == int(count) and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(home, name, dying)
app.main(sys.argv[5:])
"""
FILE = "sparsebert.one_shot.progress_file"
MOMENTS = {
    "before anything is finished": (f"{FILE}:ProgressFile", "add", "1", "before"),
    "while a matrix is measured": (f"{FILE}:ProgressFile", "add", "7", "after"),
    "while the checkpoint is written": (FILE, "save_file", "9", "after"),
    "once the densities are allocated": (f"{FILE}:ProgressFile", "add", "13", "after"),
    "while the first layer is pruned": (
        "sparsebert.one_shot.methods.alps:Alps",
        "prune_layer",
        "4",
        "before",
    ),
    "between two layers": (f"{FILE}:ProgressFile", "add", "14", "after"),
    "once all is pruned": ("sparsebert.workflows.one_shot", "write_folder", "1", "before"),
    "while the folder is written": (
        "sparsebert.workflows.one_shot",
        "extend_card_of_dense",
        "1",
        "after",
    ),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [word for word in WORDS if word.isalpha()]
    lines = (" ".join(words[(i + j * (1 + i // 11)) % 11] for j in range(3 + i % 5)) for i in range(40))
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def command(bert: Path, texts: Path, parent: Path) -> list[str]:
    return [
        *("prune", "--model", str(bert), "--method", "alps", "--texts", str(texts)),
        *("--sparsity", "0.6", "--output", str(parent / "pruned")),
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    parent = tmp_path_factory.mktemp("undisturbed")
    assert app.main(command(bert, texts, parent)) == 0
    return content(parent / "pruned")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", *arguments], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_with_the_same_bytes(
    moment: str, bert: Path, texts: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    prune = command(bert, texts, tmp_path)
    assert start(KILLER, *MOMENTS[moment], *prune).wait() == -signal.SIGKILL
    assert not (tmp_path / "pruned").exists()
    assert (tmp_path / "pruned.unfinished").exists() == (moment != "before anything is finished")
    assert app.main(prune) == 0
    assert content(tmp_path / "pruned") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_killed_from_outside_again_and_again(
    bert: Path, texts: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    prune, checkpoint = command(bert, texts, tmp_path), tmp_path / "pruned.unfinished"
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start("import sys; from sparsebert.cli import app; app.main(sys.argv[1:])", *prune)
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert (tmp_path / "pruned").exists() or app.main(prune) == 0
    assert content(tmp_path / "pruned") == undisturbed
