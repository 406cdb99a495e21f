"""``GraphRunner``: runs a model in one CUDA graph for each bucket of shapes."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebert.cuda_graphs.buckets import Buckets, Shape
from sparsebert.cuda_graphs.calls import Call, NoGraph, Signature
from sparsebert.cuda_graphs.capture import PlainRecorder, Recorder, Replay, is_capturing, recorder_for
from sparsebert.cuda_graphs.model_state import ModelState
from sparsebert.cuda_graphs.outputs import OutputDimensions, largest_error
from sparsebert.cuda_graphs.static_inputs import PaddedInputs, RaggedInputs, StaticInputs
from sparsebert.nn.packed_model import without_waiting
from sparsebert_kernels.errors import one_line

_Key = tuple[Shape, Signature]


@dataclass(frozen=True)
class _Bucket:
    """One captured call: its static inputs, its replay, and what its outputs count."""

    inputs: StaticInputs
    replay: Replay
    dimensions: OutputDimensions

    def run(self, call: Call) -> Any:
        self.inputs.fill(call)
        return self.dimensions.real_part(self.replay(), call.shape)


class _NoRoom(NoGraph):
    """The pool holds more bytes than it may."""


class GraphRunner:
    """Calls a model through CUDA graphs; see ``sparsebert.graphs``, which makes it.

    Attributes:
        model: The model.
        buckets: The shapes that batches are padded to.
        max_graphs: Most graphs that are kept.
        max_bytes: Most bytes of their memory pool; None for a quarter of the device's memory.
    """

    def __init__(self, model: nn.Module, buckets: Buckets, max_graphs: int, max_bytes: int | None) -> None:
        self.model = model
        self.buckets = buckets
        self.max_graphs = max_graphs
        self.max_bytes = max_bytes
        self._names = parameter_names(model)
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._dropped: set[_Key] = set()
        self._recorder: Recorder | None = None
        self.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what ``model(*args, **kwargs)`` returns, in tensors of its own."""
        # Inside another capture or a compiler, the model becomes a part of that graph.
        if torch.compiler.is_compiling() or is_capturing():
            return self.model(*args, **kwargs)
        try:
            with self._lock:
                return self._run(args, kwargs)
        except NoGraph as reason:
            self._warn_once(reason.kind, f"the model runs without a CUDA graph: {reason}", stacklevel=3)
        return self.model(*args, **kwargs)

    def __repr__(self) -> str:
        captured = ", ".join(f"{rows} x {length}" for rows, length in self.captured) or "none"
        return f"GraphRunner({type(self.model).__name__}, buckets: {self.buckets}; captured: {captured})"

    @property
    def captured(self) -> tuple[Shape, ...]:
        """Sequences and tokens of each (in a row: total tokens) of the graphs, least recently used first."""
        return tuple(shape for shape, _ in self._captured)

    @property
    def nbytes(self) -> int:
        """Bytes of the graphs' memory pool."""
        return 0 if self._recorder is None else self._recorder.nbytes

    def clear(self) -> None:
        """Drop all graphs and their memory; later calls capture them again."""
        with self._lock:
            if self._recorder is not None:
                self._recorder.finish()
            self._recorder = None
            self._captured: dict[_Key, _Bucket] = {}
            self._refused: dict[_Key, tuple[str, str]] = {}  # kind and message of the reason
            self._dimensions: dict[Signature, OutputDimensions] = {}
            self._state: ModelState | None = None

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = ModelState.of(self.model, self._state)
        self._follow(state)
        device = state.device
        if torch.is_autocast_enabled(device.type):
            raise NoGraph("autocast", "autocast is on; convert the model to the lower dtype instead")
        call = Call.read(self._names, args, kwargs, device)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors.values()):
            raise NoGraph("gradients", "an input requires gradients, which graphs cannot record")
        key = self._key(call)
        if key in self._refused:
            raise NoGraph(*self._refused[key])
        recorder = self._recorder_on(device)
        with torch.no_grad():
            if key not in self._captured:
                return self._first_call(key, call, device)
            self._captured[key] = bucket = self._captured.pop(key)  # now the most recently used one
            with recorder.in_order():
                return bucket.run(call)

    def _follow(self, state: ModelState) -> None:
        """Drop all graphs if the model has changed in a way that they do not follow."""
        change = None if self._state is None else state.change_since(self._state)
        if change is not None:
            message = f"{change} after the capture of CUDA graphs, which are captured again"
            self._warn_once(change, message, stacklevel=5)
            self.clear()

    def _key(self, call: Call) -> _Key:
        if call.signature.is_ragged:
            return self._ragged_key(call)
        shape = self.buckets.shape_for(*call.shape)
        if shape is None:
            rows, length = call.shape
            raise NoGraph(
                "buckets", f"a batch of {rows} x {length} is larger than each bucket: {self.buckets}"
            )
        return shape, call.signature if shape == call.shape else call.signature.with_mask()

    def _ragged_key(self, call: Call) -> _Key:
        shape = self.buckets.row_for(*call.shape)
        if shape is None:
            sequences, tokens = call.shape
            raise NoGraph(
                "buckets",
                f"a row of {tokens} tokens in {sequences} sequences is larger than each bucket: "
                f"{self.buckets}",
            )
        longest = self.buckets.rounded_length(call.signature.longest)
        return shape, call.signature.with_longest(longest)

    def _recorder_on(self, device: torch.device) -> Recorder:
        if self._recorder is None:
            self._recorder = recorder_for(device)
            if isinstance(self._recorder, PlainRecorder):
                message = (
                    f"{device} has no CUDA graphs: batches are padded to buckets, and run without a graph"
                )
                self._warn_once("no graphs", message, stacklevel=5)
        return self._recorder

    def _first_call(self, key: _Key, call: Call, device: torch.device) -> Any:
        """Capture the graph of a bucket, and compare its first outputs with the model's."""
        if key in self._dropped:
            message = (
                f"bucket {_name(key)} is captured again: these batches need more than max_graphs="
                f"{self.max_graphs} graphs, or more memory than there is"
            )
            self._warn_once("again", message, stacklevel=5)
        while len(self._captured) >= self.max_graphs:
            self._drop([next(iter(self._captured))])
        try:
            bucket = self._capture(key, device)
            outputs = self._compared(bucket, key, call)
        except torch.OutOfMemoryError:
            message = f"bucket {_name(key)} does not fit into the memory of {device}"
            raise self._refusal(key, f"memory of {key}", message) from None
        except NoGraph as reason:
            raise self._refusal(key, reason.kind, str(reason)) from None
        # The first call may have changed how layers hold their weights.
        state, others = ModelState.of(self.model), list(self._captured)
        self._captured[key] = bucket
        if self._state is not None and state.change_since(self._state):
            self._drop(others)
        self._state = state
        return outputs

    def _refusal(self, key: _Key, kind: str, message: str) -> NoGraph:
        """Return the reason to run a bucket without a graph from now on."""
        self._refused[key] = (kind, message)
        if not self._captured and self._recorder is not None:
            self._recorder.reset()
        return NoGraph(kind, message)

    def _compared(self, bucket: _Bucket, key: _Key, call: Call) -> Any:
        """Return the outputs of a graph if they are those of the model."""
        with self._recorder.in_order():  # type: ignore[union-attr]
            outputs = bucket.run(call)
        with torch.inference_mode():
            exact = self.model(**call.tensors, **dict(call.signature.options))
        error, limit = largest_error(outputs, exact)
        if not error <= limit:
            raise NoGraph(
                f"outputs of {key}",
                f"the outputs of bucket {_name(key)} differ from the model's by {error:.2g}: it reads "
                "padding that attention_mask excludes",
            )
        return outputs

    def _capture(self, key: _Key, device: torch.device) -> _Bucket:
        """Capture the graph of a bucket; if there is no room beside the others, without them."""
        try:
            return self._capture_beside_others(key, device)
        except (_NoRoom, torch.OutOfMemoryError):
            if not self._captured:
                raise
        self._drop(list(self._captured))
        return self._capture_beside_others(key, device)

    def _capture_beside_others(self, key: _Key, device: torch.device) -> _Bucket:
        shape, signature = key
        recorder = self._recorder_on(device)
        pad_id = getattr(getattr(self.model, "config", None), "pad_token_id", None) or 0
        form = RaggedInputs if signature.is_ragged else PaddedInputs

        def run(inputs: StaticInputs) -> Any:
            # The warm-up takes the path of the capture, in which nothing may wait for the device.
            with torch.inference_mode(), without_waiting():
                return self.model(**inputs.arguments)

        try:
            if signature not in self._dimensions:
                self._dimensions[signature] = OutputDimensions.probe(
                    lambda probe: run(form(signature, probe, device, pad_id))
                )
            inputs = form(signature, shape, device, pad_id)
            replay = recorder.capture(lambda: run(inputs))
        except (NoGraph, torch.OutOfMemoryError):
            raise
        except Exception as error:  # kernels, libraries and the driver may fail in any way
            message = f"bucket {_name(key)} cannot be captured: {one_line(error)}"
            raise NoGraph(f"capture of {key}", message) from None
        limit = recorder.max_bytes if self.max_bytes is None else self.max_bytes
        if limit is not None and (held := recorder.nbytes) > limit:
            message = f"with bucket {_name(key)}, graphs hold {held:,} bytes; max_bytes={limit:,}"
            raise _NoRoom(f"memory of {key}", message)
        return _Bucket(inputs, replay, self._dimensions[signature])

    def _drop(self, keys: Iterable[_Key]) -> None:
        if self._recorder is None:
            return
        self._recorder.finish()
        for key in keys:
            self._dropped.add(key)
            del self._captured[key]
        if not self._captured:
            self._recorder.reset()

    def _warn_once(self, kind: str, message: str, stacklevel: int) -> None:
        """Warn, once for each kind of reason."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=stacklevel)


def parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a model's forward method, compiled or not."""
    forward = getattr(model, "_orig_mod", model).forward
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in inspect.signature(forward).parameters.values() if each.kind in kinds)


def _name(key: _Key) -> str:
    (rows, length), _ = key
    return f"{rows} x {length}"
