"""Embeddings before the layers of the native encoder, LayerNorm and pooler after them, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.cpu.encoder import (
    BadTokens,
    NativeEncoder,
    NativeEnds,
    OutOfRange,
    Reduction,
    WeightedMask,
)
from sparsebert_kernels.cpu.encoder_parts import DensePanel, EncoderEnds
from sparsebert_kernels.cpu.pooling import pool
from tests.ops.backends import INSTRUCTION_SETS
from tests.ops.encoder_problem import Problem, pack, reference

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="no native library")


class TestEnds:
    """Embeddings before the layers, LayerNorm and pooler after them."""

    def ends(
        self, width: int = 40, counted: bool = False, pooler: str = "element", **changes: Any
    ) -> EncoderEnds:
        torch.manual_seed(5)
        projection = torch.randn(40, width) / 5 if width != 40 else None
        tables = {
            "words": torch.randn(50, width),
            "positions": torch.randn(60, width),
            "types": torch.randn(2, width),
            "embedding_norm": (torch.rand(width) + 0.5, torch.randn(width)),
            "padding": 1 if counted else None,
            "projection": None if projection is None else DensePanel.from_dense(projection),
            "projection_bias": None if projection is None else torch.randn(40),
            "final_norm": (torch.rand(40) + 0.5, torch.randn(40)),
            "pooler": pack(torch.randn(13, 40) / 6, pooler),
            "pooler_bias": torch.randn(13),
            "epsilons": (1e-3, 1e-5),
        }
        return EncoderEnds(**tables | changes)  # type: ignore[arg-type]

    def expected(
        self, ends: EncoderEnds, ids: Tensor, types: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        problem = Problem(lengths=(9, 33, 1))
        torch.manual_seed(3)
        layers, dense = problem.layers()
        assert ends.words is not None
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        if ends.padding is not None:
            words = ids != ends.padding
            places = words.cumsum(1) * words + ends.padding
        x = ends.words[ids].double()
        if ends.types is not None:
            x = x + ends.types[torch.zeros_like(ids) if types is None else types]
        if ends.positions is not None:
            x = x + ends.positions[places]
        assert ends.embedding_norm is not None
        x = F.layer_norm(x, x.shape[-1:], *(each.double() for each in ends.embedding_norm), ends.epsilons[0])
        if ends.projection is not None:
            assert ends.projection_bias is not None
            x = F.linear(x, ends.projection.to_dense().double(), ends.projection_bias.double())
        x = reference(layers, dense, x, mask, torch.float64)
        if ends.final_norm is not None:
            norm = [each.double() for each in ends.final_norm]
            x = F.layer_norm(x, x.shape[-1:], *norm, ends.epsilons[1]) * mask[..., None]
        assert ends.pooler is not None
        assert ends.pooler_bias is not None
        return x, F.linear(x[:, 0], ends.pooler.to_dense().double(), ends.pooler_bias.double()).tanh()

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"counted": True},
            {"width": 23},
            {"types": None, "positions": None, "final_norm": None},
            {"pooler": "dense"},
        ],
        ids=["all", "counted", "projected", "words", "dense pooler"],
    )
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
    def test_are_computed_in_the_same_call(
        self, changes: dict[str, Any], dtype: torch.dtype, instruction_set: str
    ) -> None:
        ends = self.ends(**changes)
        torch.manual_seed(3)
        encoder = NativeEncoder(Problem().layers()[0])
        mask = torch.arange(33) < torch.tensor((9, 33, 1))[:, None]
        ids = torch.randint(0, 50, mask.shape)
        ids[:, 5] = 1
        for types in (None, torch.randint(0, 2, mask.shape)):
            states, pooled, _ = encoder.of_ids(ids, mask.to(dtype), types, NativeEnds(ends))
            exact, exact_pooled = self.expected(ends, ids, types, mask)
            assert pooled is not None
            assert (states - exact).abs().max() < 3e-5
            assert (pooled - exact_pooled).abs().max() < 1e-5

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("pooler", ["element", "dense"])
    def test_many_sequences_are_pooled(self, pooler: str, threads: int) -> None:
        ends = self.ends(pooler=pooler)
        torch.manual_seed(3)
        encoder = NativeEncoder(Problem().layers()[0])
        ids = torch.randint(0, 50, (150, 20))
        torch.set_num_threads(threads)
        _, pooled, _ = encoder.of_ids(ids, None, None, NativeEnds(ends))
        torch.set_num_threads(1)
        assert pooled is not None
        for number in (0, 31, 32, 101, 149):
            _, alone, _ = encoder.of_ids(ids[number : number + 1], None, None, NativeEnds(ends))
            assert alone is not None
            assert torch.equal(alone[0], pooled[number])

    @pytest.mark.parametrize("reduction", [Reduction(*each) for each in ((1, 0), (0, 1), (1, 1))], ids=str)
    def test_sequences_are_reduced_in_the_same_call(self, reduction: Reduction, instruction_set: str) -> None:
        encoder, ends = NativeEncoder(Problem().layers()[0]), NativeEnds(self.ends())
        mask = (torch.arange(20) < torch.tensor((9, 20, 1))[:, None]).long()
        ids = torch.randint(0, 50, mask.shape)
        states, _, vectors = encoder.of_ids(ids, mask, None, ends, reduction=reduction)
        expected = pool(states, mask, mean=bool(reduction.mean), normalize=bool(reduction.normalize))
        assert vectors is not None
        assert expected is not None
        assert torch.equal(vectors, expected)
        with pytest.raises(WeightedMask):
            encoder.of_ids(ids, 2 * mask, None, ends, reduction=reduction)
        assert encoder.of_ids(ids, 2 * mask, None, ends).vectors is None

    @pytest.mark.parametrize("table", ["words", "types", "positions"])
    def test_numbers_outside_the_tables(self, table: str) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        ids, types = torch.zeros(2, 9).long(), torch.zeros(2, 9).long()
        if table == "words":
            ids[1, 8] = 50
        elif table == "types":
            types[0, 0] = -1
        ends = self.ends(positions=torch.randn(8 if table == "positions" else 9, 40))
        with pytest.raises(OutOfRange):
            encoder.of_ids(ids, None, types, NativeEnds(ends))

    def test_a_sequence_that_begins_with_padding(self) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        mask = torch.tensor([[True, True], [False, True]])
        with pytest.raises(BadTokens, match="begins with padding"):
            encoder.of_ids(torch.zeros(2, 2).long(), mask, None, NativeEnds(self.ends()))

    def test_that_do_not_fit(self) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        for changes in (
            {"words": torch.randn(50, 39)},
            {"pooler": pack(torch.randn(8, 41), "dense"), "pooler_bias": None},
        ):
            ends = NativeEnds(replace(self.ends(), **changes))
            with pytest.raises(ValueError, match="do not fit together"):
                encoder.of_ids(torch.zeros(1, 4).long(), None, None, ends)
