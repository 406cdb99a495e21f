"""The places of a folder's tensors and layers in the model that is being loaded.

A folder may be loaded into another class than the saved one: a classifier into its base model, a base model
into a classifier, a whole CLIP into its text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from sparsebert.bert import full_name, is_bert_like, resolve


def is_saved_class(model: Any) -> bool:
    """Whether the folder was saved from a model of this class, according to its config.json."""
    return type(model).__name__ in (model.config.architectures or ())


def without_conversions(conversions: Iterable[Any], *, same_class: bool) -> list[Any]:
    """Return those of transformers' conversions that apply to tensors that have the names of a model.

    Args:
        conversions: The conversions of a checkpoint in its original format.
        same_class: Whether the tensors' names are those of the model that is being loaded. None applies then;
            otherwise renamings do, which also take parts of a model out of the whole.
    """
    return [each for each in conversions if not (same_class or isinstance(each, WeightConverter))]


def renamer(model: Any) -> Callable[[str], str]:
    """Return the function from a tensor's name on disk to its name in ``model``, as transformers loads it."""
    same_class = is_saved_class(model)
    renamings = [
        each
        for each in without_conversions(get_model_conversion_mapping(model), same_class=same_class)
        if isinstance(each, WeightRenaming)
    ]
    state = model.state_dict()

    def rename(name: str) -> str:
        renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, state)
        if renamed not in state and name in state:
            renamed, _ = rename_source_key(name, [], [], model.base_model_prefix, state)
        return renamed

    return rename


def layer_paths(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Return key -> full path in ``model`` of the layers that it has; see ``SparseConfig`` for the keys."""
    if is_bert_like(model):
        paths = {key: _full_name(model, key) for key in keys}
    else:
        rename, state = renamer(model), model.state_dict()
        names = {key: rename(f"{key}.weight") for key in keys}
        paths = {key: name.removesuffix(".weight") for key, name in names.items() if name in state}
    return {key: path for key, path in paths.items() if path is not None}


def require_saved_layer(config: Any, key: str) -> None:
    """Check that the class that was saved has a layer which the class that is being loaded lacks.

    Nothing is checked for a part that is loaded without the rest: its configuration does not name the class.

    Raises:
        ValueError: The saved class has no such layer with this configuration.
    """
    cls = getattr(transformers, (config.architectures or [""])[0], None)
    if cls is None:
        return
    with torch.device("meta"):
        saved = cls(config)
    try:
        resolve(saved, key)
    except ValueError as error:
        raise ValueError(f"config.json does not fit the folder's layers: {error}") from None


def _full_name(model: nn.Module, key: str) -> str | None:
    try:
        return full_name(model, key)
    except ValueError:
        return None
