"""Callbacks of training: masks of the step that begins, and the progress bar."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from sparsebert.training.callbacks import LearnCallback, ProgressCallback


def test_learned_masks_are_those_of_the_step_that_begins() -> None:
    steps: list[int] = []
    learning = LearnCallback(SimpleNamespace(derive_=steps.append))
    for step in range(3):
        learning.on_step_begin(None, SimpleNamespace(global_step=step), None)
    assert steps == [0, 1, 2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_a_bar_is_shown_on_a_terminal_only_and_leaves_no_line(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    progress, state = ProgressCallback("round 1"), SimpleNamespace(max_steps=2, global_step=0)
    progress.on_train_begin(None, state, None)
    for _ in range(2):
        progress.on_step_end(None, state, None)
    progress.on_train_end(None, state, None)
    assert ("round 1" in stream.getvalue()) == stream.isatty()
    assert "\n" not in stream.getvalue()
