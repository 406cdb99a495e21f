"""The native CPU library: its loading on first use, and calls to it.

The library has a C interface for ctypes. It needs no Python or torch headers, so one build works with every
version of both. It is linked without OpenMP on purpose: its OpenMP symbols resolve from the libgomp that
torch has loaded, so both share one thread pool and ``torch.set_num_threads`` applies. Some builds of torch,
such as the wheels for Arm, load libgomp for torch alone. This module therefore makes libgomp visible to all
libraries before it loads the native library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..formats import ElementSparse, PackedWeight, RowPanelSparse, VectorInt8, VectorSparse
from ..memory import readable

ABI_VERSION = 6
LIBRARY = Path(__file__).with_name("_native.so")
# Environment variables, read when the library is loaded: the path of another library, and an instruction set
# to use instead of the best.
LIBRARY_VARIABLE = "SPARSEBERT_NATIVE"
INSTRUCTION_SET_VARIABLE = "SPARSEBERT_ISA"

# Instruction sets with products of bfloat16.
BF16_INSTRUCTION_SETS = ("amx", "amx_emulated", "avx512_bf16")

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_VALUE_DTYPES = {**_DTYPES, torch.int8: 2}
_FORMATS = {ElementSparse.name: 0, VectorSparse.name: 1, RowPanelSparse.name: 3}
_DENSE_PANEL = 2  # of `encoder_parts.DensePanel`, which only whole encoders use
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}
# The structs sb_call and sb_weight of src/native.h, which asserts their sizes and offsets.
_CALL = struct.Struct("=Qqqiiii")
_WEIGHT = struct.Struct("=qqiiiiiiQQQQQQQQQ")
WEIGHT_BYTES = _WEIGHT.size
_INT8_WEIGHT = struct.Struct("=qqiiQQQQQQQQ")  # sb_int8_weight of src/int8_call.h
MAX_WEIGHTS = 8  # of one call
CPU_LACKS_IT = "the CPU lacks it"


class NativeLibraryMissing(ImportError):
    """The native library is missing or unusable; the message says why."""


class _SymbolHome(ctypes.Structure):
    """``Dl_info``: the result of ``dladdr``."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _share_symbols(user: Path, symbol: str) -> None:
    """Make the library that defines ``symbol`` for the library ``user`` visible to libraries loaded later.

    Raises:
        OSError: ``user`` cannot be loaded.
        AttributeError: Neither ``user`` nor a library that it is linked to has the symbol.
    """
    address = ctypes.cast(getattr(ctypes.CDLL(str(user)), symbol), ctypes.c_void_p)
    home = _SymbolHome()
    if ctypes.CDLL(None).dladdr(address, ctypes.byref(home)):
        ctypes.CDLL(os.fsdecode(home.path), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library. Raises NativeLibraryMissing if there is none."""
    path = Path(os.environ.get(LIBRARY_VARIABLE) or LIBRARY)
    if not path.exists():
        raise NativeLibraryMissing("not built (a C++ compiler was missing when sparsebert was installed)")
    # Other builds of torch may not need this; if symbols are missing, the load below fails with a message.
    with contextlib.suppress(OSError, AttributeError):
        _share_symbols(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so", "GOMP_parallel")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryMissing(f"cannot be loaded: {error}") from None
    version = loaded.sb_abi_version()
    if version != ABI_VERSION:
        raise NativeLibraryMissing(
            f"has interface version {version}, this package needs {ABI_VERSION}: rebuild it"
        )
    pointer = ctypes.c_void_p
    loaded.sb_instruction_set.restype = loaded.sb_chosen.restype = ctypes.c_char_p
    loaded.sb_extension.restype = loaded.sb_objects.restype = ctypes.c_char_p
    loaded.sb_extension.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int32)]
    loaded.sb_choose.argtypes = [ctypes.c_char_p]
    loaded.sb_computes.argtypes = [ctypes.c_int32, ctypes.c_int32]
    loaded.sb_linear.argtypes = [ctypes.c_char_p]
    loaded.sb_encoder.argtypes = loaded.sb_pool.argtypes = [ctypes.c_char_p]
    loaded.sb_int8_unit.restype = loaded.sb_int8_chosen.restype = ctypes.c_char_p
    loaded.sb_int8_linear.argtypes = loaded.sb_choose_int8.argtypes = [ctypes.c_char_p]
    loaded.sb_has_engine.argtypes = [ctypes.c_int32]
    loaded.sb_values_gradient.argtypes = [
        ctypes.c_char_p, pointer, pointer, ctypes.c_int32, ctypes.c_int64, pointer, ctypes.c_int,
    ]  # fmt: skip
    loaded.sb_count_scores.argtypes = [pointer, ctypes.c_int64, ctypes.c_int32, pointer]
    loaded.sb_above.argtypes = [pointer, ctypes.c_int64, ctypes.c_float, pointer, pointer]
    loaded.sb_count_scores.restype = loaded.sb_above.restype = None
    name = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if name and loaded.sb_choose(name.encode()) != 0:
        names = ", ".join(_supported(loaded))
        raise NativeLibraryMissing(
            f"{INSTRUCTION_SET_VARIABLE}={name!r} is not supported here; supported: {names}"
        )
    return loaded


def _supported(library: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while (name := library.sb_instruction_set(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


@functools.cache
def why_unavailable() -> str | None:
    """Return None if the native library works, else the reason in a few words."""
    try:
        library()
    except NativeLibraryMissing as error:
        return str(error)
    return None


@functools.cache
def warn_if_unavailable() -> None:
    """Warn, once in a process, that sparse layers run without the native library."""
    if reason := why_unavailable():
        warnings.warn(
            f"the compiled CPU kernels are missing ({reason}): sparse layers run in plain torch, which is "
            "slower than dense layers; `sparsebert env` says how to get them",
            RuntimeWarning,
            stacklevel=2,
        )


def available() -> bool:
    return why_unavailable() is None


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that the library was built for and this machine supports, best first."""
    return _supported(library()) if available() else ()


def instruction_set() -> str:
    """Return the instruction set in use, or "none" without the library."""
    return library().sb_chosen().decode() if available() else "none"


def has_bf16_products() -> bool:
    """Return whether the instruction set in use multiplies bfloat16 by bfloat16."""
    return instruction_set() in BF16_INSTRUCTION_SETS


def use_instruction_set(name: str) -> None:
    """Use an instruction set from now on, in this process.

    ``instruction_sets`` lists them. ``amx_emulated``, which it does not, computes the AMX kernels in plain
    C++, slowly, for tests on machines without AMX.

    Raises:
        ValueError: The instruction set is unknown or not supported here.
    """
    if not available() or library().sb_choose(name.encode()) != 0:
        raise ValueError(
            f"instruction set {name!r} is not supported here; supported: {', '.join(instruction_sets())}"
        )
    _computes.cache_clear()
    _has_engine.cache_clear()


def has_engine(engine: int) -> bool:
    """Return whether the instruction set in use has an engine for whole encoders (``sb_engine``)."""
    return available() and _has_engine(engine)


@functools.cache
def _has_engine(engine: int) -> bool:
    return bool(library().sb_has_engine(engine))


def extensions() -> dict[str, str | None]:
    """Return the extensions of the CPU that kernels use: name to None, or to the reason why it is unusable.

    AMX needs a permission of the operating system, which this function requests for the process.
    """
    reasons: dict[str, str | None] = {}
    state = ctypes.c_int32()
    while available() and (name := library().sb_extension(len(reasons), ctypes.byref(state))) is not None:
        reasons[name.decode()] = _why_unusable(state.value)
    return reasons


def _why_unusable(state: int) -> str | None:
    """Return the reason for a ``State`` of src/extensions.cpp, None for a usable extension."""
    if state < 0:
        return f"the operating system refuses the permission ({os.strerror(-state)})"
    return (None, CPU_LACKS_IT, "the operating system does not enable it")[state]


def built_objects() -> tuple[str, ...]:
    """Return the names of the objects that the library was built from, one for each instruction set."""
    return tuple(library().sb_objects().decode().split()) if available() else ()


class _Pool:
    """The threads of libgomp, which do not survive a fork: in the child, parallel work would wait forever."""

    used = False
    lost = False


def _after_fork_in_child() -> None:
    _Pool.lost = _Pool.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def threads() -> int:
    """Return how many threads compute: as many as torch uses; one in a process forked from a threaded one."""
    count = torch.get_num_threads()
    if count > 1 and _Pool.lost:
        _warn_of_fork()
        return 1
    _Pool.used |= count > 1
    return count


@functools.cache
def _warn_of_fork() -> None:
    warnings.warn(
        "this process was forked from one that computed on several threads, which it does not have: the "
        "native kernels use one thread; call torch.set_num_threads(1) here, or start it by spawn",
        RuntimeWarning,
        stacklevel=3,
    )


def supports(format: str, dtype: torch.dtype, x: Tensor) -> bool:
    """Return whether a native kernel computes x [..., in] with a weight of this format and value dtype."""
    if format not in (*_FORMATS, VectorInt8.name) or x.dtype not in _DTYPES:
        return False
    if not x.is_cpu or why_unavailable() is not None:
        return False
    # Every instruction set computes the other formats.
    return format != RowPanelSparse.name or _computes(format, dtype)


@functools.cache
def _computes(format: str, dtype: torch.dtype) -> bool:
    """Return whether the instruction set in use computes weights of this format and value dtype."""
    return bool(library().sb_computes(_FORMATS[format], _VALUE_DTYPES[dtype]))


def same_call(first: Any, other: Any) -> bool:
    """Return whether two weights can share one call: same format, dtype, width and blocks."""
    if isinstance(first, VectorInt8):
        calibrated = first.limit.numel() or getattr(other, "limit", first.limit).numel()
        return first.name == other.name and first.shape[1] == other.shape[1] and not calibrated
    return (
        first.name == other.name
        and first.values.dtype == other.values.dtype
        and first.shape[1] == other.shape[1]
        and first.block_columns == other.block_columns
        and getattr(first, "vector_rows", 0) == getattr(other, "vector_rows", 0)
    )


def linear(
    x: Tensor, packed: Sequence[PackedWeight], biases: Sequence[Tensor | None], activation: str
) -> list[Tensor] | None:
    """Return ``activation(x @ W.T + bias)`` for up to MAX_WEIGHTS weights; see ``ops.linear``.

    Args:
        x: [..., in], which the library ``supports`` with the first weight.
        packed: The weights, which share one call (``same_call``).
        biases: One bias, or None, per weight.
        activation: Name of the activation.

    Returns:
        One result per weight; None, with nothing computed, if the kernels lack the activation, or if a weight
        or bias does not fit x in shape or device.

    Raises:
        ValueError: The weights cannot share one call.
    """
    *leading, in_features = x.shape or (0,)
    if activation not in ACTIVATIONS:
        return None
    x = readable(x)
    if x.is_contiguous():
        rows, tokens, stride = x, math.prod(leading), in_features
    else:
        rows = x.reshape(-1, in_features)
        tokens, (stride, step) = rows.size(0), rows.stride()
        if step != 1 or (tokens > 1 and stride < in_features):
            rows, stride = rows.contiguous(), in_features
    outputs = []
    int8 = packed[0].name == VectorInt8.name
    call = _CALL.pack(
        rows.data_ptr(),
        tokens,
        stride,
        _DTYPES[x.dtype],
        ACTIVATIONS[activation],
        threads(),
        len(packed),
    )
    converted = []  # keeps copies alive until the call has returned
    for weight, bias in zip(packed, biases, strict=True):
        out_features, width = weight.shape
        if width != in_features or not weight.values.is_cpu:
            return None
        if bias is not None:
            if bias.shape != (out_features,) or not bias.is_cpu:
                return None
            if bias.dtype not in _DTYPES or not bias.is_contiguous():
                bias = bias.float().contiguous()
            bias = readable(bias)
            converted.append(bias)
        if (values := readable(weight.values.contiguous())) is not weight.values:
            weight = weight.replace(values=values)
            converted.append(values)
        y = x.new_empty((*leading, out_features))
        call += (describe_int8 if int8 else describe)(weight, bias, y)
        outputs.append(y)
    if (library().sb_int8_linear if int8 else library().sb_linear)(call) != 0:
        raise ValueError(f"weights cannot share one call: {', '.join(map(repr, packed))}")
    return outputs


def values_gradient(gradient: Tensor, x: Tensor, packed: PackedWeight) -> Tensor:
    """Return dL/dvalues in the layout and dtype of ``packed.values`` for gradient [..., out], x [..., in]."""
    rows = readable(x.reshape(-1, packed.shape[1]).contiguous())
    gradient = readable(gradient.reshape(-1, packed.shape[0]).contiguous())
    values = torch.zeros(packed.values.shape, dtype=torch.float32)
    code = library().sb_values_gradient(
        describe(packed, None, None),
        gradient.data_ptr(),
        rows.data_ptr(),
        _DTYPES[x.dtype],
        rows.shape[0],
        values.data_ptr(),
        threads(),
    )
    if code != 0:
        raise ValueError(
            f"the gradient of {packed!r} cannot be computed on {torch.get_num_threads()} threads"
        )
    return values.to(packed.dtype)


def count_scores(scores: Tensor, upper: int, bins: int) -> Tensor:
    """See ``sparsebert_kernels.radix_select.count``; ``upper`` = -1 stands for None."""
    scores = readable(scores)
    counts = torch.zeros(bins, dtype=torch.int64)
    library().sb_count_scores(scores.data_ptr(), scores.numel(), upper, counts.data_ptr())
    return counts


def above(scores: Tensor, threshold: float, out: Tensor) -> tuple[int, int]:
    """See ``sparsebert_kernels.radix_select.above``."""
    scores = readable(scores)
    counts = (ctypes.c_int64 * 2)()
    library().sb_above(scores.data_ptr(), scores.numel(), threshold, out.data_ptr(), counts)
    return counts[0], counts[1]


def describe(packed: Any, bias: Tensor | None, y: Tensor | None) -> bytes:
    """Return the bytes of a struct sb_weight."""
    vector_rows, columns, starts, scales = 0, 0, 0, 0
    index = 0, 0, 0
    if isinstance(packed, ElementSparse):
        index = packed.rows.data_ptr(), packed.groups.data_ptr(), packed.blocks.data_ptr()
    elif isinstance(packed, VectorSparse):
        vector_rows, starts = packed.vector_rows, packed.starts.data_ptr()
    elif isinstance(packed, RowPanelSparse):
        starts, scales = packed.starts.data_ptr(), packed.scales.data_ptr()
    if packed.name in _FORMATS:
        columns = packed.columns.data_ptr()
    return _WEIGHT.pack(
        *packed.shape,
        _FORMATS.get(packed.name, _DENSE_PANEL),
        _VALUE_DTYPES[packed.values.dtype],
        packed.block_rows,
        packed.block_columns,
        vector_rows,
        0 if bias is None else _DTYPES[bias.dtype],
        packed.values.data_ptr(),
        columns,
        *index,
        starts,
        0 if bias is None else bias.data_ptr(),
        0 if y is None else y.data_ptr(),
        scales,
    )


def describe_int8(packed: Any, bias: Tensor | None, y: Tensor) -> bytes:
    """Return the bytes of a struct sb_int8_weight."""
    return _INT8_WEIGHT.pack(
        *packed.shape,
        packed.vector_rows,
        0 if bias is None else _DTYPES[bias.dtype],
        packed.values.data_ptr(),
        packed.columns.data_ptr(),
        packed.starts.data_ptr(),
        packed.scales.data_ptr(),
        packed.sums.data_ptr(),
        packed.limit.data_ptr() if packed.limit.numel() else 0,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
    )
