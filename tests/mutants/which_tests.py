"""The tests that a mutant is run against: those of its package first, from the closest to the widest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from tests.mutants.imports import ImportGraph
from tests.mutants.mutant import Mutant

KERNELS = "kernels/sparsebert_kernels"
NATIVE_LIBRARY = f"{KERNELS}/cpu/native.py"
# Beside tests/NAME for sparsebert/NAME, the tests are a mirror of the sources.
OWN = {
    f"{KERNELS}/": ("tests/ops", "tests/formats"),
    f"{KERNELS}/masked.py": ("tests/triton",),
    f"{KERNELS}/cpu/": ("tests/ops",),
    f"{KERNELS}/cuda/": ("tests/triton",),
    f"{KERNELS}/formats/": ("tests/formats", "tests/ops"),
    "sparsebert/workflows/": ("tests/workflows", "tests/cli"),
}
# The folders that are built most closely on a package and use it in ways of their own.
RELATED = {
    f"{KERNELS}/": ("tests/triton", "tests/nn"),
    f"{KERNELS}/cpu/": ("tests/formats", "tests/nn"),
    f"{KERNELS}/cuda/": ("tests/nn",),
    f"{KERNELS}/formats/": ("tests/triton", "tests/nn"),
    "sparsebert/bert.py": ("tests/pruning", "tests/compaction"),
    "sparsebert/tickets/": ("tests/pruning", "tests/interop"),
    "sparsebert/cost/": ("tests/planning", "tests/nn"),
    "sparsebert/nn/": ("tests/planning", "tests/hf"),
    "sparsebert/pruning/": ("tests/lottery", "tests/cli"),
    "sparsebert/compaction/": ("tests/hf", "tests/cli"),
    "sparsebert/planning/": ("tests/cli", "tests/compaction"),
    "sparsebert/hf/": ("tests/cli",),
    "sparsebert/tasks/": ("tests/training", "tests/cli"),
    "sparsebert/interop/": ("tests/cli",),
    "sparsebert/mask_learning/": ("tests/lottery",),
    "sparsebert/training/": ("tests/lottery", "tests/cli"),
    "sparsebert/lottery/": ("tests/cli",),
    "sparsebert/bench/": ("tests/benchmarks", "tests/cli"),
    "sparsebert/report/": ("tests/cli", "tests/benchmarks"),
    "sparsebert/demo/": ("tests/bench",),
}
UNRELATED = ("tests/mutants", "tests/house")  # they read sources, and fail for any change or none
SLOW = ("tests/triton/test_aot.py",)  # compiles every kernel
FAR = 99


class WhichTests:
    """Test files for mutants of the tree under ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._graph = ImportGraph(root)
        self._distances = cache(self._graph.distances)

    def own(self, mutant: Mutant) -> list[str]:
        """Return the test files of the mutant's package."""
        tests = self._files(own_folders(mutant.path))
        if Path(mutant.path).parent.name == "sparsebert":
            tests |= {test for test in self._files(["tests"]) if Path(test).parent.name == "tests"}
        return self._closest_first(mutant, tests)

    def related(self, mutant: Mutant) -> list[str]:
        """Return the test files of packages built on the mutant's, and all that import its module."""
        tests = set(self._files(_of_longest_prefix(RELATED, mutant.path)))
        tests |= {test for test in self._files(("tests",)) if self._distance(test, mutant) <= 1}
        return self._closest_first(mutant, tests - set(self.own(mutant)))

    def _files(self, folders: Iterable[str]) -> set[str]:
        found = (path for folder in folders for path in (self._root / folder).rglob("test_*.py"))
        names = {path.relative_to(self._root).as_posix() for path in found}
        return {name for name in names if not name.startswith(UNRELATED)}

    def _closest_first(self, mutant: Mutant, tests: Iterable[str]) -> list[str]:
        words = set(Path(mutant.path).stem.split("_"))

        def key(test: str) -> tuple[bool, int, int, int, str]:
            named_alike = words & set(Path(test).stem.split("_"))
            size = (self._root / test).stat().st_size
            return test in SLOW, -len(named_alike), self._distance(test, mutant), size, test

        return sorted(tests, key=key)

    def _distance(self, test: str, mutant: Mutant) -> int:
        return self._distances(test).get(NATIVE_LIBRARY if mutant.is_native else mutant.path, FAR)


def own_folders(path: str) -> tuple[str, ...]:
    """Return the folders with the tests of a source file."""
    return _of_longest_prefix(OWN, path) or (f"tests/{Path(path).parts[1].removesuffix('.py')}",)


def _of_longest_prefix(table: Mapping[str, tuple[str, ...]], path: str) -> tuple[str, ...]:
    best = max((source for source in table if path.startswith(source)), key=len, default=None)
    return () if best is None else table[best]
