"""Register the sparsebert quantizer with transformers when transformers is imported.

``import sparsebert`` does not import transformers. Instead it puts a finder in front of ``sys.meta_path``.
The finder wraps the loader of one transformers module and registers the quantizer after that module has
loaded.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# The module that holds the registered quantizers.
_REGISTRY = "transformers.quantizers.auto"


def register() -> None:
    """Register the quantizer: now if transformers has loaded its registry, otherwise when it does."""
    if _REGISTRY in sys.modules:
        _register_quantizer()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_quantizer() -> None:
    # Importing the module registers its classes.
    importlib.import_module("sparsebert.hf.quantizer")


class _Finder(importlib.abc.MetaPathFinder):
    """Find the registry of transformers, and wrap its loader in ``_Loader``."""

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
    """Load a module with another loader, then register the quantizer."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register_quantizer()

    def __getattr__(self, name: str) -> object:
        # Forward other attributes: `inspect` and tracebacks get a module's source from its loader.
        return getattr(self._loader, name)
