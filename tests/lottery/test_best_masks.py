"""Static Model Pruning may keep the best of the masks it comes by, as its released scripts do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery import loop
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.lottery import tiny
from tests.lottery.killing import Killed


def config_of(**changes: Any) -> RunConfig:
    return tiny.request("smp", 0.7, **{"mask": "L", "scope": "matrix", "ramp_steps": 3, **changes})


def by(judge: Callable[[nn.Module], float]) -> Experiment:
    return replace(tiny.experiment(), judge=lambda model, examples, seed: judge(model))


def scores_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("bert.").removesuffix(".mask_scores"): each.detach().clone()
        for name, each in model.named_parameters()
        if name.endswith("mask_scores")
    }


def test_the_best_scores_make_the_ticket_at_the_full_sparsity(tmp_path: Path) -> None:
    metrics, seen = [0.5, 0.9, 0.9, 0.7], list[dict[str, Tensor]]()

    def judge(model: nn.Module) -> float:
        seen.append(scores_of(model))
        return metrics[len(seen) - 1]

    (row,) = run(by(judge), config_of(choose_every=2, steps=9), tmp_path)
    assert row["search"] == {"step": 6, "metric": 0.9}
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    assert ticket.sparsity == 0.7
    for key, scores in seen[1].items():
        kept = scores.flatten().topk(round(0.3 * scores.numel())).indices
        assert ticket.masks[key].flatten()[kept].all()
    assert not (tmp_path / "round-00" / "best.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "L", "ramp_steps": 7},
        {"mask": "S", "scope": "type", "ramp_steps": 7},
        {"mask": "S", "scope": "type", "ramp_steps": 7, "smp_compat": True},
        {"mask": "G", "scope": "global", "ramp_steps": 7},
        {"mask": "T", "sparsity": None, "ramp_steps": 7, "threshold": 0.5, "regularisation": 0.0},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_metric_is_that_of_the_masks_that_are_stored(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A cubic ramp to the last step is near its target before, with masks that are denser than the last."""
    judged: list[tuple[float, dict[str, Tensor]]] = []

    def judge(model: nn.Module) -> float:
        # The first of the judgements is the best.
        judged.append((1.0 - len(judged) / 10, weights_of(model)))
        return judged[-1][0]

    sparsity = changes.pop("sparsity", 0.7)
    config = tiny.request("smp", sparsity, choose_every=1, **{"scope": "matrix", **changes})
    (row,) = run(by(judge), config, tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    metric, weights = judged[0]
    assert row["search"]["metric"] == metric
    assert row["search"]["step"] < 7 or changes["mask"] == "T"
    for key, mask in ticket.masks.items():
        assert torch.equal(weights[key] != 0, mask), key


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the masked layers as their forward pass uses them."""
    from sparsebert.mask_learning.masked_layers import MaskedLinear

    return {
        name.removeprefix("bert."): each(torch.eye(each.in_features)).T - each.bias[:, None]
        for name, each in model.named_modules()
        if isinstance(each, MaskedLinear)
    }


def test_the_best_metric_is_measured_again_at_the_end(tmp_path: Path) -> None:
    config = config_of(choose_every=1, ramp_steps=7)
    experiment = by(lambda model: tiny.evaluate(model)["accuracy"])
    (row,) = run(experiment, config, tmp_path)
    assert row["search"]["metric"] == row["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"ramp_steps": 3}, [3, 4, 5, 6, 7]),
        ({"ramp_steps": 7}, [6, 7]),  # a cubic comes near its end early
        ({"ramp_steps": 7, "curve": "linear"}, [7]),
        (
            {"mask": "T", "sparsity": None, "ramp_steps": 5, "threshold": 0.5, "regularisation": 0.0},
            [5, 6, 7],
        ),
    ],
)
def test_masks_are_judged_once_they_are_sparse_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], steps: list[int]
) -> None:
    from sparsebert.training.best_masks import BestMasks

    judged: list[int] = []
    at_end = BestMasks.on_step_end
    now = {"step": 0}

    def note(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        now["step"] = state.global_step
        at_end(self, args, state, control, **more)

    def judge(model: nn.Module) -> float:
        judged.append(now["step"])
        return 0.5

    monkeypatch.setattr(BestMasks, "on_step_end", note)
    sparsity = changes.pop("sparsity", 0.7)
    options = {"mask": "L", "scope": "matrix", **changes}
    run(by(judge), tiny.request("smp", sparsity, choose_every=1, **options), tmp_path)
    assert judged == steps


def test_training_goes_on_as_if_nobody_looked(tmp_path: Path) -> None:
    """The last one is the best here, and what the run without a choice ends with, to the bit."""
    calls: list[int] = []

    def judge(model: nn.Module) -> float:
        calls.append(0)
        torch.rand(3)
        model.eval()
        return float(len(calls))

    (chosen,) = run(by(judge), config_of(choose_every=1), tmp_path / "chosen")
    (plain,) = run(tiny.experiment(), config_of(), tmp_path / "plain")
    assert len(calls) == 5
    assert chosen["search"]["step"] == 7
    assert chosen["metrics"] == plain["metrics"]
    assert chosen["loss"] == plain["loss"]
    one, other = (Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("chosen", "plain"))
    assert one == other


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_killed_at_any_judgement_it_chooses_the_same(tmp_path: Path, killed_at: int) -> None:
    def good(model: nn.Module) -> float:
        return float(sum(each.sigmoid().sum() for each in scores_of(model).values()) * 1e3 % 1)

    (whole,) = run(by(good), config_of(choose_every=1), tmp_path / "whole")
    calls: list[int] = []

    def dying(model: nn.Module) -> float:
        calls.append(0)
        if len(calls) == killed_at:
            raise Killed
        return good(model)

    with pytest.raises(Killed):
        run(by(dying), config_of(choose_every=1), tmp_path / "parts")
    (parts,) = run(by(good), config_of(choose_every=1), tmp_path / "parts")
    assert parts["search"] == whole["search"]
    one, other = (Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("whole", "parts"))
    assert one == other


def test_it_is_judged_in_fp32_whatever_it_is_trained_in(tmp_path: Path) -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    judging = False

    def judge(model: nn.Module) -> float:
        nonlocal judging
        judging = True
        found = tiny.evaluate(model)["accuracy"]
        judging = False
        return found

    whole = by(judge)
    whole.model.classifier.register_forward_hook(lambda layer, x, y: seen.append((judging, y.dtype)))
    run(whole, config_of(choose_every=1, precision="bf16"), tmp_path)
    assert {dtype for judged, dtype in seen if judged} == {torch.float32}
    assert [dtype for judged, dtype in seen if not judged] == [torch.bfloat16] * 7 + [torch.float32]


def test_to_judge_wakes_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping the random state of every device would: each process of several takes memory on each."""
    from sparsebert.mask_learning.learner import Learner
    from sparsebert.training.best_masks import BestMasks

    model, request = tiny.model(), config_of()
    method = request.method
    assert isinstance(method, MaskLearningMethod)
    learner: Learner = method.learner(model, request, 7, prune(model, sparsity=0))
    choice = BestMasks(learner, lambda: 0.5, 1, lambda step: True, tmp_path / "best.safetensors")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("looked for devices"))
    choice.on_step_end(None, SimpleNamespace(global_step=1, max_steps=7), None)
    assert choice.best is not None


def test_killed_after_its_round_it_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_clean_up", die)
        with pytest.raises(Killed):
            run(by(lambda model: 0.5), config_of(choose_every=2), tmp_path)
    assert list(tmp_path.rglob("best.safetensors"))
    run(by(lambda model: 0.5), config_of(choose_every=2), tmp_path)
    assert not list(tmp_path.rglob("best.safetensors"))


def test_it_needs_a_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose_every needs an experiment with a judge"):
        run(tiny.experiment(), config_of(choose_every=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()
