"""The experiment of a task: what searches judge a model by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsebert.tasks import Example, TaskData, find_task
from sparsebert.workflows.assemble import assemble
from tests.cli import tiny


@pytest.fixture
def model(tmp_path: Path) -> str:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(tiny.WORDS))
    return str(tiny.save(tmp_path / "bert", transformers.BertTokenizer(str(tmp_path / "vocab.txt"))))


def test_a_search_judges_by_the_validation_data_or_by_a_sample_to_train_on(model: str) -> None:
    """All examples to train on have class 1, all others class 0: the model says one of them."""
    task = find_task("sst2")
    train = [Example((f"a film is {word}",), 1) for word in tiny.GOOD]
    validation = [Example((f"the plot is {word}",), 0) for word in tiny.BAD]
    data = TaskData(task, train, {"validation": validation}, {})
    experiment = assemble(task, model, data)
    assert experiment.judge is not None
    experiment.model.classifier.bias.data = torch.tensor([-100.0, 100.0])
    assert experiment.judge(experiment.model, None, 0) == 0.0
    assert experiment.judge(experiment.model, 2, 0) == 1.0
