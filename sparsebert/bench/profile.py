"""Where the time of a batch goes: linear layers by kind, attention, norms, embeddings, pooler, and Python.

A side is the masked dense model or the sparse one, plain or fused. Of a plain side, hooks time every module,
and a module's own time is without that of the timed modules in it. A fused encoder measures its parts itself;
what remains of its call is Python. All sides run once a round; a part's time is its median over the rounds.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bench.contention import Watch, load_average
from sparsebert.bench.cpu_ceilings import Ceilings, measure_ceilings
from sparsebert.bench.environment import Environment
from sparsebert.bench.operations import LINEARS, model_operations
from sparsebert.bench.providers.onednn import OneDnn, prepack_
from sparsebert.bench.providers.sparse import Sparse
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.runner import Settings, Step, describe
from sparsebert.fuse import fuse_
from sparsebert.nn.encoder_layers import NAMES, encoder_family, encoder_layers
from sparsebert.nn.fused_encoder import FusedEncoder
from sparsebert.nn.fused_model import FusedModel
from sparsebert.results import Record, stamp
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.laps import LAPS, recorded_laps

# In the order of a bar, from the largest to what remains.
PARTS = ("qkv", "output", "up", "down", "attention", "norm", "layout", "embeddings", "pooler", "python")
REMAINDER = "python"
DEFAULT = Settings()
# Seconds for the products, and for the bandwidths, of the ceilings at most.
CEILINGS_SECONDS = 1.5


def run(
    pruned: PrunedModel,
    environment: Environment,
    settings: Settings = DEFAULT,
    on_step: Step = lambda step: None,
    ceilings: Ceilings | None = None,
) -> list[Record]:
    """Profile the dense and the sparse model, plain and fused.

    Args:
        pruned: Model, ticket and batches.
        environment: Description of this machine, for the records.
        settings: Effort.
        on_step: Called with a description of each step.
        ceilings: Those of this CPU with the workload's threads; measured if None.

    Returns:
        A "profile" record for each side.

    Raises:
        ValueError: The device is not the CPU, or the model has no encoder of a known family.
    """
    if pruned.workload.device != "cpu":
        raise ValueError(f"a profile needs the device cpu, got {pruned.workload.device}")
    torch.set_num_threads(pruned.workload.threads)
    if ceilings is None:
        on_step("measuring the ceilings of this CPU")
        ceilings = measure_ceilings(pruned.workload.threads, min(CEILINGS_SECONDS, settings.budget))
    sides = {}
    for name, make in _sides(pruned).items():
        on_step(f"building {name}")
        sides[name] = Profiler(make(), pruned.workload.threads)
    on_step("profiling")
    watch = Watch.start()
    rounds = _rounds(sides, pruned, settings)
    busy = watch.stop().reasons(pruned.workload.threads)
    return [
        stamp(
            "profile",
            {
                "environment": environment.record(),
                "load": load_average(),
                "workload": pruned.workload.record(),
                "ticket": describe(pruned.ticket),
                "tolerance": pruned.tolerance,
                "side": name,
                "rounds": len(profiles),
                # One round covers all batches; the times are those of one batch.
                "parts_ms": {
                    part: statistics.median(profile[part] for profile in profiles)
                    * 1e3
                    / len(pruned.workload.shapes)
                    for part in PARTS
                },
                "operations": [
                    each.record() for each in model_operations(sides[name].model, pruned.workload)
                ],
                "ceilings": ceilings.record(),
                "busy": bool(busy),
                "busy_reasons": list(busy),
            },
        )
        for name, profiles in rounds.items()
    ]


def _sides(pruned: PrunedModel) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes the model of each side; the fused ones only where the native library works."""

    def dense(dtype: torch.dtype) -> nn.Module:
        return prepack_(_copy(pruned).to(dtype), pruned.tokens)

    def sparse(fuse: bool) -> nn.Module:
        return Sparse().convert(_copy(pruned), dataclasses.replace(pruned, fuse=fuse))

    dtype = getattr(torch, pruned.workload.dtype)
    sides: dict[str, Callable[[], nn.Module]] = {}
    if OneDnn().available() is None and dtype != torch.float64:
        sides["dense, oneDNN"] = lambda: dense(dtype)
        if pruned.tolerance != "fp32" and dtype == torch.float32:
            sides["dense, oneDNN bf16"] = lambda: dense(torch.bfloat16)
    else:
        sides["dense"] = lambda: _copy(pruned)
    sides["sparse"] = lambda: sparse(fuse=False)
    if native.available() and dtype in (torch.float32, torch.bfloat16):
        sides["dense, fused"] = lambda: fuse_(_copy(pruned), tolerance=pruned.tolerance)
        sides["sparse, fused"] = lambda: sparse(fuse=True)
    return sides


def _copy(pruned: PrunedModel) -> nn.Module:
    model: nn.Module = copy.deepcopy(pruned.model)
    return model.to(getattr(torch, pruned.workload.dtype))


def _rounds(
    sides: Mapping[str, Profiler], pruned: PrunedModel, settings: Settings
) -> dict[str, list[Mapping[str, float]]]:
    """Return the times of each side in each round."""
    rounds: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    for profiler in sides.values():
        profiler.run(pruned.batches)  # warm-up
    start, done = time.perf_counter(), 0
    while done < settings.max_rounds and (
        done < settings.min_rounds or time.perf_counter() - start < settings.budget
    ):
        for name, profiler in sides.items():
            rounds[name].append(profiler.run(pruned.batches))
        done += 1
    return rounds


class Profiler:
    """Times the parts of a model.

    Args:
        model: The model, which gets hooks.
        threads: CPU threads of the model.

    Raises:
        ValueError: The model has no encoder of a known family.
    """

    def __init__(self, model: nn.Module, threads: int) -> None:
        self.model = model
        self.threads = threads
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[_Open] = []
        for module, part in _parts(model):
            module.register_forward_pre_hook(self._starts(part))
            module.register_forward_hook(self._ends, always_call=True)

    @torch.inference_mode()
    def run(self, batches: Sequence[Mapping[str, Tensor]]) -> Mapping[str, float]:
        """Run the batches once, and return the seconds of each part."""
        self._seconds.clear()
        self._open.clear()
        if native.available():
            with recorded_laps() as laps:
                self._run(batches)
            for part, nanoseconds in zip(LAPS, laps.tolist(), strict=True):
                seconds = nanoseconds / 1e9 / self.threads
                self._seconds[part] += seconds
                self._seconds[REMAINDER] -= seconds
        else:
            self._run(batches)
        return {part: self._seconds[part] for part in PARTS}

    def _run(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        for batch in batches:
            self.model(**batch)

    def _starts(self, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._open.append(_Open(part, time.perf_counter()))

        return hook

    def _ends(self, module: nn.Module, args: Any, result: Any) -> None:
        ended = self._open.pop()
        seconds = time.perf_counter() - ended.start
        self._seconds[ended.part] += seconds - ended.inner
        if self._open:
            self._open[-1].inner += seconds


@dataclasses.dataclass
class _Open:
    """A part that is running: its start, and the seconds of the parts within it so far."""

    part: str
    start: float
    inner: float = 0.0


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules to time, and the part that each one's own time belongs to.

    Hooks inside a fused encoder, or around one that runs from the token ids on, would make its layers run one
    by one.
    """
    yield model, REMAINDER
    modules = list(model.modules())
    if any(isinstance(module, FusedEncoder | FusedModel) for module in modules):
        return
    encoders = [(module, family) for module in modules if (family := encoder_family(type(module)))]
    if not encoders:
        raise ValueError(f"a profile needs a {NAMES} model; {type(model).__name__} has no encoder")
    for encoder, family in encoders:
        for layer in encoder_layers(encoder, family):
            yield layer.attention, "attention"
            yield layer.activation, "up"
            yield from ((norm, "norm") for norm in layer.norms)
            for linear, part in zip(layer.linears, LINEARS, strict=True):
                if linear is not None:
                    yield linear, part
    for name, module in model.named_modules():
        part = name.rpartition(".")[2]
        if part in ("embeddings", "pooler"):
            yield module, part
