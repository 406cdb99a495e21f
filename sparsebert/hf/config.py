"""What config.json of a sparse folder says under ``quantization_config``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.planning.planner import check_options
from sparsebert.tickets.file import brief, is_key
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

# 2: ``masks`` is `sparsebert.tickets.provenance.masks_digest`; in 1 it was over keys and bits alone.
FORMAT_VERSION = 2


@dataclass(frozen=True)
class StoredLayer:
    """A sparse matrix of the folder.

    shape               (out, in)
    kept                number of weights that are not pruned
    format, block       as it was packed where it was saved, (rows, columns) of its blocks
    measured_us, dense_us   of a call there and of the prepacked dense layer, where that was measured
    removed             what compaction removed from it, in words
    """

    shape: tuple[int, int]
    kept: int
    bias: bool
    format: str
    block: tuple[int, int] | None = None
    measured_us: float | None = None
    dense_us: float | None = None
    removed: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _pair("shape", self.shape))
        if self.block is not None:
            object.__setattr__(self, "block", _pair("block", self.block))
        rows, columns = self.shape
        if type(self.kept) is not int or not 0 <= self.kept <= rows * columns:
            raise ValueError(f"kept is {brief(self.kept)} of {rows} x {columns} weights")
        for name, types, expected in (
            ("bias", bool, "true or false"),
            ("format", str, "a name"),
            ("measured_us", float | int | None, "a number"),
            ("dense_us", float | int | None, "a number"),
            ("removed", str, "a text"),
        ):
            if not isinstance(getattr(self, name), types):
                raise ValueError(f"{name} is {brief(getattr(self, name))}; {expected} is expected")
        for name in ("measured_us", "dense_us"):
            if (time := getattr(self, name)) is not None and not 0 < time < math.inf:
                raise ValueError(f"{name} is {time}; a time is expected")


@dataclass(kw_only=True, eq=False)
class SparseConfig(QuantizationConfigMixin):
    """Everything that a folder says of its sparse layers beside their tensors.

    version      of this format: readers refuse one that is newer than they are
    layers       key as in a ticket (full path in models of unknown structure) -> `StoredLayer`
    masks        the digest of all keys, shapes and mask bits: that of the ticket, where every mask is stored
    sparsity     of the ticket: the share of its weights that are zero here, or removed
    format       "auto", or the packed format that was asked for
    trainable, fuse_qkv, fuse_activation, tokens   as in `sparsebert.sparsify_`
    machine      what the layers' formats were chosen for: they are chosen anew where it is another
    origin       metadata of the ticket: method, model, seed, ...
    compaction   `sparsebert.compaction_description` of the model, if it is compacted
    """

    quant_method: str = METHOD
    version: int = FORMAT_VERSION
    layers: dict[str, StoredLayer] = field(default_factory=dict)
    masks: str = ""
    sparsity: float = 0.0
    format: str = "auto"
    trainable: bool = False
    fuse_qkv: bool = True
    fuse_activation: bool = True
    tokens: int = DEFAULT_TOKENS
    machine: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    compaction: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **others: Any) -> Any:
        """The config that `to_dict` wrote.

        Raises ValueError in one line for a newer version, a field that is unknown or of another type, and a
        layer that cannot be.
        """
        _check(config_dict)
        layers = {key: _layer(key, entry) for key, entry in config_dict.get("layers", {}).items()}
        config = cls(**{**config_dict, "layers": layers})
        return (config, others) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_TYPES: dict[str, tuple[type, ...]] = {
    "quant_method": (str,),
    "layers": (dict,),
    "masks": (str,),
    "sparsity": (float, int),
    "format": (str,),
    "trainable": (bool,),
    "fuse_qkv": (bool,),
    "fuse_activation": (bool,),
    "tokens": (int,),
    "machine": (str,),
    "origin": (dict,),
    "compaction": (dict, type(None)),
}


def _check(contents: Mapping[str, Any]) -> None:
    version = contents.get("version", FORMAT_VERSION)
    if type(version) is not int or version < 1:
        raise ValueError(
            f"config.json: sparsebert format version {brief(version)}; "
            f"a number from 1 to {FORMAT_VERSION} is expected"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the folder was written by a newer sparsebert (format {version}, "
            f"this one reads up to {FORMAT_VERSION}): update sparsebert"
        )
    for name, value in contents.items():
        expected = _TYPES.get(name)
        if name != "version" and (expected is None or not isinstance(value, expected)):
            what = "unknown to" if expected is None else "of another type than in"
            raise ValueError(f"config.json: {brief(name)} in quantization_config is {what} format {version}")
    sparsity = contents.get("sparsity", 0.0)
    if not 0 <= sparsity <= 1:
        raise ValueError(f"config.json: sparsity is {sparsity} in quantization_config; 0 to 1 is expected")
    try:
        check_options(contents.get("format", "auto"), contents.get("tokens", 1))
    except ValueError as error:
        raise ValueError(f"config.json: {error} in quantization_config") from None


def _layer(key: str, entry: Any) -> StoredLayer:
    try:
        if not is_key(key) or not isinstance(entry, Mapping):
            raise ValueError("a module path and its fields are expected")
        return StoredLayer(**entry)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config.json: layer {brief(key)} in quantization_config: {error}") from None


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_size(each) for each in value):
        raise ValueError(f"{name} is {brief(value)}; two positive sizes are expected")
    return value[0], value[1]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0
