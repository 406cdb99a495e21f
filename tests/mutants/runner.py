"""Runs mutants against the tests, each in a private copy of the tree, several at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.mutants.mutant import Mutant, StaleMutantError, read_source
from tests.mutants.tree_copy import Limits, NativeBuildError, TreeCopy
from tests.mutants.which_tests import WhichTests

COMPILER = "the compiler"
COLLECTION = "collection"


class Verdict(StrEnum):
    """What became of a mutant. A timeout counts as a kill; STALE is no verdict on the tests."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    SURVIVED = "survived"
    STALE = "stale"


@dataclass(frozen=True)
class Result:
    """The verdict on one mutant.

    ``by`` is the test that found it, ``stage`` whose tests those were, ``reason`` what pytest says of it.
    """

    id: str
    fingerprint: str
    location: str
    fault: str
    verdict: Verdict
    by: str = ""
    stage: str = ""
    reason: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


class Runner:
    """Copies of the tree ``source`` under ``work``, one for each job."""

    def __init__(self, source: Path, work: Path, jobs: int, limits: Limits) -> None:
        self._jobs = jobs
        self._all = [
            TreeCopy(source, work / f"tree-{number}", work / "objects", limits) for number in range(jobs)
        ]
        # Of a copy, which stays as it is while somebody works in the checkout.
        self._which = WhichTests(self._all[0].root)
        self._copies: queue.Queue[TreeCopy] = queue.Queue()
        for copy in self._all:
            self._copies.put(copy)

    def run(
        self, mutants: Sequence[Mutant], report: Callable[[Result], None], *, own_tests_only: bool = False
    ) -> list[Result]:
        """Return the results in the order of the mutants; each is reported as soon as it is there."""

        # Looked up while the copies hold no mutant.
        tests = {
            mutant.id: {
                "own": self._which.own(mutant),
                "related": [] if own_tests_only else self._which.related(mutant),
            }
            for mutant in mutants
        }

        def judged(mutant: Mutant) -> Result:
            with self._copy() as copy:
                result = _judge(mutant, copy, tests[mutant.id])
            report(result)
            return result

        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                futures = [pool.submit(judged, mutant) for mutant in mutants]
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in self._all:
                    copy.stop()
                raise

    def unproven(self, results: Sequence[Result], mutants: Sequence[Mutant]) -> list[Result]:
        """Return the kills by tests that fail, or are as slow, without a mutant too."""
        found = (Verdict.KILLED, Verdict.TIMEOUT)
        kills = [each for each in results if each.verdict in found and each.by != COMPILER]
        by_id = {mutant.id: mutant for mutant in mutants}
        tests = sorted({kill.by for kill in kills} - {COLLECTION})
        files = {test.partition("::")[0] for test in tests}
        for kill in kills:
            if kill.by == COLLECTION:
                files.update(self._which.own(by_id[kill.id]))
        if not files:
            return []
        with self._copy() as copy:
            passing, collected = copy.passing(tests, sorted(files))
        if collected:
            passing.add(COLLECTION)
        return [kill for kill in kills if kill.by not in passing]

    def close(self) -> None:
        for copy in self._all:
            copy.remove()

    @contextlib.contextmanager
    def _copy(self) -> Iterator[TreeCopy]:
        copy = self._copies.get()
        try:
            yield copy
        finally:
            self._copies.put(copy)


def _judge(mutant: Mutant, copy: TreeCopy, tests: Mapping[str, Sequence[str]]) -> Result:
    """Plant the mutant and run test files, by stage, up to the first failure."""
    start = time.monotonic()
    unjudged = Result(mutant.id, mutant.fingerprint, mutant.path, mutant.fault, Verdict.STALE)
    try:
        location = mutant.location(read_source(copy.root, mutant.path))
        found = dataclasses.replace(unjudged, location=location, **_verdict(mutant, copy, tests))
    except StaleMutantError as error:
        found = dataclasses.replace(unjudged, reason=str(error))
    return dataclasses.replace(found, seconds=round(time.monotonic() - start, 1))


def _verdict(mutant: Mutant, copy: TreeCopy, tests: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the verdict and what led to it, as fields of a ``Result``."""
    try:
        with copy.planted(mutant):
            for stage, files in tests.items():
                outcome = copy.run_tests(files) if files else None
                if outcome is None or outcome.passed:
                    continue
                return {
                    "verdict": Verdict.TIMEOUT if outcome.timed_out else Verdict.KILLED,
                    "by": outcome.test or COLLECTION,
                    "stage": stage,
                    "reason": outcome.reason[:200],
                }
    except NativeBuildError:
        return {"verdict": Verdict.KILLED, "by": COMPILER}
    return {"verdict": Verdict.SURVIVED}
