"""Files of ``torch.save``, read without running any code that they hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sparsebert_kernels.errors import first_line


def restricted_load(path: Path) -> Any:
    """Load a file of ``torch.save``, if it holds only tensors and plain containers.

    Raises:
        ValueError: In one line, for a file that is truncated, damaged or holds other objects, and for a
            compressed one, which may hold any multiple of its size.
        FileNotFoundError: If ``path`` does not exist.
    """
    refuse_compressed(path)
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise ValueError(
                f"{path} is refused: it is damaged or holds other objects than tensors (a pickled model, "
                "perhaps), and unpickling such a file can run arbitrary code; save a dict of tensors instead"
            ) from None
        except Exception as error:  # The unpickler and the zip reader raise too many kinds to name.
            raise ValueError(f"{path} is truncated or not a torch.save file: {first_line(error)}") from None


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a zip archive that holds more than its size; ``torch.save`` compresses nothing."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # Not a zip archive, or a damaged one: torch.load says so.
        return
    if claimed > size:
        raise ValueError(
            f"{path} is refused: its {size} bytes claim to hold {claimed}; torch.save compresses nothing"
        )
