"""Coefficients of heads and neurons, trained together with a model and recorded in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sparsebert.atomic import replacing
from sparsebert.bert import resolve
from sparsebert.pruning.gates import GateSite
from sparsebert.pruning.methods.early_bird import fold_, l1
from sparsebert.training import distributed

_NAME = "unit_coefficients"


class TrainedCoefficients:
    """One coefficient per gate: parameters of the model, initially 1.

    They are part of the model's checkpoints.

    Args:
        model: A BERT.
        sites: Gate sites by name.
        penalty: Weight of the coefficients' L1 norm in the loss.

    Attributes:
        names: Names of the parameters in the model's ``state_dict``.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, GateSite], penalty: float) -> None:
        self._model, self._sites, self._weight = model, sites, penalty
        self._modules = {name: resolve(model, site.key) for name, site in sites.items()}
        self._handles = []
        for name, site in sites.items():
            like = torch.as_tensor(self._modules[name].weight)
            ones = nn.Parameter(torch.ones(site.count(model), dtype=like.dtype, device=like.device))
            self._modules[name].register_parameter(_NAME, ones)
            self._handles.append(site.hook(model, ones))
        self.names = [name for name, _ in model.named_parameters() if name.endswith(f".{_NAME}")]

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters by site."""
        return {name: module.get_parameter(_NAME) for name, module in self._modules.items()}

    def fold_(self) -> None:
        """Fold the coefficients into the model's weights. Its outputs stay the same, up to rounding."""
        values = {name: value.detach() for name, value in self.values.items()}
        for handle in self._handles:
            handle.remove()
        for module in self._modules.values():
            del module._parameters[_NAME]
        fold_(self._model, self._sites, values)

    def penalty(self) -> Tensor:
        """Return the weighted L1 norm, differentiable."""
        return l1(list(self.values.values()), self._weight)


class CoefficientTrace(TrainerCallback):
    """Records the coefficients every few steps, and stops the training once a criterion is met.

    A resumed run reads the records of earlier processes, and replaces those after the step it resumes from.

    Args:
        coefficients: The coefficients.
        folder: Folder of the files ``step-000010.npy``, float32 [units] in the order of the sites.
        every: Steps between two records.
        stop: Returns whether to stop, from the history: step -> coefficients by site.
    """

    def __init__(
        self,
        coefficients: TrainedCoefficients,
        folder: Path,
        every: int,
        stop: Callable[[Mapping[int, Mapping[str, Tensor]]], bool],
    ) -> None:
        self._coefficients, self._folder, self._every, self._stop = coefficients, folder, every, stop
        sizes = {name: len(value) for name, value in coefficients.values.items()}
        self._history = read_trace(folder, sizes)

    @property
    def stopped(self) -> int | None:
        """The first step at which the history met the criterion; None if it has not."""
        history: dict[int, Mapping[str, Tensor]] = {}
        for step, values in self._history.items():
            history[step] = values
            if self._stop(history):
                return step
        return None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._history = {step: each for step, each in self._history.items() if step <= state.global_step}

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> Any:
        step = state.global_step
        if step % self._every:
            return control
        values = {
            name: each.detach().cpu().float().clone() for name, each in self._coefficients.values.items()
        }
        self._history[step] = values
        if distributed.is_main():
            self._folder.mkdir(exist_ok=True)
            with (
                replacing(self._folder / f"step-{step:06}.npy") as unfinished,
                open(unfinished, "wb") as file,
            ):
                np.save(file, torch.cat(list(values.values())).numpy())
        if self._stop(self._history):
            control.should_training_stop = control.should_log = True
        return control


def read_trace(folder: Path, sizes: Mapping[str, int]) -> dict[int, dict[str, Tensor]]:
    """Read the history that :class:`CoefficientTrace` recorded.

    Args:
        folder: Folder of the files.
        sizes: Site -> number of its units, in the order of the sites.
    """
    history = {}
    for path in sorted(folder.glob("step-*.npy")):
        values = torch.from_numpy(np.load(path)).split(list(sizes.values()))
        history[int(path.stem.removeprefix("step-"))] = dict(zip(sizes, values, strict=True))
    return history
