"""The quality of a changed model: agreement with the dense model, or a task's metric, on held-out texts.

``heads`` turns the hidden states of an encoder into what a user reads, ``measures`` judges these outputs, and
``held_out`` holds the texts to judge by. An encoder run by any library is judged the same way.
"""

from sparsebert.quality.heads import Head, head_of
from sparsebert.quality.held_out import HeldOut, TextParts, agreement, labelled, split_texts
from sparsebert.quality.measures import Agreement, Measure, MetricAboveGuess, Quality

__all__ = [
    "Agreement",
    "Head",
    "HeldOut",
    "Measure",
    "MetricAboveGuess",
    "Quality",
    "TextParts",
    "agreement",
    "head_of",
    "labelled",
    "split_texts",
]
