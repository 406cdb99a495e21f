"""torch.compile with its default backend: as it is, and with frozen weights in fp32 and bf16.

Freezing makes the weights constants of the compiled code, which prepacks them for oneDNN: the strongest dense
form of a torch wheel, as the operations between the linear layers are fused as well.
"""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel


def why_not_compiled() -> str | None:
    """Return None if torch.compile can work here, else the reason and the remedy in one line."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and not torch.cuda.is_available():
        return f"torch.compile needs a C++ compiler on the CPU, and {compiler} is not found: install g++"
    return None


def compile_now(
    module: Any,
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    freeze: bool,
    dynamic: bool = False,
    graphs: bool = False,
) -> Any:
    """Return ``module`` compiled for the shapes of ``batches``, in inference mode.

    Args:
        module: A module or a function.
        batches: Its keyword arguments, on the module's device.
        freeze: Whether the weights become constants of the compiled code.
        dynamic: Whether the code serves batches of any shape, as texts of all lengths need.
        graphs: Whether torch runs the code in CUDA graphs of its own.
    """
    import torch._inductor.config as inductor

    def forward(**batch: torch.Tensor) -> Any:
        return module(**batch)

    # Compiled code is cached by code object and serves every model of a class: with a code object of its own,
    # a model is neither run by the code of another, which may not be frozen, nor subject to the limit of
    # recompilations.
    code = forward.__code__.replace(co_name=f"forward_{id(module)}")
    alone = types.FunctionType(code, globals(), closure=forward.__closure__)
    with inductor.patch(freezing=freeze), torch.inference_mode():
        compiled = torch.compile(alone, dynamic=dynamic, mode="reduce-overhead" if graphs else None)
        for batch in batches:
            compiled(**batch)
    return compiled


class Compiled(TorchBackend):
    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "torch.compile"
    freeze: ClassVar[bool] = False

    def available(self) -> str | None:
        return why_not_compiled()

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        device = torch.device(pruned.workload.device)
        if self.freeze and device.type != "cpu":
            raise ValueError(f"{self.name} runs on the CPU only, not on {device}")
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in pruned.batches]
        compiled: nn.Module = compile_now(
            model,
            batches,
            freeze=self.freeze,
            dynamic=bool(pruned.judged),
            graphs=pruned.workload.graphs,
        )
        return compiled

    def in_graphs(self, module: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> nn.Module:
        return module  # compiled for them


class Frozen(Compiled):
    name: ClassVar[str] = "compile-freezing"
    summary: ClassVar[str] = "torch.compile with frozen weights"
    freeze: ClassVar[bool] = True


class FrozenBf16(Frozen):
    name: ClassVar[str] = "compile-freezing-bf16"
    summary: ClassVar[str] = "torch.compile with frozen weights in bfloat16"

    def precision(self, pruned: PrunedModel) -> str:
        return "bfloat16"
