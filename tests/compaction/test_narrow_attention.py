"""The attention of compacted models: masks, weights, dropout, and the model around it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import Ticket, compact_, compaction_description
from sparsebert.bert import resolve, structure
from sparsebert.compaction.heads import HeadGroup
from sparsebert.compaction.narrow_attention import NarrowAttention
from tests.compaction.models import (
    ATTEND,
    FAMILIES,
    TOKENS,
    Recipe,
    answers,
    error,
    masked,
    model_of,
    ticket_of,
)

ROOT = Path(__file__).resolve().parents[2]
RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(1,), mlp=False, biases=False)


def attentions(model: nn.Module) -> list[NarrowAttention]:
    return [module for module in model.modules() if isinstance(module, NarrowAttention)]


def one_head_of_three(model: Any, rows: tuple[int, ...] = ()) -> Ticket:
    """Prune head 1 entirely, and these rows of key."""
    keys = structure(model).heads[0]
    masks = {key: torch.ones_like(resolve(model, key).weight, dtype=torch.bool) for key in keys}
    for key in keys[:3]:
        masks[key][8:16] = False
    masks[keys[3]][:, 8:16] = False
    masks[keys[1]][list(rows)] = False
    return Ticket(masks)


class TestInputs:
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("attend", sorted(ATTEND))
    @pytest.mark.parametrize("family", FAMILIES)
    def test_padding(self, family: str, attend: str, implementation: str) -> None:
        """A sentence of nothing but padding attends to nothing under sdpa, to all alike under eager."""
        model = model_of(family)
        model.set_attn_implementation(implementation)
        ticket = ticket_of(model, RAGGED)
        expected = answers(masked(model, ticket), attend)
        assert error(answers(compact_(model, ticket), attend), expected) < 1e-12

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_constants_do_not_reach_a_sentence_of_padding(self, implementation: str) -> None:
        """All of value pruned: what remains is a constant, but for those who attend to nothing."""
        model = model_of()
        model.set_attn_implementation(implementation)
        ticket = ticket_of(model, RAGGED._replace(heads=(), rows=1.0, columns=1.0, weights=1.0, empty=(2, 8)))
        expected = answers(masked(model, ticket), "nothing", output_hidden_states=True)
        found = answers(compact_(model, ticket), "nothing", output_hidden_states=True)
        assert error(found, expected) < 1e-12

    @pytest.mark.parametrize("family", FAMILIES[:3])
    def test_token_types_and_embeddings(self, family: str) -> None:
        model = model_of(family)
        ticket = ticket_of(model, RAGGED)
        types = torch.ones_like(TOKENS) if model.config.type_vocab_size > 1 else torch.zeros_like(TOKENS)
        inputs = {"token_type_ids": types, "attention_mask": ATTEND["padded"]}
        embedded = model.get_input_embeddings()(TOKENS)
        expected = masked(model, ticket)
        compact_(model, ticket)
        with torch.no_grad():
            torch.testing.assert_close(model(TOKENS, **inputs).logits, expected(TOKENS, **inputs).logits)
            mine = model(inputs_embeds=embedded, **inputs).logits
            torch.testing.assert_close(mine, expected(inputs_embeds=embedded, **inputs).logits)

    def test_a_mask_for_every_head(self) -> None:
        model = model_of("BertForSequenceClassification")
        ticket = one_head_of_three(model, rows=(0, 17))
        attend = torch.rand(2, 3, 6, 6) < 0.7
        attend[..., 0] = True
        hidden = torch.randn(2, 6, 24, dtype=torch.float64)  # of equal tokens, every mask has the same mean
        with torch.no_grad():
            expected = masked(model, ticket).bert.encoder.layer[0].attention(hidden, attend)[0]
            compact_(model, ticket)
            found = model.bert.encoder.layer[0].attention(hidden, attend)[0]
        torch.testing.assert_close(found, expected)


class TestRecordedOutputs:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_hidden_states(self, family: str) -> None:
        model = model_of(family)
        ticket = ticket_of(model, RAGGED)
        expected = masked(model, ticket)(TOKENS, output_hidden_states=True).hidden_states
        recorded = compact_(model, ticket)(TOKENS, output_hidden_states=True).hidden_states
        assert len(recorded) == 3
        torch.testing.assert_close(recorded, expected)

    @pytest.mark.parametrize("recorded_before", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_attention_weights_of_the_remaining_heads(self, family: str, recorded_before: bool) -> None:
        model = model_of(family)
        model.set_attn_implementation("eager")
        ticket = one_head_of_three(model, rows=(0, 17))
        if recorded_before:
            model(TOKENS, output_attentions=True)
        expected = masked(model, ticket)(TOKENS, output_attentions=True).attentions
        recorded = compact_(model, ticket)(TOKENS, output_attentions=True).attentions
        assert len(recorded) == 2
        torch.testing.assert_close(recorded[0], expected[0][:, [0, 2]])
        torch.testing.assert_close(recorded[1], expected[1])

    def test_groups_do_not_show_in_their_order(self) -> None:
        attention = attentions(compact_(model_of(), one_head_of_three(model_of(), rows=(0, 17))))[0]
        attention.groups = (HeadGroup((2,), 7, 8), HeadGroup((0,), 7, 8))
        attention.config._attn_implementation = "eager"
        x = torch.randn(2, 6, 24, dtype=torch.float64)
        _, weights = attention(x)
        query, key = attention.query(x), attention.key(x)
        for place, part in ((1, slice(0, 7)), (0, slice(7, 14))):
            scores = query[..., part] @ key[..., part].transpose(1, 2) * 8**-0.5
            torch.testing.assert_close(weights[:, place], scores.softmax(-1))


class TestGroupsOfHeads:
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_split_heads_answer_alike(self, monkeypatch: pytest.MonkeyPatch, implementation: str) -> None:
        monkeypatch.setattr("sparsebert.compaction.heads.DIMENSIONS_OF_A_GROUP", 0)
        model = model_of()
        model.set_attn_implementation(implementation)
        ticket = ticket_of(model, RAGGED._replace(heads=()))
        expected = answers(masked(model, ticket), "nothing")
        assert error(answers(compact_(model, ticket), "nothing"), expected) < 1e-12
        assert max(len(attention.groups) for attention in attentions(model)) > 1


class TestTraining:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_are_those_of_the_masked_model(self, family: str) -> None:
        """Of what is before, between and after the layers that changed: embeddings, norms and the head."""
        model = model_of(family)
        ticket = ticket_of(model, RAGGED)
        found = []
        for each in (masked(model, ticket), compact_(copy.deepcopy(model), ticket)):
            output = each(TOKENS, attention_mask=ATTEND["padded"])
            sum((tensor * tensor).sum() for tensor in output.to_tuple()).backward()
            found.append({name: parameter.grad for name, parameter in each.named_parameters()})
        shared = [
            name for name in found[0] if "embeddings" in name or "norm" in name.lower() or "layer" not in name
        ]
        assert len(shared) >= 10
        for name in shared:
            torch.testing.assert_close(found[1][name], found[0][name])

    def test_gradients_flow_to_every_parameter_and_padding_stays_zero(self) -> None:
        model = model_of(dtype=torch.float32).train()
        ticket = ticket_of(model, RAGGED._replace(heads=()))
        compact_(model, ticket, round_to=4)
        down = resolve(model, structure(model).neurons[0][1])
        padding = (down.weight == 0).all(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        for _ in range(5):
            model(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        changed = [name for name, parameter in model.named_parameters() if not parameter.equal(before[name])]
        assert len(changed) == len(before)
        assert (down.weight == 0).all(0).equal(padding)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_dropout_is_that_of_the_model_in_the_mean(self, implementation: str) -> None:
        """Constants are one term under one head's dropout; their mean is the masked model's."""
        model = model_of()
        model.set_attn_implementation(implementation)
        ticket = ticket_of(model, RAGGED._replace(empty=(2,), heads=()))
        layer = masked(model, ticket).bert.encoder.layer[0].attention
        compact = compact_(model, ticket).bert.encoder.layer[0].attention
        for attention in (layer, compact):
            attention.train()
            attention.output.dropout.p = 0.0
            attention.self.dropout.p = 0.3

        def mean(attention: nn.Module) -> Tensor:
            x = torch.ones(2000, 6, 24, dtype=torch.float64)
            with torch.no_grad():
                contexts = attention.self(x)[0]
                return attention.output.dense(contexts).mean((0, 1))

        assert (mean(compact) - mean(layer)).abs().max() < 0.05
        for attention in (layer, compact):
            attention.self.dropout.p = 0.0
        torch.testing.assert_close(mean(compact), mean(layer))

    def test_a_fine_tuned_one_keeps_its_zeros_by_the_ticket_read_off_it(self) -> None:
        model = model_of(dtype=torch.float32)
        compact_(model, ticket_of(model, RAGGED))
        ticket = Ticket.from_model(model)
        assert 0 < ticket.sparsity < 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        ticket.apply_(model)
        assert Ticket.from_model(model) == ticket


class TestTheModule:
    @pytest.mark.parametrize(
        "twin_of",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["deepcopy", "pickle"],
    )
    @pytest.mark.parametrize("family", FAMILIES)
    def test_copies(self, family: str, twin_of: Any) -> None:
        model = model_of(family)
        compact_(model, ticket_of(model, RAGGED))
        twin = twin_of(model)
        assert answers(twin)[0].equal(answers(model)[0])
        assert compaction_description(twin) == compaction_description(model)
        assert len(attentions(twin)) == len(attentions(model)) > 0
        assert all(a is not b for a, b in zip(attentions(twin), attentions(model), strict=True))

    def test_a_new_process_records_the_attentions_of_an_unpickled_model(self, tmp_path: Path) -> None:
        """Nothing is compacted in the new process; unpickling registers ``NarrowAttention`` for recording."""
        model = model_of()
        model.set_attn_implementation("eager")
        compact_(model, one_head_of_three(model, rows=(0, 17)))
        # Saved before it records: the hooks that transformers then adds cannot be pickled.
        torch.save((model, TOKENS), tmp_path / "model.pt")
        expected = model(TOKENS, output_attentions=True).attentions
        # transformers records the outputs of a class only once a model of that class has been constructed.
        code = (
            "import sys, torch; "
            "model, tokens = torch.load(sys.argv[1], weights_only=False); "
            "type(model)(model.config); "
            "torch.save(model(tokens, output_attentions=True).attentions, sys.argv[2])"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "model.pt"), str(tmp_path / "attentions.pt")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        recorded = torch.load(tmp_path / "attentions.pt")
        assert [weights.shape[1] for weights in recorded] == [2, 3]
        torch.testing.assert_close(recorded, expected)

    def test_hooks_and_flags_stay(self) -> None:
        model = model_of().train()
        fired: list[str] = []
        keys = structure(model).heads[0]
        for key in (keys[0], keys[3], keys[0].rpartition(".")[0]):
            resolve(model, key).register_forward_hook(lambda *_, key=key: fired.append(key))
        resolve(model, keys[0]).weight.requires_grad_(False)
        compact_(model, ticket_of(model, RAGGED))
        model(TOKENS)
        assert fired == [keys[0], keys[0].rpartition(".")[0], keys[3]]
        assert all(module.training for module in model.modules())
        assert not resolve(model, keys[0]).weight.requires_grad
        assert resolve(model, keys[1]).weight.requires_grad

    def test_another_implementation_later_is_refused(self) -> None:
        model = model_of()
        compact_(model, ticket_of(model, RAGGED))
        model.config._attn_implementation = "flex_attention"
        with pytest.raises(ValueError, match="cannot run as 'flex_attention'"):
            attentions(model)[0](torch.randn(1, 3, 24).double())

    def test_a_cache_is_refused(self) -> None:
        model = model_of()
        compact_(model, ticket_of(model, RAGGED))
        with pytest.raises(ValueError, match="no cache"):
            attentions(model)[0](torch.randn(1, 3, 24).double(), past_key_values=object())
