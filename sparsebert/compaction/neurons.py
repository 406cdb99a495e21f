"""Remove the pruned-out neurons of a feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.masked_matrix import EMPTY, Matrix, exact, live_features, round_up


@dataclass(frozen=True, eq=False)
class Neurons:
    """A compacted feed-forward network.

    Attributes:
        up: The up-projection; the original one if no neuron was removed.
        down: The down-projection; the original one if no neuron was removed.
        removed: Number of removed neurons.
    """

    up: Matrix
    down: Matrix
    removed: int


def compact_neurons(
    up: Matrix, down: Matrix, activation: Callable[[Tensor], Tensor], round_to: int = 1
) -> Neurons:
    """Remove neurons without inputs or without readers.

    A neuron without inputs is constant; its output is folded into the bias of ``down``.

    Args:
        up: [neurons, in].
        down: [out, neurons].
        activation: The function between both.
        round_to: Pad with zero neurons to a multiple of this; nothing changes if that removes none.
    """
    live, constant = live_features(up.mask, down.mask)
    index = live.nonzero().flatten().tolist()
    index += [EMPTY] * (round_up(len(index), round_to, len(live)) - len(index))
    if len(index) == len(live):
        return Neurons(up, down, 0)
    values = activation(exact(up.bias[constant]))
    folded = down.with_bias(down.times(constant, values))
    return Neurons(up.rows(index), folded.columns(index), len(live) - int(live.sum()))
