"""The folder of a run: its configuration, its records, and the files from which it resumes.

    run.json             the configuration; a run with another configuration is refused
    log.jsonl            the run log: a record for each round and one at the end
    start.safetensors    the initial weights of the run
    rewind/              the state at step k of the first round, for rewinding to a step
    round-03/            ticket.safetensors; trained.safetensors, best.safetensors (of the best masks),
                         usage.json (time, memory and energy used so far) and checkpoints/ as long as they
                         are needed; and files of the method
    ticket.safetensors   the ticket of the last round, or of the round that the method selects
    model/               the model trained with this ticket, in the format of transformers

Records have the common fields of :mod:`sparsebert.results` (``schema``, ``kind``, ``timestamp``), and these:

``kind`` "round":
    method, seed, task, model     of the run
    round, rounds                 number of the round from 0, and number of rounds
    sparsity, density             of the trained ticket; shares of the prunable weights
    kept, prunable                the same as counts
    encoder_sparsity              pruned share of all encoder matrices; lower if the units lie in
                                  some of the matrices only
    granularity, block_size, round_to (of panels), scope
    source, rewind, head          origin of the ticket, and state and head at the start of the round
    ticket, ticket_sha256         file, relative to the folder, and its digest
    masks_sha256                  digest of the masks alone (``Ticket.digest``), without the metadata
    start_ticket                  of a run with a start ticket: its method, sparsity, masks_sha256 and
                                  own_weights (whether the model has the weights that its method changed;
                                  null if it changed none), or null
    search                        trace of the method's search, if a search found the ticket
    steps, first_step, loss       last optimizer step, the step that the round began at, and the last
                                  logged training loss
    metrics                       on the validation data: name -> value
    chance                        the metrics without any learning: name -> value, or null
    seconds                       prune, train (over all sessions, as recorded in checkpoints), evaluate
    sessions, processes           starts of the round; processes that trained together
    distillation                  weight, temperature and teachers (task -> hub id or digest), or null
    memory                        peak_rss_bytes of this process, peak_gpu_bytes if a GPU was used
    resources                     time, memory and energy of the round over all sessions, on rank 0
                                  (:meth:`sparsebert.accounting.usage.Usage.record`)
    fingerprints                  digests of train, validation, model (without a fresh head) and tokenizer
    versions                      of the libraries
    environment                   machine, kernels and versions, as in the records of a benchmark; or null
``kind`` "run", at the end:
    method, seed, task, model, rounds, round, sparsity and metrics (of the selected round), ticket, seconds
    and resources (of all rounds), fingerprints, environment.

Every file is written under another name first and renamed, so that it appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsebert import results
from sparsebert.atomic import size_on_disk, sweep, write_text
from sparsebert.json_object import load_json
from sparsebert.tickets import TICKET_FILE

Record = dict[str, Any]
_SCHEMA = 1


class RunFolder:
    """The paths in a run's folder, which need not exist yet, and access to its records."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_json = self.path / "run.json"
        self.log = self.path / "log.jsonl"
        self.start = self.path / "start.safetensors"
        self.rewind = self.path / "rewind"
        self.final_ticket = self.path / TICKET_FILE
        self.model = self.path / "model"

    def round(self, number: int) -> Path:
        return self.path / f"round-{number:02}"

    def ticket(self, number: int) -> Path:
        return self.round(number) / TICKET_FILE

    def trained(self, number: int) -> Path:
        return self.round(number) / "trained.safetensors"

    def best(self, number: int) -> Path:
        return self.round(number) / "best.safetensors"

    def usage(self, number: int) -> Path:
        return self.round(number) / "usage.json"

    def checkpoints(self, number: int) -> Path:
        return self.round(number) / "checkpoints"

    @contextlib.contextmanager
    def claimed(self, config: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> Iterator[None]:
        """Lock the folder for a run. Create it, or verify that it holds a run with this configuration.

        Args:
            config: The configuration.
            defaults: See :meth:`require`.

        Raises:
            ValueError: Another process works in the folder, it holds something else, or its run has another
                configuration; the message names the first difference.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        names = [each.name for each in self.path.iterdir() if not each.name.startswith(".")]
        if names and not self.run_json.exists():
            raise ValueError(
                f"folder {self.path} is not empty and holds no run ({min(names)}): choose another folder"
            )
        with self._locked():
            if not self.run_json.exists():
                write_text(self.run_json, json.dumps({"schema": _SCHEMA, **config}, indent=2) + "\n")
            self.require(config, defaults)
            self.sweep()
            yield

    def sweep(self) -> None:
        """Delete the temporary files that killed processes left in the folder."""
        for folder in [self.path, *(each for each in self.path.rglob("*") if each.is_dir())]:
            if folder.is_dir():  # It may be in a folder that was just deleted.
                sweep(folder)

    def require(self, config: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> None:
        """Raise ValueError, naming the first difference, unless the folder's run has this configuration.

        Args:
            config: The configuration.
            defaults: Values of options that the folder's run may lack, because an earlier version began it.
        """
        expected, new = (_flat(json.loads(json.dumps(each))) for each in (defaults, config))
        stored = expected | _flat(self.config())
        for name in {**stored, **new}:
            if stored.get(name) != new.get(name):
                raise ValueError(
                    f"{self.path} holds a run with {name} {stored.get(name)!r}, not {new.get(name)!r}: "
                    "choose another folder"
                )

    def config(self) -> Record:
        """Return the configuration of the folder's run. Raise ValueError if it cannot be read."""
        try:
            config: Record = load_json(self.run_json.read_text(encoding="utf-8"))
            if (schema := config.pop("schema")) != _SCHEMA:
                raise ValueError(f"schema must be {_SCHEMA}, got {schema!r}")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.run_json} does not describe a run: {error}") from None
        return config

    def rounds_done(self) -> list[Record]:
        """Return the records of the finished rounds, in order."""
        return results.read(self.log, "round") if self.log.exists() else []

    def finished(self) -> Record | None:
        """Return the record of the whole run, or None until the run is finished."""
        return next(iter(results.read(self.log, "run")), None) if self.log.exists() else None

    def append(self, kind: str, fields: Mapping[str, Any]) -> Record:
        """Append a record to the run log and return it."""
        row = results.stamp(kind, fields)
        results.append(self.log, [row])
        return row

    def count_session(self, number: int) -> int:
        """Increment the number of starts of a round, and return it."""
        path = self.round(number) / "sessions"
        sessions = int(path.read_text()) + 1 if path.exists() else 1
        write_text(path, str(sessions))
        return sessions

    def require_space(self, size: int) -> None:
        """Raise OSError unless the disk has room for the folder to grow to ``size`` bytes."""
        needed = size - size_on_disk(self.path)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path}: the next round needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are "
                "free: free some space"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold an advisory lock. The system releases it when the process is killed."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"another process is working in {self.path}: wait for it, or choose another folder"
                ) from None
            yield


def digest(path: Path) -> str:
    """Return the digest of a file as ``sha256:<hex>``."""
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
