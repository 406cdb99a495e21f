"""The whole native library built for 64-bit Arm; its linear layers and encoders under an emulator."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import formats, ops
from sparsebert_kernels.cpu import build_native, fp16, native
from sparsebert_kernels.cpu.encoder import NativeEncoder
from sparsebert_kernels.cpu.encoder_parts import HeadGroup
from tests.ops import encoder_problem
from tests.ops import test_paired_encoder as paired_problem
from tests.ops.problem import Problem, assert_as_good_as_torch

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = next((tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"no {MISSING}"),
]
LINEAR, INT8_LINEAR, FP16_LINEAR, ENCODER = range(4)
# Where the system libraries of the emulated machine are.
SYSTEM = "/usr/aarch64-linux-gnu"


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that replays calls, linked to the library for Arm."""
    folder = tmp_path_factory.mktemp("aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", COMPILER)
        patch.setenv(build_native.REQUIRE_VARIABLE, "1")
        patch.setattr(build_native, "OPTIMIZED_FLAGS", ("-O1",))  # compiles in a third of the time
        library = build_native.build(folder, folder / "cache", log=lambda line: None)
    program = folder / "replay"
    source = Path(__file__).with_name("replay.cpp")
    command = [COMPILER, "-std=c++17", "-O1", "-Wall", str(source), str(library), "-fopenmp"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}", "-o", str(program)], check=True)
    return program


class Recorder:
    """Stands for the library: keeps the bytes of calls instead of computing them."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    def sb_linear(self, call: bytes) -> int:
        self.calls.append((LINEAR, call))
        return 0

    def sb_int8_linear(self, call: bytes) -> int:
        self.calls.append((INT8_LINEAR, call))
        return 0

    def sb_fp16_linear(self, call: bytes, emulated: int) -> int:
        self.calls.append((FP16_LINEAR, call))
        return 0

    def sb_encoder(self, call: bytes) -> int:
        self.calls.append((ENCODER, call))
        return 0


def recorded(
    compute: Callable[[Tensor, Any, Tensor | None], Tensor], x: Tensor, packed: Any, bias: Tensor | None
) -> tuple[bytes, Tensor]:
    """The call of a layer with its buffers, in the form of replay.cpp, and the tensor of its output."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: recorder)
        y = compute(x, packed, bias)
    ((function, call),) = recorder.calls
    tensors = (x, *packed.tensors().values(), bias, y)
    known = {tensor.data_ptr(): tensor for tensor in tensors if tensor is not None}
    buffers = []
    for place in range(0, len(call) - 7, 8):
        (address,) = struct.unpack_from("=Q", call, place)
        if address in known and known[address].numel():
            content = known[address].contiguous().view(torch.uint8).flatten().numpy().tobytes()
            buffers.append(struct.pack("=qqq", len(content), place, known[address] is y) + content)
        elif address > 2**45:  # no pair of numbers, but memory that the call alone uses
            buffers.append(struct.pack("=qqq", 64, place, 0) + bytes(64))
    return struct.pack("=qqq", function, len(call), len(buffers)) + call + b"".join(buffers), y


def run(replay: Path, folder: Path, calls: list[tuple[bytes, Tensor]]) -> tuple[str, list[Tensor]]:
    """Replay calls; return what the program says of the library, and the outputs."""
    (folder / "calls").write_bytes(b"".join(call for call, _ in calls))
    command = [EMULATOR, "-L", SYSTEM, str(replay), str(folder / "calls"), str(folder / "outputs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    content = (folder / "outputs").read_bytes()
    outputs = []
    for _, y in calls:
        part, content = content[: y.nbytes], content[y.nbytes :]
        outputs.append(torch.frombuffer(bytearray(part), dtype=y.dtype).view(y.shape))
    assert not content
    return done.stdout, outputs


def recorded_encoder(encoder: NativeEncoder, x: Tensor, mask: Tensor) -> tuple[bytes, Tensor]:
    """The call of an encoder with its buffers, of which the first are its layers, and its output."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: recorder)
        y = encoder(x, mask)
    ((function, call),) = recorder.calls
    layers = encoder._description.raw
    known = {tensor.data_ptr(): tensor for tensor in (*encoder._alive, x, mask, y) if tensor.numel()}
    place = call.index(struct.pack("=Q", ctypes.addressof(encoder._description)))
    buffers = [struct.pack("=qqq", len(layers), place, 0) + layers]
    words = call + layers
    for place in range(0, len(words) - 7, 8):
        (address,) = struct.unpack_from("=Q", words, place)
        if address in known:
            content = known[address].contiguous().view(torch.uint8).flatten().numpy().tobytes()
            buffers.append(struct.pack("=qqq", len(content), place, known[address] is y) + content)
    return struct.pack("=qqq", function, len(call), len(buffers)) + call + b"".join(buffers), y


PROBLEMS = [
    Problem(M=33, N=45, K=300),
    Problem(M=7, N=45, K=300, activation="gelu"),
    Problem(dtype=torch.bfloat16, activation="relu"),
    Problem(x_dtype=torch.bfloat16),
    Problem(format="vector", options={"vector_rows": 4}),
    Problem(M=100, format="vector", options={"vector_rows": 8}, activation="gelu_tanh"),
    Problem(format="vector", options={"vector_rows": 2}, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_linear_layers_are_as_good_as_torch(
    replay: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def compute(activation: str) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
        def linear(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
            outputs = native.linear(x, (packed,), (bias,), activation)
            assert outputs is not None
            return outputs[0]

        return linear

    calls = [
        recorded(compute(problem.activation), problem.x(), problem.packed(), problem.bias_vector())
        for problem in PROBLEMS
    ]
    said, outputs = run(replay, tmp_path, calls)
    assert f"version {native.ABI_VERSION}\nchosen neon_bf16\nint8 neon_dotprod\n" in said
    assert "extension neon 0\n" in said
    assert "extension neon_bf16 0\n" in said
    for problem, answer in zip(PROBLEMS, outputs, strict=True):
        dtype = problem.x_dtype or problem.dtype
        exact = problem.torch_linear(torch.float64)
        assert_as_good_as_torch(answer, problem.torch_linear(dtype), exact)


def test_int8_layers_are_those_of_the_reference(replay: Path, tmp_path: Path) -> None:
    problem = Problem(M=33, N=45, K=300, format="vector", density=0.3)
    packed = formats.pack(problem.weight(), problem.mask(), format="vector_int8", vector_rows=4)

    def linear(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        outputs = native.linear(x, (packed,), (bias,), "none")
        assert outputs is not None
        return outputs[0]

    call = recorded(linear, problem.x(), packed, problem.bias_vector())
    _, (answer,) = run(replay, tmp_path, [call])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "supports", lambda *arguments: False)
        expected = ops.linear(problem.x(), packed, problem.bias_vector())
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


MODERN = {"joint": True, "pre_norm": True, "gated": True, "rotary": True, "window": 6}


@pytest.mark.parametrize("threads", [1, 2])
def test_encoders_in_fp32_are_as_good_as_torch(
    replay: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(3)
    calls, exact = [], []
    for problem in (
        encoder_problem.Problem(),
        encoder_problem.Problem(**MODERN),
        encoder_problem.Problem(reach=5),
    ):
        layers, dense = problem.layers()
        x, mask = problem.batch()
        calls.append(recorded_encoder(NativeEncoder(layers), x, mask))
        exact.append(encoder_problem.reference(layers, dense, x, mask, torch.float64))
    for answer, expected in zip(run(replay, tmp_path, calls)[1], exact, strict=True):
        assert (answer - expected).abs().max() < 1e-4


@pytest.mark.parametrize("threads", [1, 2])
def test_encoders_in_bf16_are_as_good_as_torch(
    replay: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(3)
    blocks = ((16, 1), (64, 2), (32, 32), (16, 8), (32, 1), (64, 16))
    calls, exact, limits = [], [], []
    for changes in ({}, {"blocks": blocks}, {"reach": 5}, {**MODERN, "heads": (HeadGroup(2, 64, 64),)}):
        problem = paired_problem.Problem(**changes)  # type: ignore[arg-type]
        layers, dense = problem.layers()
        x, mask = problem.batch()
        for dtype in (torch.float32, torch.bfloat16):
            rounded = x.to(dtype)
            calls.append(recorded_encoder(NativeEncoder(layers, torch.bfloat16), rounded, mask))
            exact.append(encoder_problem.reference(layers, dense, rounded, mask, torch.float64))
            plain = encoder_problem.reference(layers, dense, rounded, mask, torch.bfloat16)
            limits.append(1.3 * (plain - exact[-1]).norm())
    for answer, expected, limit in zip(run(replay, tmp_path, calls)[1], exact, limits, strict=True):
        assert (answer - expected).norm() <= limit


def test_encoders_with_int8_weights(replay: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers, dense = paired_problem.Problem().layers()
    x, mask = paired_problem.Problem().batch()
    exact = encoder_problem.reference(layers, dense, x, mask, torch.float64)
    layers = [
        replace(
            layer,
            weights=[
                formats.RowPanelSparse.from_dense(each, block=(32, 4), dtype=torch.int8) for each in weights
            ],
        )
        for layer, weights in zip(layers, dense, strict=True)
    ]
    call = recorded_encoder(NativeEncoder(layers, torch.bfloat16), x, mask)
    _, (answer,) = run(replay, tmp_path, [call])
    assert (answer - exact).norm() < 0.03 * exact.norm()


def test_fp16_layers_have_the_bits_of_this_machine_s(replay: Path, tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("no native library")
    problem = Problem(M=33, N=45, K=300)
    packed = formats.pack(problem.weight(), problem.mask(), format="element_fp16")
    assert isinstance(packed, formats.ElementFp16)

    def linear(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        answer = fp16.linear(x, packed, bias, "none")
        assert answer is not None
        return answer[0]

    call = recorded(linear, problem.x(), packed, problem.bias_vector())
    _, (answer,) = run(replay, tmp_path, [call])
    with fp16.emulation():
        assert torch.equal(answer, ops.linear(problem.x(), packed, problem.bias_vector()))
