"""The folder of a run: what was asked, what is done, and the files to go on from.

    run.json             what was asked for; a run in this folder with other settings is refused
    log.jsonl            the run log: one record a round and one at the end
    start.safetensors    the weights the run began with
    rewind/              state at step k of the first round, with rewinding to a step
    round-03/            ticket.safetensors; trained.safetensors, best.safetensors (of masks that are chosen)
                         and checkpoints/ as long as they are needed, and what the method itself keeps there
    ticket.safetensors   the ticket of the last round, or of the one that the method chose, and
    model/               the model it was trained into, as transformers load it: both at the end

Records are those of :mod:`sparsebert.results` (``schema``, ``kind``, ``timestamp``) with these fields.

``kind`` "round":
    method, seed, task, model     of the run
    round, rounds                 its number from 0, and how many there are
    sparsity, density             of the ticket that was trained; shares of the prunable weights
    kept, prunable                the same as counts
    encoder_sparsity              pruned share of all encoder matrices; less, where units lie in some only
    granularity, block_size, scope
    source, rewind, head          where the ticket came from, and what the round began with
    ticket, ticket_sha256         file, relative to the folder, and its digest
    masks_sha256                  of what the ticket prunes (`Ticket.digest`), the same whatever its metadata
    search                        what a method's own search noted, where the ticket came from one
    steps, loss                   optimizer steps; training loss as it was logged last
    metrics                       of the validation data: name -> value
    seconds                       prune, train (over all sessions, as far as checkpoints tell), evaluate
    sessions, processes           how often the round was started; how many processes trained together
    distillation                  weight, temperature and teachers (task -> hub id or digest), or null
    memory                        peak_rss_bytes of this process, peak_gpu_bytes where a GPU was used
    versions                      of the libraries
``kind`` "run", once all is done:
    method, seed, task, model, rounds, round, sparsity and metrics (of the last one, or of the one that the
    method chose), ticket, seconds (of all).

Everything is written under another name first and renamed, so that a file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsebert import results
from sparsebert.atomic import sweep, write_text

Record = dict[str, Any]
_SCHEMA = 1


class RunFolder:
    """A run's folder; its files are at the attributes and methods below, whether they exist yet or not."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_json = self.path / "run.json"
        self.log = self.path / "log.jsonl"
        self.start = self.path / "start.safetensors"
        self.rewind = self.path / "rewind"
        self.final_ticket = self.path / "ticket.safetensors"
        self.model = self.path / "model"

    def round(self, number: int) -> Path:
        return self.path / f"round-{number:02}"

    def ticket(self, number: int) -> Path:
        return self.round(number) / "ticket.safetensors"

    def trained(self, number: int) -> Path:
        return self.round(number) / "trained.safetensors"

    def best(self, number: int) -> Path:
        return self.round(number) / "best.safetensors"

    def checkpoints(self, number: int) -> Path:
        return self.round(number) / "checkpoints"

    @contextlib.contextmanager
    def claimed(self, asked: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for this run: create it, or make sure that it holds a run with the same settings.

        Raises ValueError if another process works in it, if it holds something else, and, naming the first
        difference, if its run was asked for differently.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        foreign = [each.name for each in self.path.iterdir() if not each.name.startswith(".")]
        if foreign and not self.run_json.exists():
            raise ValueError(
                f"{self.path} is not empty and holds no run ({min(foreign)}): use another folder"
            )
        with self._locked():
            if not self.run_json.exists():
                write_text(self.run_json, json.dumps({"schema": _SCHEMA, **asked}, indent=2) + "\n")
            self.require(asked)
            rounds = [*self.path.glob("round-*"), *self.path.glob("round-*/checkpoints")]
            for folder in (self.path, self.rewind, *rounds):
                sweep(folder)
            yield

    def require(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError, naming the first difference, unless the folder's run was asked for like this."""
        found, wanted = _flat(self._asked()), _flat(json.loads(json.dumps(asked)))
        for name in {**found, **wanted}:
            theirs, ours = found.get(name), wanted.get(name)
            if theirs != ours:
                raise ValueError(
                    f"{self.path} holds a run with {name} {theirs!r}, not {ours!r}: use another folder"
                )

    def _asked(self) -> Record:
        try:
            found = json.loads(self.run_json.read_text())
            if found.pop("schema") != _SCHEMA:
                raise ValueError("another schema")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.run_json} is no description of a run: {error}") from None
        return found

    def rounds_done(self) -> list[Record]:
        """The records of the rounds that are done, in order."""
        return results.read(self.log, "round") if self.log.exists() else []

    def finished(self) -> Record | None:
        """The record of the whole run, once it is done."""
        return next(iter(results.read(self.log, "run")), None) if self.log.exists() else None

    def append(self, kind: str, fields: Mapping[str, Any]) -> Record:
        """Add a record to the run log."""
        row = results.stamp(kind, fields)
        results.append(self.log, [row])
        return row

    def count_session(self, number: int) -> int:
        """How many processes have worked on the round, this one included."""
        path = self.round(number) / "sessions"
        sessions = int(path.read_text()) + 1 if path.exists() else 1
        write_text(path, str(sessions))
        return sessions

    def require_space(self, needed: int) -> None:
        """Raise OSError unless the disk has room for so many bytes more."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path}: the next round writes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """An advisory lock, which the system takes back from a process that is killed."""
        try:
            import fcntl
        except ImportError:
            yield
            return
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"another process is working in {self.path}") from None
            yield


def digest(path: Path) -> str:
    """``sha256:`` and the digest of a file."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
