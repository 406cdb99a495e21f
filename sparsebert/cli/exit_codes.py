"""Exit codes of the command, and an error that sets the exit code."""

from __future__ import annotations

WRONG_OUTPUT = 1  # the outputs of a benchmark disagree
INCOMPLETE = 1  # runs of a sweep are missing
BAD_INPUT = 2
STOPPED = 130  # interrupted by the user
BROKEN_PIPE = 141  # the reader of stdout ended, as in `sparsebert env | head -1`


class CommandFailed(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
