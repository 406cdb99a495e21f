"""Names of tensors in files: wrappers, training code and libraries put prefixes before a model's own names.

DataParallel and torch.compile add ``module.`` and ``_orig_mod.``, training code ``model.`` or
``student.bert.``, peft ``base_model.model.``, sentence-transformers ``0.auto_model.``, a table in a table
``state_dict.``. No list of prefixes is complete, so a name is recognised by its end: a matrix of the encoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from sparsebert.bert import without_wrappers


class Place(NamedTuple):
    """Where a tensor belongs: in the base model or beside it (the task head), and its name there."""

    in_base: bool
    name: str


class SeveralEncodersError(ValueError):
    """Names of more than one encoder."""


def places(
    names: Iterable[str],
    is_matrix: Callable[[str], bool],
    is_in_base: Callable[[str], bool],
    preferred: Collection[str] = (),
) -> dict[str, Place]:
    """Return the place of each name, without wrappers and prefixes.

    Args:
        names: Names of tensors or modules.
        is_matrix: Whether a name below the base model is that of an encoder matrix.
        is_in_base: Whether a name without prefix belongs to the base model.
        preferred: Prefixes of the model itself, which count before any copy of its weights under other names.

    Raises:
        SeveralEncodersError: The names are those of several encoders, such as a student and its teacher.
    """
    paths = {name: without_wrappers(name) for name in names}
    prefixes = _prefixes(paths.values(), is_matrix, preferred)
    return {name: _place(path, prefixes, is_in_base) for name, path in paths.items()}


def _prefixes(
    paths: Iterable[str], is_matrix: Callable[[str], bool], preferred: Collection[str]
) -> list[str]:
    """Return the prefixes of the encoder's matrices, longest first; usually one."""
    matrices: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parts = path.split(".")
        for start in range(len(parts)):
            if is_matrix(matrix := ".".join(parts[start:])):
                matrices["".join(f"{part}." for part in parts[:start])].add(matrix)
                break
    return sorted(_of_one_encoder(matrices, preferred), key=len, reverse=True)


def _of_one_encoder(matrices: Mapping[str, set[str]], preferred: Collection[str]) -> Collection[str]:
    everything = set().union(*matrices.values())
    if sum(map(len, matrices.values())) == len(everything):
        return matrices.keys()
    complete = [prefix for prefix, names in matrices.items() if names == everything]
    for prefixes in ([prefix for prefix in complete if prefix in preferred], complete):
        if len(prefixes) == 1:
            return prefixes
    named = ", ".join(repr(prefix) for prefix in sorted(complete or matrices)[:4])
    raise SeveralEncodersError(
        f"the names are those of several encoders (prefixes {named}); keep one of them"
    )


def _place(path: str, prefixes: list[str], is_in_base: Callable[[str], bool]) -> Place:
    for prefix in prefixes:
        if path.startswith(prefix) and is_in_base(path.removeprefix(prefix)):
            return Place(True, path.removeprefix(prefix))
    # A head stands beside the base model or above it: below a part of the prefix.
    above = {
        "".join(f"{part}." for part in prefix.split(".")[:end])
        for prefix in prefixes
        for end in range(prefix.count(".") + 1)
    }
    longest = max((each for each in above if path.startswith(each)), key=len, default="")
    return Place(False, path.removeprefix(longest))
