"""Models by the name that a user gives, loaded by transformers or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.tickets.file import brief

# Of what transformers or torch say: some of their messages are half a page.
_MOST_SHOWN = 200


def load_config(name: str) -> Any:
    """The configuration of a model, by hub id or folder.

    Raises ValueError for what is no folder of a model, a config.json that is damaged or describes none, and
    weights that another library has quantised; OSError for a name that is neither here nor on the hub.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"model {name!r} is a file: a hub id or the folder of a model is needed")
    if not path.is_dir():
        try:
            described, _ = PretrainedConfig.get_config_dict(name)
        except OSError:
            raise OSError(
                f"model {name!r} is no folder here, not cached, and not reachable on the hub"
            ) from None
    else:
        described = _described(path)
    stored = described.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if stored is not None and method != METHOD:
        raise ValueError(
            f"{name}: quant_method in its config.json is {brief(method)}; a model of plain weights, "
            f"or one that {METHOD} saved, is needed"
        )
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # of the checks of each family's configuration: too many kinds to name
        raise ValueError(f"{name}: its config.json is not usable: {_one_line(error)}") from error


def load_weights(cls: Any, name: str, **options: Any) -> Any:
    """``cls.from_pretrained(name, **options)``; what is wrong with its files is a ValueError or OSError."""
    try:
        return cls.from_pretrained(name, **options)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of unpicklers and zip readers: too many kinds to name
        reason = f"damaged or cut off ({type(error).__name__}: {_one_line(error)})"
        if "ignore_mismatched_sizes" in str(error):
            reason = "of other shapes than its config.json says"
        raise ValueError(f"{name}: its weights are {reason}") from error


def _described(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        inside = folder / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{folder} is no folder of a model: it holds no config.json{hint}")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no usable JSON file: {_one_line(error)}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{file} is no model's configuration")
    return described


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
