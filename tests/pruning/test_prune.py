"""prune: exact counts at every granularity and scope, the same ticket every time, clear refusals."""

from __future__ import annotations

import math
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve, structure
from sparsebert.pruning import Magnitude, ScoringContext, methods, prune
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")
QUERY, UP = "encoder.layer.0.attention.self.query", "encoder.layer.0.intermediate.dense"


def bert(head: str = "BertModel", **changes: int) -> Any:
    torch.manual_seed(0)
    width = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 28, "num_hidden_layers": 2}
    return getattr(transformers, head)(transformers.BertConfig(**width | {"vocab_size": 30} | changes)).eval()


@pytest.fixture(scope="module")
def dense() -> Any:
    """A model that the tests only read."""
    return bert()


TOTAL = 2 * (4 * 20 * 20 + 2 * 20 * 28)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: resolve(model, key).get_parameter("weight").detach() for key in structure(model).linears}


def kept(ticket: Ticket) -> int:
    return sum(int(mask.sum()) for mask in ticket.masks.values())


def test_magnitude_and_random_are_known() -> None:
    assert {"magnitude", "random"} <= set(methods())


class TestExactCounts:
    @settings(max_examples=settings.default.max_examples // 2)
    @given(mille=st.integers(0, 999), method=st.sampled_from(["magnitude", "random"]))
    def test_k_is_the_rounded_share_of_all_weights(self, dense: Any, mille: int, method: str) -> None:
        ticket = prune(dense, method, sparsity=mille / 1000)
        assert kept(ticket) == round(Fraction(1000 - mille, 1000) * TOTAL)

    def test_decimal_fractions_are_what_they_say(self) -> None:
        model = bert(hidden_size=10, intermediate_size=10, num_hidden_layers=1)
        assert int(0.29 * 100) == 28
        ticket = prune(model, sparsity=0.71, scope="matrix")
        assert {int(mask.sum()) for mask in ticket.masks.values()} == {29}
        for same in (Decimal("0.71"), Fraction(71, 100)):
            assert prune(model, sparsity=same, scope="matrix") == ticket

    def test_half_a_weight_is_exact_too(self) -> None:
        """70 % of 15 weights is 10.5, which rounds to 10; 1 - 0.3 in binary is slightly more."""
        model = bert(hidden_size=5, intermediate_size=3, num_attention_heads=1, num_hidden_layers=1)
        masks = prune(model, sparsity=0.3, scope="matrix").masks.values()
        assert {int(mask.sum()) for mask in masks if mask.numel() == 15} == {10}

    @pytest.mark.parametrize("value", [0.0, 0.5, -0.0])
    def test_any_ties_are_cut_by_position(self, value: float) -> None:
        model = bert()
        with torch.no_grad():
            for weight in weights(model).values():
                weight.fill_(value)
        ticket = prune(model, sparsity=0.77)
        bits = torch.cat([mask.flatten() for mask in ticket.masks.values()])
        k = round(Fraction(23, 100) * TOTAL)
        assert bits[:k].all()
        assert not bits[k:].any()

    def test_tenths_of_the_original_as_in_iterative_pruning(self, dense: Any) -> None:
        ticket = None
        for step in range(1, 10):
            ticket = prune(dense, sparsity=step / 10, ticket=ticket)
            assert kept(ticket) == round(Fraction(10 - step, 10) * TOTAL)
            assert ticket == prune(dense, sparsity=step / 10)


class TestMagnitude:
    def test_nothing_pruned_is_larger_than_anything_kept(self, dense: Any) -> None:
        ticket = prune(dense, sparsity=0.6)
        pairs = [(weights(dense)[key].abs(), mask) for key, mask in ticket.masks.items()]
        assert max(w[~m].max() for w, m in pairs) <= min(w[m].min() for w, m in pairs)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_low_precision_ties_a_lot_and_stays_exact(self, dtype: torch.dtype) -> None:
        ticket = prune(bert().to(dtype), sparsity=0.9)
        assert kept(ticket) == round(Fraction(1, 10) * TOTAL)

    def test_infinite_weights_are_the_last_to_go(self) -> None:
        model = bert()
        with torch.no_grad():
            weights(model)[UP][3, 4] = -math.inf
        assert prune(model, sparsity=0.999).masks[UP][3, 4]


class TestRandom:
    def test_the_seed_decides(self, dense: Any) -> None:
        tickets = [prune(dense, "random", sparsity=0.5, seed=seed) for seed in (1, 1, 2)]
        assert tickets[0] == tickets[1] != tickets[2]

    def test_the_weights_do_not_matter(self, dense: Any) -> None:
        model = bert()
        with torch.no_grad():
            for weight in weights(model).values():
                weight.neg_().add_(3)
        assert prune(model, "random", sparsity=0.5) == prune(dense, "random", sparsity=0.5)

    @pytest.mark.parametrize("granularity", ["element", "row"])
    def test_every_matrix_gets_its_share(self, dense: Any, granularity: str) -> None:
        shares = [
            prune(dense, "random", sparsity=0.5, granularity=granularity, seed=seed).layer_sparsity[UP]
            for seed in range(12)
        ]
        assert 0.4 < sum(shares) / len(shares) < 0.6


class TestScope:
    def test_matrix_prunes_every_matrix_alike(self, dense: Any) -> None:
        for key, mask in prune(dense, sparsity=0.9, scope="matrix").masks.items():
            best = weights(dense)[key].abs().flatten().argsort(descending=True, stable=True)
            assert set(mask.flatten().nonzero().flatten().tolist()) == set(
                best[: mask.numel() // 10].tolist()
            )

    def test_type_ranks_the_matrices_of_one_type_together(self) -> None:
        model = bert()
        with torch.no_grad():
            weights(model)["encoder.layer.1.attention.self.query"].mul_(100)
            weights(model)[UP].mul_(10_000)
        shares = prune(model, sparsity=0.5, scope="type").layer_sparsity
        assert shares["encoder.layer.1.attention.self.query"] < 0.02
        assert shares[QUERY] > 0.98
        assert shares["encoder.layer.0.attention.self.key"] == pytest.approx(0.5, abs=0.06)
        assert (shares[UP] + shares["encoder.layer.1.intermediate.dense"]) / 2 == 0.5

    def test_the_pooler_joins_only_when_asked(self, dense: Any) -> None:
        assert "pooler.dense" not in prune(dense, sparsity=0.5).masks
        ticket = prune(dense, sparsity=0.5, include_pooler=True)
        assert list(ticket.masks)[-1] == "pooler.dense"
        assert kept(ticket) == (TOTAL + 400) // 2
        with pytest.raises(ValueError, match="BertForMaskedLM has no pooler"):
            prune(bert("BertForMaskedLM"), sparsity=0.5, include_pooler=True)


class TestGranularity:
    @pytest.mark.parametrize(
        ("block", "scope"),
        [
            ((4, 1), "global"),
            ((4, 1), "matrix"),
            ((1, 4), "type"),
            ((2, 2), "matrix"),
            ((20, 4), "global"),
            ((20, 4), "type"),
        ],
    )
    def test_blocks_live_or_die_whole_and_are_counted_exactly(
        self, dense: Any, block: tuple[int, int], scope: str
    ) -> None:
        ticket = prune(dense, sparsity=0.7, granularity="block", block_size=block, scope=scope)
        for mask in ticket.masks.values():
            tiles = mask.unfold(0, min(block[0], len(mask)), block[0]).unfold(1, block[1], block[1])
            live = tiles.flatten(2).float().mean(2)
            assert set(live.unique().tolist()) <= {0.0, 1.0}
        if block[0] < 20:
            size = block[0] * block[1]
            groups = {"global": [TOTAL], "type": [800] * 4 + [1120] * 2, "matrix": [400] * 8 + [560] * 4}[
                scope
            ]
            assert kept(ticket) == sum(round(Fraction(3, 10) * n / size) * size for n in groups)

    def test_blocks_have_a_short_name(self, dense: Any) -> None:
        short = prune(dense, sparsity=0.7, granularity="4x1")
        assert short == prune(dense, sparsity=0.7, granularity="block", block_size=(4, 1))
        assert (short.metadata["granularity"], short.metadata["block_size"]) == ("block", [4, 1])

    def test_a_block_at_the_edge_counts_with_the_weights_it_has(self, dense: Any) -> None:
        ticket = prune(dense, sparsity=0.5, granularity="block", block_size=(3, 7), scope="matrix")
        for mask in ticket.masks.values():
            pieces = [piece for band in mask.split(3) for piece in band.split(7, 1)]
            assert all(piece.all() or not piece.any() for piece in pieces)
            assert abs(int(mask.sum()) - mask.numel() / 2) <= 21 / 2

    @pytest.mark.parametrize(("granularity", "dim"), [("row", 1), ("column", 0)])
    def test_rows_and_columns_go_by_their_mean_magnitude(
        self, dense: Any, granularity: str, dim: int
    ) -> None:
        ticket = prune(dense, sparsity=0.5, granularity=granularity)
        means = {key: weight.abs().double().mean(dim).float() for key, weight in weights(dense).items()}
        alive = {key: mask.any(dim) for key, mask in ticket.masks.items()}
        assert all(torch.equal(alive[key], mask.all(dim)) for key, mask in ticket.masks.items())
        assert min(means[key][alive[key]].min() for key in means if alive[key].any()) >= max(
            means[key][~alive[key]].max() for key in means if not alive[key].all()
        )
        assert abs(kept(ticket) - TOTAL / 2) <= 14

    @pytest.mark.parametrize(
        ("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("1:2", 0.5), ("3:4", 0.25)]
    )
    def test_n_of_every_m_neighbours_along_the_inputs(
        self, dense: Any, pattern: str, sparsity: float
    ) -> None:
        n, m = map(int, pattern.split(":"))
        for ticket in (
            prune(dense, granularity=pattern),
            prune(dense, granularity=pattern, sparsity=sparsity),
        ):
            assert ticket.sparsity == sparsity
            for key, mask in ticket.masks.items():
                groups = weights(dense)[key].abs().view(-1, m)
                keep = mask.view(-1, m)
                assert torch.equal(keep.sum(1), torch.full((len(keep),), n))
                assert (
                    groups.masked_fill(~keep, math.inf).amin(1) >= groups.masked_fill(keep, 0).amax(1)
                ).all()

    def test_pooling_decides_between_one_large_weight_and_many(self) -> None:
        model = bert()
        with torch.no_grad():
            for weight in weights(model).values():
                weight.zero_()
            weights(model)[QUERY][0, 0] = 10
            weights(model)[QUERY][1, :] = 1
        for pooling, first in (("mean", False), ("rms", True), ("max", True)):
            ticket = prune(model, sparsity=0.996, granularity="row", pooling=pooling)
            assert kept(ticket) == 20
            assert bool(ticket.masks[QUERY][0].all()) is first


class TestPruningFurther:
    def test_what_is_pruned_stays_pruned_whatever_its_value(self) -> None:
        model = bert()
        first = prune(model, "random", sparsity=0.5)
        with torch.no_grad():
            for key, mask in first.masks.items():
                weights(model)[key][~mask] = 1000
                weights(model)[key][mask] = 0
        second = prune(model, sparsity=0.7, ticket=first)
        assert second & first == second
        assert kept(second) == round(Fraction(3, 10) * TOTAL)

    def test_nan_below_the_mask_does_no_harm(self) -> None:
        model = bert()
        first = prune(model, sparsity=0.5)
        clean = prune(model, sparsity=0.7, ticket=first)
        with torch.no_grad():
            for key, mask in first.masks.items():
                weights(model)[key][~mask] = math.nan
        assert prune(model, sparsity=0.7, ticket=first) == clean

    @pytest.mark.parametrize(
        "options", [{"granularity": "row"}, {"granularity": "block", "block_size": (3, 7)}]
    )
    def test_whole_units_can_be_pruned_further(self, dense: Any, options: dict[str, Any]) -> None:
        first = prune(dense, "random", sparsity=0.4, **options)
        second = prune(dense, sparsity=0.8, ticket=first, **options)
        assert second & first == second
        assert second.density == pytest.approx(0.2, abs=0.01)

    def test_the_history_and_the_base_weights_are_handed_on(self) -> None:
        model = bert("BertForMaskedLM")
        first = prune(model, sparsity=0.5)
        expected = first.metadata["model"]["weights"]
        first.apply_(model)
        second = prune(model, "random", sparsity=0.7, seed=5, ticket=first)
        assert second.metadata["model"]["weights"] == expected != weight_hash(model)
        assert [step["sparsity"] for step in second.metadata["history"]] == [0.5, 0.7]
        assert [step["method"] for step in second.metadata["history"]] == ["magnitude", "random"]

    def test_what_cannot_be_done_is_refused(self, dense: Any) -> None:
        element = prune(dense, sparsity=0.5)
        with pytest.raises(ValueError, match="fewer weights are alive than should be kept"):
            prune(dense, sparsity=0.4, ticket=element)
        with pytest.raises(ValueError, match=f"prunes parts of units of {QUERY}"):
            prune(dense, sparsity=0.9, ticket=element, granularity="row")
        with pytest.raises(ValueError, match=r"keeps fewer than 2 of 4 neighbours in encoder\.layer\.0"):
            prune(dense, ticket=element, granularity="2:4")
        with pytest.raises(ValueError, match=r"the ticket masks pooler\.dense, which is not among"):
            prune(dense, sparsity=0.9, ticket=prune(dense, sparsity=0.5, include_pooler=True))
        with pytest.raises(ValueError, match="ticket of another model"):
            prune(bert(num_hidden_layers=1), sparsity=0.9, ticket=element)


class TestTheTicket:
    def test_says_how_it_was_made(self) -> None:
        model = bert()
        made = prune(
            model, "random", sparsity=0.5, granularity="block", block_size=(4, 1), scope="type", seed=3
        )
        metadata = made.metadata
        expected = {
            "method": "random",
            "options": {},
            "sparsity": 0.5,
            "granularity": "block",
            "block_size": [4, 1],
            "scope": "type",
            "pooling": "mean",
            "seed": 3,
        }
        assert {name: metadata[name] for name in expected} == expected
        assert metadata["history"] == [{"operation": "prune"} | expected]
        described = {"class": "BertModel", "linears": 12, "heads": 2}
        assert metadata["model"] == {**described, "weights": weight_hash(model)}
        assert set(metadata["versions"]) >= {"torch", "transformers"}

    def test_the_same_weights_give_the_same_ticket_under_every_head(self, dense: Any) -> None:
        for head in ("BertForMaskedLM", "BertForSequenceClassification"):
            model = bert(head)
            model.base_model.load_state_dict(dense.state_dict(), strict=False)
            ticket = prune(model, sparsity=0.8)
            assert ticket == prune(dense, sparsity=0.8)
            assert ticket.metadata["model"]["weights"] == weight_hash(dense)

    @pytest.mark.parametrize("family", ["Roberta", "Electra", "DistilBert"])
    def test_other_families_are_pruned_alike(self, family: str) -> None:
        names = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 28, "num_hidden_layers": 2}
        if family == "DistilBert":
            names = {"dim": 20, "n_heads": 2, "hidden_dim": 28, "n_layers": 2}
        config = getattr(transformers, family + "Config")(**names, vocab_size=30)
        model = getattr(transformers, family + "ForMaskedLM")(config)
        ticket = prune(model, sparsity=0.9)
        assert kept(ticket) == round(Fraction(1, 10) * TOTAL)
        assert Ticket.from_model(ticket.apply_(model)) == ticket

    def test_a_local_folder_is_named_without_its_path(self, tmp_path: Any) -> None:
        bert().save_pretrained(tmp_path / "my-bert")
        model = transformers.BertModel.from_pretrained(tmp_path / "my-bert")
        told = prune(model, sparsity=0.5).metadata["model"]
        assert (told["id"], told["local"]) == ("my-bert", True)

    @pytest.mark.parametrize(
        ("name", "id", "local"),
        [
            ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased", False),
            ("bert-base-uncased", "bert-base-uncased", False),
            ("/gone/my-bert", "my-bert", True),
            ("runs/sst2/model", "model", True),
            ("./my-bert", "my-bert", True),
        ],
    )
    def test_a_name_on_the_hub_is_told_from_a_folder_that_is_gone(
        self, name: str, id: str, local: bool
    ) -> None:
        model = bert()
        model.config._name_or_path = name
        told = prune(model, sparsity=0.5).metadata["model"]
        assert (told["id"], told["local"]) == (id, local)

    def test_a_model_under_torchs_own_pruning_is_read_as_it_computes(self) -> None:
        model = bert()
        torch_prune.l1_unstructured(resolve(model, UP), "weight", amount=0.75)
        ticket = prune(model, sparsity=0.5, scope="matrix")
        already = Ticket.from_torch_prune(model).masks[UP]
        assert ticket.masks[UP][already].all()
        assert int(ticket.masks[UP].sum()) == 280

    def test_the_model_is_only_read(self) -> None:
        model = bert()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for options in ({"sparsity": 0.5}, {"granularity": "2:4"}, {"sparsity": 0.5, "granularity": "row"}):
            prune(model, **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any("mask" in name for name, _ in model.named_buffers())


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "sparsity is missing"),
            ({"sparsity": 1}, r"a number in \[0, 1\), got 1"),
            ({"sparsity": 1.0}, r"a number in \[0, 1\), got 1.0"),
            ({"sparsity": -0.1}, "a number in"),
            ({"sparsity": math.nan}, "a number in"),
            ({"sparsity": Decimal("Infinity")}, "a number in"),
            ({"sparsity": "0.5"}, "a number in"),
            ({"sparsity": False}, "a number in"),
            ({"sparsity": 0.99999}, "would keep none"),
            ({"sparsity": Fraction(99999, 100000)}, "sparsity 0.99999 would keep none"),
            (
                {"sparsity": 0.3, "granularity": "head+mlp", "scope": "matrix"},
                "leaves each MLP without a competitor",
            ),
            (
                {"sparsity": 0.5, "method": "magnitud"},
                "unknown pruning method 'magnitud'.*did you mean 'magnitude'",
            ),
            ({"sparsity": 0.5, "method": 3}, "unknown pruning method 3"),
            ({"sparsity": 0.5, "scope": "golbal"}, "unknown scope 'golbal'.*did you mean 'global'"),
            ({"sparsity": 0.5, "granularity": "rows"}, "unknown granularity 'rows'.*did you mean 'row'"),
            ({"sparsity": 0.5, "pooling": "means"}, "unknown pooling rule 'means'.*did you mean 'mean'"),
            ({"sparsity": 0.7, "granularity": "2:4"}, r"granularity '2:4' means sparsity 0\.5, got 0\.7"),
            ({"granularity": "1:3"}, "self.query: in_features must be a multiple of 3, got 20"),
            ({"sparsity": 0.5, "granularity": "block"}, "needs block_size"),
            ({"sparsity": 0.5, "block_size": (4, 1)}, "takes no block_size"),
            ({"sparsity": 0.5, "seed": -1}, "seed must be an int"),
            ({"sparsity": 0.5, "seed": 1.5}, "seed must be an int"),
        ],
    )
    def test_bad_options(self, dense: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            prune(dense, **options)

    @pytest.mark.parametrize("method", ["magnitude", "random"])
    def test_nan_weights_are_named(self, method: str) -> None:
        model = bert("BertForMaskedLM")
        with torch.no_grad():
            weights(model)[UP][1, 1] = math.nan
        with pytest.raises(ValueError, match=f"{UP}.weight of BertForMaskedLM holds NaN"):
            prune(model, method, sparsity=0.5)

    def test_models_without_linear_layers_or_without_values(self) -> None:
        with pytest.raises(ValueError, match="Conv1d has no linear layer to prune"):
            prune(nn.Conv1d(2, 2, 1), sparsity=0.5)
        with pytest.raises(ValueError, match=r"is itself a Linear: put it into an nn.Sequential"):
            prune(nn.Linear(2, 2), sparsity=0.5)
        with torch.device("meta"):
            hollow = bert()
        with pytest.raises(ValueError, match="has no values"):
            prune(hollow, sparsity=0.5)


class TestAMethodOfOnesOwn:
    def test_scores_per_weight_or_per_unit(self, dense: Any) -> None:
        class LastRows:
            name: ClassVar[str] = "last rows"

            def __init__(self, per_unit: bool) -> None:
                self.per_unit = per_unit

            def scores(self, context: ScoringContext) -> dict[str, Tensor]:
                shapes = context.units if self.per_unit else {k: w.shape for k, w in context.weights.items()}
                return {key: torch.arange(float(s[0]))[:, None].expand(s) for key, s in shapes.items()}

        by_unit, by_weight = (
            prune(dense, LastRows(per_unit), sparsity=0.5, granularity="row", scope="matrix")
            for per_unit in (True, False)
        )
        assert by_unit == by_weight
        assert torch.equal(by_unit.masks[QUERY].any(1), torch.arange(20) >= 10)
        assert by_unit.metadata["options"] == {"per_unit": True}

    def test_an_instance_is_as_good_as_its_name(self, dense: Any) -> None:
        assert prune(dense, Magnitude(), sparsity=0.5) == prune(dense, "magnitude", sparsity=0.5)

    def test_it_sees_the_structure_the_seed_and_the_data(self, dense: Any) -> None:
        seen: list[ScoringContext] = []

        class Spy(Magnitude):
            def scores(self, context: ScoringContext) -> dict[str, Tensor]:
                seen.append(context)
                return super().scores(context)

        prune(dense, Spy(), sparsity=0.5, seed=9, data=["batch"], granularity="row")
        assert (seen[0].seed, seen[0].data) == (9, ["batch"])
        assert seen[0].structure == structure(dense)
        assert seen[0].units[UP] == (28, 1)


@pytest.mark.slow
def test_bert_base_is_ranked_in_two_seconds() -> None:
    model = transformers.BertModel(transformers.BertConfig())
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        ticket = prune(model, sparsity=0.7)
        seconds.append(time.perf_counter() - start)
    assert kept(ticket) == 25_480_397
    assert min(seconds) < 4


@pytest.mark.gpu
@pytest.mark.parametrize("granularity", ["element", "row", "2:4"])
def test_a_model_on_the_gpu_gives_the_same_ticket(dense: Any, granularity: str) -> None:
    assert prune(bert().cuda(), sparsity=0.5, granularity=granularity) == prune(
        dense, sparsity=0.5, granularity=granularity
    )
