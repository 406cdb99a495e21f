"""Changes to the folders of sparse models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def to_format_2(folder: Path) -> None:
    """Format 2: the names of transformers, and no lock."""
    (folder / "sparsebert.safetensors").rename(folder / "model.safetensors")

    def change(config: dict[str, Any]) -> None:
        config.pop("transformers_weights")
        config["quantization_config"].pop("weights")
        config["quantization_config"]["version"] = 2

    edit_config(folder, change)
