"""Two texts with tags, in the columns of CoNLL-2003."""

from __future__ import annotations

CONLL = (
    "-DOCSTART- -X- -X- O",
    "",
    "the DT B-NP O",
    "cat NN I-NP B-PER",
    "sat VB B-VP O",
    "",
    "mats NN B-NP B-LOC",
    "rain NN I-NP I-LOC",
    ". . O O",
)
