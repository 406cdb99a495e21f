"""Settings that a method decides where a run sets none: CAP's, as its scripts have them, now and before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import lottery_method, lottery_methods
from sparsebert.lottery.method_defaults import as_begun, with_defaults_of_method
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.training.distillation import Distillation, Distiller
from sparsebert.workflows.train import dense
from tests.lottery import tiny

# RunxinXu/ContrastivePruning: CE_LOSS_WEIGHT, DISTILL_LOSS_WEIGHT, the temperature (of the unstructured
# scripts, the default of masked_run_glue.py), and the weights of the two contrastive terms.
SCRIPTS = {
    "cap": (0.1, 0.9, 2.0, 0.1, 10),
    "cap-soft": (0.1, 0.9, 2.0, 0.1, 10),
    "cap-structured": (0.1, 0.9, 1.0, 0.3, 3),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_loss_of_cap_is_that_of_its_scripts(name: str) -> None:
    method: Any = lottery_method(name)
    of_labels, of_teacher, temperature, instance_weight, label_weight = SCRIPTS[name]
    assert (method.instance_weight, method.label_weight) == (instance_weight, label_weight)
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 2, 1, 1])
    student, teacher = (torch.softmax(each / temperature, -1) for each in (logits, teacher_logits))
    divergence = (teacher * (teacher / student).log()).sum() / len(labels)
    expected = of_labels * F.cross_entropy(logits, labels) + of_teacher * temperature**2 * divergence
    distiller = Distiller(lambda **batch: {"logits": teacher_logits}, method.distillation)
    found = distiller.mixed(F.cross_entropy(logits, labels), {"logits": logits}, {})
    torch.testing.assert_close(found, expected)


def test_no_other_method_has_settings_of_its_own() -> None:
    for name in set(lottery_methods()) - SCRIPTS.keys():
        assert lottery_method(name).distillation == Distillation()
        assert lottery_method(name).warmup_ratio is None


def structured(**changes: Any) -> RunConfig:
    units = {"granularity": "head+neuron", "scope": "type"}
    return tiny.request("cap-structured", 0.5, **units, distillation=Distillation(0.9, 1.0), **changes)


def test_the_warm_up_of_a_stage_is_a_tenth_unless_the_run_sets_one() -> None:
    assert with_defaults_of_method(structured()).training.warmup_of(30) == 3
    assert with_defaults_of_method(structured(warmup_steps=2)).training.warmup_of(30) == 2
    assert with_defaults_of_method(structured(warmup_ratio=0.0)).training.warmup_of(30) == 0
    assert with_defaults_of_method(structured(warmup_steps=0)).training.warmup_of(30) == 0
    assert with_defaults_of_method(tiny.request("imp")).training.warmup_of(30) == 0


def test_the_dense_run_for_comparison_has_the_same_warm_up(tmp_path: Path) -> None:
    assert dense(structured()).training.warmup_of(30) == 3
    assert dense(structured(warmup_steps=0)).training.warmup_of(30) == 0
    # One that trained without, as all of an earlier version did, still serves.
    folder, said = RunFolder(tmp_path), list[str]()
    earlier = dense(structured(warmup_steps=0)).describe()
    folder.run_json.write_text(json.dumps({"schema": 1, **earlier}))
    kept = as_begun(dense(structured()), folder, said.append)
    folder.require(kept.describe(), kept.defaults())
    assert said == [f"{tmp_path} keeps the defaults with which it began: warmup_steps 0"]
    asked = as_begun(dense(structured(warmup_ratio=0.1)), folder, said.append)
    with pytest.raises(ValueError, match="warmup_ratio"):
        folder.require(asked.describe(), asked.defaults())


def test_the_description_of_a_run_is_the_same_with_and_without_an_explicit_0() -> None:
    described = [tiny.request("imp", **changes).describe() for changes in ({}, {"warmup_steps": 0})]
    assert described[0] == described[1]
    assert described[0]["training"]["warmup_steps"] == 0


class TestARunOfAnEarlierVersion:
    @pytest.fixture
    def begun(self, tmp_path: Path) -> RunFolder:
        """A folder as it was begun with the defaults of all methods, before CAP had its own."""
        folder = RunFolder(tmp_path)
        former = {"instance_weight": 0.1, "label_weight": 10.0}
        config = replace(structured(**former), distillation=Distillation()).describe()
        del config["training"]["warmup_ratio"]
        folder.run_json.write_text(json.dumps({"schema": 1, **config}))
        return folder

    def test_the_same_command_resumes_it_and_says_so(self, begun: RunFolder) -> None:
        said: list[str] = []
        config = with_defaults_of_method(structured())
        with pytest.raises(ValueError, match=r"options\.instance_weight 0\.1, not 0\.3"):
            begun.require(config.describe(), config.defaults())
        kept = as_begun(config, begun, said.append)
        begun.require(kept.describe(), kept.defaults())
        (line,) = said
        assert line.endswith(
            "keeps the defaults with which it began: instance_weight 0.1, label_weight 10, "
            "distill_weight 0.5, distill_temperature 2, warmup_steps 0"
        )

    def test_its_density_is_ramped_over_the_whole_run_without_a_warm_up(self, tmp_path: Path) -> None:
        folder, said = RunFolder(tmp_path), list[str]()
        config = tiny.request("movement", sparsity=0.5)
        earlier = {name: value for name, value in config.describe().items() if name != "density_warmup"}
        folder.run_json.write_text(json.dumps({"schema": 1, **earlier}))
        with pytest.raises(ValueError, match="density_warmup None, not 'a tenth of the run'"):
            folder.require(config.describe(), config.defaults())
        kept = as_begun(config, folder, said.append)
        folder.require(kept.describe(), kept.defaults())
        (line,) = said
        ending = "the defaults with which it began: initial_warmup 0, final_warmup 0"
        assert line.endswith(ending)
        method = kept.method
        assert isinstance(method, MaskLearningMethod)
        assert method.goal(kept, 100).density_warmup == 0
        assert method.goal(config, 100).density_warmup == 10

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda config: replace(config, distillation=Distillation(0.8)),
                "distillation.weight 0.5, not 0.8",
            ),
            (
                lambda config: replace(config, training=replace(config.training, warmup_ratio=0.2)),
                "warmup_ratio",
            ),
            (
                lambda config: replace(config, method=replace(config.method, label_weight=4.0)),
                "label_weight 10.0",
            ),
        ],
    )
    def test_what_the_user_sets_is_another_run(
        self, begun: RunFolder, change: Callable[[RunConfig], RunConfig], message: str
    ) -> None:
        config = as_begun(change(with_defaults_of_method(structured())), begun, print)
        with pytest.raises(ValueError, match=message):
            begun.require(config.describe(), config.defaults())

    def test_a_run_of_this_version_has_none(self, tmp_path: Path) -> None:
        said: list[str] = []
        each_warmup = ({}, {"warmup_ratio": 0.0}, {"warmup_steps": 2}, {"warmup_steps": 0})
        for number, changes in enumerate(each_warmup):
            config = with_defaults_of_method(structured(**changes))
            folder = RunFolder(tmp_path / str(number))
            folder.path.mkdir()
            folder.run_json.write_text(json.dumps({"schema": 1, **config.describe()}))
            assert as_begun(config, folder, said.append) == config
        assert not said
