"""The backends that run the model, one per file; optional libraries are imported on first use."""

from sparsebert.bench.providers.base import Backend, BuiltBackend, TorchBackend
from sparsebert.bench.providers.bf16 import Bf16, OneDnnBf16
from sparsebert.bench.providers.compact import Compact
from sparsebert.bench.providers.compiled import Compiled
from sparsebert.bench.providers.deepsparse import DeepSparse
from sparsebert.bench.providers.eager import Eager
from sparsebert.bench.providers.onednn import OneDnn
from sparsebert.bench.providers.onnx_runtime import OnnxRuntime, OnnxRuntimeInt8
from sparsebert.bench.providers.sparse import Fused, Sparse

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend
    for backend in (
        Sparse,
        Eager,
        OneDnn,
        Compact,
        Fused,
        Compiled,
        Bf16,
        OneDnnBf16,
        OnnxRuntime,
        OnnxRuntimeInt8,
        DeepSparse,
    )
}
BASELINES = tuple(name for name in BACKENDS if name != Sparse.name)

__all__ = ["BACKENDS", "BASELINES", "Backend", "BuiltBackend", "TorchBackend"]
