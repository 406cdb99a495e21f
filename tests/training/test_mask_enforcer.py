"""Dead weights are exactly zero after every step, whatever optimizer, weight decay and momentum do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert.bert import resolve
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.mask_enforcer import MaskEnforcer

transformers = pytest.importorskip("transformers")
QUERY = "encoder.layer.0.attention.self.query"


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2
    )
    return transformers.BertForSequenceClassification(config)


def batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 30, (4, 6), generator=generator),
        "labels": torch.randint(0, 2, (4,), generator=generator),
    }


def dead_weights(model: Any, ticket: Ticket) -> Tensor:
    return torch.cat([resolve(model, key).weight[~mask] for key, mask in ticket.masks.items()]).detach()


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01),
    "adamw amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "sgd with momentum": lambda parameters: torch.optim.SGD(
        parameters, lr=1e-2, momentum=0.9, weight_decay=0.01
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_hundred_steps_revive_nothing(name: str) -> None:
    """Momentum from before the pruning would, and so would the decay of what is not quite zero."""
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    for step in range(5):
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ticket = prune(model, sparsity=0.7)
    with MaskEnforcer(model, ticket) as keeper:
        keeper.zero_(optimizer)
        for step in range(100):
            model(**batch(step)).loss.backward()
            optimizer.step()
            keeper.zero_()
            optimizer.zero_grad()
            assert not dead_weights(model, ticket).any()
    for key, mask in ticket.masks.items():
        for value in optimizer.state[resolve(model, key).weight].values():
            if value.shape == mask.shape:
                assert not value[~mask].any()
                assert value[mask].any()


def test_without_it_momentum_revives_them() -> None:
    """What the above would miss if it tested nothing."""
    model = classifier()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    model(**batch(0)).loss.backward()
    optimizer.step()
    ticket = prune(model, sparsity=0.7)
    ticket.apply_(model)
    optimizer.zero_grad()
    optimizer.step()
    model(**batch(1)).loss.backward()
    optimizer.step()
    assert dead_weights(model, ticket).any()


def test_dead_gradients_are_zero_and_count_in_no_norm() -> None:
    model = classifier().eval()
    ticket = prune(model, sparsity=0.7)
    ticket.apply_(model)
    model(**batch(0)).loss.backward()
    plain = {key: resolve(model, key).weight.grad.clone() for key in ticket.masks}
    model.zero_grad()
    with MaskEnforcer(model, ticket):
        for _ in range(2):  # accumulated
            model(**batch(0)).loss.backward()
    for key, mask in ticket.masks.items():
        gradient = resolve(model, key).weight.grad
        assert plain[key][~mask].any()
        assert not gradient[~mask].any()
        torch.testing.assert_close(gradient[mask], 2 * plain[key][mask])


def test_dead_infinities_and_nans_become_plus_zero() -> None:
    model = classifier()
    ticket = prune(model, sparsity=0.5)
    weight = resolve(model, QUERY).weight
    dead = ~ticket.masks[QUERY]
    for value in (math.nan, -math.inf, -0.0):
        with torch.no_grad():
            weight[dead] = value
        with MaskEnforcer(model, ticket):
            pass
        assert torch.equal(weight[dead], torch.zeros_like(weight[dead]))
        assert not torch.signbit(weight[dead]).any()


def test_leaving_gives_the_model_back() -> None:
    model = classifier()
    names = list(model.state_dict())
    with MaskEnforcer(model, prune(model, sparsity=0.5)):
        assert list(model.state_dict()) == names
    model(**batch(0)).loss.backward()
    assert resolve(model, QUERY).weight.grad.ne(0).float().mean() > 0.9


def test_pruned_biases_stay_zero_too() -> None:
    model = classifier()
    masks = {QUERY: torch.ones(16, 16, dtype=torch.bool)}
    bias = torch.arange(16) % 2 == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with MaskEnforcer(model, Ticket(masks, bias_masks={QUERY: bias})) as keeper:
        model(**batch(0)).loss.backward()
        optimizer.step()
        keeper.zero_(optimizer)
    trained = resolve(model, QUERY).bias
    assert not trained[~bias].any()
    assert trained[bias].all()


def test_a_ticket_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="ticket of another model"):
        MaskEnforcer(classifier(), Ticket({QUERY: torch.ones(3, 3, dtype=torch.bool)}))


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    model = classifier().cuda()
    ticket = prune(model, sparsity=0.7)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with MaskEnforcer(model, ticket) as keeper:
        for step in range(10):
            model(**{name: x.cuda() for name, x in batch(step).items()}).loss.backward()
            optimizer.step()
            keeper.zero_(optimizer)
            optimizer.zero_grad()
    assert not dead_weights(model.cpu(), ticket).any()
