"""Compacted models, alone and with sparse layers, saved and loaded: shapes, heads and answers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import (
    Ticket,
    compact_,
    compaction_description,
    densify_,
    expand_,
    plan,
    prune,
    sparsify_,
    unfuse_,
)
from sparsebert.bert import structure
from tests.sparsify.models import TOKENS, answers, build, sparse_layers

transformers = pytest.importorskip("transformers")
NAMES = ("BertForSequenceClassification", "RobertaForTokenClassification", "ElectraForPreTraining")
NAMES += ("DistilBertForQuestionAnswering", "BertModel")
PLACES = dict.fromkeys(
    ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier"), "cpu"
)


def with_empty_lines(model: Any) -> Ticket:
    """Half of all weights, a few whole rows and columns, a head, and of one head half of its dimensions."""
    found = structure(model)
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for key in found.linears:
        shape = model.get_submodule(f"{found.prefix}.{key}" if found.prefix else key).weight.shape
        mask = torch.rand(shape, generator=generator) < 0.5
        mask[1::5], mask[:, 2::7] = False, False
        masks[key] = mask
    for query, key, value, output in found.heads[:1]:
        for name in (query, key, value):
            masks[name][: found.head_size * 3 // 2] = False
        masks[output][:, : found.head_size] = False
    return Ticket(masks, metadata={"method": "by hand"})


def loaded(model: Any, folder: Path, **options: Any) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, **options)


def require_same(mine: Any, other: Any) -> None:
    assert all(map(torch.equal, answers(mine), answers(other)))
    assert compaction_description(mine) == compaction_description(other)
    assert mine.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_compacted(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = answers(with_empty_lines(model).apply_(copy.deepcopy(model)))
    compact_(model, with_empty_lines(model))
    torch.testing.assert_close(answers(model), expected)
    require_same(loaded(model, tmp_path), model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["element", "auto"])
def test_compacted_and_sparse(name: str, format: str, tmp_path: Path) -> None:
    model = build(name)
    sparsify_(model, with_empty_lines(model), format=format, compact=True)
    assert compaction_description(model)
    assert sparse_layers(model)
    found = loaded(model, tmp_path)
    require_same(found, model)
    assert plan(found).removal_note == plan(model).removal_note
    reasons = [[layer.removal_note for layer in plan(each).layers] for each in (found, model)]
    assert reasons[0] == reasons[1]
    assert any(reasons[0])


def test_sparse_after_compaction(tmp_path: Path) -> None:
    model = build()
    ticket = with_empty_lines(model)
    sparsify_(compact_(model, ticket), ticket, format="element")
    found = loaded(model, tmp_path)
    require_same(found, model)
    assert found.config.quantization_config.origin == ticket.metadata
    assert found.config.quantization_config.sparsity == ticket.sparsity


@pytest.mark.parametrize("way", [compact_, sparsify_])
class TestHowItIsLoaded:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_in_another_dtype_from_many_files(self, way: Any, dtype: torch.dtype, tmp_path: Path) -> None:
        model = way(build(), with_empty_lines(build()))
        model.save_pretrained(tmp_path, max_shard_size="4KB")
        assert len([*tmp_path.glob("*.safetensors")]) > 3
        for name in ("dtype", "torch_dtype"):  # as it was called before transformers 5, too
            found = type(model).from_pretrained(tmp_path, **{name: dtype})
            assert found.dtype == dtype
            assert all(map(torch.equal, answers(found), answers(copy.deepcopy(model).to(dtype))))

    @pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto", "by layer"])
    def test_by_a_device_map(self, way: Any, device_map: Any, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        model = way(build(), with_empty_lines(build()))
        places = PLACES if device_map == "by layer" else device_map
        require_same(loaded(model, tmp_path, device_map=places), model)

    def test_with_the_hooks_of_several_devices(self, way: Any) -> None:
        """As accelerate spreads a model, here over one: each module has its inputs moved by a hook."""
        accelerate = pytest.importorskip("accelerate")
        model = way(build(), with_empty_lines(build()))
        spread = accelerate.dispatch_model(copy.deepcopy(model), PLACES, main_device="cpu", force_hooks=True)
        assert spread.bert.encoder.layer[0]._hf_hook
        # A fused encoder with hooks inside runs its layers one by one.
        assert all(map(torch.equal, answers(spread), answers(unfuse_(model))))


@pytest.mark.parametrize("kind", ["neurons and heads", "single weights of these", "rows and columns"])
def test_hardly_more_than_is_left(kind: str, tmp_path: Path) -> None:
    """On disk: kept weights, a bit for each prunable one, and the rest, which is dense."""
    shape = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 2}
    model = transformers.BertModel(transformers.BertConfig(**shape, vocab_size=99))
    dense = sum(parameter.nbytes for parameter in model.parameters())
    ticket = prune(model, "magnitude", sparsity=0.5, granularity="head+neuron")
    if kind == "single weights of these":
        ticket &= prune(model, "magnitude", sparsity=0.8)
    elif kind == "rows and columns":
        ticket = prune(model, "magnitude", sparsity=0.5, granularity="row", scope="matrix")
        ticket &= prune(model, "magnitude", sparsity=0.5, granularity="column", scope="matrix")
    weights = sum(mask.numel() for mask in ticket.masks.values())
    needed = dense - 4 * weights + round(4 * weights * ticket.density) + weights / 8
    (compact_ if kind == "neurons and heads" else sparsify_)(model, ticket).save_pretrained(tmp_path)
    assert (tmp_path / "sparsebert.safetensors").stat().st_size <= 1.05 * needed


def test_nothing_is_stored_of_what_was_taken_out(tmp_path: Path) -> None:
    model = build()
    ticket = with_empty_lines(model)
    sparsify_(copy.deepcopy(model), ticket, compact=False).save_pretrained(tmp_path / "sparse")
    sparsify_(model, ticket, compact=True).save_pretrained(tmp_path / "both")
    sizes = [(tmp_path / each / "sparsebert.safetensors").stat().st_size for each in ("both", "sparse")]
    assert sizes[0] < sizes[1]


def test_dense_again_it_is_still_compacted(tmp_path: Path) -> None:
    model = build()
    sparsify_(model, with_empty_lines(model), compact=True)
    densify_(model)
    found = loaded(model, tmp_path)
    assert not sparse_layers(found)
    require_same(found, model)
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (described["layers"], bool(described["compaction"])) == ({}, True)


def test_expanded_it_is_a_plain_model(tmp_path: Path) -> None:
    model = compact_(build(), with_empty_lines(build()))
    expected = answers(model)
    found = loaded(expand_(model), tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not compaction_description(found)
    torch.testing.assert_close(answers(found), expected)


def test_of_another_architecture(tmp_path: Path) -> None:
    compact_(build(), with_empty_lines(build()))
    model = compact_(build(), with_empty_lines(build()))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 16}))
    with pytest.raises(ValueError, match="the compaction description is of another model"):
        type(model).from_pretrained(tmp_path)


def test_exported_with_the_whole_graph(tmp_path: Path) -> None:
    found = loaded(compact_(build("BertModel"), with_empty_lines(build("BertModel"))), tmp_path)
    with torch.no_grad():
        exported: Any = torch.export.export(found, (TOKENS,), strict=False).module()
    torch.testing.assert_close(exported(TOKENS).last_hidden_state.detach(), answers(found)[0])
