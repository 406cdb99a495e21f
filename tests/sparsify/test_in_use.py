"""Sparse models in training, compilers and autocast."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch

from sparsebert import Ticket, densify_, sparsify_
from sparsebert.bert import resolve
from tests.sparsify.models import TOKENS, answers, masked_answers, one_layer, pruned


class TestTraining:
    def test_of_a_ticket_stays_within_its_masks(self) -> None:
        model, ticket = pruned()
        sparsify_(model.train(), ticket, trainable=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = model(TOKENS, labels=torch.tensor([0, 1])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]
        for key, mask in ticket.masks.items():
            assert not resolve(model, key).weight[~mask].any()
        densify_(model.eval())
        Ticket(ticket.masks).check(model)

    def test_gradients_are_those_of_the_masked_model(self) -> None:
        model, ticket = pruned()
        dense = ticket.apply_(copy.deepcopy(model))
        sparsify_(model, ticket, trainable=True)
        for each in (model, dense):
            each(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
        for key, mask in ticket.masks.items():
            layer = resolve(model, key)
            gradient = layer.packed.replace(values=layer.values.grad).to_dense()
            torch.testing.assert_close(gradient, resolve(dense, key).weight.grad * mask, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            model.bert.embeddings.word_embeddings.weight.grad,
            dense.bert.embeddings.word_embeddings.weight.grad,
            rtol=1e-4,
            atol=1e-6,
        )


class TestCompilers:
    def test_compile_a_whole_model(self) -> None:
        model, ticket = one_layer()
        sparsify_(model, ticket, format="element")
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(answers(compiled), answers(model))

    def test_export_a_whole_model(self) -> None:
        model, ticket = one_layer()
        sparsify_(model, ticket, format="element")
        file = io.BytesIO()
        with torch.no_grad():
            torch.export.save(torch.export.export(model, (TOKENS,), strict=False), file)
        file.seek(0)
        loaded: Any = torch.export.load(file).module()
        torch.testing.assert_close(loaded(TOKENS).last_hidden_state.detach(), answers(model)[0])

    def test_autocast_a_whole_model(self) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = answers(model)
        torch.testing.assert_close(got[0].float(), expected[0], rtol=0.05, atol=0.05)
