"""Check the native library of an installed sparsebert without torch: ``python wheel_smoke.py``.

The script needs the standard library only, so it runs within a second on any Python and any machine or
emulator that the wheel is for. It loads the library through ctypes and computes a sparse linear layer, packed
by hand, on each instruction set that this machine has. The last line lists them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import random
import struct
from array import array
from pathlib import Path

ABI_VERSION = 6
OUT, IN, VECTOR_ROWS = 12, 40, 4
SLACK = 64  # bytes past the end that a kernel may read
LIBGOMP = "libgomp.so.1"

# struct sb_call and sb_weight of native.h
CALL = struct.Struct("=Qqqiiii")
WEIGHT = struct.Struct("=qqiiiiiiQQQQQQQQQ")
FLOAT32, VECTOR_FORMAT, NO_ACTIVATION = 0, 1, 0


def find_library() -> Path:
    """Return the path of the installed library, without importing the package, which needs torch."""
    package = importlib.util.find_spec("sparsebert_kernels")
    if package is None or package.origin is None:
        raise SystemExit("sparsebert is not installed for this Python")
    return Path(package.origin).parent / "cpu" / "_native.so"


def load(path: Path) -> ctypes.CDLL:
    ctypes.CDLL(LIBGOMP, mode=ctypes.RTLD_GLOBAL)  # in place of torch's
    library = ctypes.CDLL(str(path))
    if library.sb_abi_version() != ABI_VERSION:
        raise SystemExit(f"interface version {library.sb_abi_version()}; this check is for {ABI_VERSION}")
    library.sb_instruction_set.restype = ctypes.c_char_p
    return library


def instruction_sets(library: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while (name := library.sb_instruction_set(len(names))) is not None:
        names.append(name.decode())
    return names


class SparseLayer:
    """A weight [OUT, IN] of vectors of VECTOR_ROWS rows, about a third of them kept, in the packed layout."""

    def __init__(self, draw: random.Random) -> None:
        self.dense = [[0.0] * IN for _ in range(OUT)]
        self.bias = array("f", (draw.uniform(-1, 1) for _ in range(OUT)))
        self.values, self.columns, self.starts = array("f"), array("H"), array("i", [0])
        for first_row in range(0, OUT, VECTOR_ROWS):
            for column in range(IN):
                if draw.random() < 0.3:
                    vector = array("f", (draw.uniform(-1, 1) for _ in range(VECTOR_ROWS)))
                    self.values.extend(vector)
                    self.columns.append(column)
                    for row, value in enumerate(vector, first_row):
                        self.dense[row][column] = value
            self.starts.append(len(self.columns))
        self.values.frombytes(bytes(SLACK))
        self.columns.frombytes(bytes(SLACK))

    def expected(self, x: array[float], tokens: int) -> list[float]:
        return [
            sum(a * b for a, b in zip(row, x[token * IN : (token + 1) * IN], strict=True)) + bias
            for token in range(tokens)
            for row, bias in zip(self.dense, self.bias, strict=True)
        ]

    def computed(self, library: ctypes.CDLL, x: array[float], tokens: int, threads: int) -> array[float]:
        y = array("f", bytes(4 * tokens * OUT))
        call = CALL.pack(address(x), tokens, IN, FLOAT32, NO_ACTIVATION, threads, 1)
        call += WEIGHT.pack(
            OUT, IN, VECTOR_FORMAT, FLOAT32, OUT, IN, VECTOR_ROWS, FLOAT32,
            address(self.values), address(self.columns), 0, 0, 0, address(self.starts),
            address(self.bias), address(y), 0,
        )  # fmt: skip
        if library.sb_linear(ctypes.c_char_p(call)) != 0:
            raise SystemExit("the library refuses the call")
        return y


def address(values: array) -> int:
    return values.buffer_info()[0]


def main() -> None:
    path = find_library()
    library = load(path)
    draw = random.Random(0)
    layer = SparseLayer(draw)
    names = instruction_sets(library)
    for name in names:
        if library.sb_choose(name.encode()) != 0:
            raise SystemExit(f"{name} is listed and cannot be chosen")
        for tokens, threads in ((1, 1), (5, 2), (200, 1), (200, 2)):
            x = array("f", (draw.uniform(-1, 1) for _ in range(tokens * IN)))
            pairs = zip(layer.computed(library, x, tokens, threads), layer.expected(x, tokens), strict=True)
            error = max(abs(a - b) for a, b in pairs)
            if not error < 1e-5:
                raise SystemExit(f"{name}, {tokens} tokens, {threads} threads: wrong by {error}")
    print(f"Python {platform.python_version()}, {platform.machine()}: {', '.join(names)}")


if __name__ == "__main__":
    main()
