"""Representations of the training data by several encoders, stored in memory-mapped files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.atomic import replacing, sweep
from sparsebert.bert import structure
from sparsebert.pruning.gradients import evaluating


class HeadInput:
    """Records the input of the last linear layer of a model's head, until :meth:`close`.

    This input is the representation from which the head predicts. For BERT it is the pooler's output, with
    dropout in training. A head that reads every token is represented by its input at the first token, [CLS].

    Attributes:
        value: Floating-point [examples, features]; None before a forward pass.
        features: Number of features of a representation.
    """

    def __init__(self, model: nn.Module) -> None:
        self.value: Tensor | None = None
        self.features = head_linear(model).in_features
        self._hook = head_linear(model).register_forward_pre_hook(self._record)

    def take(self) -> Tensor:
        """Return the value of the last forward pass, and clear it."""
        assert self.value is not None
        value, self.value = self.value, None
        return value

    def close(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()

    def _record(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        self.value = x[:, 0] if x.dim() == 3 else x


def head_linear(model: nn.Module) -> nn.Linear:
    """Return the last linear layer of a model's task head. Raise ValueError for a model without a head."""
    prefix = structure(model).prefix
    linears = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{prefix}.")
    ]
    if not prefix or not linears:
        raise ValueError(
            f"{type(model).__name__} has no task head, whose input serves as the representation; "
            "load a model with a head"
        )
    return linears[-1]


class RepresentationBank:
    """A folder of representations.

    ``<encoder>.npy`` holds float32 [examples, features] in the order of the training data; each row has
    length 1. ``labels.npy`` holds the labels. Files appear whole or not at all.

    Args:
        folder: The folder.
        examples: Training data.
        collate: Turns a list of examples into a batch.
        batch_size: Examples of a batch.
        device: Device on which the examples are encoded.
    """

    def __init__(
        self,
        folder: Path,
        examples: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.folder = folder
        self._examples, self._collate = examples, collate
        self._batch_size, self._device = batch_size, device

    def names(self) -> list[str]:
        """Return the sorted names of the encoders whose representations exist."""
        return sorted(path.stem for path in self.folder.glob("*.npy") if path.stem != "labels")

    def write(self, name: str, model: nn.Module, answer: Callable[..., object]) -> None:
        """Encode every example, without dropout.

        Args:
            name: Name of the encoder.
            model: The encoder.
            answer: Runs the model on a batch (keyword arguments on the device); its result is ignored.
        """
        self.folder.mkdir(exist_ok=True)
        sweep(self.folder)
        labels: list[Tensor] = []
        with _head_input(model) as head, evaluating(model), torch.no_grad():
            shape = len(self._examples), head.features
            path, size = self.folder / f"{name}.npy", 4 * math.prod(shape)
            with replacing(path, size) as unfinished, open(unfinished, "wb") as file:
                # Written, not mapped: on a full disk a mapped file kills the process.
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": shape}
                )
                for batch in self._batches():
                    answer(**{key: each.to(self._device) for key, each in batch.items()})
                    rows = F.normalize(head.take().float(), dim=-1)
                    file.write(rows.cpu().numpy().astype("<f4").tobytes())
                    if "labels" in batch:
                        labels.append(batch["labels"])
                if labels:  # written before the bank appears, because readers of the bank expect them
                    self._write_labels(torch.cat(labels))

    def open(self, names: Sequence[str]) -> list[np.ndarray]:
        """Map the files of these encoders into memory."""
        return [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names]

    def labels(self) -> np.ndarray | None:
        """Return the labels, int64 [examples]; None for data without labels."""
        path = self.folder / "labels.npy"
        return np.load(path) if path.exists() else None

    def _write_labels(self, labels: Tensor) -> None:
        with replacing(self.folder / "labels.npy") as unfinished, open(unfinished, "wb") as file:
            np.save(file, labels.numpy())

    def _batches(self) -> Iterator[dict[str, Any]]:
        # A DataLoader would draw from the random state, unlike a resumed run, which does not encode again.
        for begin in range(0, len(self._examples), self._batch_size):
            end = min(begin + self._batch_size, len(self._examples))
            yield self._collate([self._examples[index] for index in range(begin, end)])


@contextlib.contextmanager
def _head_input(model: nn.Module) -> Iterator[HeadInput]:
    head = HeadInput(model)
    try:
        yield head
    finally:
        head.close()
