"""``heal_``: kept weights learn the dense model's answers; pruned ones and the teacher stay."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import Ticket, sparsify_
from sparsebert.bert import prunable, resolve, weight_of
from sparsebert.healing import heal, schedule, training
from sparsebert.healing.heal import Healing, heal_, zeros_of
from sparsebert.healing.targets import Reader
from tests import decoders
from tests.healing.conftest import QUICK, pruned_copy, tiny

transformers = pytest.importorskip("transformers")

HEADS = ("BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering")


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


class TestResult:
    def test_embeddings_come_closer_to_the_dense_model_s(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert healing.healed
        assert healing.measure == "embeddings"
        assert healing.agreement_after > healing.agreement_before + 0.1
        assert healing.loss_after < 0.7 * healing.loss_before
        assert (healing.steps, healing.texts) == (16, {"train": 160, "validation": 20, "judge": 20})

    @pytest.mark.parametrize("head", HEADS)
    def test_logits_come_closer_where_there_is_a_head(
        self, head: str, texts: list[str], tokenizer: Any
    ) -> None:
        dense = tiny(head)
        healing = heal_(pruned_copy(dense), texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert healing.measure == "logits"
        assert healing.loss_after < 0.7 * healing.loss_before
        assert healing.agreement_after > healing.agreement_before

    @pytest.mark.parametrize("family", ["Roberta", "DistilBert", "Electra"])
    def test_every_family_heals(self, family: str, texts: list[str], tokenizer: Any) -> None:
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
        if family == "DistilBert":
            sizes = {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 48}
        config = getattr(transformers, f"{family}Config")(
            vocab_size=65, max_position_embeddings=32, initializer_range=0.2, pad_token_id=0, **sizes
        )
        torch.manual_seed(0)
        dense = getattr(transformers, f"{family}Model")(config).eval()
        model = pruned_copy(dense)
        masks = Ticket.from_model(model)
        healing = heal_(model, texts, teacher=dense, tokenizer=tokenizer, max_length=16, **QUICK)
        assert healing.loss_after < healing.loss_before
        assert Ticket.from_model(model) == masks

    def test_no_label_is_read(
        self, texts: list[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense = tiny(HEADS[0])
        given: set[str] = set()

        def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        for model in (dense, student := pruned_copy(dense)):
            model.register_forward_pre_hook(watch, with_kwargs=True)
        heal_(student, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert given == {"input_ids", "output_hidden_states"}

    @pytest.mark.parametrize(("option", "longest"), [({}, 6), ({"max_length": 4}, 4)])
    def test_texts_are_cut_as_in_the_models_training_unless_an_option_says_otherwise(
        self, texts: list[str], tokenizer: Any, option: dict[str, int], longest: int
    ) -> None:
        dense = tiny(HEADS[0])
        dense.config.text_format = {"max_length": 6}
        student, widths = pruned_copy(dense), set()

        def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            widths.add(kwargs["input_ids"].shape[1])

        student.register_forward_pre_hook(watch, with_kwargs=True)
        heal_(student, texts, teacher=dense, tokenizer=tokenizer, **option, **QUICK)
        assert max(widths) == longest

    def test_equal_steps_give_equal_weights(self, dense: Any, texts: list[str], tokenizer: Any) -> None:
        one, other = (pruned_copy(dense) for _ in range(2))
        for model in (one, other):
            heal_(model, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert not changed(states(one), other)

    @pytest.mark.parametrize("first", [1e-4, 4e-2])
    def test_a_learning_rate_is_chosen_on_held_out_texts(
        self,
        first: float,
        pruned: Any,
        dense: Any,
        texts: list[str],
        tokenizer: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(training, "MOST_SHARE_OF_TRIALS", math.inf)
        monkeypatch.setattr(training, "FIRST_RATE", first)
        healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **{**QUICK, "learning_rate": None})
        losses = {rate: loss for rate, loss in healing.trials if loss is not None}
        assert 2 < len(healing.trials) <= training.MOST_TRIALS
        assert healing.learning_rate == min(losses, key=losses.__getitem__) != first
        assert healing.healed

    def test_few_steps_are_spent_on_training_alone(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **{**QUICK, "learning_rate": None})
        assert (healing.trials, healing.learning_rate) == ((), training.FIRST_RATE)


class TestMasks:
    def test_zeros_stay_zero_in_every_step(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        before = Ticket.from_model(pruned)
        seen = []
        heal_(
            pruned,
            texts,
            teacher=dense,
            tokenizer=tokenizer,
            progress=lambda line: seen.append(
                all(not weight_of(pruned, key)[~mask].any() for key, mask in before.masks.items())
            ),
            **QUICK,
        )
        assert len(seen) >= QUICK["steps"]
        assert all(seen)
        assert Ticket.from_model(pruned) == before

    def test_a_ticket_prunes_more_than_the_zeros_say(
        self, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        ticket = Ticket.from_model(pruned_copy(dense, 0.9))
        model = copy.deepcopy(dense)
        heal_(model, texts, teacher=dense, tokenizer=tokenizer, ticket=ticket, **QUICK)
        assert Ticket.from_model(model) == ticket

    def test_neurons_that_are_dead_stay_dead(self, dense: Any, texts: list[str], tokenizer: Any) -> None:
        model = copy.deepcopy(dense)
        up = resolve(model, prunable(model)[4])
        with torch.no_grad():
            up.weight[:5], up.bias[:5] = 0, 0
        assert zeros_of(model).bias_masks[prunable(model)[4]].tolist() == [False] * 5 + [True] * 43
        heal_(model, texts, teacher=tiny(), tokenizer=tokenizer, **QUICK)
        assert not up.bias[:5].any()
        assert up.bias[5:].all()

    def test_head_pooler_and_teacher_stay_as_they_are(self, texts: list[str], tokenizer: Any) -> None:
        dense = tiny(HEADS[0])
        model = pruned_copy(dense)
        before, teacher = states(model), states(dense)
        heal_(model, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert not changed(teacher, dense)
        names = changed(before, model)
        assert not any(name.startswith(("classifier", "bert.pooler")) for name in names)
        assert "bert.embeddings.word_embeddings.weight" in names

    def test_embeddings_are_left_alone_on_request(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        before = states(pruned)
        heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, embeddings=False, **QUICK)
        assert not any(name.startswith("embeddings") for name in changed(before, pruned))

    def test_the_model_is_handed_back_as_it_came(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        pruned.train()
        pruned.pooler.requires_grad_(False)
        required = [parameter.requires_grad for parameter in pruned.parameters()]
        heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert pruned.training
        assert [parameter.requires_grad for parameter in pruned.parameters()] == required
        assert all(parameter.grad is None for parameter in pruned.parameters())
        assert not any("forward" in vars(module) for module in (*pruned.modules(), *dense.modules()))


class TestNeverWorse:
    def test_without_a_better_state_the_weights_are_those_of_the_start(
        self, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        # A model that is almost dense, and a learning rate that ruins it.
        model = pruned_copy(dense, 0.002)
        before = states(model)
        healing = heal_(model, texts, teacher=dense, tokenizer=tokenizer, **{**QUICK, "learning_rate": 10.0})
        assert not healing.healed
        assert healing.loss_after == healing.loss_before
        assert healing.agreement_after == healing.agreement_before
        assert not changed(before, model)

    def test_a_lower_loss_does_not_make_up_for_outputs_that_are_worse(
        self,
        pruned: Any,
        dense: Any,
        texts: list[str],
        tokenizer: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The closer the outputs come, the farther they are said to be; the hidden states outweigh that.
        true_loss = Reader.output_loss
        monkeypatch.setattr(Reader, "output_loss", lambda *targets: -0.01 * true_loss(*targets))
        before = states(pruned)
        healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
        assert healing.steps == 16
        assert not healing.healed
        assert healing.loss_after == healing.loss_before
        assert not changed(before, pruned)

    def test_a_run_that_diverges_goes_back_and_on_more_slowly(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        lines: list[str] = []
        healing = heal_(
            pruned,
            texts,
            teacher=dense,
            tokenizer=tokenizer,
            progress=lines.append,
            **{**QUICK, "learning_rate": 30.0},
        )
        assert any(line.startswith("diverged at step") for line in lines)
        assert healing.learning_rate < 30.0
        assert healing.loss_after <= healing.loss_before


class Clock:
    """A clock on which every look takes 50 ms: how busy the machine is does not matter."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.05
        return self.now


class TestBudget:
    def test_minutes_are_kept(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        for module in (heal, training, schedule):
            monkeypatch.setattr(module, "time", clock)
        healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, minutes=0.1, tokens=256)
        assert healing.steps > 10
        assert healing.seconds == pytest.approx(6, abs=0.6)
        assert healing.healed

    def test_progress_says_how_far_it_is(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        lines: list[str] = []
        heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, progress=lines.append, **QUICK)
        assert lines[-1].startswith("healing: step 16 of 16, held-out loss ")
        assert lines[-1].endswith(" s left")


class TestBadInput:
    def refusal(self, model: Any, texts: list[str], **options: Any) -> str:
        with pytest.raises(ValueError, match=r".+") as refused:
            heal_(model, texts, **options)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def test_a_model_without_zeros(self, dense: Any, texts: list[str], tokenizer: Any) -> None:
        message = self.refusal(copy.deepcopy(dense), texts, teacher=dense, tokenizer=tokenizer)
        assert message == "the model has no zeros in its encoder: heal a pruned model, or pass a ticket"

    @pytest.mark.parametrize("build", [decoders.gpt2, decoders.llama])
    def test_a_decoder(self, build: Any, texts: list[str], tokenizer: Any) -> None:
        message = self.refusal(build(), texts, teacher=build(), tokenizer=tokenizer)
        assert f"{type(build()).__name__} is a decoder: train it on text" in message

    def test_another_family(self, texts: list[str], tokenizer: Any) -> None:
        model = transformers.AlbertModel(transformers.AlbertConfig(num_hidden_layers=1, vocab_size=65))
        message = self.refusal(model, texts, teacher=model, tokenizer=tokenizer)
        assert message.endswith("AlbertModel is none of these")

    def test_too_few_texts_and_how_many_are_needed(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        # Copies do not count.
        message = self.refusal(pruned, texts[:50] * 9, teacher=dense, tokenizer=tokenizer)
        assert message.startswith("healing needs at least 100 different texts, got 50")

    @pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
    def test_no_time(self, minutes: float, pruned: Any, dense: Any, texts: list[str], tokenizer: Any) -> None:
        message = self.refusal(pruned, texts, teacher=dense, tokenizer=tokenizer, minutes=minutes)
        assert message == f"minutes must be a positive number, got {minutes:g}"

    def test_a_teacher_of_other_shapes(self, pruned: Any, texts: list[str], tokenizer: Any) -> None:
        deeper = self.refusal(pruned, texts, teacher=tiny(layers=3), tokenizer=tokenizer)
        assert deeper == (
            "the teacher must have the model's architecture: it has 18 encoder matrices, the model 12"
        )

    def test_a_teacher_with_another_head(self, texts: list[str], tokenizer: Any) -> None:
        model = pruned_copy(tiny(HEADS[0]))
        message = self.refusal(model, texts, teacher=tiny(HEADS[2]), tokenizer=tokenizer)
        assert message == (
            "the teacher must have the model's head: it is a BertForQuestionAnswering, the model a "
            "BertForSequenceClassification"
        )

    def test_texts_longer_than_the_positions(
        self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any
    ) -> None:
        message = self.refusal(pruned, texts, teacher=dense, tokenizer=tokenizer, max_length=64)
        assert message == "max_length must be at most 32, the model's positions, got 64"

    def test_another_dtype(self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any) -> None:
        message = self.refusal(pruned.bfloat16(), texts, teacher=dense, tokenizer=tokenizer)
        assert message == "the model must be float32, got torch.bfloat16: call .float() on it"

    def test_a_model_that_is_packed(self, pruned: Any, dense: Any, texts: list[str], tokenizer: Any) -> None:
        packed = sparsify_(pruned, measure=False)
        message = self.refusal(packed, texts, teacher=dense, tokenizer=tokenizer)
        assert message.endswith("undo its pruning, parametrization or packing first")


def test_what_was_done_is_a_record(pruned: Any, dense: Any, texts: list[str], tokenizer: Any) -> None:
    healing = heal_(pruned, texts, teacher=dense, tokenizer=tokenizer, **QUICK)
    assert isinstance(healing, Healing)
    record = healing.record()
    assert record["steps"] == 16
    assert record["tokens"] == pytest.approx(16 * 256, rel=0.3)
    assert record["sparsity"] == pytest.approx(0.7, abs=0.01)
