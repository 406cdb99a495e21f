"""The runner's answers are the model's, whatever the batch: padded, cut and copied, on a CPU."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebert import compact_, graphs, prune, sparsify_
from tests.cuda_graphs.models import FAMILIES, batch, call, close, make

pytestmark = [
    pytest.mark.filterwarnings("ignore:cpu has no CUDA graphs"),
    pytest.mark.filterwarnings("error:the model runs without"),
]
BUCKETS: tuple[Any, ...] = (None, [(5, 30)], [(2, 16), (5, 30)], [64, (5, 30)])


@functools.cache
def models() -> dict[str, tuple[Any, list[Any]]]:
    """A few models and their runners, which live through many batches."""
    names = ("BertModel", "RobertaForTokenClassification", "MPNetModel", "ModernBertModel")
    made = {name: make(name) for name in names}
    return {name: (model, [graphs(model, buckets) for buckets in BUCKETS]) for name, model in made.items()}


@settings(max_examples=60)
@given(
    name=st.sampled_from(["BertModel", "RobertaForTokenClassification", "MPNetModel", "ModernBertModel"]),
    rows=st.integers(1, 5),
    length=st.integers(1, 30),
    mask=st.booleans(),
    buckets=st.integers(0, len(BUCKETS) - 1),
    seed=st.integers(0, 99),
)
def test_ragged_batches(name: str, rows: int, length: int, mask: bool, buckets: int, seed: int) -> None:
    model, runners = models()[name]
    inputs = batch(rows, length, mask=mask, seed=seed)
    assert close(call(runners[buckets], inputs), call(model, inputs))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_and_head(name: str) -> None:
    model = make(name)
    run = graphs(model)
    for mask in (True, False):
        inputs = batch(3, 21, mask=mask)
        assert close(call(run, inputs), call(model, inputs))
    inputs = batch(3, 21)
    with torch.inference_mode():
        assert type(run(**inputs)) is type(model(**inputs))


def test_hidden_states_and_attentions_are_cut_too() -> None:
    model = make("BertModel")
    model.set_attn_implementation("eager")
    run = graphs(model)
    inputs = batch(3, 21)
    options = {"output_hidden_states": True, "output_attentions": True}
    answers = call(run, inputs, **options)
    assert close(answers, call(model, inputs, **options))
    assert {tuple(each.shape) for each in answers} == {(3, 21, 24), (3, 24), (3, 3, 21, 21)}
    assert close(call(run, inputs, return_dict=False), call(model, inputs, return_dict=False))


def test_all_inputs() -> None:
    model = make("BertModel")
    run = graphs(model)
    inputs = batch(3, 13)
    types = torch.randint(0, 2, (3, 13))
    places = torch.arange(13)[None] + torch.tensor([[0], [3], [7]])
    for more in (
        {"token_type_ids": types},
        {"token_type_ids": None},
        {"position_ids": places},
        {"position_ids": places[:1]},
        {"attention_mask": inputs["attention_mask"].bool()},
        {"input_ids": inputs["input_ids"].int()},
        {"input_ids": None, "inputs_embeds": torch.randn(3, 13, 24)},
    ):
        assert close(call(run, inputs | more), call(model, inputs | more)), list(more)
    with torch.inference_mode():
        by_position = run(inputs["input_ids"], inputs["attention_mask"], types)
    expected = call(model, inputs | {"token_type_ids": types})
    assert close(list(by_position.to_tuple()), expected)


def test_padding_never_reaches_real_tokens() -> None:
    """What an earlier, larger batch left in the bucket does not change a single bit of the next."""
    model = make("RobertaForTokenClassification")
    fresh, used = graphs(model, [(4, 24)]), graphs(model, [(4, 24)])
    inputs = batch(2, 7, seed=1)
    call(used, batch(4, 24, seed=2))
    call(used, batch(3, 24, mask=False, seed=3))
    assert all(map(torch.equal, call(used, inputs), call(fresh, inputs)))


def test_a_batch_that_fills_its_bucket_without_a_mask_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("BertModel")
    run = graphs(model, [(4, 24)])
    seen: list[set[str]] = []
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(set(kwargs))
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    call(run, batch(4, 24, mask=False))
    assert all("attention_mask" not in names for names in seen)
    seen.clear()
    call(run, batch(4, 23, mask=False))
    assert "attention_mask" in seen[0]
    assert run.captured == ((4, 24), (4, 24))


def test_outputs_stay_when_the_runner_is_called_again() -> None:
    run = graphs(make("BertModel"), [(4, 24)])
    first = call(run, batch(4, 24, seed=1))
    copies = [each.clone() for each in first]
    call(run, batch(4, 24, seed=2))
    assert all(map(torch.equal, first, copies))
    assert all(each.is_contiguous() for each in first)


def test_in_every_mode_without_gradients() -> None:
    model = make("BertModel")
    run = graphs(model)
    inputs = batch(3, 13)
    expected = call(model, inputs)
    with torch.no_grad():
        assert close(list(run(**inputs).to_tuple()), expected)
    model.requires_grad_(False)
    answer = run(**inputs).last_hidden_state
    assert close([answer], expected[:1])
    (answer * torch.ones((), requires_grad=True)).sum().backward()  # an ordinary tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = make("BertForMaskedLM").to(dtype)
    run = graphs(model)
    inputs = batch(3, 13)
    assert close(call(run, inputs), call(model, inputs), 1e-12 if dtype == torch.float64 else 0.05)


@pytest.mark.parametrize("fuse", [False, True])
def test_sparse_and_compacted_models(fuse: bool) -> None:
    model = make("BertForSequenceClassification")
    ticket = prune(model, "magnitude", sparsity=0.5, granularity="head+neuron")
    compact_(model, ticket)
    sparsify_(model, prune(model, "magnitude", sparsity=0.5), format="element", fuse=fuse)
    run = graphs(model)
    inputs = batch(3, 21)
    assert close(call(run, inputs), call(model, inputs))


def test_threads_share_a_runner() -> None:
    model = make("BertModel")
    run = graphs(model, [(4, 24)])
    batches = [batch(1 + number % 4, 5 + number, seed=number) for number in range(12)]
    expected = [call(model, inputs) for inputs in batches]
    answers: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda n=number: answers.__setitem__(n, call(run, batches[n])))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(answers[number], expected[number]) for number in range(12))
