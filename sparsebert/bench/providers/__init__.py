"""The backends that run the model, one per file; optional libraries are imported on first use."""

from sparsebert.bench.providers.base import Backend, BuiltBackend, TorchBackend
from sparsebert.bench.providers.bf16 import Bf16, OneDnnBf16
from sparsebert.bench.providers.compact import Compact
from sparsebert.bench.providers.compiled import Compiled, Frozen, FrozenBf16
from sparsebert.bench.providers.deepsparse import DeepSparse
from sparsebert.bench.providers.eager import Eager
from sparsebert.bench.providers.onednn import OneDnn
from sparsebert.bench.providers.onnx_runtime import OnnxRuntime, OnnxRuntimeInt8
from sparsebert.bench.providers.openvino import OpenVino, OpenVinoBf16, OpenVinoInt8
from sparsebert.bench.providers.sparse import Fused, Sparse
from sparsebert.bench.providers.torch_int8 import InductorInt8, TorchAoInt8, TorchInt8

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend
    for backend in (
        Sparse,
        Eager,
        OneDnn,
        Compact,
        Fused,
        Compiled,
        Frozen,
        FrozenBf16,
        Bf16,
        OneDnnBf16,
        TorchInt8,
        TorchAoInt8,
        InductorInt8,
        OnnxRuntime,
        OnnxRuntimeInt8,
        OpenVino,
        OpenVinoBf16,
        OpenVinoInt8,
        DeepSparse,
    )
}
BASELINES = tuple(name for name in BACKENDS if name != Sparse.name)

__all__ = ["BACKENDS", "BASELINES", "Backend", "BuiltBackend", "TorchBackend"]
