"""Coefficients of heads and neurons, trained along with a model; their course is kept in files."""

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
    """One coefficient a gate, parameters of the model that begin at 1; the loss is to gain their ``penalty``.

    ``names``: of the parameters, as the model's ``state_dict`` has them. They are in its checkpoints.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, GateSite], penalty: float) -> None:
        self._model, self._sites, self._factor = model, sites, penalty
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
        """Take them off the model and into its weights: it computes the same, to rounding."""
        values = {name: value.detach() for name, value in self.values.items()}
        for handle in self._handles:
            handle.remove()
        for module in self._modules.values():
            del module._parameters[_NAME]
        fold_(self._model, self._sites, values)

    def penalty(self) -> Tensor:
        """Their L1 norm times its factor, differentiable."""
        return l1(list(self.values.values()), self._factor)


class CoefficientTrace(TrainerCallback):
    """Writes the coefficients down every few steps, one file a time, and ends the training when told to.

    ``folder``: where ``step-000010.npy`` and so on go, float32 [units] in the order of the sites. What a
    process before this one wrote is read; from the step that training goes on at it is written again.
    ``stop``: asked with all that is written, step -> coefficients by site, in order.
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
        self._course = read_trace(folder, sizes)

    @property
    def stopped(self) -> int | None:
        """The first step at which what is written so far was enough."""
        written: dict[int, Mapping[str, Tensor]] = {}
        for step, values in self._course.items():
            written[step] = values
            if self._stop(written):
                return step
        return None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._course = {step: each for step, each in self._course.items() if step <= state.global_step}

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> Any:
        step = state.global_step
        if step % self._every:
            return control
        values = {
            name: each.detach().cpu().float().clone() for name, each in self._coefficients.values.items()
        }
        self._course[step] = values
        if distributed.is_main():
            self._folder.mkdir(exist_ok=True)
            with (
                replacing(self._folder / f"step-{step:06}.npy") as unfinished,
                open(unfinished, "wb") as file,
            ):
                np.save(file, torch.cat(list(values.values())).numpy())
        if self._stop(self._course):
            control.should_training_stop = control.should_log = True
        return control


def read_trace(folder: Path, sizes: Mapping[str, int]) -> dict[int, dict[str, Tensor]]:
    """What :class:`CoefficientTrace` wrote, step by step; ``sizes``: units of each site."""
    course = {}
    for path in sorted(folder.glob("step-*.npy")):
        values = torch.from_numpy(np.load(path)).split(list(sizes.values()))
        course[int(path.stem.removeprefix("step-"))] = dict(zip(sizes, values, strict=True))
    return course
