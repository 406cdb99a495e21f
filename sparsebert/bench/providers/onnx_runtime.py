"""onnxruntime on the exported dense model, in fp32 and dynamically quantized to int8."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch

from sparsebert.bench.onnx_export import export, silence
from sparsebert.bench.providers.base import Backend, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import on_wall


class OnnxRuntime(Backend):
    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "onnxruntime, exported dense model"

    def available(self) -> str | None:
        missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None

    def precision(self, pruned: PrunedModel) -> str:
        return "float32"

    def graph(self, pruned: PrunedModel, folder: Path) -> Path:
        """Write the graph to run into ``folder`` and return its path."""
        return export(pruned, folder / "dense.onnx")

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        import onnxruntime

        if pruned.workload.device != "cpu":
            raise ValueError(f"{self.name} runs on the CPU only, not on {pruned.workload.device}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = pruned.workload.threads
        options.inter_op_num_threads = 1
        with tempfile.TemporaryDirectory() as name:
            path = self.graph(pruned, Path(name))
            size = path.stat().st_size
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in pruned.batches]

        def forward() -> list[Any]:
            return [session.run(None, feed)[0] for feed in feeds]

        return BuiltBackend(
            run=on_wall(forward),
            answers=lambda: [torch.from_numpy(answer) for answer in forward()],
            model_bytes=size,
            notes={"version": onnxruntime.__version__},
        )


class OnnxRuntimeInt8(OnnxRuntime):
    name: ClassVar[str] = "onnxruntime-int8"
    summary: ClassVar[str] = "onnxruntime, dynamic int8"

    def precision(self, pruned: PrunedModel) -> str:
        return "int8"

    def graph(self, pruned: PrunedModel, folder: Path) -> Path:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantised = folder / "int8.onnx"
        dense = super().graph(pruned, folder)
        with silence():
            quantize_dynamic(dense, quantised, weight_type=QuantType.QInt8, per_channel=True)
        return quantised
