"""Calibrated one-shot pruning: choose weights, and change those that stay, by what a layer's inputs are.

Public names are loaded on first use. Importing ``sparsebert.one_shot.all_methods`` registers the methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Alps": "methods.alps",
    "FisherUnits": "methods.fisher_units",
    "LayerMethod": "layer_problem",
    "LayerProblem": "layer_problem",
    "OptimalBertSurgeon": "methods.obert",
    "OptimalBrainSurgeon": "methods.obs",
    "PrunedMatrix": "layer_problem",
    "SparseGPT": "methods.sparsegpt",
    "Target": "layer_problem",
    "Wanda": "methods.wanda",
    "ZipLM": "methods.ziplm",
    "prune_": "prune_in_place",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
