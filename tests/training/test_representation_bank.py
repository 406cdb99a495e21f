"""Representations of the training data: which they are, how they are kept, and how batches find theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.training.example_ids import WithExampleIds, collate_with_ids, take_example_ids
from sparsebert.training.representation_bank import HeadInput, RepresentationBank, head_linear
from tests.lottery import tiny

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
DISTIL = {"dim": 16, "n_heads": 2, "hidden_dim": 24, "n_layers": 1}
LAST = {
    "BertForSequenceClassification": "classifier",
    "RobertaForSequenceClassification": "classifier.out_proj",
    "ElectraForSequenceClassification": "classifier.out_proj",
    "DistilBertForSequenceClassification": "classifier",
    "BertForQuestionAnswering": "qa_outputs",
}


def built(cls: str) -> Any:
    torch.manual_seed(0)
    family = cls.split("For")[0].removesuffix("Model")
    shape = DISTIL if family == "DistilBert" else SHAPE
    return getattr(transformers, cls)(getattr(transformers, f"{family}Config")(vocab_size=30, **shape))


@pytest.mark.parametrize(("cls", "name"), LAST.items())
def test_a_representation_is_what_the_head_decides_by(cls: str, name: str) -> None:
    model = built(cls).eval()
    assert head_linear(model) is model.get_submodule(name)
    head = HeadInput(model)
    output = model(input_ids=torch.arange(5, 17).view(3, 4))
    value = head.take()
    assert value.shape == (3, 16)
    head.close()
    if "Question" in cls:
        output.logits = torch.stack([output.start_logits, output.end_logits], -1)[:, 0]
    assert torch.allclose(head_linear(model)(value), output.logits, atol=1e-6)
    assert head.value is None


def test_a_model_without_a_head_has_none() -> None:
    with pytest.raises(ValueError, match="BertModel has no task head"):
        head_linear(built("BertModel"))


def banks(folder: Path) -> RepresentationBank:
    return RepresentationBank(folder, tiny.examples(), tiny.collate, 16, torch.device("cpu"))


def test_a_bank_has_a_row_of_length_1_for_each_example_in_order(tmp_path: Path) -> None:
    model, ours = tiny.model(dropout=0.5).train(), banks(tmp_path / "banks")
    state = torch.random.get_rng_state()
    ours.write("pretrained", model, model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    (found,) = ours.open(["pretrained"])
    pooled = model.eval().bert(input_ids=tiny.collate(tiny.examples())["input_ids"]).pooler_output
    expected = (pooled / pooled.norm(dim=-1, keepdim=True)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ours.names() == ["pretrained"]
    labels = ours.labels()
    assert labels is not None
    assert labels.tolist() == [each["labels"] for each in tiny.examples()]


def test_a_bank_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    model, ours = tiny.model(), banks(tmp_path / "banks")
    calls = iter(range(10))

    def killed(**batch: Tensor) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return model(**batch)

    with pytest.raises(KeyboardInterrupt):
        ours.write("pretrained", model, killed)
    assert ours.names() == []
    assert not list((tmp_path / "banks").iterdir())


def test_labels_are_there_before_the_bank_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: RepresentationBank, labels: Tensor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RepresentationBank, "_write_labels", killed)
    model, ours = tiny.model(), banks(tmp_path / "banks")
    with pytest.raises(KeyboardInterrupt):
        ours.write("pretrained", model, model)
    assert ours.names() == []


def test_batches_say_which_examples_they_hold() -> None:
    class Known(list[Any]):
        lengths = np.arange(40)

    examples = WithExampleIds(Known(tiny.examples()))
    assert len(examples) == 40
    assert examples.lengths[7] == 7
    batch = collate_with_ids(tiny.collate)([examples[3], examples[11]])
    assert take_example_ids(batch).tolist() == [3, 11]
    plain = tiny.collate([tiny.examples()[3], tiny.examples()[11]])
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert not hasattr(WithExampleIds(tiny.examples()), "lengths")
