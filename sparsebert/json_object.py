"""JSON files that hold one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsebert.file_types import require_regular
from sparsebert_kernels.errors import first_line


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file (UTF-8) holds.

    Raises:
        ValueError: In one line, if the file is a pipe or device, is not JSON, or holds something else.
        OSError: If the file cannot be read.
    """
    require_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a usable JSON file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
