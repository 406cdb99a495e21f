"""The points to measure on a GPU, most informative first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE = ((2304, 768), (768, 768), (3072, 768), (768, 3072))  # (out, in): QKV, O, U, D
LARGE = ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096))
TOKENS = (4096, 16384, 512, 128)
SPARSITIES = (0.9, 0.95, 0.75, 0.5, 0.98)
# (rows, columns) of the blocks: whole blocks, and groups of 8 columns.
BLOCKS = ((64, 64), (128, 128), (32, 32), (16, 16), (64, 8), (32, 8), (128, 8), (16, 8))
MODES = ("forward", "backward", "step")
SECONDS = {
    "planned": 6,
    "limits": 15,
    "tuning": 30,
    "layer": 4,
    "dense": 25,
    "masked": 4,
    "bitmap": 4,
    "model": 95,
    "activation": 20,
    "occupancy": 20,
    "memory": 30,
    "tests": 60,
    "sanitizer": 120,
    "requests": 60,
}
TINY_SHAPE, TINY_TOKENS = (128, 128), 12


@dataclass(frozen=True)
class Point:
    """A measurement: its kind, and the arguments of the function that takes it."""

    kind: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Identifier of the point in records."""
        return " ".join([self.kind, *(f"{name}={_text(value)}" for name, value in self.arguments)])

    @property
    def seconds(self) -> float:
        """Estimated duration including compilation; a point does not start with less time left."""
        return SECONDS[self.kind]


def point(kind: str, **arguments: Any) -> Point:
    return Point(kind, tuple(arguments.items()))


def layer(
    shape: tuple[int, int],
    tokens: int,
    block: tuple[int, int],
    sparsity: float,
    mode: str = "forward",
    cold: bool = False,
) -> Point:
    arguments = {"shape": shape, "tokens": tokens, "block": block, "sparsity": sparsity, "mode": mode}
    return point("layer", **arguments, cold=cold)


def queue() -> list[Point]:
    """Return all points: those of the first call of ten minutes, of the second, and the rest.

    The first call shows what limits the kernels, and what a whole model gains; the second tests them, tunes
    them and measures the backward pass and the other cases with a goal.
    """
    return _once(
        itertools.chain(
            _first(),
            _tests(),
            [point("sanitizer", path="tests/triton")],
            _tuning(),
            _promised(),
            [point("memory", model="bert-base", batch=32)],
            _planned(BASE),
            _layers(BASE),
            _against_dense(BASE),
            _models(("bert-large", "bert-base"), (32, 128, 4, 1)),
            _ragged_models(),
            [point("memory", model="bert-large", batch=32)],
            _requests(("bert-base", "bert-large"), (32, 8)),
            _layers(LARGE),
            _against_dense(LARGE),
        )
    )


def tiny() -> list[Point]:
    """Return points of the same kinds for the interpreter, without duplicates."""

    def shrink(each: Point) -> Point:
        small = {"tokens": TINY_TOKENS, "shape": TINY_SHAPE, "model": "bert-tiny", "batch": 1}
        arguments = {name: small.get(name, value) for name, value in each.arguments}
        if arguments.get("sparsity"):
            arguments["sparsity"] = 0.9
        if arguments.get("path", "").endswith(".py"):
            arguments["path"] = str(Path(arguments["path"]).parent)
        return replace(each, arguments=tuple(arguments.items()))

    return _once(map(shrink, queue()))


def _first() -> Iterator[Point]:
    """Yield the points of the first call."""
    yield point("limits")
    for tokens in (4096, 16384):
        yield point("activation", shape=(3072, 768), tokens=tokens, block=(64, 64), sparsity=0.9)
    for sparsity in (0.75, 0.9, 0.95):
        yield point("occupancy", shape=(3072, 768), tokens=4096, block=(64, 64), sparsity=sparsity)
    for tokens, block in itertools.product((4096, 16384), BLOCKS[:4]):
        yield layer((3072, 768), tokens, block, 0.0)
    for name, batch in (("bert-base", 32), ("bert-base", 128), ("bert-large", 32), ("bert-base", 4)):
        yield _model(name, batch)


def _promised() -> Iterator[Point]:
    """Yield the cases with a goal."""
    for shape in BASE:
        yield layer(shape, 16384, (64, 64), 0.9, "backward")
    for block, sparsity in PROMISED:
        for shape in BASE:
            yield layer(shape, 4096, block, sparsity)
    yield point("dense", shape=(3072, 768), tokens=4096)  # with 2:4
    for block, sparsity in PLANNED:
        yield point("planned", shape=(3072, 768), tokens=4096, block=block, sparsity=sparsity)
    for shape in BASE:
        yield point("masked", shape=shape, tokens=4096, mode="forward")
        yield point("bitmap", shape=shape, tokens=4096, sparsity=0.9)
    for batch in (32, 128):
        yield _model("bert-base", batch, removed=0.5)


PROMISED = (
    ((64, 64), 0.9),
    ((128, 128), 0.9),
    ((64, 8), 0.9),
    ((64, 64), 0.75),
    ((128, 128), 0.75),
    ((64, 64), 0.95),
    ((32, 32), 0.9),
    ((16, 16), 0.95),
)


# Tickets of every kind, including those for which sparse kernels are slower.
PLANNED = (((64, 64), 0.9), ((64, 64), 0.5), ((16, 16), 0.75), ((1, 1), 0.9), ((1, 1), 0.97))


def _planned(shapes: Iterable[tuple[int, int]]) -> Iterator[Point]:
    for tokens, (block, sparsity), shape in itertools.product(TOKENS, PLANNED, shapes):
        yield point("planned", shape=shape, tokens=tokens, block=block, sparsity=sparsity)


def _layers(shapes: Iterable[tuple[int, int]]) -> Iterator[Point]:
    for tokens in TOKENS:
        for block, sparsity, shape in itertools.product(BLOCKS, SPARSITIES, shapes):
            yield layer(shape, tokens, block, sparsity)
    for block, shape in itertools.product(BLOCKS[:2], shapes):
        yield layer(shape, 4096, block, 0.9, cold=True)
    for mode, tokens in itertools.product(("backward", "step"), (16384, 4096)):
        for block, sparsity, shape in itertools.product(BLOCKS[:5], SPARSITIES[:3], shapes):
            yield layer(shape, tokens, block, sparsity, mode)


def _against_dense(shapes: Iterable[tuple[int, int]]) -> Iterator[Point]:
    for tokens, shape in itertools.product(TOKENS, shapes):
        yield point("dense", shape=shape, tokens=tokens)
    for mode, tokens, shape in itertools.product(("forward", "step"), (4096, 16384), shapes):
        yield point("masked", shape=shape, tokens=tokens, mode=mode)
    for tokens, sparsity, shape in itertools.product((4096, 16384), (0.9, 0.75, 0.5), shapes):
        yield point("bitmap", shape=shape, tokens=tokens, sparsity=sparsity)


def _models(names: Iterable[str], batches: Iterable[int]) -> Iterator[Point]:
    for name, batch in itertools.product(names, batches):
        yield _model(name, batch)


def _model(name: str, batch: int, **others: Any) -> Point:
    return point("model", model=name, batch=batch, block=(64, 64), sparsity=0.9, **others)


def _ragged_models() -> Iterator[Point]:
    for batch in (64, 256):  # about 4k and 16k tokens
        yield _model("bert-base", batch, ragged=True)


def _tests() -> Iterator[Point]:
    """Yield the tests of kernels file by file, those that need a GPU, and those of formats and operators."""
    for file in sorted((ROOT / "tests" / "triton").glob("test_*.py")):
        yield point("tests", path=f"tests/triton/{file.name}")
    yield point("tests", path="tests", marker="gpu")
    for folder in ("tests/formats", "tests/ops"):
        yield point("tests", path=folder)


def _tuning() -> Iterator[Point]:
    """Yield a sweep for each length of the main loop, which the sparsity sets, then for every block."""
    for tokens, block, sparsity in itertools.product((4096, 16384), BLOCKS[:2], (0.9, 0.75, 0.95)):
        yield _sweep("panel forward", (3072, 768), tokens, block, sparsity)
    for tokens, block, shape in itertools.product((4096, 16384, 512, 64), BLOCKS, BASE[2:]):
        yield _sweep("panel forward", shape, tokens, block, 0.9)
    for block in BLOCKS:
        yield _sweep("panel values gradient", (3072, 768), 16384, block, 0.9)


def _sweep(
    kernel: str, shape: tuple[int, int], tokens: int, block: tuple[int, int], sparsity: float
) -> Point:
    return point("tuning", kernel=kernel, shape=shape, tokens=tokens, block=block, sparsity=sparsity)


def _requests(names: Iterable[str], batches: Iterable[int]) -> Iterator[Point]:
    """Yield ragged batches that Python serves, each called once."""
    for name, batch in itertools.product(names, batches):
        yield point("requests", model=name, batch=batch, block=(64, 64), sparsity=0.9)


def _once(points: Iterable[Point]) -> list[Point]:
    return list({each.key: each for each in points}.values())


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
