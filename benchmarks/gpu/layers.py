"""Single layers on a GPU: packed panels, masked and bitmap weights against cuBLAS and other kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu import baselines
from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Device, Work
from benchmarks.random_mask import random_mask
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels import formats, ops
from sparsebert_kernels.formats.transpose import transposed_index
from sparsebert_kernels.masked import masked_linear, pack_mask

# Total size of the copies for a cold measurement, in L2 caches.
TIMES_L2 = 3
MAX_COPIES = 24


class Problem:
    """A layer: x [M, K], weight [N, K] with zeros outside the mask, bias [N], upstream gradient [M, N]."""

    def __init__(
        self, device: Device, shape: Sequence[int], tokens: int, block: Sequence[int], sparsity: float
    ) -> None:
        self.device, self.tokens, self.block, self.sparsity = device, tokens, (block[0], block[1]), sparsity
        self.out_features, self.in_features = shape
        self.generator = torch.Generator(device.device).manual_seed(0)
        self.mask = random_mask((shape[0], shape[1]), self.block, sparsity, self.generator)
        self.weight = torch.where(self.mask, self._normal(*shape) * self.in_features**-0.5, 0)
        self.bias = self._normal(self.out_features)
        self.x = self._normal(tokens, self.in_features)
        self.upstream = self._normal(tokens, self.out_features)

    def _normal(self, *shape: int) -> Tensor:
        device = self.device
        drawn = torch.randn(shape, generator=self.generator, device=device.device, dtype=torch.float32)
        return drawn.to(device.dtype)

    def pack(self) -> Any:
        return formats.pack(self.weight, self.mask, format="panel", block_size=self.block)

    def exact(self, mode: str) -> list[Tensor]:
        """Return the expected float64 outputs: y, or dL/dx, dL/dW at kept weights and dL/dbias."""
        x, weight, upstream = self.x.double(), self.weight.double(), self.upstream.double()
        if mode == "forward":
            return [functional.linear(x, weight, self.bias.double())]
        gradient = torch.where(self.mask, upstream.t() @ x, 0)
        return [upstream @ weight, gradient, upstream.sum(0)]

    def copies(self) -> int:
        """Return the number of sets of tensors that exceeds the L2 cache."""
        element = self.x.element_size()
        size = element * (self.x.numel() + self.upstream.numel() + self.weight.numel())
        wanted = TIMES_L2 * self.device.record()["l2_bytes"] / size
        return max(2, min(MAX_COPIES, int(wanted) + 1))

    def useful_flops(self, stored: int, mode: str) -> int:
        """Return the FLOP on ``stored`` weights."""
        return 2 * self.tokens * stored * {"forward": 1, "backward": 2, "step": 3}[mode]

    def moved_bytes(self, weight_bytes: int, mode: str) -> int:
        """Return the least bytes to read and write: activations, gradients and the weight."""
        element = self.x.element_size()
        x, y = element * self.x.numel(), element * self.upstream.numel()
        forward, backward = x + y + weight_bytes, 2 * x + y + 2 * weight_bytes
        return {"forward": forward, "backward": backward, "step": forward + backward}[mode]


def measure_layer(
    device: Device,
    *,
    shape: Sequence[int],
    tokens: int,
    block: Sequence[int],
    sparsity: float,
    mode: str = "forward",
    cold: bool = False,
) -> dict[str, Any]:
    """Measure the packed layer against F.linear on the masked weight, and other block-sparse kernels."""
    problem = Problem(device, shape, tokens, block, sparsity)
    packed = problem.pack()
    copies = problem.copies() if cold else 1
    sides = {
        "cublas": Side(_dense(problem, mode, copies), _dense_answers(problem, mode), required=True),
        "panel": Side(_packed(problem, packed, mode, copies), _packed_answers(packed, mode), required=True),
    }
    if mode == "forward" and not cold and block[0] == block[1]:
        sides |= baselines.block_sparse(problem)
    fields = compare(device, sides, problem.exact(mode), baseline="cublas")
    stored = int(packed.values.numel())
    return {
        **fields,
        **_rates(fields, problem, mode, "panel", stored, packed.nbytes),
        "density": float(problem.mask.float().mean()),
        "configuration": _configuration(packed, problem),
    }


def measure_activation(
    device: Device, *, shape: Sequence[int], tokens: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure the packed layer with each activation in its epilogue, against cuBLAS with GELU in a kernel.

    "panel gelu" computes as the package does in this dtype, "panel gelu erf" exactly.
    """
    from sparsebert_kernels.cuda import panel_forward

    problem = Problem(device, shape, tokens, block, sparsity)
    packed = problem.pack()
    (plain,) = problem.exact("forward")
    exact, tanh = functional.gelu(plain), functional.gelu(plain, approximate="tanh")

    def fused(activation: str) -> Work:
        return lambda: panel_forward.linear(problem.x, packed, problem.bias, activation)

    def side(activation: str, answers: Tensor) -> Side:
        return Side(lambda: torch.inference_mode()(fused(activation)), exact=[answers], required=True)

    others = baselines.any_sparsity(problem)
    sides = {
        "cublas + gelu": others["cublas + gelu"],
        "cublas": Side(_dense(problem, "forward", 1), exact=[plain]),
        "torch.compile + gelu": others["torch.compile + gelu"],
        "panel": side("none", plain),
        "panel gelu": side("gelu", exact),
        "panel gelu erf": side("gelu_erf", exact),
        "panel gelu tanh": side("gelu_tanh", tanh),
    }
    fields = compare(device, sides, [exact], baseline="cublas + gelu")
    return {**fields, "side": "panel gelu", "configuration": _configuration(packed, problem)}


def measure_dense(device: Device, *, shape: Sequence[int], tokens: int) -> dict[str, Any]:
    """Measure the baselines that do not depend on the sparsity: torch.compile with fused GELU, and 2:4."""
    problem = Problem(device, shape, tokens, (shape[0], shape[1]), 0.0)
    sides = {"cublas": Side(_dense(problem, "forward", 1), required=True), **baselines.any_sparsity(problem)}
    fields = compare(device, sides, problem.exact("forward"), baseline="cublas")
    return {**fields, **_rates(fields, problem, "forward", "cublas", problem.weight.numel(), 0)}


def measure_masked(device: Device, *, shape: Sequence[int], tokens: int, mode: str) -> dict[str, Any]:
    """Measure masked matmul, with half of the weights pruned, against F.linear on a weight masked before."""
    problem = Problem(device, shape, tokens, (1, 1), 0.5)
    words = pack_mask(problem.mask)

    def make() -> Work:
        x, weight, bias = _leaves(problem.x, problem.weight, problem.bias, mode=mode)
        return _work(mode, problem, lambda: masked_linear(x, weight, words, bias), (x, weight, bias))

    sides = {
        "cublas": Side(_dense(problem, mode, 1), _dense_answers(problem, mode), required=True),
        "masked": Side(make, _dense_answers(problem, mode), required=True),
    }
    fields = compare(device, sides, problem.exact(mode), baseline="cublas")
    weight_bytes = words.nbytes + problem.weight.nbytes
    return {**fields, **_rates(fields, problem, mode, "masked", problem.weight.numel(), weight_bytes)}


def measure_bitmap(device: Device, *, shape: Sequence[int], tokens: int, sparsity: float) -> dict[str, Any]:
    """Measure bitmap weights, which are unpacked before each product, against F.linear."""
    problem = Problem(device, shape, tokens, (1, 1), sparsity)
    packed = formats.pack(problem.weight, problem.mask, format="bitmap")
    sides = {
        "cublas": Side(_dense(problem, "forward", 1), required=True),
        "bitmap": Side(lambda: lambda: ops.linear(problem.x, packed, problem.bias), required=True),
    }
    fields = compare(device, sides, problem.exact("forward"), baseline="cublas")
    rates = _rates(fields, problem, "forward", "bitmap", problem.weight.numel(), packed.nbytes)
    return {**fields, **rates}


def measure_planned(
    device: Device, *, shape: Sequence[int], tokens: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure the layer that ``sparsify_`` plans, against F.linear."""
    problem = Problem(device, shape, tokens, block, sparsity)
    linear = nn.Linear(*reversed(shape), device=device.device, dtype=device.dtype).requires_grad_(False)
    linear.weight.copy_(problem.weight)
    linear.bias.copy_(problem.bias)
    model = sparsify_(nn.Sequential(linear), Ticket({"0": problem.mask.cpu()}), tokens=tokens)
    layer: Any = model[0]  # type: ignore[index]
    sides = {
        "cublas": Side(_dense(problem, "forward", 1), required=True),
        "plan": Side(lambda: torch.inference_mode()(lambda: layer(problem.x)), required=True),
    }
    fields = compare(device, sides, problem.exact("forward"), baseline="cublas")
    return {**fields, "side": "plan", "format": layer.plan.label, "reason": layer.plan.reason}


def _dense(problem: Problem, mode: str, copies: int) -> Callable[[], Sequence[Work]]:
    def make() -> Sequence[Work]:
        works = []
        for _ in range(copies):
            x, weight, bias = _leaves(problem.x, problem.weight, problem.bias, mode=mode)
            works.append(_linear_work(mode, problem, x, weight, bias))
        return works

    return make


def _linear_work(mode: str, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Work:
    return _work(mode, problem, lambda: functional.linear(x, weight, bias), (x, weight, bias))


def _packed(problem: Problem, packed: Any, mode: str, copies: int) -> Callable[[], Sequence[Work]]:
    transposed = () if mode == "forward" else transposed_index(packed)

    def make() -> Sequence[Work]:
        return [one() for _ in range(copies)]

    def one() -> Work:
        x, values, bias = _leaves(problem.x, packed.values, problem.bias, mode=mode)
        weight = packed.replace(values=values)
        return _work(
            mode, problem, lambda: ops.linear(x, weight, bias, transposed=transposed), (x, values, bias)
        )

    return make


def _leaves(*tensors: Tensor, mode: str) -> list[Tensor]:
    """Return copies, which require gradients unless the mode is forward."""
    return [tensor.detach().clone().requires_grad_(mode != "forward") for tensor in tensors]


def _work(mode: str, problem: Problem, forward: Work, inputs: Sequence[Tensor]) -> Work:
    """Return the work of a mode: y (forward), gradients of a precomputed y (backward), or both (step)."""
    if mode == "forward":
        return torch.inference_mode()(forward)
    if mode == "step":
        return lambda: torch.autograd.grad(forward(), inputs, problem.upstream)
    y = forward()
    return lambda: torch.autograd.grad(y, inputs, problem.upstream, retain_graph=True)


def _dense_answers(problem: Problem, mode: str) -> Callable[[Any], Sequence[Tensor]]:
    if mode == "forward":
        return lambda y: [y]
    return lambda grads: [grads[0], torch.where(problem.mask, grads[1], 0), grads[2]]


def _packed_answers(packed: Any, mode: str) -> Callable[[Any], Sequence[Tensor]]:
    if mode == "forward":
        return lambda y: [y]
    return lambda grads: [grads[0], packed.replace(values=grads[1]).to_dense(), grads[2]]


def _rates(
    fields: dict[str, Any], problem: Problem, mode: str, side: str, stored: int, weight_bytes: int
) -> dict[str, Any]:
    """Return FLOP, bytes and rates: of a side by its stored weights, of cuBLAS by the whole product."""
    dense = problem.useful_flops(problem.weight.numel(), mode)
    flops, moved = problem.useful_flops(stored, mode), problem.moved_bytes(weight_bytes, mode)
    return {
        "side": side,
        "flops": flops,
        "moved_bytes": moved,
        "weight_bytes": weight_bytes,
        "dense_weight_bytes": problem.weight.nbytes,
        "tflops": flops / fields["us"][side]["median"] / 1e6,
        "cublas_tflops": dense / fields["us"]["cublas"]["median"] / 1e6,
    }


def _configuration(packed: Any, problem: Problem) -> dict[str, Any]:
    from dataclasses import asdict

    from sparsebert_kernels.cuda.tile_configs import configuration
    from sparsebert_kernels.cuda.tile_rule import Shape

    dtype = str(problem.x.dtype).removeprefix("torch.")
    size = packed.panel_rows, packed.group_columns, problem.tokens, packed.panels, packed.values.shape[0]
    shape = Shape("panel forward", *size, dtype)
    return asdict(configuration(shape, problem.device.device))
