"""Inputs of a fused base model beyond token ids, and bad ones."""

from __future__ import annotations

import pytest
import torch

from sparsebert import fuse_
from tests.fuse.models import MARKS
from tests.nn.fused_models import FAMILIES, MASK, answers, build, close, ids

pytestmark = MARKS


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_of_the_caller(name: str, native_calls: list[str]) -> None:
    model = build(name)
    given = model.get_input_embeddings()(ids()).detach()
    inputs = {"input_ids": None, "inputs_embeds": given}
    expected = answers(model, **inputs)
    assert close(answers(fuse_(model), **inputs), expected)
    assert native_calls == ["sb_encoder"]


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "mpnet"])
def test_positions_of_the_caller(name: str) -> None:
    model = build(name)
    positions = torch.arange(23).flip(0)[None].contiguous() + 2
    expected = answers(model, position_ids=positions)
    assert close(answers(fuse_(model), position_ids=positions), expected)


def test_rotary_positions_of_the_caller() -> None:
    model = build("modernbert")
    positions = 2 * torch.arange(23)[None]
    expected = answers(model, position_ids=positions)
    with pytest.warns(UserWarning, match="one by one: the call has the argument position_ids"):
        assert close(answers(fuse_(model), position_ids=positions), expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrong", [50, -1])
def test_ids_outside_the_vocabulary(name: str, wrong: int) -> None:
    model = build(name)
    tokens = ids()
    tokens[1, 20] = wrong  # in the padding
    with pytest.raises(IndexError) as plain:
        answers(model, input_ids=tokens)
    with pytest.raises(IndexError) as fused:
        answers(fuse_(model), input_ids=tokens)
    assert str(fused.value) == str(plain.value)
    answers(model)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet"])
def test_more_tokens_than_positions(name: str) -> None:
    model = build(name)
    tokens = torch.full((2, 40), 5)
    with pytest.raises((IndexError, RuntimeError)) as plain:
        model(tokens)
    with torch.inference_mode(), pytest.raises((IndexError, RuntimeError)) as fused:
        fuse_(model)(tokens)
    assert (fused.type, str(fused.value)) == (plain.type, str(plain.value))


def test_more_tokens_than_rotary_positions() -> None:
    model = build("modernbert")
    tokens = torch.full((2, 40), 5)
    with torch.inference_mode():
        expected = model(tokens).last_hidden_state
        assert torch.equal(fuse_(model)(tokens).last_hidden_state, expected)


def test_token_types_outside_their_table() -> None:
    model = fuse_(build("bert"))
    with pytest.raises(IndexError, match="out of range"):
        answers(model, token_type_ids=torch.full_like(ids(), 7))


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_32_bits(name: str) -> None:
    model = build(name)
    expected = answers(model)
    if name == "modernbert":
        with pytest.warns(UserWarning, match="the token ids are not int64"):
            assert close(answers(fuse_(model), input_ids=ids().int()), expected)
    else:
        assert close(answers(fuse_(model), input_ids=ids().int()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_batch(name: str) -> None:
    """The layers of transformers raise an error of reshaping."""
    model = fuse_(build(name))
    with torch.inference_mode():
        states, *pooled = model(torch.zeros(0, 5, dtype=torch.int64)).to_tuple()
    assert states.shape == (0, 5, 24)
    assert all(each.shape == (0, 24) for each in pooled)


def test_texts_without_tokens() -> None:
    tokens = torch.zeros(3, 0, dtype=torch.int64)
    without_pooler, with_pooler = fuse_(build("distilbert")), fuse_(build("bert"))
    with torch.inference_mode():
        assert without_pooler(tokens).last_hidden_state.shape == (3, 0, 24)
        with pytest.raises(IndexError):
            with_pooler(tokens)  # there is no first token


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kept", ["none", "last"])
def test_rows_that_begin_with_padding(name: str, kept: str) -> None:
    model = build(name)
    mask = MASK.clone()
    mask[1] = False
    mask[1, -3:] = kept == "last"
    expected = answers(model, mask)
    with pytest.warns(UserWarning, match="a row of the batch begins with padding"):
        assert close(answers(fuse_(model), mask), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_between_tokens(name: str) -> None:
    model = build(name)
    mask = MASK.clone()
    mask[0, 5:8] = False
    expected = answers(model, mask)
    fuse_(model)
    if name in ("mpnet", "modernbert"):  # distances count
        with pytest.warns(UserWarning, match="padding lies between the tokens"):
            assert close(answers(model, mask), expected)
    else:
        assert close(answers(model, mask), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_nan_and_inf_stay_in_their_sequence(name: str, value: float) -> None:
    model = fuse_(build(name))
    tokens = ids()
    tokens[2, 3] = 49
    tokens[tokens == 49] = 48
    clean = answers(model, input_ids=tokens)
    with torch.no_grad():
        model.get_input_embeddings().weight[49, 2] = value
    tokens[2, 3] = 49
    states, *_ = answers(model, input_ids=tokens)
    row = MASK.nonzero()[:, 0]
    assert torch.equal(states[row != 2], clean[0][row != 2])
    assert states[row == 2].isnan().any()
