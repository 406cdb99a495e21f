"""The lottery methods. Importing a method's module registers it by name."""

from .cap import Cap, CapSoft, CapStructured
from .dense import Dense
from .early_bird import EarlyBird
from .given import GivenTicket, RandomLayerwise, RandomReinit, ShuffledWeights
from .imp import IterativeMagnitude, StandardPruning
from .importance import Importance
from .learned import GradualMagnitude, HardConcrete, Movement, SoftMovement, StaticModelPruning
from .multi_task import MultiTask
from .one_shot import OneShot
from .random import RandomPruning
from .snip import SnipOnce, SnipThenMagnitude
from .super_tickets import SuperTickets
from .unit_search import BadUnits, ImportanceSearch, RandomUnits
from .weight_search import BadWeights, MagnitudeSearch, RandomWeights

__all__ = [
    "BadUnits",
    "BadWeights",
    "Cap",
    "CapSoft",
    "CapStructured",
    "Dense",
    "EarlyBird",
    "GivenTicket",
    "GradualMagnitude",
    "HardConcrete",
    "Importance",
    "ImportanceSearch",
    "IterativeMagnitude",
    "MagnitudeSearch",
    "Movement",
    "MultiTask",
    "OneShot",
    "RandomLayerwise",
    "RandomPruning",
    "RandomReinit",
    "RandomUnits",
    "RandomWeights",
    "ShuffledWeights",
    "SnipOnce",
    "SnipThenMagnitude",
    "SoftMovement",
    "StandardPruning",
    "StaticModelPruning",
    "SuperTickets",
]
