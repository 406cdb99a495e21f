"""``fuse_`` keeps names, classes, copies, pickles and saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import densify_, fuse_, prune, sparsify_, unfuse_
from tests.copies import copies_of
from tests.fuse.models import KINDS, MARKS, answers, close, make
from tests.sparsify.models import build

pytestmark = MARKS


def native_of(model: nn.Module) -> Any:
    """The native description of the layers."""
    return next(native for module in model.modules() if (native := vars(module).get("_native")))


def test_names_parameters_and_classes() -> None:
    model = build()
    before = {name: id(each) for name, each in model.named_modules()}, list(model.state_dict())
    plain_class = type(model.bert.encoder)
    fuse_(model)
    assert ({name: id(each) for name, each in model.named_modules()}, list(model.state_dict())) == before
    assert isinstance(model.bert.encoder, plain_class)
    assert type(unfuse_(model).bert.encoder) is plain_class
    assert not {"_native", "_said"} & {*vars(model.bert.encoder)}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_copies_and_pickles_are_fused_too(name: str, sparse: bool) -> None:
    model = make(name)
    if sparse:
        sparsify_(model, prune(model, sparsity=0.7))
    expected = answers(fuse_(model))
    for copied in copies_of(model):
        assert type(copied) is type(model)
        assert torch.equal(answers(copied), expected)
        assert torch.equal(answers(model), expected)
        assert native_of(copied) is not native_of(model)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved(name: str, sparse: bool, tmp_path: Path) -> None:
    model = make(name)
    if sparse:
        sparsify_(model, prune(model, sparsity=0.7))
    model.save_pretrained(tmp_path / "plain")
    fuse_(model).save_pretrained(tmp_path / "fused")
    plain, fused = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("plain", "fused")
    )
    assert plain == fused
    loaded = type(unfuse_(model)).from_pretrained(tmp_path / "fused").eval()
    assert close(answers(fuse_(loaded)), answers(model))


@pytest.mark.parametrize("name", KINDS)
def test_densify_and_a_second_fuse(name: str) -> None:
    model = make(name)
    sparsify_(model, prune(model, sparsity=0.7))
    expected = answers(fuse_(model))
    assert close(answers(densify_(model)), expected)
    assert close(answers(fuse_(model)), expected)
    assert close(answers(unfuse_(model)), expected)


def test_unfuse_of_a_plain_model_changes_nothing() -> None:
    model = build()
    assert type(unfuse_(model).bert.encoder).__name__ == "BertEncoder"
