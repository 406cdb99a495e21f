"""What a provider is: somebody who can run the masked model, ours or a baseline."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from sparsebert.bench.memory import Memory, weight_bytes
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import Run, on_cuda, on_wall
from sparsebert.bert import resolve


@dataclass(frozen=True)
class BuiltBackend:
    """A provider, built and ready. One `run` answers all batches of the workload once.

    `weight_bytes` counts the pruned matrices as they are stored, `model_bytes` everything; None where a baseline
    does not tell. `memory` asks a baseline's own process; None where the side lives in this one.
    """

    run: Run
    answers: Callable[[], list[torch.Tensor]]
    weight_bytes: int | None = None
    model_bytes: int | None = None
    notes: dict[str, str] = field(default_factory=dict)
    memory: Callable[[], Memory] | None = None
    close: Callable[[], None] = lambda: None


class Backend(ABC):
    """One way to run the model. Subclasses are named in `BACKENDS`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    in_worker: ClassVar[bool] = False

    @abstractmethod
    def available(self) -> str | None:
        """None where it can run here, else the reason why not and how to get it, in one line."""

    @abstractmethod
    def precision(self, pruned: PrunedModel) -> str:
        """The arithmetic it computes in: a key of `sparsebert.bench.output_check.TOLERANCES`."""

    @abstractmethod
    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        """Make it ready. With `consume` the pruned's model may be taken apart instead of copied.

        Raises ValueError where this workload cannot be run this way.
        """


class TorchBackend(Backend):
    """A provider that runs a torch module in this process: subclasses only say what becomes of the model."""

    def available(self) -> str | None:
        return None

    def precision(self, pruned: PrunedModel) -> str:
        return pruned.workload.dtype

    @abstractmethod
    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        """Make `model` (on its device, in its dtype, to be changed freely) the one to be timed."""

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        device = torch.device(pruned.workload.device)
        dtype = getattr(torch, self.precision(pruned))
        model = pruned.model if consume else copy.deepcopy(pruned.model)
        dense_numel = sum(resolve(model, key).get_parameter("weight").numel() for key in pruned.keys)
        other_numel = sum(parameter.numel() for parameter in model.parameters()) - dense_numel
        module = self.convert(model.to(device=device, dtype=dtype), pruned)
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in pruned.batches]

        @torch.inference_mode()
        def forward() -> None:
            for batch in batches:
                module(**batch)

        @torch.inference_mode()
        def answers() -> list[torch.Tensor]:
            return [module(**batch).last_hidden_state.cpu() for batch in batches]

        held = sum(weight_bytes(resolve(model, key)) for key in pruned.keys)
        return BuiltBackend(
            run=on_cuda(forward) if device.type == "cuda" else on_wall(forward),
            answers=answers,
            weight_bytes=held,
            model_bytes=held + other_numel * dtype.itemsize,
            notes=self.notes(model),
        )

    def notes(self, model: nn.Module) -> dict[str, str]:
        """What the record should say about the converted model."""
        return {}
