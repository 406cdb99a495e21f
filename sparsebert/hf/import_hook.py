"""Makes transformers know this project's folders, once it is loaded: `import sparsebert` does not load it.

The standard library's way to act after somebody else's import: a finder in front of the others that finds
one module, with their help, and has something done once that is loaded.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# The module that knows the plug-ins.
_REGISTRY = "transformers.quantizers.auto"


def register() -> None:
    """Register the plug-in now if transformers has loaded its registry already, else as soon as it does."""
    if _REGISTRY in sys.modules:
        _plug_in()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _plug_in() -> None:
    importlib.import_module("sparsebert.hf.quantizer")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, and the registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _plug_in()

    def __getattr__(self, name: str) -> object:
        # inspect and tracebacks ask a module's loader for its source.
        return getattr(self._loader, name)
