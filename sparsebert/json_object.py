"""JSON as the standard has it, and files that hold one object.

Python also reads ``NaN``, ``Infinity``, ``1e999`` (as infinity) and integers of any length. Here they are
refused: nothing in this package writes them, and one such size or time spoils what is computed from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sparsebert.file_types import require_regular
from sparsebert_kernels.errors import first_line

_MOST_SHOWN = 40


class JsonNumberError(ValueError):
    """A number that JSON lacks, or that no field can hold.

    Attributes:
        number: The number, and what is wrong with it.
    """

    def __init__(self, number: str) -> None:
        super().__init__(f"it contains {number}")
        self.number = number


def load_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON whose numbers are within the range of float64.

    Args:
        text: The JSON.
        pairs: As ``object_pairs_hook`` of ``json.loads``.

    Raises:
        JsonNumberError: The text has another number.
        ValueError: The text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_constant=_no_number, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file (UTF-8) holds.

    Raises:
        ValueError: In one line, if the file is a pipe or device, is not JSON, or holds something else.
        OSError: If the file cannot be read.
    """
    require_regular(path)
    try:
        content = load_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a usable JSON file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _no_number(name: str) -> NoReturn:
    raise JsonNumberError(f"{name}, which is not a JSON number")


def _float(text: str) -> float:
    return float(_within_range(text))


def _int(text: str) -> int:
    return int(_within_range(text))


def _within_range(text: str) -> str:
    if not math.isfinite(float(text)):
        raise JsonNumberError(f"{text[:_MOST_SHOWN]}, which is beyond the range of numbers")
    return text
