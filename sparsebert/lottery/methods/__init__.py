"""The lottery methods. Importing a method's module registers it by name."""

from sparsebert.lottery.methods.from_ticket import GivenTicket, RandomLayerwise, RandomReinit, ShuffledWeights
from sparsebert.lottery.methods.head_mlp_search import BadUnits, ImportanceSearch, RandomUnits
from sparsebert.lottery.methods.mask_learning import (
    GradualMagnitude,
    HardConcrete,
    Movement,
    SoftMovement,
    StaticModelPruning,
)

from .cap import Cap, CapSoft, CapStructured
from .dense import Dense
from .early_bird import EarlyBird
from .imp import IterativeMagnitude, StandardPruning
from .importance import Importance
from .multi_task import MultiTask
from .one_shot import OneShot
from .random import RandomPruning
from .snip import SnipOnce, SnipThenMagnitude
from .super_tickets import SuperTickets
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
