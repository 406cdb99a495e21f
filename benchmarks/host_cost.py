"""Time on the host of a call of a sparse layer, up to the launcher of its GPU kernel, against ``nn.Linear``.

No GPU is needed: tensors on the CPU are sent to the GPU's path, whose kernel is replaced by a stub. The dense
layer computes for real, on so few values that its time too is almost all dispatch.

    python -m benchmarks.host_cost
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import nn

from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cuda import on_cpu

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients": torch.enable_grad,
}
# At most this much of the time of a dense layer, on a quiet machine.
GOAL = 1.5
FEATURES, SHAPE, CALLS = 64, (2, 8, 64), 20


@dataclass(frozen=True)
class HostCost:
    """Microseconds of processor time of a call, in the least disturbed of many rounds."""

    sparse: float
    dense: float

    @property
    def ratio(self) -> float:
        return self.sparse / self.dense


class _Stub:
    """A kernel whose launch does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: object, **constants: object) -> None:
        pass


@contextmanager
def stubbed_kernel() -> Iterator[None]:
    """Send panel layers on the CPU through the path of a GPU up to the launch, which does nothing."""
    from sparsebert_kernels.cuda import panel_forward

    launch = functools.partial(panel_forward._launch, kernel=_Stub())
    with on_cpu(), mock.patch.object(panel_forward, "_launch", launch):
        yield


def measure(mode: str, rounds: int = 300) -> HostCost:
    """Time both layers in turn, in processor time, which other programs disturb least."""
    dense = nn.Linear(FEATURES, FEATURES)
    mask = torch.ones(FEATURES, FEATURES, dtype=torch.bool)
    mask[:, : FEATURES // 4] = False
    sparse = SparseLinear.from_linear(dense, mask, format="panel", block_size=(16, 16))
    x = torch.randn(SHAPE, requires_grad=mode == "gradients")
    least = [float("inf")] * 2
    with stubbed_kernel(), MODES[mode]():
        for _ in range(rounds):
            for side, layer in enumerate((sparse, dense)):
                start = time.thread_time()
                for _ in range(CALLS):
                    layer(x)
                least[side] = min(least[side], time.thread_time() - start)
    return HostCost(*(seconds / CALLS * 1e6 for seconds in least))


def main() -> None:
    """Print the times of each mode."""
    torch.set_num_threads(1)
    print(f"microseconds of a call, {' x '.join(map(str, SHAPE))}, fp32; goal: at most {GOAL} x dense")
    for mode in MODES:
        cost = measure(mode)
        print(f"{mode:15} sparse {cost.sparse:5.1f}  dense {cost.dense:5.1f}  {cost.ratio:.2f} x")


if __name__ == "__main__":
    main()
