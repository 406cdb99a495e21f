"""The protocol through which a method takes part in the training of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class RoundHooks(Protocol):
    """A method's part in the training of a round.

    Attributes:
        callback: A TrainerCallback, which may stop the training.
        names: Names of the parameters that the method has added to the model.
        stopped: The step at which the callback stopped the training, in this process or an earlier one.
        tell_examples: Called before each batch with the ids of its examples, int64; None if unused.
    """

    @property
    def callback(self) -> Any: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def stopped(self) -> int | None: ...
    @property
    def tell_examples(self) -> Callable[[Tensor], None] | None: ...
    def penalty(self) -> Tensor | None:
        """Return a term to add to the loss of a batch, or None."""
