"""Dense int8 in torch: dynamic quantization, torchao, and the CPU compiler's own static quantization."""

from __future__ import annotations

import copy
import functools
import importlib.util
from typing import Any, ClassVar

import torch
from torch import nn

from sparsebert.bench.onnx_export import LastHiddenState, silence
from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.providers.compiled import compile_now, why_not_compiled
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import fastest, on_wall

# Engines of torch's quantized operators; the last one only where the others are missing, as on Arm.
ENGINES = ("x86", "onednn", "fbgemm", "qnnpack")


class _Int8(TorchBackend):
    """A float32 model quantized to int8: one byte for each weight of the pruned matrices."""

    def precision(self, pruned: PrunedModel) -> str:
        return "int8"

    def dtype(self, pruned: PrunedModel) -> torch.dtype:
        return torch.float32

    def weight_bytes(self, model: nn.Module, pruned: PrunedModel) -> int:
        return sum(mask.numel() for mask in pruned.ticket.masks.values())


class TorchInt8(_Int8):
    """``torch.ao`` dynamic quantization of every linear layer, with the fastest engine of this machine."""

    name: ClassVar[str] = "torch-int8"
    summary: ClassVar[str] = "torch.ao, dynamic int8"

    def __init__(self) -> None:
        self._engine = ""

    def available(self) -> str | None:
        if not hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic"):
            return f"torch {torch.__version__} has no torch.ao.quantization.quantize_dynamic"
        if not self._engines():
            return "this torch has no engine for quantized layers"
        return None

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        self.require_cpu(pruned)
        models = {engine: self._quantized(model, engine) for engine in self._engines()}

        def forward(engine: str) -> None:
            with torch.inference_mode():
                models[engine](**pruned.batches[0])

        runs = {engine: on_wall(functools.partial(forward, engine)) for engine in models}
        self._engine = fastest(runs)
        return models[self._engine]

    def notes(self, model: nn.Module) -> dict[str, str]:
        return {"engine": self._engine}

    @staticmethod
    def _engines() -> list[str]:
        engines = [engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines]
        return engines[:-1] if len(engines) > 1 and engines[-1] == "qnnpack" else engines

    @staticmethod
    def _quantized(model: nn.Module, engine: str) -> nn.Module:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            with silence():
                quantized: nn.Module = torch.ao.quantization.quantize_dynamic(
                    model, {nn.Linear}, dtype=torch.qint8
                )
        finally:
            torch.backends.quantized.engine = before
        return quantized


class _TorchAo(_Int8):
    """int8 by torchao, which then needs the compiler."""

    def available(self) -> str | None:
        if importlib.util.find_spec("torchao") is None:
            return "torchao not installed: `make setup-rivals` in a checkout, or pip install torchao"
        return why_not_compiled()

    def notes(self, model: nn.Module) -> dict[str, str]:
        import torchao

        return {"version": f"torchao {torchao.__version__}"}


class TorchAoInt8(_TorchAo):
    """torchao's dynamic activations and int8 weights, compiled as its documentation recommends."""

    name: ClassVar[str] = "torchao-int8"
    summary: ClassVar[str] = "torchao, dynamic int8, compiled"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        self.require_cpu(pruned)
        with silence():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(model, Int8DynamicActivationInt8WeightConfig())
            compiled: nn.Module = compile_now(model, pruned.batches, freeze=True, dynamic=bool(pruned.judged))
        return compiled


class InductorInt8(_TorchAo):
    """Static int8 of torch's CPU compiler: calibrated by ``X86InductorQuantizer``, compiled with freezing."""

    name: ClassVar[str] = "inductor-int8"
    summary: ClassVar[str] = "torch.compile with its x86 quantizer, static int8"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        self.require_cpu(pruned)
        shapes = {batch["input_ids"].shape for batch in (*pruned.batches, *pruned.judged)}
        if len(shapes) > 1:
            raise ValueError(f"{self.name} needs batches of one shape, got {len(shapes)} shapes")
        with silence():
            return self._quantized(model, pruned)

    def _quantized(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        arguments = tuple(pruned.batches[0].values())
        with torch.no_grad():
            exported = torch.export.export(LastHiddenState(copy.deepcopy(model)).eval(), arguments).module()
            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            observed = prepare_pt2e(exported, quantizer)
            for batch in pruned.samples_like(pruned.batches[0]):
                observed(*(batch[name] for name in pruned.inputs))
            converted = convert_pt2e(observed)
            move_exported_model_to_eval(converted)
        return _WithField(compile_now(_ByName(converted), pruned.batches, freeze=True))


class _ByName(nn.Module):
    """Gives an exported graph, whose arguments are positional, keyword arguments."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, **batch: torch.Tensor) -> Any:
        return self.graph(*batch.values())


class _Answer:
    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state


class _WithField(nn.Module):
    """Wraps the last hidden state of a graph into an object with this field, as models return it."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, **batch: torch.Tensor) -> _Answer:
        return _Answer(self.graph(**batch))
