"""Find a lottery ticket in a BERT, and run it for real.

Public names are loaded on first use, so that importing the package costs almost nothing on top of torch. The
import also teaches transformers, loaded before or after, to load sparse models (``sparsebert.hf``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparsebert.hf.import_hook import register as _register

if TYPE_CHECKING:
    from sparsebert.compact import compact_, compaction_description, expand_, rebuild_
    from sparsebert.cuda_graphs import graphs
    from sparsebert.fuse import fuse_, unfuse_
    from sparsebert.healing.heal import heal_
    from sparsebert.nn.sparse_linear import SparseLinear
    from sparsebert.one_shot.prune_in_place import prune_
    from sparsebert.planning.planner import plan
    from sparsebert.pruning import prune
    from sparsebert.replan import replan_
    from sparsebert.report.inspection import inspect
    from sparsebert.sparsify import densify_, sparsify_
    from sparsebert.tickets.ticket import Ticket
    from sparsebert.workflows.optimize import optimize

__version__ = "0.1.0"
__all__ = [
    "SparseLinear",
    "Ticket",
    "__version__",
    "compact_",
    "compaction_description",
    "densify_",
    "expand_",
    "fuse_",
    "graphs",
    "heal_",
    "inspect",
    "optimize",
    "plan",
    "prune",
    "prune_",
    "rebuild_",
    "replan_",
    "sparsify_",
    "unfuse_",
]

_HOMES = {
    "SparseLinear": "sparsebert.nn.sparse_linear",
    "Ticket": "sparsebert.tickets.ticket",
    "compact_": "sparsebert.compact",
    "compaction_description": "sparsebert.compact",
    "densify_": "sparsebert.sparsify",
    "expand_": "sparsebert.compact",
    "fuse_": "sparsebert.fuse",
    "graphs": "sparsebert.cuda_graphs",
    "heal_": "sparsebert.healing.heal",
    "inspect": "sparsebert.report.inspection",
    "optimize": "sparsebert.workflows.optimize",
    "plan": "sparsebert.planning.planner",
    "prune": "sparsebert.pruning",
    "prune_": "sparsebert.one_shot",
    "rebuild_": "sparsebert.compact",
    "replan_": "sparsebert.replan",
    "sparsify_": "sparsebert.sparsify",
    "unfuse_": "sparsebert.fuse",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


_register()
