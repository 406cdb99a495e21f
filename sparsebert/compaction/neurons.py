"""Which neurons of a feed-forward network stay, and where the output of the others goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.masked_matrix import EMPTY, Matrix, exact, live_features, round_up


@dataclass(frozen=True, eq=False)
class Neurons:
    """A feed-forward network with what it can do without left out.

    up, down  the matrices, those given where nothing could go
    gone      how many neurons went
    """

    up: Matrix
    down: Matrix
    gone: int


def compact_neurons(
    up: Matrix, down: Matrix, activation: Callable[[Tensor], Tensor], round_to: int = 1
) -> Neurons:
    """Leave out neurons that nothing feeds or nothing reads; constants go into the bias of ``down``.

    The number of neurons is rounded up to a multiple of ``round_to`` with neurons of zeros; where that leaves
    no fewer than there are, nothing changes.
    """
    live, constant = live_features(up.mask, down.mask)
    index = live.nonzero().flatten().tolist()
    index += [EMPTY] * (round_up(len(index), round_to, len(live)) - len(index))
    if len(index) == len(live):
        return Neurons(up, down, 0)
    values = activation(exact(up.bias[constant]))
    folded = down.with_bias(down.times(constant, values))
    return Neurons(up.rows(index), folded.columns(index), len(live) - int(live.sum()))
