"""Write the files of this folder with the code that is installed: README.md beside it says how.

It uses public names and the command only. The test shares what is said here of models, tickets and reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "poor", "awful"), ("a", "the", "film", "plot", "is")
WORDS = SPECIAL + GOOD + BAD + OTHER
TOKENS = torch.arange(2, 14).view(2, 6)
# Without dropout, whose random numbers are not the same on every processor.
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

TRAIN = (
    "train --task sst2 --model tiny-bert --data data --max-length 16 --steps 16 --batch-size 8 "
    "--learning-rate 0.01 --save-steps 8 --device cpu"
)
# Name of a run -> its options.
FINISHED = {
    "imp": "--method imp --sparsity 0.75 --step 0.5 --share remaining",
    "seeds": "--method imp --sparsity 0.5 --step 0.5 --seeds 1,2 --dense runs/dense",
    "given": "--method ticket --ticket tickets/element.safetensors",
    "taught": "--method movement --sparsity 0.5 --granularity 4x4 --teacher runs/dense/seed-1 "
    "--distill-weight 0.9",
    "words": "--method smp --sparsity 0.5 --label-words bad,good --template '{0} is [MASK]'",
}
# Name of a run -> its options, and the optimizer step, of all its rounds, after which it was killed.
KILLED = {
    "imp": ("--method imp --sparsity 0.75 --step 0.5 --share remaining", 28),
    "imp-rewound": (
        "--method imp --sparsity 0.6 --step 0.3 --head keep --rewind step --rewind-step 2",
        26,
    ),
    "movement": ("--method movement --sparsity 0.5 --scores-learning-rate 0.02", 12),
    "smp": (
        "--method smp --sparsity 0.5 --mask S --choose-every 4 --ramp-steps 4 --curve linear",
        12,
    ),
    "l0": ("--method l0 --scores-learning-rate 1 --regularisation 10", 12),
    "early-bird": ("--method early-bird --sparsity 0.5 --every 4 --window 9", 12),
    "cap": (
        "--method cap --sparsity 0.5 --negatives 8 --snapshot-every 4 --teacher runs/dense/seed-1",
        12,
    ),
    "multi-task": (
        "--method multi-task --sparsity 0.5 --step 0.5 --also wikitext-2,cola --proportions 2,1,1",
        28,
    ),
}
# Name of a ticket -> options of `prune`.
TICKETS = {
    "element": "--sparsity 0.7",
    "biases": "--sparsity 0.5 --biases",
    "removed": "--sparsity 0.6 --granularity head+mlp",
    "units": "--sparsity 0.5 --granularity head+neuron",
    "blocks": "--sparsity 0.5 --granularity 4x1 --scope matrix",
    "pooler": "--sparsity 0.5 --pooler",
    "random": "--sparsity 0.5 --method random --seed 9007199254740993",
}
METADATA: dict[str, Any] = {
    "method": "by hand",
    "seed": 2**63 - 1,
    "block_size": [4, 1],
    "small": -(2**70),
    "share": 1e-300,
    "words": "naïve “quotes” \u2028 \U0001f3ab",
    "history": [{"operation": "prune", "steps": 2**40, "nothing": None, "yes": True}],
}
# Name of a file -> the ticket it was made of, and the format.
FOREIGN = {
    "mask.pt": ("element", "bert-tickets"),
    "mask.npy": ("element", "smp"),
    "heads.npy": ("removed", "head-masks"),
    "heads_to_mask.json": ("removed", "super-tickets"),
}
# Name of a sparse folder -> its ticket, and options of `sparsify_`; without a format it is compacted only.
SPARSE: dict[str, tuple[str, dict[str, Any]]] = {
    "element": ("element", {"format": "element", "trainable": True, "tokens": 7, "compact": False}),
    "vector": ("blocks", {"format": "vector", "compact": False}),
    "panel": ("blocks", {"format": "panel", "compact": False}),
    "pooler": ("pooler", {"format": "csr", "compact": False}),
    "compacted": ("units", {}),
    "both": ("removed", {"format": "element", "compact": True}),
}
# Folders that are kept as archives.
ARCHIVES = ("runs", "killed")
EVALUATE = "eval --task sst2 --data data"
RECORDS = (
    f"{EVALUATE} --model runs/imp",
    f"{EVALUATE} --model runs/seeds --dense runs/dense",
    f"{EVALUATE} --model runs/imp --ticket tickets/removed.safetensors --compact",
    f"{EVALUATE} --model runs/words",
    "prune --model tiny-bert --sparsity 0.5 --granularity head --output out/ticket",
    "prune --model tiny-bert --sparsity 0.5 --method random --seeds 1,2 --output out/tickets",
    "convert tickets/element.safetensors out/sparse --to sparse --model runs/dense/seed-1/model",
    "bench --model tiny-bert --sparsity 0.5,0.9 --batch 2 --seq 8 --vs eager --budget 0.2",
    "bench --model tiny-bert --ticket tickets/units.safetensors --batch 2 --seq 8 --vs eager --budget 0.2",
    "env",
)
TRANSFER = (
    "transfer --ticket sst2=runs/imp --tasks sst2,cola=4 --model tiny-bert --data data --max-length 16 "
    "--steps 16 --batch-size 8 --learning-rate 0.01 --device cpu --out runs/transfer"
)


def sparsebert(command: str, *more: str) -> int:
    """The exit code of the command, which runs in this process."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    main = pkgutil.resolve_name(scripts["sparsebert"])
    return main([*shlex.split(command), *more])


def records(file: Path, *kinds: str) -> list[dict[str, Any]]:
    """The records of these kinds in a file of JSON lines."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if row["kind"] in kinds]


def bits(masks: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Key -> shape and bits of a mask, in hexadecimal digits."""
    return {
        key: [list(mask.shape), np.packbits(mask.numpy()).tobytes().hex()]
        for key, mask in sorted(masks.items())
    }


def contents(ticket: Any) -> dict[str, Any]:
    """All that a ticket file holds."""
    return {
        "masks": bits(ticket.masks),
        "bias_masks": bits(ticket.bias_masks),
        "removed": sorted(ticket.removed),
        "metadata": ticket.metadata,
        "sparsity": ticket.sparsity,
    }


def fingerprint(ticket: Any) -> dict[str, Any]:
    """What a ticket prunes: kept weights of each matrix, and a digest of all masks."""
    whole = json.dumps([bits(ticket.masks), bits(ticket.bias_masks), sorted(ticket.removed)])
    kept = {key: int(mask.sum()) for key, mask in sorted(ticket.masks.items())}
    return {"kept": kept, "masks": hashlib.sha256(whole.encode()).hexdigest()}


def answers(model: Any) -> list[list[float]]:
    """What a model answers to the same tokens every time."""
    with torch.no_grad():
        logits = model.eval()(TOKENS).logits
    return logits.float().flatten(1).tolist()


def load(folder: Path) -> Any:
    """A model as its config names it."""
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(folder)


def formats(model: Any) -> dict[str, str]:
    """Name -> packed format of the sparse layers."""
    from sparsebert import SparseLinear

    return {name: each.format for name, each in model.named_modules() if isinstance(each, SparseLinear)}


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run has found: masks and metrics of its rounds, its ticket, its models' answers."""
    from sparsebert import Ticket

    rows = records(run / "log.jsonl", "round")
    models = sorted(path.parent for path in (run / "model").rglob("config.json"))
    return {
        "rounds": [fingerprint(Ticket.load(path)) for path in sorted(run.glob("round-*/ticket.safetensors"))],
        "metrics": [row["metrics"] for row in rows],
        "search": [row["search"] for row in rows],
        "ticket": fingerprint(Ticket.load(run / "ticket.safetensors")),
        "answers": {model.relative_to(run).as_posix(): answers(load(model)) for model in models},
    }


def numbers(file: Path) -> list[list[str]]:
    """The numbers in each row of the tables that `report --json` has written, in whatever order."""
    rows = [row for table in records(file, "report") for row in table["rows"]]
    return [sorted(re.findall(r"-?\d+(?:\.\d+)?", " ".join(map(str, row)))) for row in rows]


def main() -> None:
    os.chdir(FOLDER)
    if sys.argv[1:2] == ["--die-after"]:
        _die_after(int(sys.argv[2]))
        sys.exit(sparsebert(sys.argv[3]))
    for made in ("tiny-bert", "data", "tickets", "foreign", "sparse", "runs", "killed", "out"):
        shutil.rmtree(made, ignore_errors=True)
    for made in (
        "results.jsonl",
        "tables.jsonl",
        "expected.json",
        *(f"{folder}.tar.xz" for folder in ARCHIVES),
    ):
        Path(made).unlink(missing_ok=True)
    torch.set_num_threads(1)
    _make_model_and_data()
    expected: dict[str, Any] = {"tickets": _make_tickets()}
    expected["runs"] = _make_runs()
    _make_foreign()
    expected["sparse"] = _make_sparse()
    expected["killed"] = _make_killed()
    for command in RECORDS:
        _require(sparsebert(command, "--json", "results.jsonl") == 0, command)
    shutil.move("out/sparse", "sparse/converted")
    expected["sparse"]["converted"] = _of_sparse("element", load(Path("sparse/converted")))
    for name, source in (("records", "results.jsonl"), ("folders", "runs")):
        _require(sparsebert(f"report {source} --json out/{name}.jsonl") == 0, source)
        expected[name] = numbers(Path(f"out/{name}.jsonl"))
    shutil.move("out/records.jsonl", "tables.jsonl")
    for folder in ARCHIVES:
        _pack(Path(folder))
    shutil.rmtree("out")
    lines = (f"{json.dumps(name)}: {json.dumps(each)}" for name, each in expected.items())
    Path("expected.json").write_text("{" + ",\n".join(lines) + "}\n")


def _make_model_and_data() -> None:
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE))
    model.save_pretrained("tiny-bert")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained("tiny-bert")
    for folder in ("SST-2", "CoLA", "wikitext-2"):
        Path("data", folder).mkdir(parents=True)
    for offset, name in enumerate(("train.tsv", "dev.tsv")):
        told = [
            (f"{OTHER[i % 2]} {OTHER[2 + i % 3 % 2]} is {(BAD, GOOD)[i % 2][(i // 2 + offset) % 3]}", i % 2)
            for i in range(32)
        ]
        rows = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in told)]
        Path("data/SST-2", name).write_text("\n".join(rows) + "\n")
        rows = [f"gj04\t{label}\t\t{text}" for text, label in told]
        Path("data/CoLA", name).write_text("\n".join(rows) + "\n")
    lines = [" ".join(OTHER[(i + j) % 5] for j in range(12)) for i in range(16)]
    for name in ("wiki.train.raw", "wiki.valid.raw"):
        Path("data/wikitext-2", name).write_text("\n".join(lines) + "\n")


def _make_tickets() -> dict[str, Any]:
    from sparsebert import Ticket

    Path("tickets").mkdir()
    found = {name: Path("tickets", f"{name}.safetensors") for name in (*TICKETS, "metadata", "combined")}
    for name, options in TICKETS.items():
        command = f"prune --model tiny-bert --output {found[name]} {options}"
        _require(sparsebert(command) == 0, command)
    element, random = (Ticket.load(found[name]) for name in ("element", "random"))
    Ticket(element.masks, metadata=METADATA).save(found["metadata"])
    (element & random).save(found["combined"])
    return {name: contents(Ticket.load(path)) for name, path in found.items()}


def _make_runs() -> dict[str, Any]:
    for name, options in FINISHED.items():
        to = f"--out runs/{name} --json results.jsonl"
        _require(sparsebert(f"{TRAIN} {options} {to}") == 0, name)
    _require(sparsebert(TRANSFER, "--json", "results.jsonl") == 0, TRANSFER)
    return {log.parent.as_posix(): outcome(log.parent) for log in sorted(Path("runs").rglob("log.jsonl"))}


def _make_foreign() -> None:
    Path("foreign").mkdir()
    for name, (ticket, to) in FOREIGN.items():
        command = f"convert tickets/{ticket}.safetensors foreign/{name} --to {to} --model tiny-bert"
        _require(sparsebert(command) == 0, command)


def _make_sparse() -> dict[str, Any]:
    from sparsebert import Ticket, compact_, sparsify_

    expected = {}
    for name, (ticket_name, options) in SPARSE.items():
        ticket = Ticket.load(f"tickets/{ticket_name}.safetensors")
        model = load(Path("runs/dense/seed-1/model"))
        (sparsify_ if options else compact_)(model, ticket, **options)
        model.save_pretrained(Path("sparse", name))
        if name == "element":
            torch.save(model.state_dict(), "sparse/element/state_dict.pt")
        expected[name] = _of_sparse(ticket_name, model)
    return expected


def _of_sparse(ticket: str, model: Any) -> dict[str, Any]:
    from sparsebert import compaction_description

    return {
        "ticket": ticket,
        "answers": answers(model),
        "formats": formats(model),
        "compaction": json.loads(json.dumps(compaction_description(model))),
    }


def _make_killed() -> dict[str, Any]:
    """Each run whole, for what it ends with, and once more in a process that is killed."""
    expected = {}
    for name, (options, step) in KILLED.items():
        _require(sparsebert(f"{TRAIN} {options} --out out/{name}") == 0, name)
        expected[name] = outcome(Path("out", name))
        command = f"{TRAIN} {options} --out killed/{name}"
        killed = subprocess.run([sys.executable, __file__, "--die-after", str(step), command])
        _require(killed.returncode == -signal.SIGKILL, f"{command} was not killed")
    return expected


def _die_after(steps: int) -> None:
    """Kill this process at the end of that optimizer step."""
    step, left = torch.optim.AdamW.step, iter(range(steps - 1, -1, -1))

    def step_and_die(*arguments: Any, **options: Any) -> Any:
        found = step(*arguments, **options)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    torch.optim.AdamW.step = step_and_die  # type: ignore[method-assign]


def _pack(folder: Path) -> None:
    """Make an archive of a folder, in which equal files of several runs take no room, and delete it."""
    with tarfile.open(f"{folder}.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != ".lock":
                entry = tarfile.TarInfo(path.as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
    shutil.rmtree(folder)


def _require(done: bool, what: str) -> None:
    if not done:
        sys.exit(f"not done: {what}")


if __name__ == "__main__":
    main()
