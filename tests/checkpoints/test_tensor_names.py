"""Names are recognised by their end, whatever stands before it."""

from __future__ import annotations

import pytest

from sparsebert.bert import encoder_matrix, is_bert_name
from sparsebert.checkpoints.tensor_names import Place, SeveralEncodersError, places

QUERY, VALUE = "encoder.layer.0.attention.self.query", "encoder.layer.10.attention.self.value"


def placed(*names: str) -> list[Place]:
    return list(places(names, lambda name: encoder_matrix(name) is not None, is_bert_name).values())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "bert.",
        "module.",
        "_orig_mod.bert.",
        "module._orig_mod.model.",
        "base_model.model.roberta.",
        "0.auto_model.",
        "state_dict.net.electra.",
        "student.encoder.",
        "_fsdp_wrapped_module.",
        "_forward_module.model._checkpoint_wrapped_module.bert.",
    ],
)
def test_a_prefix_is_stripped(prefix: str) -> None:
    names = [QUERY, VALUE, "pooler.dense", "embeddings.LayerNorm"]
    assert placed(*(prefix + name for name in names)) == [Place(True, name) for name in names]


def test_wrappers_inside_a_path() -> None:
    assert placed("bert.encoder.layer.0._orig_mod.attention.self.query", f"bert.{VALUE}") == [
        Place(True, QUERY),
        Place(True, VALUE),
    ]


def test_two_prefixes_of_one_encoder() -> None:
    assert placed(f"model.{QUERY}", f"net.bert.{VALUE}") == [Place(True, QUERY), Place(True, VALUE)]


@pytest.mark.parametrize("name", ["classifier", "model.classifier", "model.net.classifier"])
def test_a_head_stands_anywhere_above_the_encoder(name: str) -> None:
    assert placed(f"model.net.bert.{QUERY}", name)[1] == Place(False, "classifier")


def test_the_whole_one_of_two_encoders_counts() -> None:
    assert placed(f"bert.{QUERY}", f"bert.{VALUE}", f"exp_avg.{QUERY}")[:2] == [
        Place(True, QUERY),
        Place(True, VALUE),
    ]


def test_two_encoders_are_refused_by_their_prefixes() -> None:
    with pytest.raises(SeveralEncodersError, match=r"prefixes 'student\.', 'teacher\.bert\.'"):
        placed(f"student.{QUERY}", f"teacher.bert.{QUERY}")
