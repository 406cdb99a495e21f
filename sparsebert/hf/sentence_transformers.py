"""sentence-transformers models with sparse encoders.

Importing this module extends the methods that save such models and that look up the types in modules.json;
``sparsebert.hf.import_hook`` imports it. Without it, sentence-transformers 6 imports types of other packages
only with ``trust_remote_code=True``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from sparsebert.hf.attach_quantizer import has_quantizer
from sparsebert.hf.sentence_modules import FILE, SPARSE_TYPE, set_type

try:
    from sentence_transformers.base.modules import Transformer
except ImportError:  # before version 5.4
    from sentence_transformers.models import Transformer


def _owner(method: str) -> Any:
    """Return the class that defines a method of ``SentenceTransformer``; other kinds of models share it."""
    return next(cls for cls in SentenceTransformer.__mro__ if method in vars(cls))


_Saving, _Loading = _owner("save"), _owner("_load_module_class_from_ref")
_save, _load_module_class_from_ref = _Saving.save, _Loading._load_module_class_from_ref


@functools.wraps(_save)
def save(self: Any, path: str, *args: Any, **options: Any) -> None:
    """Save the model; its modules.json names ``SPARSE_TYPE`` for each sparse encoder."""
    _save(self, path, *args, **options)
    if path is not None:
        set_type(Path(path) / FILE, SPARSE_TYPE, lambda entry: _is_sparse(self._modules[entry["name"]]))


@functools.wraps(_load_module_class_from_ref)
def load_module_class_from_ref(self: Any, class_ref: str, *args: Any, **options: Any) -> Any:
    """Return the class of a type in modules.json."""
    if class_ref == SPARSE_TYPE:
        return Transformer
    return _load_module_class_from_ref(self, class_ref, *args, **options)


def _is_sparse(module: Any) -> bool:
    return type(module) is Transformer and has_quantizer(module.auto_model)


_Saving.save, _Loading._load_module_class_from_ref = save, load_module_class_from_ref
