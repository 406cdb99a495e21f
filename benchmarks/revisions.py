"""Layers and models of two revisions, in turns: `python -m benchmarks.revisions --base REVISION`.

The base is checked out and built in `build/revisions/`. Each side runs in a process of its own; they take
turns, a few calls each, so that a slow moment of the machine hits both. A ratio is the base's time
divided by this tree's: above 1, this tree is faster. If the outputs of a case differ, that is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebert import results
from sparsebert.bench import environment
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import Timings, alternate

ROOT = Path(__file__).resolve().parents[1]
# A case with a lower median ratio counts as slower.
WORST = 0.98
TOLERANCE = 1e-4
TURN_SECONDS = 0.02
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


@dataclass(frozen=True)
class Case:
    """A case that both revisions run: a function of ``revision_worker`` and its arguments."""

    name: str
    kind: str
    arguments: dict[str, Any]


def cases() -> list[Case]:
    layers = [
        Case(
            f"{format} {dtype} {shape[0]}x{shape[1]}, M = {tokens}",
            "layer",
            {"shape": list(shape), "tokens": tokens, "format": format, "dtype": dtype},
        )
        for format, dtype, shape, tokens in itertools.product(
            ("element", "vector", "dense"), ("float32", "bfloat16"), ((768, 768), (3072, 768)), (16, 128, 512)
        )
    ]
    models = [
        Case(
            f"{name}, {granularity}, batch {batch}, {tokens} tokens",
            "model",
            {"config": config, "batch": batch, "tokens": tokens, "granularity": granularity},
        )
        for name, config, batch, tokens, granularity in (
            ("MiniLM", MINILM, 1, 16, "element"),
            ("MiniLM", MINILM, 8, 32, "element"),
            ("MiniLM", MINILM, 8, 32, "head+neuron"),
            ("BERT-base", BERT_BASE, 1, 128, "element"),
            ("BERT-base", BERT_BASE, 8, 128, "element"),
        )
    ]
    return layers + models


class Side:
    """The worker of one tree."""

    def __init__(self, tree: Path) -> None:
        paths = os.pathsep.join((str(tree), str(tree / "kernels")))
        self._worker = subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "benchmarks/revision_worker.py")],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.calls = 1

    def _ask(self, **request: Any) -> Any:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        print(json.dumps(request), file=self._worker.stdin, flush=True)
        line = self._worker.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self._worker.wait()}; its error stands above")
        return json.loads(line)

    def build(self, case: Case) -> torch.Tensor:
        """Build the case in the worker and return the first entries of its output in float64."""
        return torch.tensor(self._ask(case=case.kind, arguments=case.arguments), dtype=torch.float64)

    def run(self) -> float:
        return float(self._ask(calls=self.calls))

    def close(self) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()


def check_out(revision: str) -> Path:
    """Return the folder of this revision's tree with its native kernels; check it out and build it once."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run(
        [*git, "rev-parse", "--verify", "--short=12", f"{revision}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if name.returncode != 0:
        raise ValueError(f"--base {revision} names no commit of this repository")
    tree = ROOT / "build/revisions" / name.stdout.strip()
    if not (tree / ".built").exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run([*git, "archive", name.stdout.strip()], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        subprocess.run(
            [sys.executable, str(tree / "kernels/sparsebert_kernels/cpu/build_native.py")], check=True
        )
        (tree / ".built").touch()
    return tree


def measure(case: Case, base: Side, here: Side, budget: float) -> dict[str, Any]:
    """Time one case in paired rounds. Raises ValueError if the outputs of the two revisions differ."""
    expected, answer = base.build(case), here.build(case)
    error = float((answer - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise ValueError(f"{case.name}: the outputs differ by {error:.1e} (limit {TOLERANCE:.0e})")
    for side in (base, here):
        side.calls = 1
        side.run()
    base.calls = here.calls = max(1, round(TURN_SECONDS / min(base.run(), here.run())))
    timings = min(
        (alternate({"base": base.run, "here": here.run}, budget=budget, min_rounds=21) for _ in range(3)),
        key=_spread,
    )
    ratio = timings.ratio("base", "here")
    return {
        "case": case.name,
        "ratio": quantiles(ratio),
        "base_us": quantiles(timings.latency("base"), 1e6),
        "here_us": quantiles(timings.latency("here"), 1e6),
        "rounds": timings.rounds,
        "error": error,
        "must": WORST,
        "passed": ratio.median >= WORST,
        "busy": bool(timings.busy()),
    }


def _spread(timings: Timings) -> float:
    return timings.ratio("base", "here").spread


def main() -> int:
    """Return exit code 0 if no case is slower, 1 if one is, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.revisions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--base", required=True, help="commit, tag or branch to compare with")
    parser.add_argument("--match", default="", help="only the cases whose name contains this")
    parser.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="seconds of timed rounds in each of the three measurements of a case",
    )
    parser.add_argument("--out", type=Path, help="append the records to this file")
    options = parser.parse_args()
    try:
        tree = check_out(options.base)
        base, here = Side(tree), Side(ROOT)
        machine = {"environment": environment.detect().record(), "base": tree.name}
        rows = []
        for case in cases():
            if options.match in case.name:
                row = measure(case, base, here, options.budget)
                rows.append(results.stamp("revision", {**machine, **row}))
                mark = "" if row["passed"] else "  SLOWER"
                print(f"{row['ratio']['median']:6.3f}x  {case.name}{' ?' * row['busy']}{mark}", flush=True)
        base.close()
        here.close()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        results.append(options.out, rows)
    return int(not all(row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
