"""OpenVINO on the dense model: fp32, bf16, and int8 by NNCF's post-training quantization.

As OpenVINO's documentation recommends: the torch model is converted directly, the latency hint and one stream
serve one request at a time, and NNCF quantizes transformers with its own preset for them, calibrated with
inputs like those of the workload. fp32 and bf16 set the inference precision; int8 leaves the precision of the
other operations to OpenVINO, which takes bf16 where the CPU computes it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import torch

from sparsebert.bench.onnx_export import LastHiddenState, silence
from sparsebert.bench.providers.base import Backend, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import on_wall

# Both libraries report usage over the network unless these are set on import.
QUIET = {"CI": "true", "NNCF_CI": "1"}


class OpenVino(Backend):
    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO, dense model"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    # Value of the inference precision hint; None leaves it to OpenVINO.
    hint: ClassVar[str | None] = "f32"

    def available(self) -> str | None:
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        names = " and ".join(missing)
        return f"{names} not installed: `make setup-rivals` in a checkout, or pip install {' '.join(missing)}"

    def precision(self, pruned: PrunedModel) -> str:
        return "float32"

    def graph(self, pruned: PrunedModel) -> Any:
        """Return the OpenVINO model to compile, in float32, with free batch size and length."""
        import openvino

        model = LastHiddenState(copy.deepcopy(pruned.model).float()).eval()
        with torch.inference_mode():
            return openvino.convert_model(model, example_input=pruned.batches[0])

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        self.require_cpu(pruned)
        with _quiet():
            import openvino

            settings: dict[str, Any] = {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": pruned.workload.threads,
            }
            if self.hint is not None:
                settings["INFERENCE_PRECISION_HINT"] = self.hint
            compiled = openvino.Core().compile_model(self.graph(pruned), "CPU", settings)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        request = compiled.create_infer_request()
        feeds, answered = (list(map(_feed, part)) for part in (pruned.batches, pruned.answered))

        def forward() -> None:
            for feed in feeds:
                request.infer(feed, share_inputs=True, share_outputs=True)

        def answers() -> list[torch.Tensor]:
            return [torch.from_numpy(request.infer(feed)[0].copy()).float() for feed in answered]

        return BuiltBackend(
            run=on_wall(forward),
            answers=answers,
            notes={"version": openvino.__version__, "inference precision": hint},
        )


class OpenVinoBf16(OpenVino):
    name: ClassVar[str] = "openvino-bf16"
    summary: ClassVar[str] = "OpenVINO, dense model in bfloat16"
    hint: ClassVar[str | None] = "bf16"

    def precision(self, pruned: PrunedModel) -> str:
        return "bfloat16"


class OpenVinoInt8(OpenVino):
    name: ClassVar[str] = "openvino-int8"
    summary: ClassVar[str] = "OpenVINO, int8 by NNCF"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    hint: ClassVar[str | None] = None

    def precision(self, pruned: PrunedModel) -> str:
        return "int8"

    def graph(self, pruned: PrunedModel) -> Any:
        import nncf

        samples = list(map(_feed, pruned.samples))
        return nncf.quantize(
            super().graph(pruned),
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )


def _feed(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: values.numpy() for name, values in batch.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress usage reports, progress bars and warnings."""
    nowhere = io.StringIO()
    with mock.patch.dict(os.environ, QUIET), silence(), contextlib.redirect_stderr(nowhere):
        yield
