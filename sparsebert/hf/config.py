"""The ``quantization_config`` in the config.json of a sparse model's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsebert.checkpoints.weight_files import SPARSE_INDEX, SPARSE_WEIGHTS
from sparsebert.cost.precision import LOWER_PRECISIONS, require_tolerance
from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.planning.planner import check_options
from sparsebert.tickets.file import brief, is_key
from sparsebert_kernels.dtype_names import SHORT_NAMES
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

# Since version 2, ``masks`` is `sparsebert.tickets.provenance.masks_digest`; in version 1 it is a digest of
# the keys and bits alone. Since version 3, the files have names of their own (``weights``), and the tensors
# have their names in the model; before, both had the names of transformers.
FORMAT_VERSION = 3


@dataclass(frozen=True)
class StoredLayer:
    """A sparse matrix in a folder.

    Attributes:
        shape: (out, in).
        kept: Number of weights that are not pruned.
        bias: Whether the layer has a bias.
        format: Packed format on the machine that saved the folder.
        block: (rows, columns) of a block there; None for formats without blocks.
        measured_us: Microseconds of a call there; None if not measured.
        dense_us: The same of the prepacked dense layer.
        removed: What compaction removed from the matrix, in words; "" if nothing.
        precision: Precision below the layer's dtype in which it computed there; "" for the dtype's.

    Raises:
        ValueError: A field has an impossible value.
    """

    shape: tuple[int, int]
    kept: int
    bias: bool
    format: str
    block: tuple[int, int] | None = None
    measured_us: float | None = None
    dense_us: float | None = None
    removed: str = ""
    precision: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _pair("shape", self.shape))
        if self.block is not None:
            object.__setattr__(self, "block", _pair("block", self.block))
        rows, columns = self.shape
        if type(self.kept) is not int or not 0 <= self.kept <= rows * columns:
            raise ValueError(
                f"kept must be a number of weights up to {rows} x {columns}, got {brief(self.kept)}"
            )
        for name, types, expected in (
            ("bias", bool, "true or false"),
            ("format", str, "a string"),
            ("measured_us", float | int | None, "a number"),
            ("dense_us", float | int | None, "a number"),
            ("removed", str, "a string"),
            ("precision", str, "a string"),
        ):
            value = getattr(self, name)
            if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
                raise ValueError(f"{name} must be {expected}, got {brief(value)}")
        if self.precision not in ("", *LOWER_PRECISIONS):
            known = ", ".join(LOWER_PRECISIONS)
            raise ValueError(f"precision must be one of {known}, got {brief(self.precision)}")
        for name in ("measured_us", "dense_us"):
            if (time := getattr(self, name)) is not None and not 0 < time < math.inf:
                raise ValueError(f"{name} must be a positive, finite time, got {time}")


@dataclass(kw_only=True, eq=False)
class SparseConfig(QuantizationConfigMixin):
    """The description of a folder's sparse layers; the tensors are in the safetensors files.

    Attributes:
        version: Version of this format; readers reject newer versions.
        layers: Key -> ``StoredLayer``. Keys are as in a ticket, or full paths in models of unknown structure.
        masks: Digest of all keys, shapes and mask bits. It equals the digest of the ticket's masks if the
            folder stores all of them.
        sparsity: Sparsity of the ticket: the share of weights that are zero or removed.
        format: The ``format`` argument of ``sparsebert.sparsify_``: "auto" or a packed format.
        trainable: As in ``sparsebert.sparsify_``.
        fuse_qkv: As in ``sparsebert.sparsify_``.
        fuse_activation: As in ``sparsebert.sparsify_``.
        tokens: As in ``sparsebert.sparsify_``.
        tolerance: As in ``sparsebert.sparsify_``.
        fuse: As in ``sparsebert.sparsify_``; False in folders that were written before this option.
        way: The way in which the encoder ran on the machine that saved the folder
            (``sparsebert.planning.encoder_plan``); "" if unknown.
        machine: The machine that the layers' formats were chosen for, with the versions of sparsebert and
            torch; other machines choose again.
        origin: Metadata of the ticket: method, model, seed and so on.
        compaction: ``sparsebert.compaction_description`` of the model; None without compaction.
        embeddings: Dtype that the embeddings are stored in where it is narrower than the model's; None for
            the model's.
        weights: ``SPARSE_WEIGHTS`` or ``SPARSE_INDEX``; None for the files that transformers looks for.
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
    tolerance: str = "fp32"
    fuse: bool | None = False
    way: str = ""
    machine: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    compaction: dict[str, Any] | None = None
    embeddings: str | None = None
    weights: str | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **others: Any) -> Any:
        """Create the config from the output of ``to_dict``.

        Args:
            config_dict: The ``quantization_config`` of a config.json.
            return_unused_kwargs: Return (config, ``others``), as transformers requires.
            others: Keyword arguments to pass through.

        Raises:
            ValueError: The version is newer, a field is unknown or has another type, or a layer is invalid.
        """
        _check(config_dict)
        layers = {key: _layer(key, entry) for key, entry in config_dict.get("layers", {}).items()}
        config = cls(**{**config_dict, "layers": layers})
        return (config, others) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as plain values for JSON."""
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
    "tolerance": (str,),
    "fuse": (bool, type(None)),
    "way": (str,),
    "machine": (str,),
    "origin": (dict,),
    "compaction": (dict, type(None)),
    "embeddings": (str, type(None)),
    "weights": (str, type(None)),
}


def _check(contents: Mapping[str, Any]) -> None:
    """Raise ValueError for a version, a field or a value that this version cannot read."""
    version = contents.get("version", FORMAT_VERSION)
    if type(version) is not int or version < 1:
        raise ValueError(
            f"config.json: format version in quantization_config must be an integer from 1 to "
            f"{FORMAT_VERSION}, got {brief(version)}"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"a newer sparsebert wrote the folder (format {version}; this version reads up to "
            f"{FORMAT_VERSION}); update sparsebert"
        )
    for name, value in contents.items():
        expected = _TYPES.get(name)
        if name != "version" and (expected is None or type(value) not in expected):
            problem = "unknown in" if expected is None else f"a {type(value).__name__}, the wrong type for"
            raise ValueError(
                f"config.json: {brief(name)} in quantization_config is {problem} format {version}"
            )
    sparsity = contents.get("sparsity", 0.0)
    if not 0 <= sparsity <= 1:
        raise ValueError(f"config.json: sparsity in quantization_config must be 0 to 1, got {sparsity}")
    if (dtype := contents.get("embeddings")) not in (*SHORT_NAMES, None):
        raise ValueError(
            f"config.json: embeddings in quantization_config must be one of {', '.join(SHORT_NAMES)}, got "
            f"{brief(dtype)}"
        )
    if contents.get("weights") not in (SPARSE_WEIGHTS, SPARSE_INDEX, None):
        raise ValueError(
            f"config.json: weights in quantization_config must be {SPARSE_WEIGHTS} or {SPARSE_INDEX}, "
            f"got {brief(contents['weights'])}"
        )
    try:
        check_options(contents.get("format", "auto"), contents.get("tokens", 1))
        require_tolerance(contents.get("tolerance", "fp32"))
    except ValueError as error:
        raise ValueError(f"config.json: {error} in quantization_config") from None


def _layer(key: str, entry: Any) -> StoredLayer:
    try:
        if not is_key(key) or not isinstance(entry, Mapping):
            raise ValueError("expected a module path and its fields")
        return StoredLayer(**entry)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config.json: layer {brief(key)} in quantization_config: {error}") from None


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_size(each) for each in value):
        raise ValueError(f"{name} must be two positive integers, got {brief(value)}")
    return value[0], value[1]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0
