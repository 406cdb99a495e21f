"""A private copy of the repository, in which a mutant is planted and tested."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant

NATIVE_LIBRARY = Path("kernels/sparsebert_kernels/cpu/_native.so")
BUILD_SCRIPT = Path("kernels/sparsebert_kernels/cpu/build_native.py")
# Tests run one after the other: mutants are what runs in parallel.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.mutants.guard")
ALL_PASSED, NONE_COLLECTED = 0, 5
# Of faulthandler, and of tests that wait for a process of their own.
TIMEOUT_MESSAGES = ("Timeout (", "TimeoutExpired")
# A test that takes this share of its limit without a mutant, too, does not time out because of one.
SHARE_OF_SLOW_TESTS = 1 / 3


class StoppedError(RuntimeError):
    """``TreeCopy.stop`` ended the tests."""


class NativeBuildError(RuntimeError):
    """The compiler refuses the mutant."""


@dataclass(frozen=True)
class Limits:
    """Seconds for one test and for one run of pytest, and gigabytes of memory."""

    test_seconds: float = 300.0
    run_seconds: float = 3600.0
    memory: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """The end of one run of pytest; ``test`` is the last one that started, "" if none did.

    ``reason`` is what pytest says of the failure, in one line.
    """

    exit_code: int
    test: str
    timed_out: bool
    reason: str
    output: str

    @property
    def passed(self) -> bool:
        return self.exit_code in (ALL_PASSED, NONE_COLLECTED) and not self.timed_out


class TreeCopy:
    """The files of the checkout ``source`` that git does not ignore, and its native library, in ``root``.

    Objects of native builds are kept in ``object_cache``, which copies share.
    """

    def __init__(self, source: Path, root: Path, object_cache: Path, limits: Limits | None = None) -> None:
        self.root = root
        self._limits = limits or Limits()
        self._object_cache = object_cache
        self._writes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._scratch = root.with_name(root.name + "-scratch")
        for folder in (root, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for file in _files(source):
            _copy(source / file, root / file)
        self._native = self._scratch / NATIVE_LIBRARY.name
        if (root / NATIVE_LIBRARY).exists():
            _copy(root / NATIVE_LIBRARY, self._native)

    def stop(self) -> None:
        """End the tests that run, from another thread; whoever waits for them gets a ``StoppedError``."""
        self._stopped = True
        if self._process is not None:
            _kill(self._process)

    def remove(self) -> None:
        for folder in (self.root, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """Plant the mutant for the time of a ``with`` block.

        Raises:
            StaleMutantError: The mutant does not fit the source.
            NativeBuildError: The compiler refuses it.
        """
        file = self.root / mutant.path
        before, times = file.read_text(encoding="utf-8"), file.stat()
        file.write_text(mutant.apply(before), encoding="utf-8")
        # Byte code is looked up by size and whole second: no two versions of a file may share one.
        self._writes += 1
        os.utime(file, (times.st_atime, int(times.st_mtime) + self._writes))
        try:
            if mutant.is_native:
                self._build_native()
            yield
        finally:
            file.write_text(before, encoding="utf-8")
            os.utime(file, (times.st_atime, times.st_mtime))
            if mutant.is_native and self._native.exists():
                _copy(self._native, self.root / NATIVE_LIBRARY)

    def run_tests(self, files: Sequence[str]) -> Outcome:
        """Run test files in this order up to the first failure."""
        return self._pytest(["-x", *files], {"MUTANT_TEST_SECONDS": str(self._limits.test_seconds)})

    def passing(self, tests: Sequence[str], files: Sequence[str]) -> tuple[set[str], bool]:
        """Return which of ``tests`` (node ids) pass here, and whether all ``files`` could be collected.

        A test that is slow enough to time out some other time does not count as passing.
        """
        keep, passed = self._scratch / "keep", self._scratch / "passed"
        keep.write_text("\n".join(tests), encoding="utf-8")
        passed.write_text("", encoding="utf-8")
        variables = {"MUTANT_KEEP_TESTS": str(keep), "MUTANT_PASSED_TESTS": str(passed)}
        outcome = self._pytest(["--continue-on-collection-errors", *files], variables)
        collected = "error during collection" not in outcome.output and "errors during" not in outcome.output
        rows = (line.rpartition("\t") for line in passed.read_text(encoding="utf-8").split("\n") if line)
        slow = SHARE_OF_SLOW_TESTS * self._limits.test_seconds
        return {test for test, _, seconds in rows if float(seconds) < slow}, collected

    def _build_native(self) -> None:
        command = [sys.executable, str(BUILD_SCRIPT), "--cache", str(self._object_cache)]
        environment = {**os.environ, "SPARSEBERT_REQUIRE_NATIVE": "1"}
        result = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise NativeBuildError(result.stderr[-2000:])

    def _pytest(self, arguments: Sequence[str], variables: Mapping[str, str]) -> Outcome:
        current = self._scratch / "current"
        current.unlink(missing_ok=True)
        log = self._scratch / "output"
        command = [sys.executable, *PYTEST, f"--basetemp={self._scratch / 'pytest'}", *arguments]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(self.root), str(self.root / "kernels"))),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self._scratch),
            "MUTANT_MEMORY_GB": str(self._limits.memory),
            "MUTANT_CURRENT_TEST": str(current),
            **variables,
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            self._process = process
            if self._stopped:  # before there was a process to end
                _kill(process)
            try:
                exit_code, timed_out = process.wait(self._limits.run_seconds), False
            except subprocess.TimeoutExpired:
                exit_code, timed_out = -signal.SIGKILL, True
            finally:
                _kill(process)
                process.wait()
        if self._stopped:
            raise StoppedError
        text = log.read_text(errors="replace")
        test = current.read_text(encoding="utf-8") if current.exists() else ""
        failed = re.findall(r"^(?:FAILED|ERROR) .*? - (.*)$", text, re.MULTILINE)
        reason = failed[0] if failed else next((word for word in TIMEOUT_MESSAGES if word in text), "")
        timed_out = timed_out or any(word in reason for word in TIMEOUT_MESSAGES)
        return Outcome(exit_code, test, timed_out, reason, text[-4000:])


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _files(source: Path) -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout
    files = [Path(name) for name in names.split("\0") if name]
    return [file for file in (*files, NATIVE_LIBRARY) if (source / file).is_file()]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
