"""Entities that tags mark, and the share of them that is found, as conlleval and seqeval count them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Tags in the schemes IOB1, IOB2, IOBES and BILOU: L ends an entity as E does, U is one by itself as S.
_TAG = re.compile(r"(?:O|([BIESLU])-(.+))")
_AS_IN_IOBES = {"L": "E", "U": "S"}
OUTSIDE = "O"

# Type, first word and last word.
Entity = tuple[str, int, int]


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether labels are tags that mark entities: "O", and others such as "B-PER" and "I-PER"."""
    return len(labels) > 1 and all(_TAG.fullmatch(label) for label in labels)


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the entities that the tags of a text mark.

    As in conlleval, an entity begins at B and S, and at I and E where no entity of the type goes on; it ends
    at E and S, and before an O, another type, B and S.

    Args:
        tags: One tag for each word.
    """
    return set(_entities(tags))


def _entities(tags: Sequence[str]) -> Iterator[Entity]:
    begin, open_type = 0, ""
    for at, tag in enumerate((*tags, OUTSIDE)):
        match = _TAG.fullmatch(tag)
        place, kind = (match[1] or "", match[2] or "") if match else ("", "")
        place = _AS_IN_IOBES.get(place, place)
        if open_type and (kind != open_type or place in ("B", "S")):
            yield open_type, begin, at - 1
            open_type = ""
        if kind and not open_type:
            begin, open_type = at, kind
        if place in ("E", "S"):
            yield open_type, begin, at
            open_type = ""


def entity_scores(predicted: Sequence[Sequence[str]], correct: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and F1 of the entities of all texts, and the accuracy of the tags.

    An entity is found if its type, its first and its last word are. Without an entity to find or to divide
    by, a share is 0.

    Args:
        predicted: Tags of the words of each text.
        correct: The same, as they should be.
    """
    counts = zip(*entity_counts(predicted, correct), strict=True)
    hits, ours, theirs = (sum(each) for each in counts)
    pairs = [pair for texts in zip(predicted, correct, strict=True) for pair in zip(*texts, strict=True)]
    return {
        "f1": 2 * hits / (ours + theirs) if hits else 0.0,
        "precision": hits / ours if ours else 0.0,
        "recall": hits / theirs if theirs else 0.0,
        "accuracy": sum(one == other for one, other in pairs) / len(pairs),
    }


def entity_counts(
    predicted: Sequence[Sequence[str]], correct: Sequence[Sequence[str]]
) -> list[tuple[int, int, int]]:
    """Return for each text the entities that are found, that are predicted, and that there are."""
    marked = ((entities(ours), entities(theirs)) for ours, theirs in zip(predicted, correct, strict=True))
    return [(len(ours & theirs), len(ours), len(theirs)) for ours, theirs in marked]
