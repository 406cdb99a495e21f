"""Pruning methods: which weights of a BERT to keep. Importing a method's module registers it by name."""

from .baselines import Within, random_like, reinitialise_, shuffle_weights_
from .importance import HeadImportance
from .levels import Share, levels
from .magnitude import Magnitude
from .one_shot import prune
from .random import Random
from .registry import Method, Subject, methods, register
from .snip import Snip

__all__ = [
    "HeadImportance",
    "Magnitude",
    "Method",
    "Random",
    "Share",
    "Snip",
    "Subject",
    "Within",
    "levels",
    "methods",
    "prune",
    "random_like",
    "register",
    "reinitialise_",
    "shuffle_weights_",
]
