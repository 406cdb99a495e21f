"""Which neurons of a feed-forward network stay, and where the output of the others goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.matrix import EMPTY, Matrix, exact, live_features, round_up


@dataclass(frozen=True, eq=False)
class Neurons:
    """A feed-forward network with what it can do without left out.

    up, down  the matrices, those given where nothing could go
    live      bool [neurons as configured], True = stays
    """

    up: Matrix
    down: Matrix
    live: Tensor


def compact_neurons(
    up: Matrix, down: Matrix, activation: Callable[[Tensor], Tensor], round_to: int = 1
) -> Neurons:
    """Leave out neurons that nothing feeds or nothing reads; constants go into the bias of ``down``.

    The number of neurons is rounded up to a multiple of ``round_to`` with neurons of zeros.
    """
    live, constant = live_features(up.mask, down.mask)
    if live.all():
        return Neurons(up, down, live)
    values = activation(exact(up.bias[constant]))
    index = live.nonzero().flatten().tolist()
    index += [EMPTY] * (round_up(len(index), round_to, len(live)) - len(index))
    folded = down.with_bias(down.times(constant, values))
    return Neurons(up.rows(index), folded.columns(index), live)
