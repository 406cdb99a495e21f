"""Weights under other names than transformers expects, and models whose file left weights out.

transformers gives random values to a tensor that its file does not hold, and only logs it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import cached_file

from sparsebert.bert import canonical_key, encoder_matrix, is_bert_like, is_layer_name, structure
from sparsebert.checkpoints.plain_tensors import require_plain
from sparsebert.checkpoints.pruned_heads import HEAD_DIM, kept_features, pruned_heads_of, with_pruned_heads
from sparsebert.checkpoints.pruned_pairs import merge_pairs
from sparsebert.checkpoints.tensor_names import places
from sparsebert.checkpoints.weight_files import WEIGHT, read_config, read_weights
from sparsebert.tickets.file import brief
from sparsebert_kernels.errors import first_line

_POOLER = "pooler."
# A decoder's cross-attention, which an encoder leaves out.
_CROSS_ATTENTION = ".crossattention."


@dataclass(frozen=True)
class RenamedWeights:
    """A class of transformers, and the weights of a file under the names of this class."""

    cls: Any
    name: str
    config: Any
    state: dict[str, Tensor]
    dtype: Any

    def load(self) -> tuple[Any, Any]:
        """Return the model and transformers' report of missing and unexpected tensors."""
        model, report = self.cls.from_pretrained(
            None, config=self.config, state_dict=self.state, dtype=self.dtype, output_loading_info=True
        )
        model.name_or_path = model.config.name_or_path = self.name
        return model, report


def problem_of(model: Any, report: Mapping[str, Any], fresh_head: bool) -> str:
    """Return what is wrong with the weights of a loaded model, in words; "" if nothing is.

    Args:
        model: The model.
        report: transformers' report of its loading.
        fresh_head: Whether the task's head may be missing.
    """
    if getattr(model.config, "layer_norm_type", None) == "no_norm":
        return "are of nn_pruning's NoNorm, which transformers would replace by LayerNorm"
    prefix = _base_prefix(model)
    optional = _POOLER if not prefix else f"{prefix}{_POOLER}" if fresh_head else None
    missing = [
        key
        for key in sorted(report["missing_keys"])
        if not (fresh_head and not key.startswith(prefix)) and not (optional and key.startswith(optional))
    ]
    if missing:
        first = min(
            missing, key=lambda key: (not _is_of_matrix(canonical_key(key)), not key.endswith(WEIGHT))
        )
        more = f" and {len(missing) - 1} other tensors" if len(missing) > 1 else ""
        instead = sorted(report["unexpected_keys"])
        held = next(
            (key for key in instead if key.startswith(first.rpartition(".")[0])), "".join(instead[:1])
        )
        return f"lack {first}{more}{f'; they hold {brief(held)}, for example' if held else ''}"
    pruned = getattr(model.config, "pruned_heads", None)
    if pruned and getattr(model.config, "quantization_config", None) is None:
        return f"still have the heads that pruned_heads in config.json lists ({pruned})"
    surplus = [key for key in sorted(report["unexpected_keys"]) if _is_surplus(canonical_key(key))]
    if surplus and is_bert_like(model):
        return f"hold {brief(surplus[0])}, for which {type(model).__name__} has no place"
    return ""


def read_renamed(cls: Any, name: str, options: Mapping[str, Any]) -> RenamedWeights | None:
    """Read the weights of a folder under the names that a class expects; None if these are the file's names.

    Args:
        cls: A class of transformers, or one of its ``Auto`` classes.
        name: Hub id or folder of the model.
        options: Options of ``from_pretrained``.

    Raises:
        ValueError: In one line, for weights of several encoders, half a pruned weight, tensors that do not
            hold the values that they claim, and pruned heads that do not match the matrices.
    """
    try:
        stored = read_weights(folder_of(name))
    except (OSError, ValueError):  # The first attempt has failed for the same reason, and says so.
        return None
    outline = outline_of(cls, name, options)
    if getattr(outline.config, "quantization_config", None) is not None:
        return None
    config = outline.config
    merged = merge_pairs(stored, Path(name))
    with _errors_naming(name):
        state = _renamed(outline, merged)
    expected = outline.state_dict()
    for tensor_name, tensor in state.items():
        if tensor_name in expected:
            require_plain(tensor, tensor_name, Path(name))
    has_pruned_heads = bool(getattr(config, "pruned_heads", None))
    if has_pruned_heads:
        described = read_config(folder_of(name))
        with _errors_naming(name):
            state = _with_pruned_heads(outline, state, described)
        del config.pruned_heads
    unchanged = state.keys() == stored.keys() and all(state[each] is stored[each] for each in state)
    if unchanged and not has_pruned_heads:
        return None
    return RenamedWeights(type(outline), name, config, state, options.get("dtype"))


def outline_of(cls: Any, name: str, options: Mapping[str, Any]) -> Any:
    """Return the model of a folder or hub id without weights, on the meta device.

    Raises:
        ValueError: The config.json describes no model of this class.
    """
    fields = {option: value for option, value in options.items() if option not in ("config", "dtype")}
    try:
        config = copy.deepcopy(options.get("config")) or AutoConfig.from_pretrained(name, **fields)
        with torch.device("meta"):
            return cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    except Exception as error:  # The constructors of each family raise different kinds.
        raise ValueError(f"{name}: its config.json is not usable: {first_line(error)}") from error


def names_in(outline: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the name that a model expects for each name of a file.

    Raises:
        ValueError: The names are those of several encoders.
    """
    prefix = _base_prefix(outline)
    base = outline.get_submodule(prefix.removesuffix(".")).state_dict()
    matrices = {name for name, tensor in base.items() if tensor.dim() == 2 and _is_numbered(name)}
    modules = {name.partition(".")[0] for name in base}
    placed = places(
        names, matrices.__contains__, lambda name: name.partition(".")[0] in modules, preferred=("", prefix)
    )
    return {name: f"{prefix}{rest}" if in_base else rest for name, (in_base, rest) in placed.items()}


def folder_of(name: str) -> Path:
    """Return the folder of a model's files, that of the cache for a hub id."""
    if Path(name).is_dir():
        return Path(name)
    return Path(str(cached_file(name, "config.json", local_files_only=True))).parent


def drop_missing_pooler_(model: Any, report: Mapping[str, Any]) -> None:
    """Take a pooler of random values out of a bare encoder."""
    is_missing = any(key.startswith(_POOLER) for key in report["missing_keys"])
    if is_missing and not _base_prefix(model) and is_bert_like(model):
        model.pooler = None


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """Begin the message of a ValueError with the model's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _renamed(outline: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under the names of a model without weights."""
    renamed: dict[str, Tensor] = {}
    for name, new in names_in(outline, state).items():
        if new in renamed:
            raise ValueError(f"its weights hold two tensors for {new}")
        renamed[new] = state[name]
    return renamed


def _with_pruned_heads(
    outline: nn.Module, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the state with all matrices in their original shapes: zero for the heads of ``pruned_heads``."""
    encoder = structure(outline)
    pruned_heads = pruned_heads_of(config)
    width = encoder.num_heads * encoder.head_size
    restored = dict(state)
    for name, tensor in state.items():
        path = canonical_key(name).rpartition(".")[0]
        matrix = encoder_matrix(path)
        pruned = pruned_heads.get(int(matrix[0].rpartition(".")[2])) if matrix else None
        if matrix is None or pruned is None:
            continue
        try:
            kept = kept_features(pruned, encoder.num_heads, width)
            restored[name] = with_pruned_heads(tensor, matrix[1], kept, width)
            if restored[name] is tensor and name.endswith(WEIGHT):
                _require_zeros(tensor, matrix[1], kept)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
    return restored


def _require_zeros(weight: Tensor, kind: str, kept: Tensor) -> None:
    """Raise ValueError for a weight with all features if those of the pruned heads are not zero."""
    of_kept = weight.index_select(HEAD_DIM[kind], kept) if kind in HEAD_DIM else weight
    if of_kept.count_nonzero() != weight.count_nonzero():
        raise ValueError("has weights in the heads that pruned_heads in config.json lists")


def _base_prefix(model: Any) -> str:
    """Return the path of the base model inside a model, with a dot; "" if the model is the base model."""
    name = getattr(model, "base_model_prefix", "")
    return f"{name}." if name and name in model._modules else ""


def _is_numbered(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _is_of_matrix(name: str) -> bool:
    return encoder_matrix(name.rpartition(".")[0]) is not None


def _is_surplus(name: str) -> bool:
    return is_layer_name(name) and _CROSS_ATTENTION not in name
