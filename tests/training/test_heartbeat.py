"""Lines in logs: when they come, and who prints them."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest

from sparsebert.training.heartbeat import heartbeat, interval


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def beats(count: int, status: Callable[[], str] = lambda: "alive") -> list[str]:
    """Lines that were said until there were ``count`` of them, or for half a second."""
    lines, enough = list[str](), threading.Event()

    def say(text: str) -> None:
        lines.append(text)
        if len(lines) == count:
            enough.set()

    with heartbeat(say, status):
        enough.wait(5 if count else 0.1)
    return lines[:count] if count else lines


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBERT_LOG_SECONDS", "0.01")
    monkeypatch.setattr("sys.stderr", io.StringIO())


def test_the_status_of_the_moment_is_said_again_and_again() -> None:
    numbers = iter(range(100))
    assert beats(3, lambda: f"step {next(numbers)}") == ["step 0", "step 1", "step 2"]


def test_it_ends_with_the_block_even_after_an_error() -> None:
    def fail() -> None:
        with heartbeat(print, lambda: ""):
            counts.append(threading.active_count())
            raise KeyError

    counts = [threading.active_count()]
    with pytest.raises(KeyError):
        fail()
    assert [*counts, threading.active_count()] == [counts[0], counts[0] + 1, counts[0]]


def test_nothing_is_said_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    assert beats(0) == []


def test_nothing_is_said_by_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert beats(0) == []


def test_an_empty_status_is_not_said() -> None:
    assert beats(0, lambda: "") == []


def test_a_line_comes_every_two_minutes_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert interval() == 0.01
    monkeypatch.delenv("SPARSEBERT_LOG_SECONDS")
    assert interval() == 120


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", "1e300"])
def test_another_interval_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPARSEBERT_LOG_SECONDS", text)
    with pytest.raises(ValueError, match=f"SPARSEBERT_LOG_SECONDS must be a positive number .* got '{text}'"):
        interval()
