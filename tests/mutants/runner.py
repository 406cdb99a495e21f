"""Runs mutants against the tests, each in a private copy of the tree, several at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.mutants.mutant import Mutant, StaleMutantError
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
    """The verdict on one mutant: ``by`` is the test that found it, ``stage`` whose tests those were."""

    id: str
    fingerprint: str
    location: str
    fault: str
    verdict: Verdict
    by: str = ""
    stage: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


class Runner:
    """Copies of the tree ``source`` under ``work``, one for each job."""

    def __init__(self, source: Path, work: Path, jobs: int, limits: Limits) -> None:
        self._source = source
        self._which = WhichTests(source)
        self._jobs = jobs
        self._copies: queue.Queue[TreeCopy] = queue.Queue()
        for number in range(jobs):
            self._copies.put(TreeCopy(source, work / f"tree-{number}", work / "objects", limits))

    def run(self, mutants: Sequence[Mutant], report: Callable[[Result], None]) -> list[Result]:
        """Return the results in the order of the mutants; each is reported as soon as it is there."""

        def judged(mutant: Mutant) -> Result:
            with self._copy() as copy:
                result = self._judge(mutant, copy)
            report(result)
            return result

        with ThreadPoolExecutor(self._jobs) as pool:
            futures = [pool.submit(judged, mutant) for mutant in mutants]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def unproven(self, results: Sequence[Result], mutants: Sequence[Mutant]) -> list[Result]:
        """Return the kills by tests that fail without a mutant too."""
        kills = [each for each in results if each.verdict is Verdict.KILLED and each.by != COMPILER]
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
        while not self._copies.empty():
            self._copies.get().remove()

    def _judge(self, mutant: Mutant, copy: TreeCopy) -> Result:
        start = time.monotonic()

        def result(verdict: Verdict, by: str = "", stage: str = "", location: str = mutant.path) -> Result:
            seconds = round(time.monotonic() - start, 1)
            return Result(mutant.id, mutant.fingerprint, location, mutant.fault, verdict, by, stage, seconds)

        try:
            location = mutant.location((self._source / mutant.path).read_text(encoding="utf-8"))
            with copy.planted(mutant):
                for stage, files in (("own", self._which.own), ("related", self._which.related)):
                    tests = files(mutant)
                    outcome = copy.run_tests(tests) if tests else None
                    if outcome is not None and not outcome.passed:
                        verdict = Verdict.TIMEOUT if outcome.timed_out else Verdict.KILLED
                        return result(verdict, outcome.test or COLLECTION, stage, location)
        except NativeBuildError:
            return result(Verdict.KILLED, COMPILER, location=location)
        except (StaleMutantError, FileNotFoundError) as error:
            return result(Verdict.STALE, str(error))
        return result(Verdict.SURVIVED, location=location)

    @contextlib.contextmanager
    def _copy(self) -> Iterator[TreeCopy]:
        copy = self._copies.get()
        try:
            yield copy
        finally:
            self._copies.put(copy)
