"""One tiny model with its ticket."""

from __future__ import annotations

import pytest

from sparsebert.bench.pruned_model import PrunedModel, prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune


@pytest.fixture(scope="session")
def tiny() -> PrunedModel:
    """Two layers of random weights, 90 % pruned, two batches of which the second is padded."""
    workload = Workload("bert-tiny", batch=2, lengths=(16, 16, 9, 5))
    model = workload.load_model()
    return prepare_pruned_model(
        workload, prune(model, "magnitude", sparsity=0.9), format="element", model=model
    )


@pytest.fixture(scope="session")
def even() -> PrunedModel:
    """The same with one batch, not padded."""
    workload = Workload("bert-tiny", batch=2, lengths=(16, 16))
    model = workload.load_model()
    return prepare_pruned_model(
        workload, prune(model, "magnitude", sparsity=0.9), format="element", model=model
    )
