"""Whole models on a GPU: Hugging Face's BERT, dense and with sparse layers, under CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Device, Work
from sparsebert.bench.memory import weight_bytes
from sparsebert.bench.workload import Workload
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

LENGTH = 128


class PrunedBert:
    """A BERT with random weights whose encoder matrices are pruned, and a batch for it."""

    def __init__(self, device: Device, model: str, batch: int, block: Sequence[int], sparsity: float) -> None:
        self.device = device
        length = 8 if device.dry_run else LENGTH
        self.workload = Workload(model, batch, (length,) * batch)
        self.tokens = batch * length
        dense = self.workload.load_model()
        self.ticket: Ticket = prune(
            dense, "random", sparsity=sparsity, granularity="block", block_size=tuple(block)
        )
        self.ticket.apply_(dense)
        self.dense = dense.to(device.device, device.dtype).requires_grad_(False)
        (inputs,) = self.workload.make_batches(dense.config.vocab_size)
        # A mask would keep attention from its fastest kernel, and there is no padding.
        self.ids = inputs["input_ids"].to(device.device)

    def sparse(self, format: str, trainable: bool = False) -> nn.Module:
        model = copy.deepcopy(self.dense)
        return sparsify_(model, self.ticket, format=format, tokens=self.tokens, trainable=trainable)

    def work(self, model: Any) -> Work:
        return torch.inference_mode()(lambda: model(input_ids=self.ids).last_hidden_state)

    def exact(self) -> Tensor:
        with torch.inference_mode():
            return copy.deepcopy(self.dense).double()(input_ids=self.ids).last_hidden_state


def measure_model(
    device: Device, *, model: str, batch: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure the sparse model against the dense one, both in eager mode and with torch.compile."""
    pruned = PrunedBert(device, model, batch, block, sparsity)
    sparse = pruned.sparse("panel")

    def compiled(module: nn.Module) -> Work:
        return pruned.work(device.compile(module, dynamic=False))

    sides = {
        "dense": Side(lambda: pruned.work(pruned.dense), required=True),
        "sparse": Side(lambda: pruned.work(sparse), required=True),
        "torch.compile dense": Side(lambda: compiled(pruned.dense)),
        "torch.compile sparse": Side(lambda: compiled(sparse)),
        "plan": Side(lambda: pruned.work(pruned.sparse("auto"))),
    }
    fields = compare(device, sides, [pruned.exact()], baseline="dense", budget=2.0)
    against = "torch.compile dense"
    ours = [name for name in ("sparse", "torch.compile sparse") if name in fields["us"]]
    best = min(ours, key=lambda name: fields["us"][name]["median"])
    speedup = (
        fields["us"][against]["median"] / fields["us"][best]["median"] if against in fields["us"] else None
    )
    return {
        **fields,
        "tokens": pruned.tokens,
        "length": pruned.tokens // batch,
        "side": best,
        "speedup": speedup,
        "samples_per_s": batch / fields["us"][best]["median"] * 1e6,
        **_weights(pruned, sparse),
    }


def measure_memory(device: Device, *, model: str, batch: int) -> dict[str, Any]:
    """Measure bytes of weights and the peaks of a forward pass and a training step, dense and sparse."""
    pruned = PrunedBert(device, model, batch, (64, 64), 0.9)
    sides: dict[str, Any] = {}
    makers = {
        "dense": lambda trainable: copy.deepcopy(pruned.dense),
        "sparse": lambda trainable: pruned.sparse("panel", trainable=trainable),
    }
    weights = _weights(pruned, pruned.sparse("panel"))
    for name, make in makers.items():
        held, forward = device.peak_bytes(pruned.work(make(False)))
        trained = make(True)
        for parameter in trained.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)

        def step(trained: Any = trained, optimizer: Any = optimizer) -> None:
            trained(input_ids=pruned.ids).last_hidden_state.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # allocates the optimizer's state
        ready, training = device.peak_bytes(step)
        sides[name] = {
            "held_before_forward": held,
            "forward_peak": forward,
            "activations": forward - held,
            "held_before_step": ready,
            "step_peak": training,
            "gradients_and_activations": training - ready,
            "parameters": sum(parameter.nbytes for parameter in trained.parameters()),
        }
        del trained, optimizer, step
    return {**weights, "sides": sides}


def _weights(pruned: PrunedBert, sparse: nn.Module) -> dict[str, Any]:
    layers = [module for module in sparse.modules() if isinstance(module, SparseLinear)]
    dense = sum(mask.numel() * pruned.device.dtype.itemsize for mask in pruned.ticket.masks.values())
    return {
        "weight_bytes": sum(map(weight_bytes, layers)),
        "dense_weight_bytes": dense,
        "formats": sorted({layer.format for layer in layers}),
    }
