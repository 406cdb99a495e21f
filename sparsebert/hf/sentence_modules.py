"""The modules.json of a sentence-transformers model with a sparse encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "modules.json"
# Importing this type imports sparsebert, so that the model also loads in processes that have not done so.
SPARSE_TYPE = "sparsebert.hf.sentence_transformers.Transformer"
# The name that every version of sentence-transformers knows.
DENSE_TYPE = "sentence_transformers.models.Transformer"


def set_type(file: Path, type: str, applies: Callable[[dict[str, Any]], bool]) -> None:
    """Set the type of the modules in a modules.json to whose entries a function applies.

    Args:
        file: The modules.json, as sentence-transformers writes it.
        type: ``SPARSE_TYPE`` or ``DENSE_TYPE``.
        applies: Function of an entry.
    """
    modules = json.loads(file.read_text(encoding="utf-8"))
    entries = [module for module in modules if applies(module)]
    if entries:
        for module in entries:
            module["type"] = type
        file.write_text(json.dumps(modules, indent=2), encoding="utf-8")
