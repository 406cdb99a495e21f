"""The search for weights as a run, against torch's pruning, and its ticket beside bad and random ones."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.bert import resolve, structure
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.methods.weight_baselines import BadWeights
from sparsebert.lottery.methods.weight_search import MagnitudeSearch
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.settings import TrainingSettings
from tests.lottery import tiny
from tests.lottery.tiny import experiment, judged, request

LOOSE: dict[str, Any] = {"batches": 2, "threshold": 0.7}


def found(trained: nn.Module, metrics: list[float], **options: Any) -> Ticket:
    """The search in a model whose metric is first that of the dense one, then that after each step."""
    metrics = [*metrics]
    whole = replace(experiment(), model=trained, judge=lambda model, examples, seed: metrics.pop(0))
    config = request("magnitude-search", None, **options)
    method = config.method
    assert isinstance(method, MagnitudeSearch)
    return method.find_ticket(whole, config, Path(), method.rounds(Fraction(0))[1])


def pruned_by_torch(trained: nn.Module, steps: int) -> dict[str, torch.Tensor]:
    """``<key>.weight`` or ``.bias`` -> mask after so many steps of the published loop."""
    known = structure(trained)
    parts = []
    for key in known.linears:
        parts.append((resolve(trained, key), "weight", f"{key}.weight"))
        if known.types[key] != "ffn_down":
            parts.append((resolve(trained, key), "bias", f"{key}.bias"))
    for _ in range(steps):
        pairs = [(module, name) for module, name, _ in parts]
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.1)
    return {full: getattr(module, f"{name}_mask").bool() for module, name, full in parts}


def trained_model() -> Any:
    """Biases as large as the weights: some of them go."""
    made = tiny.model()
    with torch.no_grad():
        for name, each in made.named_parameters():
            if name.endswith("bias"):
                each.normal_(std=0.2)
    return made


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [([0.8, 0.8, 0.73, 0.71], 2), ([0.8, 0.7], 0), ([0.8] * 10, 9), ([0.5, 0.9, 0.45, 0.44], 2)],
    ids=["to 90 %", "nothing", "at most nine", "of the dense one"],
)
def test_it_prunes_as_the_published_loop(metrics: list[float], kept: int) -> None:
    ticket = found(trained_model(), metrics)
    remaining = round(Fraction(9, 10) ** kept * (tiny.PRUNABLE + 2 * (4 * 20 + 30)))
    assert sum(int(mask.sum()) for mask in (*ticket.masks.values(), *ticket.bias_masks.values())) == remaining
    if kept:
        theirs = pruned_by_torch(trained_model(), kept)
        # Torch rounds each step by itself: a weight or two more or less.
        ours = {f"{key}.weight": mask for key, mask in ticket.masks.items()}
        ours |= {f"{key}.bias": mask for key, mask in ticket.bias_masks.items()}
        assert ours.keys() == theirs.keys()
        assert sum(int((ours[name] != theirs[name]).sum()) for name in ours) <= kept
    assert [step["metric"] for step in ticket.metadata["search"]] == metrics


def test_a_run_finds_its_sparsity_and_keeps_its_steps(tmp_path: Path) -> None:
    rows = run(judged(), request("magnitude-search", None, **LOOSE), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    steps = ticket.metadata["search"]
    assert rows[1]["search"] == steps
    assert 0 < rows[1]["sparsity"] == ticket.sparsity < 1
    (metric,) = {step["metric"] for step in steps if step["sparsity"] == ticket.sparsity}
    assert metric >= 0.7 * steps[0]["metric"]


@pytest.mark.parametrize(("judged_on", "examples"), [("train", 16), ("validation", None)])
def test_the_examples_that_decide(tmp_path: Path, judged_on: str, examples: int | None) -> None:
    seen: list[int | None] = []
    run(judged(seen), request("magnitude-search", None, **LOOSE, judged_on=judged_on), tmp_path)
    assert set(seen) == {examples}


def test_a_model_that_has_learned_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is the model trained"):
        found(trained_model(), [0.0])


@pytest.mark.parametrize("method", ["ticket", "bad-weights", "random-weights"])
def test_good_bad_and_random_keep_as_many(tmp_path: Path, method: str) -> None:
    good = found(trained_model(), [0.8] * 4, most_steps=3)
    rows = run(experiment(), request(method, None, ticket=good), tmp_path)
    mine = Ticket.load(tmp_path / "ticket.safetensors")
    assert (mine == good) == (method == "ticket")
    assert len(rows) == (2 if method == "bad-weights" else 1)
    sizes = [
        sum(int(mask.sum()) for mask in (*each.masks.values(), *each.bias_masks.values()))
        for each in (mine, good)
    ]
    assert sizes[0] == sizes[1]


def whole_and_kept(ticket: Ticket, trained: Any) -> tuple[int, int]:
    """Weights and biases that compete, and how many of them the ticket leaves."""
    everything = prune(
        trained,
        sparsity=0,
        include_biases=bool(ticket.bias_masks),
        include_pooler="pooler.dense" in ticket.masks,
    )
    total, pruned = (
        sum(int(count(mask)) for mask in (*each.masks.values(), *each.bias_masks.values()))
        for each, count in ((everything, torch.numel), (ticket, lambda mask: (~mask).sum()))
    )
    return total, total - pruned


@pytest.mark.parametrize("method", ["bad-weights", "random-weights"])
@pytest.mark.parametrize(
    "units",
    [{"granularity": "head"}, {"granularity": "head+mlp", "scope": "type"}, {"include_pooler": True}],
    ids=["heads", "heads and MLPs", "pooler"],
)
def test_a_ticket_of_other_units_has_as_many_weights_too(method: str, units: dict[str, Any]) -> None:
    """What it leaves out, it keeps: matrices without heads, or the pooler."""
    model = trained_model()
    good = prune(model, sparsity=0.5, **units)
    config = request(method, None, ticket=good)
    if method == "bad-weights":
        assert isinstance(config.method, BadWeights)
        round_ = config.method.rounds(config.target)[1]
        made = config.method.find_ticket(replace(experiment(), model=model), config, Path(), round_)
    else:
        made = config.method.derive_ticket(good, model, 0)
    assert whole_and_kept(made, model) == whole_and_kept(good, model)


def test_a_search_that_goes_on_looks_where_its_round_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's answers differ a little from a CPU's, and so would the ticket."""

    def die(trained: nn.Module, examples: int | None, seed: int) -> float:
        raise KeyboardInterrupt

    config = request("magnitude-search", None, **LOOSE)
    with pytest.raises(KeyboardInterrupt):
        run(replace(experiment(), judge=die), config, tmp_path)
    moved: list[str] = []
    whole = experiment()

    def judge(trained: nn.Module, examples: int | None, seed: int) -> float:
        assert moved == ["cuda"]
        there.setattr(TrainingSettings, "on_gpu", False)
        return tiny.evaluate(trained)["accuracy"]

    with monkeypatch.context() as there:
        there.setattr(TrainingSettings, "on_gpu", True)
        there.setattr(whole.model, "cuda", lambda: moved.append("cuda"))
        run(replace(whole, judge=judge), config, tmp_path)
    assert moved == ["cuda"]


def test_the_bad_ones_are_the_smallest_of_the_trained_model() -> None:
    model = trained_model()
    good = found(model, [0.8] * 4, most_steps=3)
    model = trained_model()
    config = request("bad-weights", None, ticket=good)
    method = config.method
    assert isinstance(method, BadWeights)
    bad = method.find_ticket(
        replace(experiment(), model=model), config, Path(), method.rounds(config.target)[1]
    )
    sizes = torch.cat([resolve(model, key).weight.detach().abs().flatten() for key in bad.masks])
    kept = torch.cat([mask.flatten() for mask in bad.masks.values()])
    assert sizes[kept].max() <= sizes[~kept].min()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decides the sparsity"):
        request("magnitude-search", 0.5)
    with pytest.raises(ValueError, match="needs granularity 'element' and scope 'global'"):
        request("magnitude-search", None, granularity="head")
    with pytest.raises(ValueError, match="needs a ticket"):
        request("bad-weights", None)
    with pytest.raises(ValueError, match="would keep none of the weights"):
        run(judged(), request("magnitude-search", None, step=0.5, most_steps=20), tmp_path / "run")
    with pytest.raises(ValueError, match="needs an experiment with a judge"):
        run(experiment(), request("magnitude-search", None), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert lottery_method("magnitude-search").most_steps == 9
