"""Common mistakes in what is passed to the public functions: a line that says what is needed instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import Ticket, compact_, densify_, plan, prune, sparsify_
from tests.sparsify.models import build

transformers = pytest.importorskip("transformers")

MODEL: Any = build("BertModel")
TICKET = prune(MODEL, sparsity=0.5)
MASK = torch.ones(2, 2, dtype=torch.bool)

CALLS: dict[str, Callable[[Any], object]] = {
    "prune": lambda model: prune(model, sparsity=0.5),
    "sparsify_": lambda model: sparsify_(model, TICKET),
    "compact_": lambda model: compact_(model, TICKET),
    "plan": lambda model: plan(model, TICKET),
    "densify_": densify_,
    "apply_": TICKET.apply_,
    "from_model": Ticket.from_model,
}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_a_class_a_name_or_weights_in_place_of_a_model(name: str) -> None:
    call = CALLS[name]
    assert "a model is needed, not the class BertModel" in refusal(lambda: call(transformers.BertModel))
    assert "a model is needed, an nn.Module, not a str" in refusal(lambda: call("bert-base-uncased"))
    assert "not a OrderedDict" in refusal(lambda: call(MODEL.state_dict()))


@pytest.mark.parametrize(
    "given", ["t.safetensors", Path("t.safetensors"), TICKET.masks], ids=["str", "path", "masks"]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda ticket: prune(MODEL, sparsity=0.6, ticket=ticket),
        lambda ticket: sparsify_(MODEL, ticket),
        lambda ticket: compact_(MODEL, ticket),
        lambda ticket: plan(MODEL, ticket),
        lambda ticket: TICKET & ticket,
        lambda ticket: TICKET | ticket,
        TICKET.overlap,
    ],
    ids=["prune", "sparsify_", "compact_", "plan", "and", "or", "overlap"],
)
def test_a_path_or_masks_in_place_of_a_ticket(call: Callable[[Any], object], given: Any) -> None:
    line = f"ticket is a {type(given).__name__}; a sparsebert.Ticket is needed: Ticket.load reads a file"
    assert line in refusal(lambda: call(given))


@pytest.mark.parametrize(
    "masks", [MODEL, Path("t.safetensors"), [MASK], None, TICKET], ids=lambda m: type(m).__name__
)
def test_masks_that_are_no_mapping(masks: Any) -> None:
    line = f"masks are a {type(masks).__name__}; a mapping from module paths"
    assert refusal(lambda: Ticket(masks)).startswith(line)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: Ticket({"a.b": ~MASK}, removed="a"), "removed is one module, 'a'; a list of modules"),
        (lambda: prune(MODEL, sparsity="0.5"), "sparsity must be a number in [0, 1), not '0.5'"),
        (lambda: prune(MODEL, "random", sparsity=0.5, seed=True), "seed must be an int"),
        (lambda: sparsify_(MODEL, TICKET, tokens=[128]), "tokens is [128]; a positive number"),
        (lambda: sparsify_(MODEL, TICKET, format=["element"]), "unknown format ['element']; known: "),
        (lambda: sparsify_(MODEL, TICKET, filter="query"), "filter is 'query'; a function of a layer's name"),
        (lambda: compact_(MODEL, TICKET, batches=3), "batches is 3; mappings of the model's arguments"),
    ],
)  # fmt: skip
def test_other_arguments(call: Callable[[], object], line: str) -> None:
    assert line in refusal(call)


@pytest.mark.parametrize("path", [None, 7, MODEL], ids=["None", "number", "model"])
def test_paths_that_are_none(path: Any) -> None:
    """A number is a file that is open, to some functions of the system."""
    with pytest.raises(TypeError, match=f"os.PathLike object, not {type(path).__name__}"):
        Ticket.load(path)


class TestGranularities:
    def test_are_written_as_in_the_commands(self) -> None:
        short = prune(MODEL, sparsity=0.5, granularity="4x1")
        assert short == prune(MODEL, sparsity=0.5, granularity="block", block_size=(4, 1))
        assert prune(MODEL, granularity="2:4").sparsity == 0.5

    @pytest.mark.parametrize("wrong", ["4 x 1", "4X1", "4*1", (4, 1), "2/4"])
    def test_near_misses_are_told_how(self, wrong: Any) -> None:
        line = refusal(lambda: prune(MODEL, sparsity=0.5, granularity=wrong))
        assert line.startswith(f"unknown granularity {wrong!r}")
        assert line.endswith("blocks of 4 rows and 1 column are written '4x1', patterns '2:4'")

    def test_a_block_without_its_size(self) -> None:
        line = refusal(lambda: prune(MODEL, sparsity=0.5, granularity="block"))
        assert line.endswith("needs block_size=(out, in), such as (4, 1), or is written '4x1' for short")
