"""Names, hooks, flags, ties and copies survive ``sparsify_``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import densify_, plan, sparsify_
from sparsebert.bert import resolve
from sparsebert.nn.fused_activation import FusedActivation
from tests.sparsify.models import TOKENS, answers, build, masked_answers, pruned, weights

transformers = pytest.importorskip("transformers")


class TestWhatSurvives:
    def test_state_dict_keys_and_values(self) -> None:
        model, ticket = pruned()
        expected = weights(ticket.apply_(copy.deepcopy(model)))
        state = sparsify_(model, ticket, format="element").state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    def test_checkpoints_move_from_dense_to_sparse(self) -> None:
        model, ticket = pruned()
        trained = build()
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(1.5)
        ticket.apply_(trained)
        sparsify_(model, ticket, format="element").load_state_dict(trained.state_dict())
        torch.testing.assert_close(answers(model), answers(trained))

    def test_saved_models_load_as_dense_ones(self, tmp_path: Any) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element").save_pretrained(tmp_path)
        loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(answers(loaded), expected)

    @pytest.mark.parametrize(
        "twin_of",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["deepcopy", "pickle"],
    )
    @pytest.mark.parametrize("format", ["element", "dense"])
    def test_copies_answer_alike(self, twin_of: Any, format: str) -> None:
        model, ticket = pruned()
        twin = twin_of(sparsify_(model, ticket, format=format))
        torch.testing.assert_close(answers(twin), answers(model))
        torch.testing.assert_close(answers(densify_(twin)), answers(model))

    def test_parameters_are_the_ones_there_were(self) -> None:
        model, ticket = pruned()
        biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
        sparsify_(model, ticket)
        assert all(model.get_parameter(name) is parameter for name, parameter in biases.items())

    def test_training_flag(self) -> None:
        for training in (True, False):
            model, ticket = pruned()
            sparsify_(model.train(training), ticket, format="element")
            assert all(module.training is training for module in model.modules())

    def test_hooks_and_their_handles(self) -> None:
        model, ticket = pruned()
        query = resolve(model, "encoder.layer.0.attention.self.query")
        fired: list[str] = []
        handles = [
            query.register_forward_hook(lambda *_: fired.append("forward")),
            query.register_forward_pre_hook(lambda *_: fired.append("before")),
            query.register_full_backward_hook(lambda *_: fired.append("backward")),
            query.register_state_dict_post_hook(lambda *_: fired.append("saved")),
            query.register_load_state_dict_pre_hook(lambda *_: fired.append("loading")),
        ]
        sparsify_(model, ticket, format="element")
        model(TOKENS).logits.sum().backward()
        model.load_state_dict(model.state_dict())
        assert fired == ["before", "forward", "backward", "saved", "loading"]
        for handle in handles:
            handle.remove()
        answers(model)
        model.load_state_dict(model.state_dict())
        assert len(fired) == 5

    def test_what_hooks_see_of_an_up_projection(self) -> None:
        """Fusing would show a hook the activated output, so a layer with hooks is left unfused."""
        model, ticket = pruned()
        seen: list[Tensor] = []
        up = [resolve(model, f"encoder.layer.{i}.intermediate.dense") for i in range(2)]
        up[0].register_forward_hook(lambda module, args, output: seen.append(output))
        expected = masked_answers(model, ticket)
        before = seen.pop()
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)
        torch.testing.assert_close(seen.pop(), before)
        names = [name for name, module in model.named_modules() if isinstance(module, FusedActivation)]
        assert names == ["bert.encoder.layer.1.intermediate.intermediate_act_fn"]

    def test_the_plan_with_what_was_fused(self) -> None:
        model, ticket = pruned()
        resolve(model, "encoder.layer.0.intermediate.dense").register_forward_hook(lambda *_: None)
        sparsify_(model, ticket, format="element")
        reasons = {layer.key: layer.reason for layer in plan(model).layers}
        assert (
            reasons["encoder.layer.0.intermediate.dense"]
            == "requested; gelu not fused because of forward hooks"
        )
        assert reasons["encoder.layer.1.intermediate.dense"] == "requested; gelu fused"
        assert reasons["encoder.layer.1.attention.self.key"] == "requested; 3 layers share one input"
        assert reasons["encoder.layer.1.output.dense"] == "requested"

    def test_reports_of_the_model(self) -> None:
        model, ticket = pruned()
        dense = model.get_memory_footprint()
        sparsify_(model, ticket, format="element")
        assert 0 < model.get_memory_footprint() < dense
        assert sum(buffer.nbytes for buffer in model.buffers()) > 0
        assert "SparseLinear(" in repr(model)
        assert model.num_parameters() > 0
