"""LoRA: tickets on models with adapters, and adapters on sparse models, trained, merged and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import densify_, prune, sparsify_
from sparsebert.nn.sparse_linear import SparseLinear
from tests.sparsify.models import TOKENS, build, pruned

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="peft is not installed")

EVERY = ["query", "key", "value", "dense"]


def config(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": EVERY, "task_type": "SEQ_CLS"} | options)


def answer(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(TOKENS).logits
    return logits


def train(model: nn.Module, steps: int = 3) -> None:
    """Take some steps, without dropout."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(steps):
        loss = model(TOKENS, labels=torch.tensor([0, 1])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def adapted(**options: Any) -> tuple[Any, Any]:
    """The same random adapter on a sparse model and on its dense twin."""
    dense, ticket = pruned()
    ticket.apply_(dense)
    sparse, _ = pruned()
    sparsify_(sparse, ticket, compact=False, format=options.pop("format", "auto"))
    models = []
    for model in (dense, sparse):
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(model, config(**options))
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(len(name)))
        models.append(wrapped.eval())
    return models[0], models[1]


class TestOnSparseModels:
    @pytest.mark.parametrize("format", ["auto", "element", "dense", "csr"])
    @pytest.mark.parametrize(
        "options", [{}, {"target_modules": ["query", "value"]}, {"use_dora": True}], ids=str
    )
    def test_answers_are_those_of_the_dense_twin(self, format: str, options: dict[str, Any]) -> None:
        """Up-projections have their activation fused: the adapter is added before it."""
        dense, sparse = adapted(format=format, **options)
        assert torch.allclose(answer(sparse), answer(dense), atol=1e-5)
        with sparse.disable_adapter(), dense.disable_adapter():
            assert torch.allclose(answer(sparse), answer(dense), atol=1e-5)

    def test_trains_the_adapters_alone(self) -> None:
        dense, sparse = adapted()
        before = {n: p.clone() for n, p in sparse.named_parameters()}
        train(dense)
        train(sparse)
        assert torch.allclose(answer(sparse), answer(dense), atol=1e-3)
        changed = {n for n, p in sparse.named_parameters() if not torch.equal(p, before[n])}
        assert changed
        assert all("lora_" in name or "classifier" in name for name in changed)

    def test_merged_unmerged_and_unloaded(self) -> None:
        dense, sparse = adapted()
        expected = answer(dense)
        layer = sparse.get_base_model().bert.encoder.layer[0].intermediate.dense
        before = layer.weight
        with pytest.warns(UserWarning, match="merging a LoRA adapter fills the pruned weights"):
            sparse.merge_adapter()
        assert torch.allclose(answer(sparse), expected, atol=1e-5)
        assert not torch.equal(layer.weight, before)
        sparse.unmerge_adapter()
        assert torch.equal(layer.weight, before)
        assert torch.allclose(answer(sparse), expected, atol=1e-5)
        with pytest.warns(UserWarning, match="the layer is dense now"):
            merged = sparse.merge_and_unload()
        assert torch.allclose(answer(merged), expected, atol=1e-5)

    def test_unloading_gives_the_sparse_model_back(self) -> None:
        model, ticket = pruned()
        before = answer(sparsify_(model, ticket))
        wrapped = peft.get_peft_model(model, config(target_modules="all-linear"))
        assert any("lora_" in name for name, _ in wrapped.named_parameters() if "intermediate" in name)
        assert torch.equal(answer(wrapped.unload()), before)

    def test_saved_adapters_and_merged_models_load(self, tmp_path: Path) -> None:
        _, sparse = adapted()
        expected = answer(sparse)
        sparse.save_pretrained(tmp_path / "adapter")
        base, ticket = pruned()
        loaded = peft.PeftModel.from_pretrained(sparsify_(base, ticket, compact=False), tmp_path / "adapter")
        assert torch.allclose(answer(loaded), expected, atol=1e-5)
        with pytest.warns(UserWarning, match="the layer is dense now"):
            merged = sparse.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        assert torch.allclose(answer(again), expected, atol=1e-5)

    def test_saving_a_base_model_with_adapters_inside_is_refused(self, tmp_path: Path) -> None:
        _, sparse = adapted()
        with pytest.raises(ValueError, match=r"query.base_layer has an adapter: call merge_and_unload\(\)"):
            sparse.get_base_model().save_pretrained(tmp_path / "model")

    def test_adapters_that_transformers_adds(self, tmp_path: Path) -> None:
        models = []
        for _ in range(2):
            model, ticket = pruned()
            models.append(sparsify_(model, ticket, compact=False))
        models[0].add_adapter(config(init_lora_weights=False))
        models[0].save_pretrained(tmp_path / "adapter")
        models[1].load_adapter(str(tmp_path / "adapter"))
        assert torch.allclose(answer(models[1]), answer(models[0]), atol=1e-6)

    def test_densified_under_an_adapter(self) -> None:
        dense, sparse = adapted()
        densify_(sparse)
        assert not any(isinstance(module, SparseLinear) for module in sparse.modules())
        assert torch.allclose(answer(sparse), answer(dense), atol=1e-5)

    def test_two_adapters(self) -> None:
        dense, sparse = adapted(task_type=None)  # peft allows one trained head at a time
        for model in (dense, sparse):
            torch.manual_seed(3)
            model.add_adapter("second", config(init_lora_weights=False, task_type=None))
            model.base_model.set_adapter(["default", "second"])
        assert torch.allclose(answer(sparse), answer(dense), atol=1e-5)
        expected = answer(dense)
        with pytest.warns(UserWarning, match="the layer is dense now"):
            merged = sparse.merge_and_unload()
        assert torch.allclose(answer(merged), expected, atol=1e-4)

    @pytest.mark.parametrize("initial", ["pissa", "olora"])
    def test_initial_values_that_change_the_base_are_refused(self, initial: str) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket)
        with pytest.raises(ValueError, match=f"init_lora_weights='{initial}' changes the base weights"):
            peft.get_peft_model(model, config(init_lora_weights=initial))


class TestTicketsOfModelsWithAdapters:
    def wrapped(self) -> Any:
        torch.manual_seed(1)
        return peft.get_peft_model(build(), config(init_lora_weights=False)).eval()

    def test_have_the_keys_of_the_plain_model(self) -> None:
        ticket = prune(self.wrapped(), "magnitude", sparsity=0.7)
        assert ticket == prune(build(), "magnitude", sparsity=0.7)

    @pytest.mark.parametrize("format", ["auto", "element"])
    def test_make_the_layers_below_the_adapters_sparse(self, format: str) -> None:
        model = self.wrapped()
        ticket = prune(model, "magnitude", sparsity=0.7)
        twin = self.wrapped()
        ticket.apply_(twin)
        expected = answer(twin)
        sparsify_(model, ticket, format=format)
        assert torch.allclose(answer(model), expected, atol=1e-5)
        layer = model.get_base_model().bert.encoder.layer[0]
        assert isinstance(layer.attention.self.query.base_layer, SparseLinear)
        assert torch.allclose(answer(densify_(model)), expected, atol=1e-5)

    def test_the_adapters_themselves_stay_dense(self) -> None:
        model = peft.get_peft_model(build(), config())  # lora_B is zero
        prune(model, "magnitude", sparsity=0.7).apply_(model)
        sparsify_(model, filter=lambda name, linear: "encoder" in name)
        assert not any("lora" in n for n, m in model.named_modules() if isinstance(m, SparseLinear))

    def test_of_other_families(self) -> None:
        def wrapped() -> Any:
            torch.manual_seed(0)
            sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
            model = transformers.MPNetForSequenceClassification(
                transformers.MPNetConfig(**sizes, num_hidden_layers=1, vocab_size=50)
            )
            return peft.get_peft_model(model, config(target_modules=["q", "v"], init_lora_weights=False))

        model, twin = wrapped(), wrapped()
        ticket = prune(model, "magnitude", sparsity=0.7)
        ticket.apply_(twin)
        sparsify_(model, ticket)
        assert any(
            n.endswith("q.base_layer") for n, m in model.named_modules() if isinstance(m, SparseLinear)
        )
        assert torch.allclose(answer(model), answer(twin), atol=1e-5)

    def test_compaction_is_refused(self) -> None:
        model = self.wrapped()
        ticket = prune(model, "random", sparsity=0.5, granularity="neuron")
        with pytest.raises(
            ValueError, match="has an adapter, whose shape is fixed: merge and unload it first"
        ):
            sparsify_(model, ticket, compact=True)
