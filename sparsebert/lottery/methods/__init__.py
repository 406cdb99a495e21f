"""The lottery methods. Importing a method's module registers it by name."""

from .dense import Dense
from .given import GivenTicket, RandomLayerwise, RandomReinit, ShuffledWeights
from .imp import IterativeMagnitude, StandardPruning
from .importance import Importance
from .multi_task import MultiTask
from .one_shot import OneShot
from .random import RandomPruning
from .snip import SnipOnce, SnipThenMagnitude

__all__ = [
    "Dense",
    "GivenTicket",
    "Importance",
    "IterativeMagnitude",
    "MultiTask",
    "OneShot",
    "RandomLayerwise",
    "RandomPruning",
    "RandomReinit",
    "ShuffledWeights",
    "SnipOnce",
    "SnipThenMagnitude",
    "StandardPruning",
]
