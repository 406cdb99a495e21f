"""The modules.json of a sentence-transformers model with a sparse encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "modules.json"
# Importing this type imports sparsebert, so that the model also loads in processes that have not done so.
MODULE_TYPE = "sparsebert.hf.sentence_transformers.Transformer"


def name_module_type(file: Path, is_sparse: Callable[[dict[str, Any]], bool]) -> None:
    """Name ``MODULE_TYPE`` in a modules.json, in the entries of the modules with sparse encoders."""
    modules = json.loads(file.read_text(encoding="utf-8"))
    for module in modules:
        if is_sparse(module):
            module["type"] = MODULE_TYPE
    file.write_text(json.dumps(modules, indent=2), encoding="utf-8")
