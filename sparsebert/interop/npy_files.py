"""Arrays of ``.npy`` files of unknown origin, read without pickle and without memory for what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from sparsebert_kernels.errors import one_line


def read_array(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, mapped into memory: a header may claim more than the file holds.

    Raises:
        ValueError: In one line, for another kind of file, and for a header that is damaged or claims an array
            that the file does not hold.
        FileNotFoundError: If ``path`` does not exist.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            raise ValueError(f"{path} must be a .npy file, got another kind of file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises too many kinds to name.
        raise ValueError(f"{path} is not a usable .npy file: {one_line(error)}") from None
