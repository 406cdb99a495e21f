"""Loading of models by hub id or folder, with one-line errors for unusable files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.json_object import read_json_object
from sparsebert.tickets.file import brief

# Some messages of transformers and torch are half a page long.
_MOST_SHOWN = 200


def load_config(name: str) -> Any:
    """Load the configuration of a model.

    Args:
        name: Hub id or folder of the model.

    Raises:
        ValueError: For a path that is not a model's folder, an unusable config.json, or weights quantised by
            another library.
        OSError: For a name that is neither a folder nor on the hub.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"model {name!r} is a file; expected a hub id or the folder of a model")
    if not path.is_dir():
        try:
            described, _ = PretrainedConfig.get_config_dict(name)
        except OSError:
            raise OSError(
                f"model {name!r} is not a folder, not cached, and not reachable on the hub"
            ) from None
    else:
        described = _described(path)
    stored = described.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if stored is not None and method != METHOD:
        raise ValueError(
            f"{name}: quant_method in its config.json is {brief(method)}; expected plain weights, or "
            f"weights saved by {METHOD}"
        )
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # The checks of each family's configuration raise different kinds.
        raise ValueError(f"{name}: its config.json is not usable: {_one_line(error)}") from error


def load_weights(cls: Any, name: str, **options: Any) -> Any:
    """Return ``cls.from_pretrained(name, **options)``; bad files raise ValueError or OSError."""
    try:
        return cls.from_pretrained(name, **options)
    except (OSError, ValueError):
        raise
    except Exception as error:  # Unpicklers and zip readers raise too many kinds to name.
        reason = f"damaged or truncated ({type(error).__name__}: {_one_line(error)})"
        if "ignore_mismatched_sizes" in str(error):
            reason = "not of the shapes in its config.json"
        raise ValueError(f"{name}: its weights are {reason}") from error


def _described(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        inside = folder / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{folder} is not the folder of a model: it holds no config.json{hint}")
    return read_json_object(file)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
