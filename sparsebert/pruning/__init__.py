"""Pruning methods: which weights of a BERT to keep. Importing a method's module registers it by name."""

from .magnitude import Magnitude
from .one_shot import prune
from .random import Random
from .registry import Method, Subject, methods, register

__all__ = ["Magnitude", "Method", "Random", "Subject", "methods", "prune", "register"]
