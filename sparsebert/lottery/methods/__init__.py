"""The lottery methods. Importing this package registers them by name."""

from sparsebert.lottery.methods.cap import Cap, CapSoft
from sparsebert.lottery.methods.cap_structured import CapStructured
from sparsebert.lottery.methods.dense import Dense
from sparsebert.lottery.methods.early_bird import EarlyBird
from sparsebert.lottery.methods.from_ticket import FromTicket
from sparsebert.lottery.methods.gradual import GradualMagnitude
from sparsebert.lottery.methods.head_mlp_baselines import BadUnits, RandomUnits
from sparsebert.lottery.methods.head_mlp_search import ImportanceSearch
from sparsebert.lottery.methods.imp import IterativeMagnitude, StandardPruning
from sparsebert.lottery.methods.importance import Importance
from sparsebert.lottery.methods.l0 import HardConcrete
from sparsebert.lottery.methods.movement import Movement
from sparsebert.lottery.methods.multi_task import MultiTask
from sparsebert.lottery.methods.one_shot import OneShot
from sparsebert.lottery.methods.random import RandomPruning
from sparsebert.lottery.methods.smp import StaticModelPruning
from sparsebert.lottery.methods.snip import SnipOnce, SnipThenMagnitude
from sparsebert.lottery.methods.soft_movement import SoftMovement
from sparsebert.lottery.methods.super_tickets import SuperTickets
from sparsebert.lottery.methods.ticket_baselines import RandomLayerwise, RandomReinit, ShuffledWeights
from sparsebert.lottery.methods.weight_baselines import BadWeights, RandomWeights
from sparsebert.lottery.methods.weight_search import MagnitudeSearch

__all__ = [
    "BadUnits",
    "BadWeights",
    "Cap",
    "CapSoft",
    "CapStructured",
    "Dense",
    "EarlyBird",
    "FromTicket",
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
