"""The graph of imports of sources and tests, read from their syntax trees."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOTS = (".", "kernels")  # folders that modules are found in


class ImportGraph:
    """Imports of files under ``root`` from each other, late ones and those for types too."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.imports = cache(self._imports)
        self._file = cache(self._find)

    def distances(self, test: str) -> dict[str, int]:
        """Return the number of imports between a test file and every file that it reaches."""
        reached = {test: 0}
        queue = deque([test])
        while queue:
            file = queue.popleft()
            for other in self.imports(file):
                if other not in reached:
                    reached[other] = reached[file] + 1
                    queue.append(other)
        return reached

    def _imports(self, file: str) -> frozenset[str]:
        tree, package = ast.parse((self._root / file).read_text(encoding="utf-8")), _package(file)
        return frozenset(
            found
            for node in ast.walk(tree)
            for name in _names(node, package)
            if (found := self._file(name)) is not None
        )

    def _find(self, module: str) -> str | None:
        """Return the file of the longest leading part of a dotted name that is a module here."""
        while module:
            for base in ROOTS:
                folder = Path(base, *module.split("."))
                for path in (folder.with_suffix(".py"), folder / "__init__.py"):
                    if (self._root / path).is_file():
                        return path.as_posix()
            module = module.rpartition(".")[0]
        return None


def _package(file: str) -> list[str]:
    parts = list(Path(file).parent.parts)
    return parts[1:] if parts[:1] == ["kernels"] else parts


def _names(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the dotted names that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
