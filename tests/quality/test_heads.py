"""What follows an encoder is computed apart from it, and gives what the whole model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sparsebert import fuse_
from sparsebert.quality import head_of
from sparsebert.quality.held_out import encoder_of

CLASSES = [
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "DistilBertForSequenceClassification",
    "ElectraForSequenceClassification",
    "MPNetForSequenceClassification",
]


@pytest.mark.parametrize("cls", CLASSES)
def test_logits_of_classes_are_those_of_the_whole_model(cls: str, model_of: Any, batches: Any) -> None:
    model = model_of(cls, num_labels=3)
    head = head_of(model, "unnamed")
    assert head.kind == "classes"
    for batch in batches:
        found = torch.cat(head.outputs(encoder_of(model.base_model)(batch), batch))
        torch.testing.assert_close(found, model(**batch).logits.detach(), atol=1e-5, rtol=0)


def test_logits_of_tokens_leave_padding_out(model_of: Any, batches: Any) -> None:
    model = model_of("BertForTokenClassification", num_labels=4)
    outputs = head_of(model, "unnamed").outputs(encoder_of(model.base_model)(batches[1]), batches[1])
    logits = model(**batches[1]).logits.detach()
    for row, mask, output in zip(logits, batches[1]["attention_mask"], outputs, strict=True):
        torch.testing.assert_close(output, row[: int(mask.sum())], atol=1e-5, rtol=0)


def test_spans_give_the_logits_of_start_and_end(model_of: Any, batches: Any) -> None:
    model = model_of("BertForQuestionAnswering")
    outputs = head_of(model, "unnamed").outputs(encoder_of(model.base_model)(batches[1]), batches[1])
    result = model(**batches[1])
    for index, output in enumerate(outputs):
        length = int(batches[1]["attention_mask"][index].sum())
        torch.testing.assert_close(output[0], result.start_logits[index, :length].detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(output[1], result.end_logits[index, :length].detach(), atol=1e-5, rtol=0)


def test_an_encoder_alone_is_read_as_the_mean_of_its_tokens(
    model_of: Any, batches: Any, tmp_path: Path
) -> None:
    model = model_of("BertModel")
    head = head_of(model, str(tmp_path))
    states = model(**batches[1]).last_hidden_state.detach()
    (embedding, *_) = head.outputs(states, batches[1])
    length = int(batches[1]["attention_mask"][0].sum())
    torch.testing.assert_close(embedding[0], states[0, :length].mean(0))


def test_a_language_model_is_read_like_its_encoder(model_of: Any, tmp_path: Path) -> None:
    assert head_of(model_of("BertForMaskedLM"), str(tmp_path)).kind == "embedding"


def test_a_fused_encoder_has_the_same_head(model_of: Any, batches: Any) -> None:
    model = model_of("BertForSequenceClassification", hidden_size=32, intermediate_size=64)
    expected = model(**batches[0]).logits.detach()
    fuse_(model)
    head = head_of(model, "unnamed")
    found = torch.cat(head.outputs(encoder_of(model.base_model)(batches[0]), batches[0]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
