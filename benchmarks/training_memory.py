"""Memory to train and to store a ticket of BERT-base, for each method.

Includes Static Model Pruning against an explicit product of weights and mask in every matrix. Run it with
`python -m benchmarks.training_memory [--out FILE]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from benchmarks import fresh_process
from benchmarks.goals import goal
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.accounting.process_memory import peak_resident, resident
from sparsebert.bench import environment, memory
from sparsebert.bert import full_name, resolve, structure
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import lottery_method
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.rule import Goal
from sparsebert.pruning import prune
from sparsebert.pruning.gates import gate_sites
from sparsebert.report.layer_tables import goal_tables
from sparsebert.report.memory_tables import memory_tables
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.mask_enforcer import MaskEnforcer
from sparsebert.training.unit_coefficients import TrainedCoefficients

DENSITY = 0.1
STEPS = 1000
# The table shows BERT-base with a classifier; the comparison uses its encoder alone.
WHOLE, ENCODER = "BERT-base", "BERT-base's encoder"
WORDS = {WHOLE: 30522, ENCODER: 2}
LEARNED = ("gradual", "movement", "soft-movement", "l0", "smp")
OURS, PRODUCTS = "smp", "smp, products"
MUST = 0.7


@dataclass(frozen=True)
class Side:
    """A method, installed in a model.

    Attributes:
        trained: Trained parameters.
        kept: Bytes to store for a task after training, besides the pre-trained weights.
        begin: Called before the forward pass.
        penalty: Returns a term to add to the loss, or None.
        end: Called after the update.
    """

    trained: list[nn.Parameter]
    kept: int
    begin: Callable[[], object] = lambda: None
    penalty: Callable[[], Tensor | None] = lambda: None
    end: Callable[[], object] = lambda: None


def fine_tuning(model: Any) -> Side:
    """Train all weights without pruning."""
    trained = list(model.parameters())
    return Side(trained, _bytes(trained))


def ticket(model: Any) -> Side:
    """Train a ticket in dense matrices whose pruned weights stay zero, as the lottery does."""
    pruned = prune(model, sparsity=1 - DENSITY)
    keeper = MaskEnforcer(model, pruned)
    trained = list(model.parameters())
    return Side(trained, _kept(model, pruned, trained), end=keeper.zero_)


def packed_ticket(model: Any) -> Side:
    """Train a packed ticket: values, gradients and moments of its kept weights only."""
    pruned = prune(model, sparsity=1 - DENSITY)
    kept = _kept(model, pruned, list(model.parameters()))
    sparsify_(model, pruned, format="element", trainable=True)
    return Side(list(model.parameters()), kept)


def early_bird(model: Any) -> Side:
    """Search an Early-Bird ticket: train all weights and a coefficient for each head and neuron."""
    pruned = prune(model, "random", sparsity=1 - DENSITY, granularity="head+neuron", scope="type")
    kept = _kept(model, pruned, list(model.parameters()))
    architecture = structure(model)
    sites = gate_sites(architecture, "head") | gate_sites(architecture, "neuron")
    coefficients = TrainedCoefficients(model, sites, penalty=1e-4)
    return Side(list(model.parameters()), kept, penalty=coefficients.penalty)


def learned(name: str) -> Callable[[Any], Side]:
    """Return the side of a method that learns its masks, in its last step."""

    def begin(model: Any) -> Side:
        method = lottery_method(name)
        assert isinstance(method, MaskLearningMethod)
        whole = prune(model, sparsity=0)
        aim = Goal(STEPS, 0, Fraction(str(DENSITY)))
        learner = Learner(model, method.rule, aim, whole, scope=method.scope, method=name)
        scores = {id(each) for each in learner.parameters()}
        trained = [each for each in model.parameters() if each.requires_grad]
        weights = [each for each in trained if id(each) not in scores]
        kept = _kept(model, prune(model, "random", sparsity=1 - DENSITY), weights)
        return Side(trained, kept, lambda: learner.derive_(STEPS - 1), learner.penalty)

    return begin


def products(model: Any) -> Side:
    """Static Model Pruning with a new product W * M for every matrix and forward pass, as usually written."""
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    pruned = prune(model, "random", sparsity=1 - DENSITY)
    layers = []
    for key in structure(model).linears:
        path, _, name = full_name(model, key).rpartition(".")
        layers.append(_Product(resolve(model, key)))
        setattr(model.get_submodule(path), name, layers[-1])
    head = list(model.classifier.parameters())

    def penalty() -> Tensor:
        return 400.0 * torch.stack([torch.sigmoid(each.scores).mean() for each in layers]).mean()

    return Side([*head, *(each.scores for each in layers)], _kept(model, pruned, head), penalty=penalty)


class _Product(nn.Module):
    """y = x @ (M * W).T + b, where M selects the highest scores and passes its gradient to them."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scores = nn.Parameter(torch.zeros_like(linear.weight))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, _Highest.apply(self.scores) * self.weight, self.bias)


class _Highest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        mask = torch.zeros_like(scores)
        order = scores.flatten().sort(descending=True).indices
        mask.view(-1)[order[: int(DENSITY * len(order))]] = 1.0
        return mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


SIDES: dict[str, Callable[[Any], Side]] = {
    "fine-tuning": fine_tuning,
    "ticket": ticket,
    "ticket, packed": packed_ticket,
    "early-bird": early_bird,
    **{name: learned(name) for name in LEARNED},
    PRODUCTS: products,
}


def bert(words: int, **shape: int) -> Any:
    """Return BERT-base, or a smaller shape, with a classifier and random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=words, **shape)).train()


def measure_here(side: str, part: str, batch: int, tokens: int, **shape: int) -> dict[str, Any]:
    """Measure a training step in this process and return the fields of a record.

    A first step with zero gradients allocates the optimizer's moments. Bytes are over those of the process
    before it built the model.
    """
    torch.set_num_threads(1)
    # The first model loads libraries, whose memory does not count.
    bert(2, **shape | {"num_hidden_layers": 1})(
        input_ids=torch.ones(1, 8, dtype=torch.int64)
    ).logits.sum().backward()
    memory.reset_peak()
    before = resident()
    model = bert(WORDS[part], **shape)
    training = SIDES[side](model)
    optimizer = torch.optim.AdamW(training.trained, lr=1e-3, weight_decay=0.0, fused=True)
    for parameter in training.trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    inputs = {
        "input_ids": torch.randint(0, WORDS[part], (batch, tokens)),
        "labels": torch.randint(0, 2, (batch,)),
    }
    training.begin()
    memory.reset_peak()
    held = resident() - before

    training.begin()
    penalty = training.penalty()
    loss = model(**inputs).loss
    (loss if penalty is None else loss + penalty).backward()
    nn.utils.clip_grad_norm_(training.trained, 1.0)
    optimizer.step()
    training.end()
    return {
        "trained": sum(each.numel() for each in training.trained),
        "kept_bytes": training.kept,
        "held_bytes": held,
        "peak_bytes": peak_resident() - before,
    }


def measure(side: str, part: str, batch: int, tokens: int) -> dict[str, Any]:
    """Measure a step in a fresh process, see ``fresh_process.measure``.

    Its allocator returns freed memory to the system at once, so the peak is one of memory in use.
    """
    arguments = ["--side", side, "--part", part, "--batch", str(batch), "--tokens", str(tokens)]
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return fresh_process.measure("benchmarks.training_memory", arguments, at_once)


def rows_of(
    batch: int, tokens: int, measured: Callable[..., dict[str, Any]] = measure
) -> list[results.Record]:
    """Measure both searches in the encoder and all sides in the whole model; return records and the goal."""
    machine = environment.detect().record()
    cases = [(side, ENCODER) for side in (OURS, PRODUCTS)]
    cases += [(side, WHOLE) for side in SIDES if side != PRODUCTS]
    rows = []
    for side, part in cases:
        print(f"{side}, {part}", file=sys.stderr, flush=True)
        case = {"environment": machine, "side": side, "part": part, "batch": batch, "tokens": tokens}
        rows.append(
            results.stamp("memory", case | {"density": DENSITY} | measured(side, part, batch, tokens))
        )
    ours, theirs = (row["peak_bytes"] - row["held_bytes"] for row in rows[:2])
    what = "a search step of Static Model Pruning, bytes over those between steps"
    return [
        *rows,
        goal(
            f"{what}, share of W * M by matrix",
            ours / theirs,
            must=MUST,
            aim=0.6,
            unit="x",
            environment=machine,
            at_most=True,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_out_option(parser)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each sequence")
    parser.add_argument("--side", choices=SIDES, help="measure this side, once, in this process")
    parser.add_argument("--part", choices=WORDS, default=WHOLE, help="the model of --side")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure_here(options.side, options.part, options.batch, options.tokens)))
        return 0
    rows = rows_of(options.batch, options.tokens)
    append(options.out, rows)
    show([*memory_tables(rows), *goal_tables(rows)])
    return 0


def _bytes(tensors: list[Any]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _kept(model: Any, ticket: Ticket, trained: list[nn.Parameter]) -> int:
    """Return the bytes of a ticket's file and of the trained weights that it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        ticket.save(path)
        size = path.stat().st_size
    masks = {id(resolve(model, key).weight): mask for key, mask in ticket.masks.items()}
    return size + sum(
        each.element_size() * (int(masks[id(each)].sum()) if id(each) in masks else each.numel())
        for each in trained
    )


if __name__ == "__main__":
    sys.exit(main())
