"""Calibrated one-shot pruning: choose weights, and change those that stay, by what a layer's inputs are.

Importing a method's module registers it by name.
"""

from sparsebert.one_shot.layer_problem import LayerMethod, LayerProblem, PrunedMatrix, Target
from sparsebert.one_shot.methods.alps import Alps
from sparsebert.one_shot.methods.fisher_units import FisherUnits
from sparsebert.one_shot.methods.obert import OptimalBertSurgeon
from sparsebert.one_shot.methods.obs import OptimalBrainSurgeon
from sparsebert.one_shot.methods.sparsegpt import SparseGPT
from sparsebert.one_shot.methods.wanda import Wanda
from sparsebert.one_shot.methods.ziplm import ZipLM
from sparsebert.one_shot.prune_in_place import prune_

__all__ = [
    "Alps",
    "FisherUnits",
    "LayerMethod",
    "LayerProblem",
    "OptimalBertSurgeon",
    "OptimalBrainSurgeon",
    "PrunedMatrix",
    "SparseGPT",
    "Target",
    "Wanda",
    "ZipLM",
    "prune_",
]
