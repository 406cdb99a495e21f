"""Folders of transformers before version 5 whose heads ``prune_heads`` removed are loaded in whole shapes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsebert  # noqa: F401
from sparsebert.bert import structure
from sparsebert.cli import app
from sparsebert.tasks.models import load_as_saved
from sparsebert.tickets.ticket import Ticket
from tests.checkpoints.stored import State, prefixed, write
from tests.interop.test_hostile_files import refused
from tests.sparsify.models import MODELS, answers, build

transformers = pytest.importorskip("transformers")

HEADS = {"0": [0, 2], "1": [1]}
SIZE = 8


def without_heads(model: Any) -> tuple[Any, State]:
    """The model with zeros for the heads, and the state that ``prune_heads`` of transformers 4 leaves."""
    zeroed = copy.deepcopy(model)
    state = {name: value.clone() for name, value in zeroed.state_dict().items()}
    prefix = f"{structure(model).prefix}." if structure(model).prefix else ""
    for number, keys in enumerate(structure(model).heads):
        kept = torch.ones(24, dtype=torch.bool)
        for head in HEADS[str(number)]:
            kept[SIZE * head : SIZE * (head + 1)] = False
        for key in keys[:3]:
            linear = zeroed.get_submodule(f"{prefix}{key}")
            linear.weight.data[~kept] = linear.bias.data[~kept] = 0
            state[f"{prefix}{key}.weight"] = state[f"{prefix}{key}.weight"][kept]
            state[f"{prefix}{key}.bias"] = state[f"{prefix}{key}.bias"][kept]
        output = f"{prefix}{keys[3]}"
        zeroed.get_submodule(output).weight.data[:, ~kept] = 0
        state[f"{output}.weight"] = state[f"{output}.weight"][:, kept]
    return zeroed, state


def stored(folder: Path, model: Any, state: State, heads: Any = HEADS, *, pickled: bool = False) -> Path:
    model.save_pretrained(folder.with_name("plain"))
    write(folder, folder.with_name("plain"), state, pickled=pickled)
    config = json.loads((folder / "config.json").read_text()) | {"pruned_heads": heads}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_heads_are_zeros(name: str, prefix: str, tmp_path: Path) -> None:
    model = build(name)
    zeroed, state = without_heads(model)
    folder = stored(tmp_path / "m", model, prefixed(prefix)(state), pickled=bool(prefix))
    loaded = load_as_saved(str(folder)).eval()
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(answers(loaded), answers(zeroed), strict=True)
    )
    assert Ticket.from_model(loaded) == Ticket.from_model(zeroed)


def test_a_loaded_folder_is_saved_whole(tmp_path: Path) -> None:
    model = build()
    zeroed, state = without_heads(model)
    load_as_saved(str(stored(tmp_path / "m", model, state))).save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(answers(again)[0], answers(zeroed)[0])
    assert "pruned_heads" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "DistilBertForQuestionAnswering"])
@pytest.mark.parametrize("to", ["model", "sparse"])
def test_it_is_converted(name: str, to: str, tmp_path: Path) -> None:
    model = build(name)
    zeroed, state = without_heads(model)
    folder = stored(tmp_path / "m", model, state)
    assert app.main(["convert", str(folder), str(tmp_path / "ticket")]) == 0
    ticket = Ticket.load(tmp_path / "ticket")
    assert ticket == Ticket.from_model(zeroed)
    assert app.main(["convert", str(folder), str(tmp_path / "out"), "--to", to, "--seq", "16"]) == 0
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(answers(loaded)[0], answers(zeroed)[0], atol=1e-5)


def test_a_list_that_says_less_than_is_gone(tmp_path: Path) -> None:
    model = build()
    _, state = without_heads(model)
    line = refused(lambda: load_as_saved(str(stored(tmp_path / "m", model, state, {"0": [0], "1": [1]}))))
    assert "has 8 head features, but pruned_heads keeps 16" in line


def test_no_list(tmp_path: Path) -> None:
    model = build()
    _, state = without_heads(model)
    line = refused(lambda: load_as_saved(str(stored(tmp_path / "m", model, state, {}))))
    assert "attention.output.dense.weight is [24, 8], expected [24, 24]" in line


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"0": [3]}, "has 3 heads, got pruned_heads [3]"),
        ({"0": [-1]}, "has 3 heads, got pruned_heads [-1]"),
        ({"0": [True]}, "must list pruned_heads by layer"),
        ({"0": [1.0]}, "must list pruned_heads by layer"),
        ({"zero": [1]}, "must list pruned_heads by layer"),
        ([0, 1], "must list pruned_heads by layer"),
        ({"0": [0]}, "has weights in the heads that pruned_heads in config.json lists"),
    ],
)
def test_lists_that_do_not_fit(heads: Any, message: str, tmp_path: Path) -> None:
    model = build()
    assert message in refused(
        lambda: load_as_saved(str(stored(tmp_path / "m", model, model.state_dict(), heads)))
    )


def test_heads_that_are_zeros_already(tmp_path: Path) -> None:
    model = build()
    zeroed, _ = without_heads(model)
    loaded = load_as_saved(str(stored(tmp_path / "m", model, zeroed.state_dict()))).eval()
    assert torch.equal(answers(loaded)[0], answers(zeroed)[0])


def test_a_norm_that_transformers_lacks(tmp_path: Path) -> None:
    model = build()
    folder = stored(tmp_path / "m", model, model.state_dict(), {})
    config = json.loads((folder / "config.json").read_text()) | {"layer_norm_type": "no_norm"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "NoNorm, which transformers would replace by LayerNorm" in refused(
        lambda: load_as_saved(str(folder))
    )
