"""Fused models as a server runs them: `python -m benchmarks.serving [PART ...] [--quick] [--out FILE]`.

Four parts, fp32, 90 % element-sparse, one thread unless said:

- line: time against tokens, density and layers, over two decades each, and the largest distance from a
  straight line;
- latency: MiniLM on one sentence of 16 tokens, tokenizer included, one call after another;
- batches: BERT-base on the sentences of SST-2's dev set as they come, 32 at a time, against torch eager
  padded to the longest sentence of a batch (fp32, bf16, and fp32 with the sentences sorted by length);
- threads: two threads against one.

Outputs are compared with those of the masked dense model before anything is timed. A part whose data or model
is missing is skipped; standard error says why.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.goals import goal
from benchmarks.output import add_out_option, append, show
from sparsebert import fuse_, prune, results, sparsify_
from sparsebert.bench import environment
from sparsebert.bench.output_check import compare
from sparsebert.demo.real_model import weights_folder
from sparsebert.report.layer_tables import goal_tables
from sparsebert.report.serving_tables import serving_tables
from sparsebert_kernels import timing

SPARSITY, BATCH, THREADS = 0.9, 32, 2
SENTENCE = "a warm and funny film that is well worth your time and your money"  # 16 tokens
CALLS, WARM_UP = 10_000, 200
# Share of a batch's time that the process may stand still, as in `sparsebert_kernels.timing`.
MAX_STILL = 0.1
SHAPE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
# What varies -> its values; the other two keep `USUAL`.
LINES: dict[str, tuple[float, ...]] = {
    "tokens": (32, 64, 128, 256, 512, 1024, 2048, 3200),
    "density": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "layers": (1, 2, 5, 10, 20, 50, 100),
}
USUAL: dict[str, float] = {"tokens": 128, "density": 0.1, "layers": 4}
SENTENCE_TOKENS = 32  # of each sequence where the number of tokens varies

Inputs = dict[str, Tensor]


class Skipped(Exception):
    """A part cannot run; the message says why."""


def sparse_of(model: Any, sparsity: float = SPARSITY) -> Any:
    """Return a fused element-sparse copy of ``model``, whose own weights are masked."""
    ticket = prune(model, "magnitude", sparsity=sparsity)
    ticket.apply_(model)
    return fuse_(sparsify_(copy.deepcopy(model), ticket, format="element", measure=False))


def checked(side: str, model: Any, dense: Any, batches: Sequence[Inputs], precision: str = "float32") -> None:
    """Raise ``OutputMismatchError`` unless a model's outputs are those of the dense model."""
    with torch.inference_mode():
        answers, reference = (
            [each(**batch).last_hidden_state.float() for batch in batches] for each in (model, dense)
        )
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
    outcome = compare(side, answers, reference, masks, precision=precision)
    if not outcome.passed:
        raise RuntimeError(str(outcome))


def random_bert(**config: Any) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**config), add_pooling_layer=False).eval()


def time_line(vary: str, machine: dict[str, Any], quick: bool) -> results.Record:
    """Time a model against the number of tokens, the density or the number of layers."""
    points, busy = [], False
    values = LINES[vary][:: 3 if quick else 1]
    for value in values:
        now = {**USUAL, vary: value}
        model = random_bert(**SHAPE, num_hidden_layers=int(now["layers"]))
        sparse = sparse_of(model, 1 - now["density"])
        ids = torch.randint(0, 30_000, (int(now["tokens"]) // SENTENCE_TOKENS, SENTENCE_TOKENS))
        checked(f"{value} {vary}", sparse, model, [{"input_ids": ids}])
        with torch.inference_mode():
            least = timing.least(lambda: sparse(ids), budget=0.1 if quick else 1.0, min_rounds=7)  # noqa: B023
        busy |= least.busy
        points.append([value, least.seconds * 1e3])
    constant, slope, deviation = straight_line(points)
    usual = {name: amount for name, amount in USUAL.items() if name != vary}
    return results.stamp(
        "serving",
        {
            "environment": machine,
            "part": "line",
            "vary": vary,
            "usual": usual,
            "points": points,
            "constant_ms": constant,
            "slope_ms": slope,
            "deviation": deviation,
            "busy": busy,
        },
    )


def straight_line(points: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return constant and slope of the line with the least squares of relative errors, and the largest error.

    Args:
        points: (x, y) with y > 0, at least two.
    """
    x, y = torch.tensor(points, dtype=torch.float64).T
    rows = torch.stack((1 / y, x / y), 1)
    constant, slope = torch.linalg.lstsq(rows, torch.ones_like(y)[:, None]).solution[:, 0].tolist()
    return constant, slope, ((constant + slope * x) / y - 1).abs().max().item()


def lines(machine: dict[str, Any], quick: bool) -> Iterator[results.Record]:
    for vary in LINES:
        record = time_line(vary, machine, quick)
        yield record
        yield goal(
            f"time against {vary}: distance from a straight line",
            100 * record["deviation"],
            must=15,
            aim=10,
            unit="%",
            environment=machine,
            at_most=True,
            busy=record["busy"],
        )


def minilm() -> tuple[Any, Any]:
    """Return the pre-trained MiniLM and its tokenizer."""
    from transformers import AutoTokenizer, BertModel

    try:
        folder = weights_folder()
    except ValueError as error:
        raise Skipped(str(error)) from None
    return BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def latency(machine: dict[str, Any], quick: bool) -> Iterator[results.Record]:
    """Time calls on one sentence, from text to the pooled output."""
    model, tokenizer = minilm()
    sparse = sparse_of(model)
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    checked("MiniLM", sparse, model, [dict(inputs)])
    calls = CALLS // 20 if quick else CALLS
    seconds = []
    with torch.inference_mode():
        for call in range(WARM_UP + calls):
            start = time.perf_counter()
            sparse(**tokenizer(SENTENCE, return_tensors="pt"))
            if call >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    hundredths = [1e3 * each for each in statistics.quantiles(seconds, n=100, method="inclusive")]
    p50, p99 = hundredths[49], hundredths[98]
    # On a quiet machine, half of the calls differ little.
    busy = hundredths[74] > (1 + timing.MAX_SPREAD) * hundredths[24]
    fields = {
        "environment": machine,
        "part": "latency",
        "tokens": inputs["input_ids"].shape[1],
        "calls": calls,
        "p50_ms": p50,
        "p99_ms": p99,
        "longest_ms": 1e3 * max(seconds),
        "busy": busy,
    }
    yield results.stamp("serving", fields)
    name = f"MiniLM {SPARSITY:.0%}, one sentence of {fields['tokens']} tokens with tokenizer"
    for quantile, value, must, aim in (("p50", p50, 0.8, 0.5), ("p99", p99, 1.5, 1.0)):
        yield goal(
            f"{name}, {quantile} of {calls:,} calls",
            value,
            must=must,
            aim=aim,
            unit="ms",
            environment=machine,
            at_most=True,
            busy=busy,
        )


def sst2_sentences() -> list[str]:
    from sparsebert.tasks import load

    folder = os.environ.get("SPARSEBERT_DATA")
    if not folder:
        raise Skipped("SPARSEBERT_DATA names no folder of task data")
    try:
        data = load("sst2", folder, train=False)
    except ValueError as error:
        raise Skipped(str(error)) from None
    (examples,) = data.validation.values()
    return [example.texts[0] for example in examples]  # type: ignore[union-attr]


def padded_batches(tokenizer: Any, sentences: Sequence[str]) -> list[Inputs]:
    """Return inputs of ``BATCH`` sentences each, padded to the longest of them."""
    starts = range(0, len(sentences), BATCH)
    return [
        dict(tokenizer(list(sentences[at : at + BATCH]), padding=True, return_tensors="pt")) for at in starts
    ]


def timed(work: Callable[[], object]) -> tuple[float, bool]:
    """Return the seconds of a run, and whether the process stood still for too much of it."""
    processor, start = time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, seconds - (time.process_time() - processor) > MAX_STILL * seconds


def batches(machine: dict[str, Any], quick: bool) -> Iterator[results.Record]:
    """Time SST-2's sentences in batches, batch by batch in turn with the baselines."""
    sentences = sst2_sentences()[: 2 * BATCH if quick else 10 * BATCH]
    _, tokenizer = minilm()
    dense = random_bert()
    sparse = sparse_of(dense)
    given = padded_batches(tokenizer, sentences)
    by_length = padded_batches(tokenizer, sorted(sentences, key=len))
    half = copy.deepcopy(dense).bfloat16()
    sides: dict[str, tuple[Any, list[Inputs]]] = {
        "fused": (sparse, given),
        "eager fp32": (dense, given),
        "eager bf16": (half, given),
        "eager fp32, sorted by length": (dense, by_length),
    }
    checked("fused", sparse, dense, given[:2])
    checked("bf16", half, dense, given[:1], "bfloat16")
    seconds = dict.fromkeys(sides, 0.0)
    still = 0
    with torch.inference_mode():
        for model, inputs in sides.values():
            model(**inputs[0])
        for number in range(len(given)):
            for name, (model, inputs) in sides.items():
                spent, disturbed = timed(lambda: model(**inputs[number]))  # noqa: B023
                seconds[name] += spent
                still += disturbed
    busy = still > MAX_STILL * len(given) * len(sides)
    for name, (_, inputs) in sides.items():
        yield results.stamp(
            "serving",
            {
                "environment": machine,
                "part": "batches",
                "side": name,
                "sentences": len(sentences),
                "batch": BATCH,
                "seconds": seconds[name],
                "speedup": seconds[name] / seconds["fused"],
                "tokens": int(sum(batch["attention_mask"].sum() for batch in inputs)),
                "padded_tokens": sum(batch["input_ids"].numel() for batch in inputs),
                "busy": busy,
            },
        )
    yield goal(
        f"BERT-base {SPARSITY:.0%}, SST-2 sentences in batches of {BATCH}, against eager fp32",
        seconds["eager fp32"] / seconds["fused"],
        must=8,
        aim=12,
        unit="x",
        environment=machine,
        busy=busy,
    )


def threads(machine: dict[str, Any], quick: bool) -> Iterator[results.Record]:
    """Time two threads against one."""
    if (os.cpu_count() or 1) < THREADS:
        raise Skipped(f"the machine has fewer than {THREADS} cores")
    dense = random_bert()
    sparse = sparse_of(dense)
    for batch in (1,) if quick else (1, 8):
        ids = torch.randint(0, 30_000, (batch, 128))
        checked(f"batch {batch}", sparse, dense, [{"input_ids": ids}])

        def run(count: int, ids: Tensor = ids) -> None:
            torch.set_num_threads(count)
            sparse(input_ids=ids)

        try:
            with torch.inference_mode():
                paired = timing.paired(lambda: run(THREADS), lambda: run(1), budget=2.0 if quick else 10.0)
        finally:
            torch.set_num_threads(1)
        yield results.stamp(
            "serving",
            {
                "environment": machine,
                "part": "threads",
                "batch": batch,
                "threads": THREADS,
                "one_ms": 1e3 * paired.other,
                "many_ms": 1e3 * paired.mine,
                "speedup": paired.speedup,
                "rounds": paired.rounds,
                "busy": paired.busy,
            },
        )
        yield goal(
            f"BERT-base {SPARSITY:.0%}, batch {batch}, 128 tokens, {THREADS} threads against one",
            paired.speedup,
            must=1.85,
            aim=1.95,
            unit="x",
            environment=machine,
            busy=paired.busy,
        )


PARTS = {"line": lines, "latency": latency, "batches": batches, "threads": threads}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and append the records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few and short measurements")
    add_out_option(parser)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    machine = environment.detect().record()
    rows: list[results.Record] = []
    for name in options.parts or PARTS:
        try:
            measured = list(PARTS[name](machine, options.quick))
        except Skipped as reason:
            print(f"without {name}: {reason}", file=sys.stderr)
            continue
        rows += measured
        append(options.out, measured)
    show([*serving_tables(rows), *goal_tables(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
