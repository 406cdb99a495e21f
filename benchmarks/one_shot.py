"""Quality of one-shot pruning: `python -m benchmarks.one_shot [PART ...] [--sets N] [--quick] [--out FILE]`.

Four parts, with MiniLM's real weights; SPARSEBERT_DATA names the folder that holds SST-2 and MRPC:

- embeddings: methods, granularities and sparsities without training, calibrated on 512 sentences of the two
  tasks' training data. Measured are the mean cosine to the dense model's embeddings on 500 sentences of their
  other data, and the area under the ROC curve of the cosine between the sentences of MRPC's pairs;
- healed: the same after ``--minutes`` of healing on other sentences of the training data;
- classifier: the accuracy of an SST-2 classifier, trained dense (``--classifier FOLDER``), after pruning and,
  of the default method on the first set, after healing too;
- cost: seconds and peak memory of pruning MiniLM and a model of BERT-base's shape, each in a fresh process.

The sets of calibration sentences are disjoint. A record is appended as each result is there, and results that
the file holds already are not computed again. A part whose data or model is missing is skipped; standard
error says why.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fresh_process import measure
from benchmarks.output import add_out_option, append, show
from sparsebert import prune, prune_, results
from sparsebert.bench import environment
from sparsebert.demo.real_model import weights_folder
from sparsebert.healing.heal import heal_
from sparsebert.report.one_shot_tables import one_shot_tables
from sparsebert.tasks import load
from sparsebert.tasks.texts import text_batches

CALIBRATION, JUDGED, HEALING = 512, 500, 20_000
# Tokens at which a sentence is cut.
LENGTH = 128


class Skipped(Exception):
    """A part cannot run; the message says why."""


@dataclass(frozen=True)
class Case:
    """A way to prune.

    Attributes:
        method: "magnitude", or a method of :func:`sparsebert.prune_`.
        granularity: As for :func:`sparsebert.prune`.
        sparsity: Share of zeros.
        reproduce, allocate: As for :func:`sparsebert.prune_`; "" for magnitude.
    """

    method: str
    granularity: str
    sparsity: float
    reproduce: str = "dense"
    allocate: str = "error"

    def prune_(self, model: Any, batches: Sequence[Mapping[str, Any]]) -> None:
        """Prune a model in place."""
        if self.method == "magnitude":
            ticket = prune(model, sparsity=self.sparsity, granularity=self.granularity, scope="matrix")
            ticket.apply_(model)
            return
        prune_(
            model,
            self.method,
            data=batches,
            sparsity=self.sparsity,
            granularity=self.granularity,
            reproduce=self.reproduce,
            allocate=self.allocate,
        )


# On every set.
DEFAULT = [Case("alps", "element", sparsity) for sparsity in (0.9, 0.8, 0.7, 0.5)]
BLOCKS = [
    Case("alps", granularity, sparsity)
    for granularity in ("32x2", "4x1", "panel(32,2)")
    for sparsity in (0.8, 0.7, 0.5)
]
# On the first set: other methods, and options as published.
COMPARED = [
    Case(method, "element", sparsity, reproduce, allocate)
    for method, reproduce, allocate in (
        ("magnitude", "", ""),
        ("wanda", "layer", "uniform"),
        ("sparsegpt", "layer", "uniform"),
        ("alps", "layer", "uniform"),
        ("sparsegpt", "dense", "uniform"),
        ("sparsegpt", "dense", "error"),
    )
    for sparsity in (0.5, 0.7, 0.8, 0.9)
]
HEALED = [
    Case("alps", "element", 0.9),
    Case("alps", "element", 0.7),
    Case("alps", "element", 0.8),
    Case("alps", "element", 0.5),
    *(Case("alps", "32x2", sparsity) for sparsity in (0.8, 0.7, 0.5)),
]
CLASSIFIER = [Case(method, "element", s) for method in ("alps", "sparsegpt") for s in (0.5, 0.7, 0.8)]


@dataclass(frozen=True)
class Sentences:
    """Sentences of SST-2 and MRPC, half of each, in parts that share none.

    Attributes:
        train: Sentences of the training data, by task, shuffled.
        judged: Sentences to judge by.
        pairs: Pairs of MRPC's other data, and whether they mean the same.
    """

    train: tuple[list[str], list[str]]
    judged: list[str]
    pairs: list[tuple[str, str, int]]

    @classmethod
    @functools.cache
    def load(cls) -> Sentences:
        """Read the data. Raises Skipped where it is missing."""
        folder = os.environ.get("SPARSEBERT_DATA")
        if not folder:
            raise Skipped("SPARSEBERT_DATA names no folder of task data")
        try:
            sst2, mrpc = load("sst2", folder), load("mrpc", folder)
        except ValueError as error:
            raise Skipped(str(error)) from None
        pairs = [(*example.texts, int(example.label)) for example in _rows(mrpc.validation)]
        judged = [
            _texts(_rows(sst2.validation))[: JUDGED // 2],
            _texts(_rows(mrpc.validation))[: JUDGED // 2],
        ]
        held = {text for part in judged for text in part}
        train = tuple(
            [text for text in dict.fromkeys(_texts(data.train)) if text not in held] for data in (sst2, mrpc)
        )
        for part in train:
            random.Random(0).shuffle(part)
        return cls(train, [text for part in judged for text in part], pairs)  # type: ignore[arg-type]

    def calibration(self, number: int) -> list[str]:
        """Return the sentences of a set."""
        half = CALIBRATION // 2
        return [text for part in self.train for text in part[number * half : (number + 1) * half]]

    def healing(self, sets: int) -> list[str]:
        """Return sentences that are in none of the sets."""
        start = sets * CALIBRATION // 2
        return [text for part in self.train for text in part[start : start + HEALING // 2]]


def _rows(splits: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    (rows,) = splits.values()
    return rows


def _texts(rows: Sequence[Any]) -> list[str]:
    return [text for row in rows for text in row.texts]


@functools.cache
def minilm() -> tuple[Any, Any]:
    """Return MiniLM and its tokenizer. Raises Skipped where it is missing."""
    from transformers import AutoModel, AutoTokenizer

    try:
        folder = weights_folder()
    except ValueError as error:
        raise Skipped(str(error)) from None
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def embeddings_of(model: Any, texts: Sequence[str]) -> Tensor:
    """Return the normalized mean embedding of each text, [texts, hidden]."""
    _, tokenizer = minilm()
    parts = []
    for start in range(0, len(texts), 64):
        options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        batch = tokenizer(list(texts[start : start + 64]), **options)
        mask = batch["attention_mask"][..., None]
        parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def area_under_curve(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the probability that a positive scores above a negative; equal scores count half."""
    values, positive = np.asarray(scores), np.asarray(labels, bool)
    above = values[positive][:, None] - values[~positive][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def qualities(model: Any, sentences: Sentences) -> dict[str, float]:
    """Return the mean cosine to the dense embeddings, and the area under the curve of MRPC's pairs."""
    wanted = _dense_embeddings(tuple(sentences.judged))
    cosine = float((embeddings_of(model, sentences.judged) * wanted).sum(1).mean())
    left, right = (embeddings_of(model, [pair[side] for pair in sentences.pairs]) for side in (0, 1))
    area = area_under_curve((left * right).sum(1).tolist(), [pair[2] for pair in sentences.pairs])
    return {"cosine": cosine, "auc": area}


@functools.cache
def _dense_embeddings(texts: tuple[str, ...]) -> Tensor:
    return embeddings_of(minilm()[0], texts)


def calibration_batches(sentences: Sentences, number: int) -> list[dict[str, Any]]:
    """Return the batches of a set."""
    return text_batches(sentences.calibration(number), minilm()[1], max_length=LENGTH)


Known = Callable[[str, Case, int], bool]


def embeddings(options: argparse.Namespace, known: Known) -> Iterator[results.Record]:
    """Judge every case on every set, without training."""
    sentences = Sentences.load()
    dense, _ = minilm()
    if not known("embeddings", DENSE, 0):
        yield record("embeddings", DENSE, 0, qualities(dense, sentences))
    for number in range(options.sets):
        cases = [*DEFAULT, *BLOCKS, *(COMPARED if number == 0 else ())]
        for case in (case for case in cases if case.sparsity == 0.7 or not options.quick):
            if known("embeddings", case, number):
                continue
            model = copy.deepcopy(dense)
            case.prune_(model, calibration_batches(sentences, number))
            yield record("embeddings", case, number, qualities(model, sentences))


def healed(options: argparse.Namespace, known: Known) -> Iterator[results.Record]:
    """Judge cases before and after healing."""
    sentences = Sentences.load()
    dense, tokenizer = minilm()
    for number in range(options.sets):
        for case in HEALED:
            if known("healed", case, number):
                continue
            model = copy.deepcopy(dense)
            case.prune_(model, calibration_batches(sentences, number))
            before = qualities(model, sentences)
            cost = _heal(model, dense, sentences.healing(options.sets), tokenizer, options.minutes)
            fields = {**qualities(model, sentences), "before": before, **cost}
            yield record("healed", case, number, fields)


def classifier(options: argparse.Namespace, known: Known) -> Iterator[results.Record]:
    """Judge an SST-2 classifier after pruning."""
    if options.classifier is None:
        raise Skipped("--classifier names no folder of a trained SST-2 classifier")
    from transformers import AutoModelForSequenceClassification

    folder = os.environ.get("SPARSEBERT_DATA")
    sentences = Sentences.load()
    _, tokenizer = minilm()
    dense = AutoModelForSequenceClassification.from_pretrained(options.classifier).eval()
    rows = _rows(load("sst2", folder, train=False).validation)

    @torch.inference_mode()
    def accuracy(model: Any) -> float:
        right = 0
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            batch = tokenizer(_texts(part), padding=True, return_tensors="pt")
            right += int((model(**batch).logits.argmax(1) == torch.tensor([row.label for row in part])).sum())
        return right / len(rows)

    if not known("classifier", DENSE, 0):
        yield record("classifier", DENSE, 0, {"accuracy": accuracy(dense)})
    size = CALIBRATION
    for number in range(options.sets):
        texts = sentences.train[0][number * size : (number + 1) * size]
        for case in (*CLASSIFIER, *(Case("magnitude", "element", s, "", "") for s in (0.5, 0.7, 0.8))):
            if known("classifier", case, number):
                continue
            model = copy.deepcopy(dense)
            case.prune_(model, text_batches(texts, tokenizer, max_length=LENGTH))
            fields: dict[str, Any] = {"accuracy": accuracy(model)}
            if case.method == "alps" and number == 0:
                unseen = sentences.train[0][options.sets * size :][:HEALING]
                cost = _heal(model, dense, unseen, tokenizer, options.minutes)
                fields["healed"] = {"accuracy": accuracy(model), **cost}
            yield record("classifier", case, number, fields)


def _heal(model: Any, teacher: Any, texts: Sequence[str], tokenizer: Any, minutes: float) -> dict[str, float]:
    """Heal a model, and return what that took."""
    healing = heal_(model, texts, teacher=teacher, tokenizer=tokenizer, minutes=minutes, max_length=LENGTH)
    return {
        "seconds": healing.seconds,
        "steps": healing.steps,
        "tokens": healing.tokens,
        "threads": torch.get_num_threads(),
    }


def cost(options: argparse.Namespace, known: Known) -> Iterator[results.Record]:
    """Measure seconds and memory of pruning, each in a fresh process."""
    for shape in ("MiniLM", "BERT-base"):
        for method in ("sparsegpt", "alps"):
            case = Case(method, "element", 0.8)
            if known(f"cost of {shape}", case, 0):
                continue
            arguments = ["--measure", shape, "--method", method, "--threads", str(options.threads)]
            yield record(f"cost of {shape}", case, 0, measure("benchmarks.one_shot", arguments))


def measured_cost(shape: str, method: str) -> dict[str, float]:
    """Prune a model of random weights, and return seconds and the megabytes over the model's."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = (
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        if shape == "MiniLM"
        else BertConfig()
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    lengths = sorted(random.Random(0).choices(range(8, 64), k=CALIBRATION))
    batches = [
        {"input_ids": torch.randint(30_000, (32, lengths[start + 31]))} for start in range(0, CALIBRATION, 32)
    ]
    with torch.inference_mode():
        model(**batches[-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    Case(method, "element", 0.8).prune_(model, batches)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "megabytes": (peak - before) / 1e3, "threads": torch.get_num_threads()}


DENSE = Case("dense", "", 0.0, "", "")


def record(part: str, case: Case, number: int, fields: Mapping[str, Any]) -> results.Record:
    """Return the record of a result."""
    described = {"environment": environment.detect().record(), "part": part, **asdict(case), "set": number}
    return results.stamp("one_shot", {**described, "calibration": CALIBRATION, **fields})


PARTS: dict[str, Callable[[argparse.Namespace, Known], Iterator[results.Record]]] = {
    "embeddings": embeddings,
    "healed": healed,
    "classifier": classifier,
    "cost": cost,
}


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0, or 1 if a part was skipped."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.one_shot", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("part", nargs="*", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--sets", type=int, default=3, help="sets of calibration sentences")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes of healing")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--classifier", help="folder of an SST-2 classifier that was trained dense")
    parser.add_argument("--quick", action="store_true", help="one sparsity only")
    parser.add_argument("--measure", choices=("MiniLM", "BERT-base"), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    add_out_option(parser)
    options = parser.parse_args(argv)
    if unknown := set(options.part) - PARTS.keys():
        parser.error(f"unknown part {min(unknown)!r}; known: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measured_cost(options.measure, options.method)))
        return 0
    rows = results.read(options.out) if options.out is not None and options.out.exists() else []
    done = {(row["part"], *(row[name] for name in asdict(DENSE)), row["set"]) for row in rows}

    def known(part: str, case: Case, number: int) -> bool:
        return (part, *asdict(case).values(), number) in done

    skipped = 0
    for part in options.part or PARTS:
        try:
            for row in PARTS[part](options, known):
                append(options.out, [row])
                rows.append(row)
                print(".", end="", file=sys.stderr, flush=True)
        except Skipped as reason:
            print(f"{part} skipped: {reason}", file=sys.stderr)
            skipped = 1
    show(one_shot_tables(rows))
    return skipped


if __name__ == "__main__":
    sys.exit(main())
