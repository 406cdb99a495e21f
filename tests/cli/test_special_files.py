"""Links, devices and pipes in the place of files, and what killed commands left beside their files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from sparsebert import results
from sparsebert.cli import app
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import refused
from tests.test_atomic import null_device


@pytest.fixture
def ticket(bert: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ticket.safetensors"
    assert app.main(["prune", "--model", str(bert), "--sparsity", "0.5", "--output", str(path)]) == 0
    return path


def writers(bert: Path, ticket: Path, target: Path) -> dict[str, list[str]]:
    """Return commands that write to ``target``, by name."""
    prune = ["prune", "--model", str(bert), "--sparsity", "0.5", "--output"]
    return {
        "prune --output": [*prune, str(target)],
        "prune --json": [*prune, str(ticket.with_name("other")), "--json", str(target)],
        "convert": ["convert", str(ticket), str(target)],
        "convert --to bert-tickets": ["convert", str(ticket), str(target), "--to", "bert-tickets"],
    }


NAMES = list(writers(Path("a"), Path("b"), Path("c")))


@pytest.mark.parametrize("name", NAMES)
def test_a_link_is_followed_and_modes_are_kept(bert: Path, ticket: Path, tmp_path: Path, name: str) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch(mode=0o600)
    link.symlink_to(real)
    assert app.main(writers(bert, ticket, link)[name]) == 0
    assert link.is_symlink()
    assert real.stat().st_size > 100
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", NAMES)
def test_a_device_stays_a_device(bert: Path, ticket: Path, tmp_path: Path, name: str) -> None:
    device = null_device(tmp_path)
    assert app.main(writers(bert, ticket, device)[name]) == 0
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_refused(
    capsys: pytest.CaptureFixture[str], bert: Path, ticket: Path, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    capsys.readouterr()
    assert "pipe: it is a pipe" in refused(capsys, *writers(bert, ticket, tmp_path / "pipe")[name])
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_records_and_tickets_reach_stdout(bert: Path, tmp_path: Path) -> None:
    """Records stand where the command's own lines stand: before the summary that the command prints last."""
    command = [sys.executable, "-m", "sparsebert.cli.app", "env", "--json", "/dev/stdout"]
    piped = subprocess.run(command, capture_output=True, check=True)
    (tmp_path / "output").write_bytes(b"earlier\n")
    with open(tmp_path / "output", "ab") as file:
        subprocess.run(command, stdout=file, check=True)
    for output in (piped.stdout, (tmp_path / "output").read_bytes().removeprefix(b"earlier\n")):
        (tmp_path / "records").write_bytes(output[: output.index(b"\n") + 1])
        assert results.read(tmp_path / "records", "environment")
        assert b"Machine: components" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "PIPE"],
        ["convert", "PIPE", "new"],
        ["convert", "TICKET", "new", "--intersect", "PIPE"],
        ["convert", "TICKET", "new", "--to", "sparse", "--model", "BERT", "--results", "PIPE"],
        ["prune", "--model", "BERT", "--output", "new", "--ticket", "PIPE"],
        ["bench", "--model", "BERT", "--ticket", "PIPE"],
        ["bench", "--model", "BERT", "--lengths-from", "PIPE"],
        ["bench", "--model", "BERT", "--json", "PIPE"],
        ["eval", "--model", "BERT", "--task", "sst2", "--data", "DATA", "--ticket", "PIPE"],
        ["train", "--model", "BERT", "--task", "sst2", "--method", "ticket", "--ticket", "PIPE"],
        ["train", "--model", "BERT", "--train-file", "PIPE", "--validation-file", "TICKET"],
        ["transfer", "--model", "BERT", "--tasks", "sst2", "--ticket", "a=PIPE"],
    ],
    ids=" ".join,
)
def test_a_pipe_to_read_from_does_not_hang(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bert: Path,
    data: Path,
    ticket: Path,
    tmp_path: Path,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    capsys.readouterr()
    for word, path in {"BERT": bert, "DATA": data, "TICKET": ticket, "PIPE": tmp_path / "pipe"}.items():
        arguments = [argument.replace(word, str(path)) for argument in arguments]
    assert " a pipe" in refused(capsys, *arguments)
    assert not (tmp_path / "new").exists()


def test_two_options_never_write_to_one_file(
    capsys: pytest.CaptureFixture[str], bert: Path, ticket: Path, tmp_path: Path
) -> None:
    new = str(tmp_path / "new")
    capsys.readouterr()
    line = refused(capsys, "prune", "--model", str(bert), "--output", new, "--json", new)
    assert line.endswith("--json " + new + " would overwrite the file of --output; choose another name")
    assert "would overwrite the input" in refused(capsys, "convert", str(ticket), str(ticket))
    assert Ticket.load(ticket).sparsity == 0.5


def test_left_overs_of_killed_commands_are_swept(bert: Path, ticket: Path, tmp_path: Path) -> None:
    for name, command in writers(bert, ticket, tmp_path / "target").items():
        (tmp_path / ".target.0123456789ab.tmp").mkdir()
        (tmp_path / ".target.0123456789ab.tmp" / "target").write_text("half")
        (tmp_path / ".target.ba9876543210.tmp").write_text("half")
        (tmp_path / "target").unlink(missing_ok=True)
        assert app.main(command) == 0
        assert list(tmp_path.glob(".*")) == [], name
