"""A disk that is full, or too small: one line that names the file, what it needs and what is free."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.cli import app
from sparsebert.lottery.run_folder import RunFolder
from tests.cli.tiny import refused


@contextmanager
def no_larger_files_than(size: int) -> Iterator[None]:
    """The system refuses the writes beyond this size, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def ticket(bert: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ticket.safetensors"
    assert app.main(["prune", "--model", str(bert), "--sparsity", "0.5", "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "name", "size"),
    [
        (["prune", "--model", "BERT", "--sparsity", "0.5", "--output", "OUT/new"], "new", 100),
        (["convert", "TICKET", "OUT/new", "--to", "sparse", "--model", "BERT"], "new", 3000),
        (["convert", "TICKET", "OUT/new", "--to", "model", "--model", "BERT"], "new", 3000),
        (["convert", "TICKET", "OUT/mask.pt", "--to", "bert-tickets"], "mask.pt", 3000),
        (["convert", "TICKET", "OUT/new.npy", "--to", "smp", "--model", "BERT"], "new.npy", 100),
        (["env", "--json", "OUT/new.jsonl"], "new.jsonl", 100),
        (["report", "RECORDS", "--markdown", "OUT/new.md"], "new.md", 10),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else "",
)
def test_a_command_whose_file_does_not_fit(
    capsys: pytest.CaptureFixture[str],
    bert: Path,
    ticket: Path,
    tmp_path: Path,
    arguments: list[str],
    name: str,
    size: int,
) -> None:
    (tmp_path / "out").mkdir()
    if arguments[0] == "report":
        assert app.main(["env", "--json", str(tmp_path / "records")]) == 0
    places = {"BERT": bert, "TICKET": ticket, "RECORDS": tmp_path / "records", "OUT": tmp_path / "out"}
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    capsys.readouterr()
    with no_larger_files_than(size):
        line = refused(capsys, *arguments)
    assert f"cannot write {tmp_path / 'out' / name}: File too large: " in line
    assert " needed, " in line
    assert "allowed by the limit of file sizes" in line
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["start.safetensors", "round-00/checkpoints"])
def test_a_run_whose_file_does_not_fit_goes_on_later(
    capsys: pytest.CaptureFixture[str], asked: list[str], bert: Path, tmp_path: Path, name: str
) -> None:
    arguments = ["train", "--method", "dense", *asked, "--save-steps", "3"]
    model = sum(file.stat().st_size for file in bert.glob("*.safetensors"))
    # The optimizer's state in a checkpoint is twice as large as the weights.
    size = model // 2 if name == "start.safetensors" else model * 3 // 2
    with no_larger_files_than(size):
        assert app.main(arguments) == 2
    *_, line = capsys.readouterr().err.splitlines()  # after those about the progress
    assert f"cannot write {tmp_path / 'run' / name}: File too large: " in line
    assert " needed, " in line
    assert app.main(arguments) == 0
    assert RunFolder(tmp_path / "run").finished()


def test_a_full_stdout_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app.typer, "echo", full)
    assert app.main([]) == 2
    assert capsys.readouterr().err == "sparsebert: cannot write to stdout: No space left on device\n"
