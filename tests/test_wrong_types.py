"""Common mistakes in arguments of the public functions: one line says what is expected instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import Ticket, compact_, densify_, fuse_, plan, prune, replan_, sparsify_, unfuse_
from tests.sparsify.models import build

transformers = pytest.importorskip("transformers")

MASK = torch.ones(2, 2, dtype=torch.bool)

Call = Callable[[Any, Ticket], object]
OF_MODELS: dict[str, Call] = {
    "prune": lambda model, _: prune(model, sparsity=0.5),
    "sparsify_": lambda model, ticket: sparsify_(model, ticket),
    "compact_": lambda model, ticket: compact_(model, ticket),
    "plan": lambda model, ticket: plan(model, ticket),
    "densify_": lambda model, _: densify_(model),
    "replan_": lambda model, _: replan_(model),
    "fuse_": lambda model, _: fuse_(model),
    "unfuse_": lambda model, _: unfuse_(model),
    "apply_": lambda model, ticket: ticket.apply_(model),
    "from_model": lambda model, _: Ticket.from_model(model),
}
OF_TICKETS: dict[str, Callable[[Any, Any, Ticket], object]] = {
    "prune": lambda wrong, model, _: prune(model, sparsity=0.6, ticket=wrong),
    "sparsify_": lambda wrong, model, _: sparsify_(model, wrong),
    "compact_": lambda wrong, model, _: compact_(model, wrong),
    "plan": lambda wrong, model, _: plan(model, wrong),
    "and": lambda wrong, _, ticket: ticket & wrong,
    "or": lambda wrong, _, ticket: ticket | wrong,
    "overlap": lambda wrong, _, ticket: ticket.overlap(wrong),
}


@pytest.fixture(scope="module")
def model() -> Any:
    """A model that no test here changes: every call is refused before."""
    return build("BertModel")


@pytest.fixture(scope="module")
def ticket(model: Any) -> Ticket:
    return prune(model, sparsity=0.5)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_class_a_name_or_weights_in_place_of_a_model(name: str, model: Any, ticket: Ticket) -> None:
    call = OF_MODELS[name]
    expected = {
        "model must be an instance, got the class BertModel": transformers.BertModel,
        "model must be an nn.Module, got a str": "bert-base-uncased",
        "model must be an nn.Module, got a OrderedDict": model.state_dict(),
    }
    for message, wrong in expected.items():
        assert message in refusal(lambda wrong=wrong: call(wrong, ticket))


@pytest.mark.parametrize("name", OF_TICKETS)
def test_a_path_or_masks_in_place_of_a_ticket(name: str, model: Any, ticket: Ticket) -> None:
    for wrong in ("t.safetensors", Path("t.safetensors"), ticket.masks):
        line = f"ticket must be a sparsebert.Ticket, got a {type(wrong).__name__}: Ticket.load reads a file"
        assert line in refusal(lambda wrong=wrong: OF_TICKETS[name](wrong, model, ticket))


def test_masks_that_are_not_a_mapping(model: Any, ticket: Ticket) -> None:
    for masks in (model, Path("t.safetensors"), [MASK], None, ticket):
        line = f"masks must map module paths to bool tensors, got a {type(masks).__name__} "
        assert refusal(lambda masks=masks: Ticket(masks)).startswith(line)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda *_: Ticket({"a.b": ~MASK}, removed="a"), "removed must be a list of modules, got the string"),
        (lambda m, _: prune(m, sparsity="0.5"), "sparsity must be a number in [0, 1), got '0.5'"),
        (lambda m, _: prune(m, "random", sparsity=0.5, seed=True), "seed must be an int"),
        (lambda m, t: sparsify_(m, t, tokens=[128]), "tokens must be a positive integer, got [128]"),
        (lambda m, t: sparsify_(m, t, measure="no"), "measure must be True or False, got 'no'"),
        (lambda m, t: sparsify_(m, t, format=["element"]), "unknown format ['element']; known: "),
        (lambda m, t: sparsify_(m, t, filter="query"), "filter must be a function of a layer's name"),
        (
            lambda m, t: compact_(m, t, batches=3),
            "batches must be a list of mappings of the model's arguments, got 3",
        ),
    ],
    ids=["removed", "sparsity", "seed", "tokens", "measure", "format", "filter", "batches"],
)
def test_other_arguments(call: Call, line: str, model: Any, ticket: Ticket) -> None:
    assert line in refusal(lambda: call(model, ticket))


def test_paths_that_are_not_paths(model: Any) -> None:
    """Some functions of the system take a number for an open file."""
    for path in (None, 7, model):
        with pytest.raises(TypeError, match=rf"os\.PathLike object, not {type(path).__name__}"):
            Ticket.load(path)


class TestGranularities:
    def test_are_written_as_in_the_commands(self, model: Any) -> None:
        short = prune(model, sparsity=0.5, granularity="4x1")
        assert short == prune(model, sparsity=0.5, granularity="block", block_size=(4, 1))
        assert prune(model, granularity="2:4").sparsity == 0.5

    @pytest.mark.parametrize("wrong", ["4 x 1", "4X1", "4*1", (4, 1), "2/4"])
    def test_near_misses_are_told_how(self, wrong: Any, model: Any) -> None:
        line = refusal(lambda: prune(model, sparsity=0.5, granularity=wrong))
        assert line.startswith(f"unknown granularity {wrong!r}")
        assert line.endswith(
            "write blocks of 4 rows and 1 column '4x1', "
            "panels of 32 rows and pairs of columns 'panel(32,2)', and patterns '2:4'"
        )

    def test_a_block_without_its_size(self, model: Any) -> None:
        line = refusal(lambda: prune(model, sparsity=0.5, granularity="block"))
        assert line.endswith("needs block_size=(out, in), such as (4, 1); '4x1' is short for that")
