"""Hooks around one pass of a module: note what matrices read and return, or let them return it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def noting_inputs(
    matrices: Mapping[str, nn.Module], noted: dict[str, Tensor], states: Tensor | None = None
) -> Iterator[None]:
    """Note the inputs of matrices, by key: copies, for a module may change its activations in place.

    The hidden states that enter the module are not copied.
    """

    def note(key: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            read = args[0]
            noted[key] = read.clone() if id(read) != id(states) else read

        return hook

    handles = [matrix.register_forward_pre_hook(note(key)) for key, matrix in matrices.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def noting_outputs(matrices: Mapping[str, nn.Module], noted: dict[str, Tensor]) -> Iterator[None]:
    """Note copies of the outputs of matrices, by key."""

    def note(key: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            noted[key] = output.clone()

        return hook

    handles = [matrix.register_forward_hook(note(key)) for key, matrix in matrices.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
