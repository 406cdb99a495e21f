"""Buckets: the shapes that batches are padded to, so that few CUDA graphs serve batches of all shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, int]  # sequences, tokens of each

# Products of tensor cores take whole tiles of tokens: shorter lengths would not be faster.
MIN_LENGTH = 16


@dataclass(frozen=True)
class Buckets:
    """The shapes that batches are padded to.

    Attributes:
        shapes: Shapes [sequences, tokens of each]; None to round the shape of each batch up.
        totals: Total tokens of shapes whose length is that of the batch, rounded up.
        longest: Most tokens of a sequence that the model takes; None if there is no limit.
    """

    shapes: tuple[Shape, ...] | None = None
    totals: tuple[int, ...] = ()
    longest: int | None = None

    @classmethod
    def parse(cls, buckets: Sequence[int | Shape] | None, longest: int | None = None) -> Buckets:
        """Read the buckets as ``sparsebert.graphs`` takes them.

        Raises:
            ValueError: ``buckets`` is empty, or one is neither a number of tokens nor a shape, or its
                sequences are longer than the model takes.
        """
        if buckets is None:
            return cls(None, (), longest)
        if isinstance(buckets, str) or not isinstance(buckets, Sequence) or not buckets:
            raise ValueError(
                "buckets must be a list of numbers of tokens and shapes, such as [4096, (32, 128)], or None; "
                f"got {buckets!r}"
            )
        totals = tuple(bucket for bucket in buckets if _is_positive(bucket))
        shapes = tuple(_shape(bucket, longest) for bucket in buckets if not _is_positive(bucket))
        return cls(shapes, totals, longest)  # type: ignore[arg-type]

    def shape_for(self, batch: int, length: int) -> Shape | None:
        """Return the bucket with the fewest tokens that holds a batch; None if none does.

        Args:
            batch: Sequences.
            length: Tokens of each.
        """
        if self.longest is not None and length > self.longest:
            return None
        rounded = self.rounded_length(length)
        if self.shapes is None:
            return _rounded(batch), rounded
        shapes = [*self.shapes]
        for total in self.totals:
            columns = min(rounded, total)
            shapes.append((total // columns, columns))
        fitting = [shape for shape in shapes if shape[0] >= batch and shape[1] >= length]
        return min(fitting, key=lambda shape: (shape[0] * shape[1], shape), default=None)

    def row_for(self, sequences: int, tokens: int) -> Shape | None:
        """Return the sequences and total tokens of the smallest bucket for sequences in one row, or None.

        A shape holds as many sequences as it has, of any lengths; a number of tokens holds any number.

        Args:
            sequences: Sequences of the row.
            tokens: Their total tokens.
        """
        if self.shapes is None:
            return _rounded(sequences), max(MIN_LENGTH, _rounded(tokens))
        rows = [(count, count * length) for count, length in self.shapes]
        rows += [(_rounded(sequences), total) for total in self.totals]
        fitting = [row for row in rows if row[0] >= sequences and row[1] >= tokens]
        return min(fitting, key=lambda row: (row[1], row[0]), default=None)

    def __str__(self) -> str:
        if self.shapes is None:
            return "batches rounded up"
        return ", ".join(
            [*(f"{rows} x {columns}" for rows, columns in self.shapes), *(f"{n} tokens" for n in self.totals)]
        )

    def rounded_length(self, length: int) -> int:
        """Return the length that stands for all lengths up to it."""
        rounded = max(MIN_LENGTH, _rounded(length))
        return rounded if self.longest is None else min(rounded, self.longest)


def _rounded(count: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below ``count``."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power > 2 and count <= power * 3 // 4 else power


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shape(bucket: object, longest: int | None) -> Shape:
    if not isinstance(bucket, Sequence) or len(bucket) != 2 or not all(map(_is_positive, bucket)):
        raise ValueError(
            f"a bucket must be a positive number of tokens or (sequences, tokens of each), got {bucket!r}"
        )
    rows, length = bucket
    if longest is not None and length > longest:
        raise ValueError(
            f"bucket {rows} x {length} is longer than the model's {longest} positions; "
            f"use ({rows}, {longest})"
        )
    return rows, length
