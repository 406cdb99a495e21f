"""Lines about a long command for logs: one every few minutes, where no terminal shows a progress bar."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator

from sparsebert.training import distributed

SECONDS = 120.0
VARIABLE = "SPARSEBERT_LOG_SECONDS"


@contextlib.contextmanager
def heartbeat(say: Callable[[str], object], status: Callable[[], str]) -> Iterator[None]:
    """Call ``say`` with the status every few minutes while the block runs, on rank 0.

    If stderr is a terminal, a progress bar shows the status, and nothing is said.

    Args:
        say: Prints a line. It is called by another thread.
        status: Returns the status in one line; an empty line is not said.

    Raises:
        ValueError: The environment variable ``SPARSEBERT_LOG_SECONDS`` is not a positive number.
    """
    seconds = interval()
    if sys.stderr.isatty() or not distributed.is_main():
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            if line := status():
                say(line)

    thread = threading.Thread(target=beat, name="sparsebert-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def interval() -> float:
    """Return the seconds between two lines. Raises ValueError as :func:`heartbeat`."""
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"{VARIABLE} must be a positive number of seconds, got {text!r}")
    return seconds
