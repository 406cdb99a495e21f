"""The dense model's activations, beside those of the model as pruned so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from sparsebert.one_shot.calibration import Residuals, TokenFilter
from sparsebert.one_shot.segments import Segment


class Shown(NamedTuple):
    """What the dense model shows of a stage: either its inputs or its outputs, [tokens, features] a batch."""

    inputs: list[Tensor] | None
    outputs: list[Tensor] | None


class DenseStream:
    """The dense model's activations, segment by segment.

    A layer runs once, before the first of its matrices is pruned, and shows all its stages together. A whole
    model in one segment would show too much at a time: it runs for each stage.

    Args:
        segment: The first segment; of a whole model, one that is not pruned.
        tokens: Selects tokens.
        residuals: Knows of which stages the inputs are needed; of others, the outputs of a single matrix are
            shown unless they are wider. None to show inputs alone.
    """

    def __init__(self, segment: Segment, tokens: TokenFilter, residuals: Residuals | None = None) -> None:
        self._tokens, self._residuals = tokens, residuals
        self._start(segment)

    def of(self, keys: Sequence[str]) -> Shown:
        """Return what a stage shows; of a layer, each stage once."""
        if not self._segment.is_layer:
            return Shown(list(self._tokens(self._segment.inputs(keys[0]))), None)
        return Shown(self._inputs.pop(keys[0], None), self._outputs.pop(keys[0], None))

    def follow(self, segment: Segment) -> None:
        """Go on to the next segment, none of whose matrices is pruned yet."""
        self._start(segment.with_states(self._states))

    def _start(self, segment: Segment) -> None:
        self._segment = segment
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._states: list[Tensor] = []
        if not segment.is_layer:
            return
        narrow = [keys[0] for keys in segment.stages if self._shows_outputs(keys)]
        wide = [keys[0] for keys in segment.stages if keys[0] not in narrow]
        self._segment = replace(segment, calls=())
        for seen in segment.passes(wide, narrow):
            self._states.append(seen.states)
            for noted, lists in ((seen.inputs, self._inputs), (seen.outputs, self._outputs)):
                for key, states in noted.items():
                    lists.setdefault(key, []).append(states)
        for lists in (self._inputs, self._outputs):
            for key in lists:
                lists[key] = list(self._tokens(lists[key]))

    def _shows_outputs(self, keys: Sequence[str]) -> bool:
        if self._residuals is None or len(keys) > 1:
            return False
        return self._segment.is_narrow(keys[0]) and not self._residuals.starts_at(keys)
