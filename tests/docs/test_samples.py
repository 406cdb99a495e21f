"""Every sample of the documents runs as printed, but for the model, and fewer steps, rounds and seeds.

A command that several pages print, or whose files several pages read, runs once: the others find its files.
Commands of an experiment run the small preset of the page's sample of one.
"""

from __future__ import annotations

import functools
import re
import runpy
import shlex
import shutil
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import sparsebert.lottery.methods  # noqa: F401  (registers them before the registries are remembered)
from sparsebert.cli.app import main
from sparsebert.lottery import method as lottery_method
from sparsebert.pruning import registry
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.formats import FORMATS
from tests.docs.documents import PAGES, README, ROOT, blocks, commands, name, shell_lines

COMMANDS = {command: None for page in PAGES for command in commands(page)}
MODEL = "bert-base-uncased"
SMALLER = {
    "1,2,3": "1,2",
    "sst2,cola,mrpc=345": "cola,mrpc=1",
    "bert-base": "bert-tiny",
    "bert-base-cased": "my-model",
    "microsoft/mpnet-base": "bert-tiny",
    "benchmarks/experiments/chen-table-2.yaml": "experiment.yaml",
    "runs/chen-table-2-small": "runs/experiment-small",
}
TRAINING = ["--steps", "2", "--batch-size", "4", "--max-length", "16", "--device", "cpu"]
DATA = ["--data", "data"]
# Options added to a command: they win over those that it has.
MORE = {
    "train": TRAINING,
    "transfer": TRAINING,
    "eval": ["--max-length", "16"],
    "arena": ["--budget", "0", "--vs", "onednn", "--batch", "4"],
    "optimize": ["--budget", "0", "--batch", "4", "--granularities", "none"],
    "heal": ["--minutes", "0.02"],
    "sweep": [*DATA, "--small"],
    "bench": ["--budget", "0.05", "--no-memory", "--batch", "2", "--seq", "16"],
}
MORE_OF_METHOD = {
    "--speedup": ["--speedup", "0.5"],  # a tiny model gains nothing
    "snip": ["--batches", "1", "--batch-size", "4", "--max-length", "16"],
    "sparsegpt": ["--count", "32"],
    "alps": ["--count", "8"],
    "obert": ["--count", "8"],
    "early-bird": ["--steps", "12"],
    "released": ["--step", "0.5"],  # the tiny model has too few heads for a tenth
    "imp": ["--step", "0.5"],
    "multi-task": ["--step", "0.5"],
}
# Options that name what a command writes, those first that make nothing else.
PRODUCTS = ("--out", "--output", "--json", "--dense")


@pytest.fixture(autouse=True)
def _restored_registries() -> Iterator[None]:
    """Forget the methods, formats and kernels that samples register."""
    tables = (lottery_method._METHODS, registry._METHODS, FORMATS, backend.FORWARD, backend.BACKWARD)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") or commands(page)], ids=name
)
def test_the_samples_run(
    page: Path, workspace: Path, products: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    if sample := "\n".join(blocks(page, "python")):
        _make_missing(re.findall(r'"([\w./-]+)"', sample), products, capsys)
        file = workspace / "sample.py"  # a file, which Triton reads its kernels from
        file.write_text(sample.replace(f'"{MODEL}"', '"my-model"'))
        runpy.run_path(str(file), run_name="sample")
    if experiment := "\n".join(blocks(page, "yaml")):
        (workspace / "experiment.yaml").write_text(
            re.sub(r"model: [\w./-]+", "model: my-model", experiment.replace("steps: 60", "steps: 2"))
        )
    for command in commands(page):
        _run(command, products, capsys)


def test_the_readme_samples_leave_sparse_layers(workspace: Path) -> None:
    file = workspace / "sample.py"
    file.write_text("\n".join(blocks(README, "python")).replace(f'"{MODEL}"', '"my-model"'))
    model = runpy.run_path(str(file))["model"]
    assert [type(module).__name__ for module in model.modules()].count("SparseLinear") == 12


def test_the_worked_examples_are_short() -> None:
    examples = blocks(ROOT / "docs" / "extending.md", "python")
    assert len(examples) == 4
    assert all(len(example.splitlines()) < 60 for example in examples)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_other_shell_lines_are_make_targets_or_pip(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in shell_lines(page):
        first, *rest = shlex.split(line)
        assert first in ("sparsebert", "pip", "make"), line
        assert first != "make" or not rest or rest[0] in targets, line


def _run(command: str, products: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.replace(MODEL, "my-model") for word in shlex.split(command)[1:]]
    words = [SMALLER.get(word, word) for word in words]
    if any("completion" in word for word in words):  # installs into the user's shell
        assert main(["--help"]) == 0
        assert words[0] in capsys.readouterr().out
        return
    kept = products / str(list(COMMANDS).index(command))
    if kept.exists():
        shutil.copytree(kept, ".", dirs_exist_ok=True)
        return
    if words and "--help" not in words and "help" not in words:
        _make_missing(_inputs(command), products, capsys)
        if words[0] != "convert" and {"--task", "--tasks"} & set(words):
            words += DATA
        words += MORE.get(words[0], [])
        if words[0] == "bench":
            words += [] if "--model" in words else ["--model", "bert-tiny"]
            words += [] if "--profile" in words else ["--vs", "onednn,eager"]  # a profile has no baselines
        words += next(
            (more for method, more in MORE_OF_METHOD.items() if method in words and words[0] != "convert"), []
        )
    code = main(words)
    output = capsys.readouterr()
    assert code == 0, (command, output.out, output.err)
    _keep(filter(Path.exists, map(Path, _products(command).values())), kept)


def _keep(paths: Iterable[Path], folder: Path) -> None:
    """Copy files and folders of the current folder into another."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / path)
        else:
            shutil.copy2(path, folder / path)


def _make_missing(paths: list[str], products: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of the documents that make files which do not exist yet."""
    for path in paths:
        for option in PRODUCTS:
            for command in COMMANDS:
                if not Path(path).exists() and path == _products(command).get(option):
                    _run(command, products, capsys)


def _inputs(command: str) -> list[str]:
    products = {path for option, path in _products(command).items() if option != "--dense"}
    return [word for word in shlex.split(command)[2:] if word not in products]


@functools.cache
def _products(command: str) -> dict[str, str]:
    """Return the paths that a command writes, by option; that of ``convert`` is its second argument."""
    words = shlex.split(command)
    products = {word: value for word, value in pairwise(words) if word in PRODUCTS}
    if words[1:2] == ["convert"]:
        products["--out"] = words[3]
    return products
