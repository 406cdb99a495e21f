"""onnxruntime on the exported dense model, in fp32 and in int8.

Which form of int8 is fastest depends on the machine: dynamic quantization of the graph, the same after
onnxruntime's own fusion of transformers, or static quantization (QDQ), calibrated with inputs like those of
the workload. All are built, and the fastest here takes part.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from sparsebert.bench.onnx_export import export, silence
from sparsebert.bench.providers.base import Backend, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import fastest, on_wall
from sparsebert_kernels.errors import one_line


class OnnxRuntime(Backend):
    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "onnxruntime, exported dense model"

    def available(self) -> str | None:
        missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None

    def precision(self, pruned: PrunedModel) -> str:
        return "float32"

    def session(self, path: Path, pruned: PrunedModel) -> Any:
        """Return a session of onnxruntime that runs a graph with the workload's threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = pruned.workload.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def load(self, pruned: PrunedModel, folder: Path) -> tuple[Any, int, dict[str, str]]:
        """Return the session to run, the bytes of its graph and notes; ``folder`` is for files."""
        path = export(pruned, folder / "dense.onnx")
        return self.session(path, pruned), path.stat().st_size, {}

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        import onnxruntime

        self.require_cpu(pruned)
        with tempfile.TemporaryDirectory() as name:
            session, size, notes = self.load(pruned, Path(name))
        feeds, answered = (list(map(_feed, part)) for part in (pruned.batches, pruned.answered))

        def answers(feeds: Sequence[dict[str, Any]]) -> list[Any]:
            return [session.run(None, feed)[0] for feed in feeds]

        return BuiltBackend(
            run=on_wall(functools.partial(answers, feeds)),
            answers=lambda: [torch.from_numpy(answer) for answer in answers(answered)],
            model_bytes=size,
            notes={"version": onnxruntime.__version__, **notes},
        )


class OnnxRuntimeInt8(OnnxRuntime):
    name: ClassVar[str] = "onnxruntime-int8"
    summary: ClassVar[str] = "onnxruntime, int8, the fastest of its forms"

    def precision(self, pruned: PrunedModel) -> str:
        return "int8"

    def load(self, pruned: PrunedModel, folder: Path) -> tuple[Any, int, dict[str, str]]:
        dense = export(pruned, folder / "dense.onnx")
        forms: dict[str, Callable[[Path, Path, PrunedModel], None]] = {
            "dynamic": _dynamic,
            "dynamic, fused": _fused_dynamic,
            "static": _static,
        }
        sessions, sizes, failures = {}, {}, {}
        for number, (form, quantize) in enumerate(forms.items()):
            target = folder / f"int8-{number}.onnx"
            try:
                with silence():
                    quantize(dense, target, pruned)
                sessions[form] = self.session(target, pruned)
            except Exception as error:  # of a foreign library, for one of several forms
                failures[form] = one_line(error)
            else:
                sizes[form] = target.stat().st_size
        if not sessions:
            raise ValueError(
                "onnxruntime cannot quantize this model: "
                + "; ".join(f"{form}: {reason}" for form, reason in failures.items())
            )
        feed = _feed(pruned.batches[0])
        runs = {form: on_wall(functools.partial(each.run, None, feed)) for form, each in sessions.items()}
        best = fastest(runs)
        notes = {"form": best, **{f"without {form}": reason for form, reason in failures.items()}}
        return sessions[best], sizes[best], notes


def _feed(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: values.numpy() for name, values in batch.items()}


def _dynamic(dense: Path, target: Path, pruned: PrunedModel) -> None:
    """Quantize weights per column ahead, and activations when they are computed."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Shapes inside fused operators are unknown to the quantizer.
    default = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(dense, target, weight_type=QuantType.QInt8, per_channel=True, extra_options=default)


def _fused_dynamic(dense: Path, target: Path, pruned: PrunedModel) -> None:
    """Let onnxruntime fuse attention, GELU and LayerNorm before dynamic quantization."""
    from onnxruntime.transformers.optimizer import optimize_model

    config: Any = pruned.model.config
    fused = target.with_suffix(".fused.onnx")
    optimize_model(
        str(dense), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    ).save_model_to_file(str(fused))
    _dynamic(fused, target, pruned)


def _static(dense: Path, target: Path, pruned: PrunedModel) -> None:
    """Quantize the inputs of all matrix products with scales from the calibration batches (QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([_feed(batch) for batch in pruned.samples])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(dense, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
