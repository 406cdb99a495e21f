"""``sparsify_``: the answers of the masked model, for the layers of the ticket or filter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsebert import Ticket, prune, sparsify_
from sparsebert.bert import structure
from sparsebert.cost.candidates import GPU_FORMATS
from sparsebert.nn.fused_activation import FusedActivation
from sparsebert.nn.fused_qkv import is_fused
from tests.sparsify.models import MODELS, TOKENS, WIDTH, answers, build, masked_answers, pruned, sparse_layers

transformers = pytest.importorskip("transformers")


class TestAnswers:
    @pytest.mark.parametrize("name", MODELS)
    def test_are_those_of_the_masked_model(self, name: str) -> None:
        model, ticket = pruned(name)
        expected = masked_answers(model, ticket)
        assert sparsify_(model, ticket, format="element") is model
        torch.testing.assert_close(answers(model), expected)
        assert len(sparse_layers(model)) == len(ticket.masks) == 12

    @pytest.mark.parametrize("format", ["auto", "element", "vector", "dense", "compact", "csr"])
    def test_do_not_depend_on_the_format(self, format: str) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format=format)
        torch.testing.assert_close(answers(model), expected)

    @pytest.mark.parametrize("fuse_qkv", [False, True])
    @pytest.mark.parametrize("fuse_activation", [False, True])
    def test_do_not_depend_on_fusing(self, fuse_qkv: bool, fuse_activation: bool) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element", fuse_qkv=fuse_qkv, fuse_activation=fuse_activation)
        torch.testing.assert_close(answers(model), expected)
        assert sum(map(is_fused, model.modules())) == (2 if fuse_qkv else 0)
        fused = [module for module in model.modules() if isinstance(module, FusedActivation)]
        assert len(fused) == (2 if fuse_activation else 0)

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.bfloat16, 0.05), (torch.float16, 0.005), (torch.float64, 1e-12)],
        ids=str,
    )
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_come_in_every_dtype(self, dtype: torch.dtype, tolerance: float, when: str) -> None:
        model, ticket = pruned()
        expected = masked_answers(model.double(), ticket)
        model.float()
        if when == "before":
            sparsify_(model.to(dtype), ticket, format="element")
        else:
            sparsify_(model, ticket, format="element").to(dtype)
            tolerance = max(tolerance, 1e-6)
        got = answers(model)
        assert got[0].dtype == dtype
        torch.testing.assert_close(got[0].double(), expected[0], rtol=tolerance, atol=tolerance)

    def test_hold_for_zeros_already_in_the_weights(self) -> None:
        model, ticket = pruned()
        ticket.apply_(model)
        expected = answers(model)
        sparsify_(model, format="element")
        torch.testing.assert_close(answers(model), expected)
        assert len(sparse_layers(model)) == 12

    @pytest.mark.parametrize("keep", [False, True], ids=["all-zero", "full"])
    def test_hold_for_tickets_that_keep_nothing_or_all(self, keep: bool) -> None:
        model, ticket = pruned()
        ticket = Ticket({key: torch.full_like(mask, keep) for key, mask in ticket.masks.items()})
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket)
        torch.testing.assert_close(answers(model), expected)

    def test_hold_for_pruned_biases_and_removed_modules(self) -> None:
        model, ticket = pruned()
        gone = "encoder.layer.1.output.dense"
        masks = {**ticket.masks, gone: torch.zeros(24, 40, dtype=torch.bool)}
        biases = {"encoder.layer.0.output.dense": torch.rand(24) < 0.5}
        ticket = Ticket(masks, bias_masks=biases, removed=[gone])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)

    def test_hold_for_one_layer_of_the_ticket(self) -> None:
        model, ticket = pruned()
        key = "encoder.layer.0.attention.self.key"
        ticket = Ticket({key: ticket.masks[key]})
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)
        assert list(sparse_layers(model)) == [f"bert.{key}"]


class TestFilter:
    def test_picks_linear_layers_of_any_model(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)))
        with torch.no_grad():
            model[0].weight[::2] = 0
            x = torch.randn(3, 8)
            expected = model(x)
        seen = []
        sparsify_(model, filter=lambda name, linear: bool(seen.append(name)) or linear.in_features == 8)
        assert seen == ["0", "2.0", "2.1"]
        assert list(sparse_layers(model)) == ["0"]
        torch.testing.assert_close(model(x), expected)

    def test_narrows_a_ticket_down(self) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket, filter=lambda name, linear: name.endswith("query"), format="element")
        assert [name.rsplit(".", 1)[-1] for name in sparse_layers(model)] == ["query", "query"]

    def test_reaches_what_is_no_encoder_matrix(self) -> None:
        model = build()
        with torch.no_grad():
            model.classifier.weight[0] = 0
        expected = answers(model)
        sparsify_(model, filter=lambda name, linear: name == "classifier")
        assert list(sparse_layers(model)) == ["classifier"]
        torch.testing.assert_close(answers(model), expected)

    def test_without_one_takes_what_has_zeros(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        with torch.no_grad():
            model[1].weight[0] = 0
        sparsify_(model)
        assert list(sparse_layers(model)) == ["1"]

    def test_works_for_tickets_of_plain_models(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        mask = torch.rand(8, 8) < 0.5
        sparsify_(model, Ticket({"1": mask}), format="element")
        assert torch.equal(model[1].weight != 0, mask)


def test_structure_of_a_sparse_model_is_still_known() -> None:
    model, ticket = pruned()
    before = structure(model)
    sparsify_(model, ticket)
    after = structure(model)
    assert (after.linears, after.shared_inputs) == (before.linears, before.shared_inputs)


@pytest.mark.gpu
class TestOnTheGpu:
    @pytest.mark.parametrize("first", ["model.cuda()", "sparsify_"])
    def test_the_swap_is_one_line(self, first: str) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        if first == "sparsify_":
            sparsify_(model, ticket).cuda()
        else:
            sparsify_(model.cuda(), ticket)
        assert {layer.format for layer in sparse_layers(model).values()} <= set(GPU_FORMATS)
        got = answers(model, TOKENS.cuda())
        torch.testing.assert_close(got[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(answers(model.cpu()), expected)

    def test_blocks_run_in_panels_and_query_key_value_as_one(self) -> None:
        config = transformers.BertConfig(**{**WIDTH, "hidden_size": 64, "num_attention_heads": 4})
        model = transformers.BertModel(config).eval()
        ticket = prune(model, "magnitude", sparsity=0.5, granularity="block", block_size=(16, 16))
        expected = masked_answers(model, ticket)
        sparsify_(model.cuda(), ticket, format="panel")
        got = answers(model, TOKENS.cuda())
        torch.testing.assert_close(got[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
        attention = model.encoder.layer[0].attention.self
        layers = (attention.query, attention.key, attention.value)
        assert len({layer.values.untyped_storage().data_ptr() for layer in layers}) == 1

    def test_layers_asked_for_elements_stay_dense_and_masked(self) -> None:
        model, ticket = pruned()
        sparsify_(model.cuda(), ticket, format="element")
        assert {layer.format for layer in sparse_layers(model).values()} == {"dense"}
