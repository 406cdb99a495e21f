"""Hooks around one pass of a module: note what matrices read and return, or let them return it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def noting_inputs(
    matrices: Mapping[str, nn.Module], noted: dict[str, Tensor], states: Tensor | None = None
) -> contextlib.ExitStack:
    """Note the inputs of matrices, by key: copies, for a module may change its activations in place.

    The hidden states that enter the module are not copied.
    """

    def note(key: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        read: Tensor = args[0]
        noted[key] = read if read is states else read.clone()

    return _until_left(
        [matrix.register_forward_pre_hook(partial(note, key)) for key, matrix in matrices.items()]
    )


def noting_outputs(matrices: Mapping[str, nn.Module], noted: dict[str, Tensor]) -> contextlib.ExitStack:
    """Note copies of the outputs of matrices, by key."""

    def note(key: str, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        noted[key] = output.clone()

    return _until_left([matrix.register_forward_hook(partial(note, key)) for key, matrix in matrices.items()])


def _until_left(hooks: Sequence[RemovableHandle]) -> contextlib.ExitStack:
    """Return a context at whose end the hooks are removed."""
    context = contextlib.ExitStack()
    for hook in hooks:
        context.callback(hook.remove)
    return context


@contextlib.contextmanager
def replaying(matrices: Mapping[str, nn.Module], outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Let matrices return copies of outputs that were noted, without computing them."""

    def replay(output: Tensor) -> Any:
        return lambda _: output.clone()

    before = {key: vars(matrix).get("forward") for key, matrix in matrices.items()}
    for key, matrix in matrices.items():
        vars(matrix)["forward"] = replay(outputs[key])
    try:
        yield
    finally:
        for key, matrix in matrices.items():
            del vars(matrix)["forward"]
            if before[key] is not None:
                vars(matrix)["forward"] = before[key]
