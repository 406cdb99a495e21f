"""Saved with ``save_pretrained``, loaded with ``from_pretrained``: the same model."""

from __future__ import annotations

import copy
import json
import pickle
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsebert import Ticket, densify_, plan, prune, sparsify_
from sparsebert.bert import resolve
from sparsebert.hf import quantizer
from sparsebert.nn.fused_qkv import is_fused
from sparsebert.nn.sparse_linear import SparseLinear
from tests.sparsify.models import MODELS, TOKENS, WIDTH, answers, build, masked_answers, pruned, sparse_layers

transformers = pytest.importorskip("transformers")
CLASSIFIER = transformers.AutoModelForSequenceClassification
KEY = "encoder.layer.0.attention.self.query"


def saved(folder: Path, name: str = "BertForSequenceClassification", **options: Any) -> Any:
    """A sparse model that lies in the folder."""
    model, ticket = pruned(name)
    sparsify_(model, ticket, **options).save_pretrained(folder)
    return model


def same(mine: Any, other: Any) -> bool:
    return all(map(torch.equal, answers(mine), answers(other)))


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


class TestTheSameModel:
    @pytest.mark.parametrize(
        "format", ["element", "vector", "compact", "dense", "csr", "panel", "bitmap", "column_panel", "auto"]
    )
    def test_in_every_format(self, format: str, tmp_path: Path) -> None:
        model = saved(tmp_path, format=format)
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert same(loaded, model)
        assert [layer.format for layer in plan(loaded).layers] == [
            layer.format for layer in plan(model).layers
        ]

    @pytest.mark.gpu
    def test_in_2_to_4(self, tmp_path: Path) -> None:
        config = transformers.BertConfig(**WIDTH | {"hidden_size": 192, "intermediate_size": 256})
        model = transformers.BertForSequenceClassification(config).eval().to("cuda", torch.bfloat16)
        ticket = prune(model, "magnitude", sparsity=0.5, granularity="2:4", scope="matrix")
        sparsify_(model, ticket, format="2:4").save_pretrained(tmp_path)
        loaded = CLASSIFIER.from_pretrained(tmp_path, device_map="cuda")
        assert {layer.format for layer in sparse_layers(loaded).values()} == {"2:4"}
        assert torch.equal(loaded(TOKENS.cuda()).logits, model(TOKENS.cuda()).logits)

    @pytest.mark.parametrize("name", MODELS)
    def test_of_every_family_and_head(self, name: str, tmp_path: Path) -> None:
        model = saved(tmp_path, name)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert same(loaded, model)
        assert not any(info.values())
        assert sparse_layers(loaded).keys() == sparse_layers(model).keys()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_in_every_dtype(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model, ticket = pruned()
        sparsify_(model.to(dtype), ticket).save_pretrained(tmp_path)
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert loaded.dtype == dtype
        assert same(loaded, model)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_in_another_dtype_than_it_was_saved_in(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model = saved(tmp_path, format="element")
        assert same(CLASSIFIER.from_pretrained(tmp_path, dtype=dtype), model.to(dtype))

    def test_without_its_head_and_with_a_new_one(self, tmp_path: Path) -> None:
        model = saved(tmp_path)
        bare = transformers.AutoModel.from_pretrained(tmp_path)
        assert same(bare, model.bert)
        head = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path)
        torch.testing.assert_close(head.bert(TOKENS).last_hidden_state, bare(TOKENS).last_hidden_state)

    def test_of_the_encoder_inside_of_a_model(self, tmp_path: Path) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket)
        model.bert.save_pretrained(tmp_path)
        assert same(transformers.AutoModel.from_pretrained(tmp_path), model.bert)

    def test_in_many_files(self, tmp_path: Path) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket).save_pretrained(tmp_path, max_shard_size="4KB")
        assert len([*tmp_path.glob("*.safetensors")]) > 3
        assert same(CLASSIFIER.from_pretrained(tmp_path), model)

    @pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
    def test_by_a_device_map(self, device_map: Any, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        model = saved(tmp_path)
        assert same(CLASSIFIER.from_pretrained(tmp_path, device_map=device_map), model)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_on_a_gpu(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model, ticket = pruned()
        sparsify_(model.to("cuda", dtype), ticket).save_pretrained(tmp_path)
        loaded = CLASSIFIER.from_pretrained(tmp_path, device_map="cuda")
        assert torch.equal(loaded(TOKENS.cuda()).logits, model(TOKENS.cuda()).logits)

    def test_of_a_family_whose_structure_is_not_known(self, tmp_path: Path) -> None:
        config = transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=50)
        model = transformers.T5EncoderModel(config).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight[::2] = 0
        sparsify_(model, filter=lambda name, linear: True).save_pretrained(tmp_path)
        loaded = transformers.T5EncoderModel.from_pretrained(tmp_path)
        assert same(loaded, model)
        assert sparse_layers(loaded).keys() == sparse_layers(model).keys()


class TestWhatTravels:
    def test_again_and_again(self, tmp_path: Path) -> None:
        saved(tmp_path / "first")
        CLASSIFIER.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        assert described(tmp_path / "first") == described(tmp_path / "second")
        first, second = (
            (tmp_path / each / "sparsebert.safetensors").read_bytes() for each in ("first", "second")
        )
        assert first == second

    def test_masks_with_a_matrix_that_keeps_nothing_and_weights_that_happen_to_be_zero(
        self, tmp_path: Path
    ) -> None:
        model, ticket = pruned()
        masks = {**ticket.masks, KEY: torch.zeros_like(ticket.masks[KEY])}
        with torch.no_grad():
            for key in masks:
                resolve(model, key).weight[0] = 0
        sparsify_(model, Ticket(masks), format="element").save_pretrained(tmp_path)
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert same(loaded, model)
        assert all(torch.equal(resolve(loaded, key).mask, mask) for key, mask in masks.items())

    def test_where_the_ticket_comes_from(self, tmp_path: Path) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket).save_pretrained(tmp_path)
        assert described(tmp_path)["origin"] == ticket.metadata
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert loaded.config.quantization_config.origin == ticket.metadata

    def test_hardly_more_than_the_kept_weights(self, tmp_path: Path) -> None:
        config = transformers.BertConfig(
            hidden_size=128, num_attention_heads=2, intermediate_size=512, num_hidden_layers=2, vocab_size=99
        )
        model = transformers.BertModel(config)
        dense = sum(parameter.nbytes for parameter in model.parameters())
        ticket = prune(model, "magnitude", sparsity=0.9)
        weights = sum(mask.numel() for mask in ticket.masks.values())
        sparsify_(model, ticket).save_pretrained(tmp_path)
        needed = dense - 4 * weights + round(4 * weights * ticket.density) + weights / 8
        assert (tmp_path / "sparsebert.safetensors").stat().st_size <= 1.05 * needed

    def test_files_are_the_same_for_every_format(self, tmp_path: Path) -> None:
        contents = set()
        for format in ("element", "dense", "panel"):
            saved(tmp_path / format, format=format)
            contents.add((tmp_path / format / "sparsebert.safetensors").read_bytes())
        assert len(contents) == 1

    def test_plain_tensors_under_the_names_of_their_layers(self, tmp_path: Path) -> None:
        saved(tmp_path)
        with safe_open(tmp_path / "sparsebert.safetensors", framework="pt") as file:
            names = {name for name in file.keys() if KEY in name}  # noqa: SIM118
            layer = f"bert.{KEY}"
            assert names == {f"{layer}.{each}" for each in ("weight_bits", "weight_values", "bias")}
            assert file.get_slice(f"{layer}.weight_bits").get_shape() == [24 * 24 // 8]

    def test_options_of_the_conversion(self, tmp_path: Path) -> None:
        model = saved(tmp_path, tokens=7, fuse_qkv=False, fuse_activation=False, trainable=True)
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        trained = dict(loaded.named_parameters())
        assert trained.keys() == dict(model.named_parameters()).keys()
        assert all(parameter.requires_grad for parameter in trained.values())
        assert {layer.tokens for layer in plan(loaded).layers} == {7}
        assert not any(map(is_fused, loaded.modules()))


class TestForWhatItIsLoadedOn:
    def test_formats_are_kept_on_such_a_machine(self, tmp_path: Path) -> None:
        saved(tmp_path, format="csr")
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert {layer.reason.split(";")[0] for layer in plan(loaded).layers} == {"as saved on such a machine"}

    @pytest.mark.parametrize("busy", [False, True])
    def test_times_are_stored_unless_the_machine_was_busy(self, busy: bool, tmp_path: Path) -> None:
        model, ticket = pruned("BertForSequenceClassification")
        made = plan(model, ticket, measure=False, compact=False)
        times: dict[str, Any] = {"measured_us": 10.0, "dense_us": 40.0, "busy": busy}
        timed = replace(made, layers=tuple(replace(layer, **times) for layer in made.layers))
        sparsify_(model, ticket, format=timed).save_pretrained(tmp_path)
        stored = described(tmp_path)["layers"].values()
        found = {(layer["measured_us"], layer["dense_us"]) for layer in stored}
        assert found == {(None, None) if busy else (10.0, 40.0)}

    @pytest.mark.parametrize("asked", ["auto", "csr"])
    def test_and_chosen_anew_on_another_one_but_for_a_format_that_was_asked_for(
        self, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = saved(tmp_path, format=asked)
        monkeypatch.setattr(quantizer, "describe_machine", lambda: "another machine")
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        layers = plan(loaded).layers
        assert not any("as saved" in layer.reason for layer in layers)
        assert asked == "auto" or {layer.format for layer in layers} == {"csr"}
        torch.testing.assert_close(answers(loaded), answers(model))


class TestAModelThatWasLoaded:
    @pytest.mark.parametrize(
        "twin_of",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["deepcopy", "pickle"],
    )
    def test_copies_are_saved_too(self, twin_of: Any, tmp_path: Path) -> None:
        model = saved(tmp_path / "first")
        twin_of(CLASSIFIER.from_pretrained(tmp_path / "first")).save_pretrained(tmp_path / "second")
        assert same(CLASSIFIER.from_pretrained(tmp_path / "second"), model)

    def test_changes_its_dtype_like_any_other(self, tmp_path: Path) -> None:
        model = saved(tmp_path)
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert same(loaded.half().float(), model.half().float())

    @pytest.mark.parametrize("way", [densify_, lambda model: model.dequantize()])
    def test_that_is_dense_again_is_saved_dense(self, way: Any, tmp_path: Path) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket).save_pretrained(tmp_path / "sparse")
        way(CLASSIFIER.from_pretrained(tmp_path / "sparse")).save_pretrained(tmp_path / "dense")
        assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
        loaded = CLASSIFIER.from_pretrained(tmp_path / "dense")
        torch.testing.assert_close(answers(loaded), expected)
        assert not sparse_layers(loaded)

    def test_that_is_dense_again_trains_all_its_weights(self, tmp_path: Path) -> None:
        saved(tmp_path)
        dense = densify_(CLASSIFIER.from_pretrained(tmp_path))
        assert all(parameter.requires_grad for parameter in dense.parameters())

    def test_its_weights_load_into_another_of_the_same_masks(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        model = saved(tmp_path)
        other, ticket = pruned()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(2)
        sparsify_(other, ticket)
        other.load_state_dict(load_file(tmp_path / "sparsebert.safetensors"))
        assert same(other, model)

    def test_but_not_into_one_of_other_masks(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        saved(tmp_path)
        other = build()
        sparsify_(other, prune(other, "random", sparsity=0.7), format="element")
        with pytest.raises(RuntimeError, match="outside the layer's mask"):
            other.load_state_dict(load_file(tmp_path / "sparsebert.safetensors"))


def test_the_dense_model_is_never_there_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense weights are made for the moment of packing: one matrix at a time, while loading and saving."""
    saved(tmp_path)
    alive: list[Any] = []
    pack = SparseLinear._pack

    def watched(layer: SparseLinear, weight: Tensor, *rest: Any) -> Any:
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(weight))
        return pack(layer, weight, *rest)

    monkeypatch.setattr(SparseLinear, "_pack", watched)
    CLASSIFIER.from_pretrained(tmp_path)
    assert len(alive) == 12


class TestMasksDigest:
    def test_is_that_of_the_ticket_where_every_mask_is_stored(self, tmp_path: Path) -> None:
        model = build("BertModel")
        ticket = prune(model, sparsity=0.5)
        sparsify_(model, ticket, format="element", compact=False).save_pretrained(tmp_path)
        assert described(tmp_path)["masks"] == ticket.digest

    def test_of_format_1_is_still_read(self, tmp_path: Path) -> None:
        model = saved(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        written = config["quantization_config"]
        with safe_open(tmp_path / "sparsebert.safetensors", "pt") as file:
            bits = {key: file.get_tensor(f"bert.{key}.weight_bits") for key in written["layers"]}
        masks = {key: (written["layers"][key]["shape"], bits[key]) for key in bits}
        assert written["version"] == 3
        assert written["masks"] == quantizer.stored_digest(masks)
        written |= {"version": 1, "masks": quantizer.stored_digest(masks, version=1)}
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = CLASSIFIER.from_pretrained(tmp_path)
        assert same(loaded, model)
        loaded.save_pretrained(tmp_path / "again")
        assert described(tmp_path / "again")["version"] == 3
        assert same(CLASSIFIER.from_pretrained(tmp_path / "again"), model)

    def test_of_format_1_never_changes(self) -> None:
        bits = {"b": torch.tensor([0b10010000], dtype=torch.uint8), "a": torch.tensor([0b01100000]).byte()}
        digest = quantizer.stored_digest({key: ((2, 2), bits[key]) for key in bits}, version=1)
        assert digest == "sha256:0e86505c8224804a556807cbcbc356cf9423d0756697e0d04068e3bc401a2bf4"
