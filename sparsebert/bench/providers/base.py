"""Base classes of the backends that run the masked model."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from sparsebert.bench.memory import Memory, weight_bytes
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import Run, on_cuda, on_wall
from sparsebert.bert import resolve
from sparsebert.cuda_graphs import graphs
from sparsebert.cuda_graphs.buckets import Shape


@dataclass(frozen=True)
class BuiltBackend:
    """A backend that is ready to run.

    Attributes:
        run: Runs all batches of the workload once and returns the seconds.
        answers: Returns the last hidden states, [sequences, tokens, hidden] for each batch of
            ``PrunedModel.answered``.
        weight_bytes: Bytes of the pruned matrices as stored; None if unknown.
        model_bytes: Bytes of the whole model; None if unknown.
        notes: Further facts for the record.
        memory: Returns the memory of the backend's own process; None if the backend runs in this process.
        close: Releases what the backend holds.
    """

    run: Run
    answers: Callable[[], list[torch.Tensor]]
    weight_bytes: int | None = None
    model_bytes: int | None = None
    notes: dict[str, str] = field(default_factory=dict)
    memory: Callable[[], Memory] | None = None
    close: Callable[[], None] = lambda: None


class Backend(ABC):
    """A way to run the masked model; ``BACKENDS`` lists the subclasses."""

    name: ClassVar[str]
    summary: ClassVar[str]
    in_worker: ClassVar[bool] = False

    @abstractmethod
    def available(self) -> str | None:
        """Return None if the backend can run here, else the reason and the remedy in one line."""

    @abstractmethod
    def precision(self, pruned: PrunedModel) -> str:
        """Return the precision of the arithmetic: a key of ``sparsebert.bench.output_check.TOLERANCES``."""

    @abstractmethod
    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        """Build the backend for a model.

        Args:
            pruned: Model, ticket and batches.
            consume: Whether the model may be modified instead of copied.

        Raises:
            ValueError: The backend cannot run this workload.
        """

    def require_cpu(self, pruned: PrunedModel) -> None:
        """Raise ValueError unless the workload runs on the CPU."""
        if pruned.workload.device != "cpu":
            raise ValueError(f"{self.name} runs on the CPU only, not on {pruned.workload.device}")


class TorchBackend(Backend):
    """A backend that runs a torch module in this process; subclasses define the conversion."""

    def available(self) -> str | None:
        return None

    def precision(self, pruned: PrunedModel) -> str:
        return pruned.workload.dtype

    def dtype(self, pruned: PrunedModel) -> torch.dtype:
        """Return the dtype that the model has before its conversion."""
        dtype: torch.dtype = getattr(torch, self.precision(pruned))
        return dtype

    @abstractmethod
    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        """Convert ``model``, which has its final device and dtype, in place or into a new one."""

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        device = torch.device(pruned.workload.device)
        dtype = self.dtype(pruned)
        model = pruned.model if consume else copy.deepcopy(pruned.model)
        dense_numel = sum(resolve(model, key).get_parameter("weight").numel() for key in pruned.keys)
        other_numel = sum(parameter.numel() for parameter in model.parameters()) - dense_numel
        module = self.convert(model.to(device=device, dtype=dtype), pruned)
        batches, answered = (
            [{name: tensor.to(device) for name, tensor in batch.items()} for batch in part]
            for part in (pruned.batches, pruned.answered)
        )
        if pruned.workload.graphs:
            module = self.in_graphs(module, [*batches, *answered])

        @torch.inference_mode()
        def forward() -> None:
            for batch in batches:
                module(**batch)

        @torch.inference_mode()
        def answers() -> list[torch.Tensor]:
            return [module(**batch).last_hidden_state.cpu() for batch in answered]

        stored = self.weight_bytes(model, pruned)
        return BuiltBackend(
            run=on_cuda(forward, device) if device.type == "cuda" else on_wall(forward),
            answers=answers,
            weight_bytes=stored,
            model_bytes=stored + other_numel * dtype.itemsize,
            notes=self.notes(model),
        )

    @torch.inference_mode()
    def in_graphs(self, module: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> Any:
        """Return a callable that runs the converted model in CUDA graphs of the shapes of ``batches``.

        Raises:
            ValueError: A batch would run without a graph.
        """
        first: dict[int | Shape, dict[str, torch.Tensor]] = {}
        for batch in batches:
            rows, length = batch["input_ids"].shape
            first[(rows, length)] = batch
        run = graphs(module, list(first), max_graphs=len(first))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the model runs without a CUDA graph")
            try:
                for _, batch in sorted(first.items(), key=lambda each: -each[1]["input_ids"].numel()):
                    run(**batch)
            except UserWarning as reason:
                raise ValueError(f"{self.name} cannot run in CUDA graphs: {reason}") from None
        return run

    def weight_bytes(self, model: nn.Module, pruned: PrunedModel) -> int:
        """Return the bytes of the pruned matrices as the converted model stores them."""
        return sum(weight_bytes(resolve(model, key)) for key in pruned.keys)

    def notes(self, model: nn.Module) -> dict[str, str]:
        """Return facts about the converted model for the record."""
        return {}
