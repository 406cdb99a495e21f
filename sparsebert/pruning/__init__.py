"""Pruning: choose which weights of a BERT to keep. Importing a method's module registers it by name."""

from sparsebert.pruning.methods.baselines import Within, random_like, reinitialise_, shuffle_weights_
from sparsebert.pruning.methods.head_importance import HeadImportance
from sparsebert.pruning.methods.magnitude import Magnitude
from sparsebert.pruning.methods.random import Random
from sparsebert.pruning.methods.snip import Snip
from sparsebert.pruning.prune import prune
from sparsebert.pruning.sparsity_schedule import Share, levels

from .registry import Method, ScoringContext, methods, register

__all__ = [
    "HeadImportance",
    "Magnitude",
    "Method",
    "Random",
    "ScoringContext",
    "Share",
    "Snip",
    "Within",
    "levels",
    "methods",
    "prune",
    "random_like",
    "register",
    "reinitialise_",
    "shuffle_weights_",
]
