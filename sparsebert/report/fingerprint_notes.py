"""Notes on runs that a table compares although they read other data, or started from other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsebert.report.format import Record

# What the fingerprints of records are of.
SUBJECTS = {
    "train": "training data",
    "validation": "validation data",
    "texts": "texts",
    "model": "models",
    "tokenizer": "tokenizers",
}
# Names that a note spells out for each fingerprint.
_MOST_NAMES = 3


def fingerprint_notes(
    rows: Sequence[Record], label: Callable[[Record], str], subjects: Sequence[str]
) -> list[str]:
    """Return a note for each subject that differs between rows; records without fingerprints are left out.

    Args:
        rows: Records that a table compares.
        label: Returns the name of a record's run.
        subjects: Names in ``SUBJECTS``.
    """
    notes = []
    for subject in subjects:
        labels: dict[str, dict[str, None]] = {}
        for row in rows:
            if digest := (row.get("fingerprints") or {}).get(subject):
                labels.setdefault(digest, {})[label(row)] = None
        if len(labels) > 1:
            parts = ", ".join(f"{_short(digest)} ({_listed(names)})" for digest, names in labels.items())
            notes.append(f"Rows differ in their {SUBJECTS[subject]}, by fingerprint: {parts}.")
    return notes


def _short(digest: str) -> str:
    """Return the first digits of a fingerprint."""
    return digest.removeprefix("sha256:")[:8]


def _listed(names: Sequence[str] | dict[str, None]) -> str:
    shown = list(names)[:_MOST_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} others" if more > 1 else " and another" if more else "")
