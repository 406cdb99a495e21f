"""What encoders make of the training data: a representation of every example, in files read row by row."""

from __future__ import annotations

import contextlib
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
    """What went into the last linear layer of a model's head: ``value``, float [examples, features].

    That is the representation of an example that the head decides by: BERT's is the pooler's output, with
    dropout in training. Of a head that reads every token it is the first one's, [CLS]. Until :meth:`close`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.value: Tensor | None = None
        self.features = head_linear(model).in_features
        self._hook = head_linear(model).register_forward_pre_hook(self._note)

    def take(self) -> Tensor:
        """The value of the last forward pass, which is then forgotten."""
        assert self.value is not None
        value, self.value = self.value, None
        return value

    def close(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()

    def _note(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        self.value = x[:, 0] if x.dim() == 3 else x


def head_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a model's task head. Raises ValueError for a model without one."""
    prefix = structure(model).prefix
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{prefix}.")
    ]
    if not prefix or not found:
        raise ValueError(f"{type(model).__name__} has no task head to take representations from")
    return found[-1]


class Banks:
    """A folder of ``<encoder>.npy``, float32 [examples, features], each row of length 1; and ``labels.npy``.

    ``examples``, ``collate``: the training data, in whose order the rows are; ``device``: where they are
    encoded. Files are whole or not there.
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
        """The encoders whose representations are there, in the order of their names."""
        return sorted(path.stem for path in self.folder.glob("*.npy") if path.stem != "labels")

    def write(self, name: str, model: nn.Module, answer: Callable[..., object]) -> None:
        """Encode every example, dropout off. ``answer``: runs a batch on the device through the model."""
        self.folder.mkdir(exist_ok=True)
        sweep(self.folder)
        labels: list[Tensor] = []
        with _head_input(model) as head, evaluating(model), torch.no_grad():
            shape = len(self._examples), head.features
            with replacing(self.folder / f"{name}.npy") as unfinished, open(unfinished, "wb") as file:
                # Written, not mapped: where the disk is full, a mapped file ends the process.
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": shape}
                )
                for batch in self._batches():
                    answer(**{key: each.to(self._device) for key, each in batch.items()})
                    found = F.normalize(head.take().float(), dim=-1)
                    file.write(found.cpu().numpy().astype("<f4").tobytes())
                    if "labels" in batch:
                        labels.append(batch["labels"])
                if labels:  # before the bank is there: whoever finds it takes the labels to be there too
                    self._write_labels(torch.cat(labels))

    def open(self, names: Sequence[str]) -> list[np.ndarray]:
        """The files of these encoders, mapped into memory."""
        return [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names]

    def labels(self) -> np.ndarray | None:
        """int64 [examples]; None where the data have no labels."""
        path = self.folder / "labels.npy"
        return np.load(path) if path.exists() else None

    def _write_labels(self, labels: Tensor) -> None:
        with replacing(self.folder / "labels.npy") as unfinished, open(unfinished, "wb") as file:
            np.save(file, labels.numpy())

    def _batches(self) -> Iterator[dict[str, Any]]:
        # No DataLoader: it would draw from the random state, and a resumed run does not come by here.
        for begin in range(0, len(self._examples), self._batch_size):
            chosen = range(begin, min(begin + self._batch_size, len(self._examples)))
            yield self._collate([self._examples[index] for index in chosen])


@contextlib.contextmanager
def _head_input(model: nn.Module) -> Iterator[HeadInput]:
    head = HeadInput(model)
    try:
        yield head
    finally:
        head.close()
