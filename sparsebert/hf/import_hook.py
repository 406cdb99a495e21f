"""Extend transformers and sentence-transformers when they are imported.

``import sparsebert`` does not import them. Instead it puts a finder in front of ``sys.meta_path``. The finder
wraps the loaders of three of their modules: after such a module has loaded, the module of sparsebert that
extends it is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Module -> the module that extends it.
_EXTENSIONS = {
    "transformers.quantizers.auto": "sparsebert.hf.quantizer",
    "transformers.trainer": "sparsebert.hf.trainer",
    "sentence_transformers": "sparsebert.hf.sentence_transformers",
}


def register() -> None:
    """Import the extension of each module: now if the module has been loaded, otherwise when it is."""
    for name, extension in _EXTENSIONS.items():
        if name in sys.modules:
            importlib.import_module(extension)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Find the modules to extend, and wrap their loaders in ``_Loader``."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _EXTENSIONS or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _EXTENSIONS[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Load a module with another loader, then import its extension."""

    def __init__(self, loader: importlib.abc.Loader, extension: str) -> None:
        self._loader = loader
        self._extension = extension

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(self._extension)

    def __getattr__(self, name: str) -> object:
        # Forward other attributes: `inspect` and tracebacks get a module's source from its loader.
        return getattr(self._loader, name)
