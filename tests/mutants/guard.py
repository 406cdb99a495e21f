"""A pytest plugin for tests of a mutant: bounds time and memory, and notes which test runs.

A mutant may loop for ever or ask for all the memory that there is. Settings are read from the environment:
MUTANT_TEST_SECONDS, MUTANT_MEMORY_GB, MUTANT_CURRENT_TEST (a file to write), MUTANT_KEEP_TESTS (a file with
the node ids of the only tests to run) and MUTANT_PASSED_TESTS (a file to write).
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GIGABYTE = 1 << 30
# Before pytest captures it: that a test took too long has to reach the log.
STDERR = os.dup(2)


def pytest_configure() -> None:
    limit = int(float(os.environ.get("MUTANT_MEMORY_GB", "0")) * GIGABYTE)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def pytest_sessionstart() -> None:
    """Leave the examples of hypothesis unshrunk, once the conftest has loaded its profile."""
    if "hypothesis" in sys.modules:
        from hypothesis import Phase, settings

        settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.generate))
        settings.load_profile("unshrunk")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "MUTANT_KEEP_TESTS" in os.environ:
        kept = set(Path(os.environ["MUTANT_KEEP_TESTS"]).read_text().split("\n"))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
        items[:] = [item for item in items if item.nodeid in kept]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _write("MUTANT_CURRENT_TEST", item.nodeid)
    seconds = float(os.environ.get("MUTANT_TEST_SECONDS", "0"))
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "MUTANT_PASSED_TESTS" in os.environ:
        with open(os.environ["MUTANT_PASSED_TESTS"], "a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\t{report.duration:.3f}\n")


def _write(variable: str, text: str) -> None:
    if variable in os.environ:
        Path(os.environ[variable]).write_text(text, encoding="utf-8")
