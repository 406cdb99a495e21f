"""Whole models on a GPU: Hugging Face's BERT, dense and sparse, plain and fused, under CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Device, Work
from sparsebert.bench.memory import weight_bytes
from sparsebert.bench.workload import Workload
from sparsebert.compact import compact_, expand_
from sparsebert.fuse import fuse_
from sparsebert.nn.packed_layers import on_cpu
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

LENGTH = 128


class PrunedBert:
    """A BERT with random weights whose encoder matrices are pruned, and a batch for it.

    A ragged batch has lengths between an eighth and the whole of ``LENGTH``. Fused models get its sequences
    in one row, without padding, others padded with a mask.

    Args:
        device: The GPU, or its stand-in.
        model: Name of the model.
        batch: Sequences.
        block: Rows and columns of the pruned blocks.
        sparsity: Share of the encoder's weights that are pruned, removed ones included.
        ragged: Whether the sequences differ in length.
        removed: Share of the heads and neurons of each layer that are pruned whole.
    """

    def __init__(
        self,
        device: Device,
        model: str,
        batch: int,
        block: Sequence[int],
        sparsity: float,
        ragged: bool = False,
        removed: float = 0.0,
    ) -> None:
        self.device = device
        self.length = 8 if device.dry_run else LENGTH
        self.workload = Workload(model, batch, (self.length,) * batch)
        lengths = torch.full((batch,), self.length)
        if ragged:
            generator = torch.Generator().manual_seed(0)
            lengths = torch.randint(max(1, self.length // 8), self.length + 1, (batch,), generator=generator)
        self.kept = torch.arange(self.length) < lengths[:, None]
        self.tokens = int(lengths.sum())
        dense = self.workload.load_model()
        self.ticket = _pruned(dense, tuple(block), sparsity, removed)
        self.ticket.apply_(dense)
        self.dense = dense.to(device.device, device.dtype).requires_grad_(False)
        (inputs,) = self.workload.make_batches(dense.config.vocab_size)
        self.ids = inputs["input_ids"].to(device.device)
        # A mask would keep attention from its fastest kernel where there is no padding.
        mask = {"attention_mask": self.kept.long().to(device.device)} if ragged else {}
        self.padded = {"input_ids": self.ids, **mask}
        self.row = in_one_row(self.ids, self.kept.to(device.device)) if ragged else self.padded

    def sparse(self, format: str, trainable: bool = False, fuse: bool | None = False) -> nn.Module:
        model = copy.deepcopy(self.dense)
        return sparsify_(
            model, self.ticket, format=format, tokens=self.tokens, trainable=trainable, fuse=fuse
        )

    def fused(self) -> nn.Module:
        """Return the dense model on the path of the sparse one."""
        return fuse_(copy.deepcopy(self.dense))

    def work(self, model: Any, fused: bool = False) -> Work:
        """Return a call of a model, whose result are the states of all kept tokens, [tokens, hidden]."""
        given = self.row if fused else self.padded
        padded = given is self.padded and not bool(self.kept.all())
        index = self.kept.flatten().nonzero().squeeze(1).to(self.ids.device)

        @torch.inference_mode()
        def call() -> Tensor:
            states = model(**given).last_hidden_state.flatten(0, 1)
            return states[index] if padded else states

        return call

    def exact(self) -> Tensor:
        return self.work(copy.deepcopy(self.dense).double())()


def in_one_row(ids: Tensor, kept: Tensor) -> dict[str, Any]:
    """Return a padded batch as sequences in one row, as fused models and ``sparsebert.graphs`` take them.

    Args:
        ids: Token ids, [sequences, tokens].
        kept: Bool of the same shape; False at padding.
    """
    lengths = kept.sum(1)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return {
        "input_ids": ids[kept][None],
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), int(lengths.max())),
    }


def _pruned(model: Any, block: tuple[int, int], sparsity: float, removed: float) -> Ticket:
    """Return a random ticket of blocks, which lie within the heads and neurons that are not removed."""
    options: Any = {"granularity": "block", "block_size": block}
    if not removed:
        return prune(model, "random", sparsity=sparsity, **options)
    units = prune(model, "random", sparsity=removed, granularity="head+neuron", scope="matrix")
    rest = compact_(copy.deepcopy(model), units)
    prune(rest, "random", sparsity=1 - (1 - sparsity) / (1 - removed), **options).apply_(rest)
    return Ticket.from_model(expand_(rest))


def measure_model(
    device: Device,
    *,
    model: str,
    batch: int,
    block: Sequence[int],
    sparsity: float,
    ragged: bool = False,
    removed: float = 0.0,
) -> dict[str, Any]:
    """Measure the sparse model against the dense one, plain and fused, in eager mode and compiled.

    The fused dense model shares all of the sparse model's path but the sparse products, so that their ratio
    is the gain of sparsity alone.
    """
    with on_cpu() if device.dry_run else contextlib.nullcontext():
        return _measured(PrunedBert(device, model, batch, block, sparsity, ragged, removed))


def _measured(pruned: PrunedBert) -> dict[str, Any]:
    device, batch = pruned.device, pruned.workload.batch
    sparse, fused, dense = pruned.sparse("panel"), pruned.sparse("panel", fuse=True), pruned.fused()

    def compiled(module: nn.Module, fused: bool = False) -> Work:
        return pruned.work(device.compile(module, dynamic=False), fused)

    sides = {
        "dense": Side(lambda: pruned.work(pruned.dense), required=True),
        "sparse": Side(lambda: pruned.work(sparse), required=True),
        "fused dense": Side(lambda: pruned.work(dense, fused=True)),
        "fused sparse": Side(lambda: pruned.work(fused, fused=True)),
        "torch.compile dense": Side(lambda: compiled(pruned.dense)),
        "torch.compile fused dense": Side(lambda: compiled(dense, fused=True)),
        "torch.compile fused sparse": Side(lambda: compiled(fused, fused=True)),
        "plan": Side(lambda: pruned.work(pruned.sparse("auto", fuse=True), fused=True)),
    }
    fields = compare(device, sides, [pruned.exact()], baseline="dense", budget=2.0)

    def fastest(kind: str) -> str:
        names = (name for name in sides if name.endswith(kind) and name in fields["us"])
        return min(names, key=lambda name: fields["us"][name]["median"])

    best, against = fastest("sparse"), fastest("dense")
    return {
        **fields,
        "tokens": pruned.tokens,
        "length": pruned.length,
        "side": best,
        "against": against,
        "speedup": fields["us"][against]["median"] / fields["us"][best]["median"],
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
