"""Results on disk, a line of JSON each, written as they come: a run that was stopped can go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.runner import Result, Verdict


class ResultsFile:
    """Appends to ``path`` from any thread; the last result of a mutant is the one that counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("", encoding="utf-8")

    def append(self, result: Result) -> None:
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result.to_json()) + "\n")

    def of(self, mutants: Sequence[Mutant]) -> list[Result]:
        """Return the results for mutants that are the same as they were then."""
        if not self._path.exists():
            return []
        latest: dict[tuple[str, str], Result] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was stopped
                continue
            latest[row["id"], row["fingerprint"]] = Result(**{**row, "verdict": Verdict(row["verdict"])})
        keys = ((mutant.id, mutant.fingerprint) for mutant in mutants)
        return [latest[key] for key in keys if key in latest]
