"""Every architecture that ``sparsify_`` takes is saved and loaded, whatever names transformers has for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import densify_, sparsify_
from sparsebert.nn.packability import Packability
from sparsebert.nn.sparse_linear import SparseLinear
from tests.architectures import SKIPPED, SWEPT, VERSION, build, classes, linears
from tests.sparsify.models import sparse_layers

transformers = pytest.importorskip("transformers")

# Those whose tensors transformers renames on save, some with query, key and value joined, and some others.
FAMILIES = (
    *("ViTModel", "DeiTModel", "Dinov2Model", "BeitModel", "SwinModel"),
    *("NomicBertModel", "GteModel", "JinaEmbeddingsV3Model"),
    *("BertModel", "AlbertModel", "DebertaV2Model", "CLIPModel"),
)


def prune_(model: Any) -> None:
    """Zero every second row of each linear layer that can be packed."""
    packability = Packability(model)
    with torch.no_grad():
        for _, linear in linears(model):
            if math.prod(linear.weight.shape) and not packability.is_tied(linear):
                linear.weight[::2] = 0


def require_round_trip(model: Any, folder: Path) -> None:
    """Save and load a sparse model, and save and load it again after ``densify_``."""
    prune_(model)
    zeros = {name for name, linear in linears(model) if not linear.weight.all()}
    sparsify_(model, filter=lambda name, linear: name in zeros, format="element", fuse_qkv=False)
    assert sparse_layers(model)
    model.save_pretrained(folder / "sparse")
    loaded = type(model).from_pretrained(folder / "sparse")
    require_same(loaded, model)
    assert sparse_layers(loaded).keys() == sparse_layers(model).keys()
    for name, layer in sparse_layers(loaded).items():
        sparse = model.get_submodule(name)
        assert isinstance(sparse, SparseLinear)
        assert torch.equal(layer.mask, sparse.mask)
    densify_(loaded).save_pretrained(folder / "dense")
    require_same(type(model).from_pretrained(folder / "dense"), model)


def require_same(mine: Any, other: Any) -> None:
    tensors, others = mine.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], others[name])]


@pytest.mark.parametrize("name", FAMILIES)
def test_twelve_families(name: str, tmp_path: Path) -> None:
    require_round_trip(build(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*classes()} - {*FAMILIES}))
def test_every_other_class(name: str, tmp_path: Path) -> None:
    require_round_trip(build(name), tmp_path)


def test_the_number_of_classes() -> None:
    if transformers.__version__ == VERSION:
        assert len(classes().keys() - SKIPPED.keys()) == SWEPT
        assert not SKIPPED.keys() - classes().keys()
    assert SWEPT > 450
    assert len(FAMILIES) == 12
    assert not {*FAMILIES} & SKIPPED.keys()
