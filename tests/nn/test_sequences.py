"""Attention over sequences side by side: that of each sequence alone, whatever their lengths and widths."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsebert.nn import sequences
from sparsebert.nn.sequences import EqualLengths, Ragged, Unpadded, runs_flash

LENGTHS = [5, 1, 0, 9, 2]
BOUNDS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
TOKENS = sum(LENGTHS)
# Score width, value width: equal, and as compaction leaves them.
WIDTHS = [(16, 16), (7, 16), (16, 5)]


def projections(
    tokens: int, widths: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of three heads as slices of one joined product."""
    generator = torch.Generator().manual_seed(0)
    score, value = widths
    joined = torch.randn(tokens, 3 * (2 * score + value), generator=generator).to(dtype)
    query, key, values = joined.split([3 * score, 3 * score, 3 * value], -1)
    return query.unflatten(-1, (3, -1)), key.unflatten(-1, (3, -1)), values.unflatten(-1, (3, -1))


def one_by_one(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The context of every sequence alone, in float64."""
    query, key, value = (each.double() for each in (query, key, value))
    contexts = []
    for start, end in zip(BOUNDS.tolist(), BOUNDS[1:].tolist(), strict=False):
        scores = torch.einsum("qhw,khw->hqk", query[start:end], key[start:end]) * scale
        contexts.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), value[start:end]))
    return torch.cat(contexts)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_sequences_attend_to_themselves(widths: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = projections(TOKENS, widths, dtype)
    context = Ragged(BOUNDS, 12).attend(*inputs, 0.3)
    expected = one_by_one(*inputs, 0.3)
    assert context.shape == (TOKENS, 3, widths[1])
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(context.double(), expected, rtol=limit, atol=limit)


def test_tokens_behind_the_last_sequence_change_nothing() -> None:
    inputs = projections(TOKENS + 4, (16, 16))
    for each in inputs:
        each[TOKENS:] = float("nan")
    context = Ragged(BOUNDS, 9).attend(*inputs, 0.3)[:TOKENS].double()
    query, key, value = (each[:TOKENS] for each in inputs)
    assert torch.allclose(context, one_by_one(query, key, value, 0.3), atol=1e-5)


def test_places_count_from_the_start_of_each_sequence() -> None:
    sequence, place = Ragged(BOUNDS, 9).places(TOKENS + 2)
    assert sequence[:TOKENS].tolist() == [0] * 5 + [1] + [3] * 9 + [4] * 2
    assert place[:TOKENS].tolist() == [*range(5), 0, *range(9), 0, 1]
    assert int(place.max()) < 9


@pytest.mark.parametrize("widths", WIDTHS)
def test_equal_lengths_attend_to_what_the_mask_keeps(widths: tuple[int, int]) -> None:
    query, key, value = projections(12, widths)
    kept = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    context = EqualLengths(3, 4, kept[:, None, None]).attend(query, key, value, 0.3)
    unpadded = Unpadded.of(kept, 7, 4)
    index = unpadded.index
    ragged = unpadded.sequences.attend(query[index], key[index], value[index], 0.3)
    torch.testing.assert_close(context[kept.flatten()], ragged)
    whole = EqualLengths(3, 4).attend(query, key, value, 0.3)
    torch.testing.assert_close(whole[:4], context[:4])


def test_unpadding_finds_kept_tokens_between_padding_too() -> None:
    kept = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    unpadded = Unpadded.of(kept, 8, 4)
    assert unpadded.index.tolist() == kept.flatten().nonzero().flatten().tolist()
    assert unpadded.sequences.bounds.tolist() == [0, 3, 4, 8]
    assert unpadded.sequences.bounds.dtype == torch.int32
    states = torch.randn(8, 5)
    padded = unpadded.padded(states)
    assert torch.equal(padded[kept], states)
    assert not padded[~kept].any()


class TestFlash:
    def test_runs_on_half_precision_of_a_recent_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        capability = [(8, 0)]
        asked: list[Any] = []

        def of_device(device: Any) -> tuple[int, int]:
            asked.append(device)
            return capability[0]

        monkeypatch.setattr(torch.cuda, "get_device_capability", of_device)
        monkeypatch.setattr(sequences, "varlen_attn", lambda *_: None)

        def tensor(width: int, dtype: torch.dtype, on_gpu: bool = True) -> Any:
            return SimpleNamespace(is_cuda=on_gpu, dtype=dtype, device="cuda:1", shape=(9, 3, width))

        half = tensor(64, torch.bfloat16)
        assert runs_flash(half, half)
        assert asked == ["cuda:1"]
        assert runs_flash(tensor(64, torch.float16), tensor(256, torch.float16))
        assert not runs_flash(tensor(64, torch.float32), half)
        assert not runs_flash(half, tensor(257, torch.bfloat16))
        assert not runs_flash(tensor(64, torch.bfloat16, on_gpu=False), half)
        capability[0] = (7, 5)
        assert not runs_flash(half, half)
        capability[0] = (9, 0)
        monkeypatch.setattr(sequences, "varlen_attn", None)
        assert not runs_flash(half, half)

    @pytest.mark.parametrize("widths", WIDTHS)
    def test_is_called_as_torch_documents_it(
        self, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int]
    ) -> None:
        calls: list[tuple[Any, ...]] = []

        def varlen_attn(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, scale: float) -> Tensor:
            calls.append((query, key, value, *bounds))
            return one_by_one(query, key, value, scale).to(query.dtype)

        monkeypatch.setattr(sequences, "runs_flash", lambda query, value: True)
        monkeypatch.setattr(sequences, "varlen_attn", varlen_attn)
        inputs = projections(TOKENS, widths)
        context = Ragged(BOUNDS, 12).attend(*inputs, 0.3)
        torch.testing.assert_close(context.double(), one_by_one(*inputs, 0.3), rtol=1e-5, atol=1e-5)
        ((*tensors, bounds, same_bounds, longest, same_longest),) = calls
        assert all(each.shape == (TOKENS, 3, -(-max(widths) // 8) * 8) for each in tensors)
        assert all(each.stride(-1) == 1 for each in tensors)
        assert bounds is same_bounds is BOUNDS
        assert longest == same_longest == 12
        if widths == (16, 16):  # slices of the joined product, not copies of them
            assert len({each.untyped_storage().data_ptr() for each in tensors}) == 1

    def test_torch_has_the_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torch.nn.attention.varlen")
        monkeypatch.setattr(sequences, "varlen_attn", None)
        sequences.load_flash()
        if sequences.varlen_attn is None:
            pytest.skip("this version of torch cannot be told the factor of the scores")
        names = [*inspect.signature(sequences.varlen_attn).parameters]
        assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]

    @pytest.mark.parametrize("widths", WIDTHS)
    def test_torch_takes_the_tensors(self, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int]) -> None:
        """Tensors without data stand for those of a GPU: shapes and strides pass torch's checks."""
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        sequences.load_flash()
        if sequences.varlen_attn is None:
            pytest.skip("this version of torch has no attention for variable lengths with a factor")
        with FakeTensorMode():
            half = {"device": "cuda", "dtype": torch.bfloat16}
            sizes = [3 * width for width in (widths[0], *widths)]
            joined = torch.empty(TOKENS, sum(sizes), **half).split(sizes, -1)  # type: ignore[call-overload]
            query, key, value = (each.unflatten(-1, (3, -1)) for each in joined)
            assert runs_flash(query, value)
            bounds = torch.empty(len(BOUNDS), dtype=torch.int32, device="cuda")
            context = Ragged(bounds, 12).attend(query, key, value, 0.3)
        assert context.shape == (TOKENS, 3, widths[1])
        assert context.is_cuda
