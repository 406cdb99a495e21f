"""Bad input: one clear line, once, and the model is called as it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import graphs
from tests.cuda_graphs.models import batch, call, close, make
from tests.sparsify.models import WIDTH

pytestmark = pytest.mark.filterwarnings("ignore:cpu has no CUDA graphs")
PLAIN = "the model runs without a CUDA graph: "


def says_once(run: Any, work: Callable[[], Any], message: str) -> Any:
    """The result of ``work``, which warns in the first of two calls."""
    with pytest.warns(UserWarning, match=f"^{message}$") as caught:
        work()
    said = [each for each in caught if re.fullmatch(message, str(each.message))]
    assert len(said) == 1
    assert all(each in said or "no CUDA graphs" in str(each.message) for each in caught)
    assert said[0].filename == __file__ or said[0].filename.endswith("models.py"), "points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return work()


def test_a_batch_larger_than_each_bucket() -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16), (4, 8), 40])
    for inputs in (batch(2, 17), batch(5, 9)):
        assert close(call(graphs(model), inputs), call(model, inputs))
    inputs = batch(3, 17)
    message = PLAIN + "a batch of 3 x 17 is larger than each bucket: 2 x 16, 4 x 8, 40 tokens"
    assert close(says_once(run, lambda: call(run, inputs), message), call(model, inputs))
    assert not run.captured
    assert close(call(run, batch(4, 8)), call(model, batch(4, 8)))
    assert run.captured == ((4, 8),)


def test_a_batch_longer_than_the_model_is_the_models_to_refuse() -> None:
    run = graphs(make("BertModel"))
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="33 is larger than each bucket"):
        call(run, batch(1, 33))


@pytest.mark.parametrize("part", ["", "encoder.layer.1.output.dropout"])
def test_training_mode_of_the_model_or_a_single_dropout(part: str) -> None:
    model = make("BertModel")
    run = graphs(model)
    model.get_submodule(part).train()
    inputs = batch(2, 9)
    torch.manual_seed(0)
    answers = says_once(
        run, lambda: call(run, inputs), PLAIN + r"the model is in training mode; call model.eval\(\) first"
    )
    assert not close(answers, call(model, inputs)), "dropout draws anew"
    model.eval()
    assert close(call(run, inputs), call(model, inputs))
    assert run.captured


def test_gradients() -> None:
    model = make("BertModel")
    run = graphs(model)
    inputs = batch(2, 9)
    call(run, inputs)
    message = PLAIN + r"gradients are recorded, which graphs cannot; call it under torch.inference_mode\(\)"
    answer = says_once(run, lambda: run(**inputs).last_hidden_state, message)
    answer.sum().backward()
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    model.requires_grad_(False)
    embedded = torch.randn(2, 9, 24, requires_grad=True)
    with pytest.warns(UserWarning, match="modules|weights|an input requires gradients"):
        pass_on = graphs(model)(inputs_embeds=embedded).last_hidden_state
    pass_on.sum().backward()
    assert embedded.grad is not None


def test_autocast() -> None:
    model = make("BertModel")
    run = graphs(model)
    message = PLAIN + "autocast is on; convert the model to the lower dtype instead"
    with torch.autocast("cpu", torch.bfloat16):
        says_once(run, lambda: call(run, batch(2, 9)), message)


def test_hooks_are_called() -> None:
    model = make("BertModel")
    run = graphs(model)
    inputs = batch(2, 9)
    call(run, inputs)
    seen = []
    handle = model.encoder.layer[1].register_forward_hook(lambda module, args, output: seen.append(1))
    says_once(
        run, lambda: call(run, inputs), PLAIN + "a module has forward hooks, which graphs would not call"
    )
    assert len(seen) == 2
    handle.remove()
    assert close(call(run, inputs), call(model, inputs))
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": torch.tensor([0, 1])}, "labels cannot be padded to a bucket"),
        ({"attention_mask": torch.ones(2, 1, 9, 9)}, r"attention_mask has shape \[2, 1, 9, 9\]"),
        ({"token_type_ids": nn.Parameter(torch.zeros(2, 9, dtype=torch.long), requires_grad=False)},
         "token_type_ids is a Parameter, not a plain tensor"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_padded(more: dict[str, Any], message: str) -> None:
    model = make("BertForSequenceClassification")
    run = graphs(model)
    inputs = batch(2, 9) | more
    assert close(says_once(run, lambda: call(run, inputs), PLAIN + message), call(model, inputs))


def test_inputs_on_another_device_are_the_models_to_judge() -> None:
    run = graphs(make("BertModel"))
    inputs = {"input_ids": torch.zeros(2, 9, dtype=torch.long, device="meta")}
    says_once(run, lambda: call(run, inputs), PLAIN + "input_ids is on meta, the model on cpu")


def test_no_input_at_all_is_the_models_to_refuse() -> None:
    run = graphs(make("BertModel"))
    with (
        pytest.raises(ValueError, match="input_ids or inputs_embeds"),
        pytest.warns(UserWarning, match="it has neither input_ids nor inputs_embeds"),
    ):
        call(run, {})


AFTER = "after the capture of CUDA graphs, which are captured again"


def changed(change: Callable[[Any], Any], message: str) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    inputs = batch(2, 9)
    call(run, inputs)
    change(model)
    answers = says_once(run, lambda: call(run, inputs), f"{message} {AFTER}")
    assert close(answers, call(model, inputs), 0.02)
    assert run.captured == ((2, 16),)


def test_a_dtype_changed_after_capture() -> None:
    changed(lambda model: model.bfloat16(), "the model was converted from float32 to bfloat16")


def test_weights_replaced_after_capture() -> None:
    def replace(model: Any) -> None:
        model.encoder.layer[0].output.dense.weight = nn.Parameter(torch.randn(24, 40))

    changed(replace, "weights of the model were changed")


def test_weights_swapped_through_data_after_capture() -> None:
    def replace(model: Any) -> None:
        model.encoder.layer[0].output.dense.weight.data = torch.randn(24, 40)

    changed(replace, "weights of the model were changed")


def test_weights_loaded_after_capture() -> None:
    other = {name: tensor + 0.01 for name, tensor in make("BertModel").state_dict().items()}
    changed(lambda model: model.load_state_dict(other), "weights of the model were changed")


def test_a_module_replaced_after_capture() -> None:
    def replace(model: Any) -> None:
        model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU().eval()

    changed(replace, "modules of the model were replaced")


def test_a_configuration_changed_after_capture() -> None:
    changed(
        lambda model: setattr(model.config, "output_hidden_states", True),
        "the model's configuration was changed",
    )


def test_a_model_moved_after_capture() -> None:
    """There is no second device here: the meta device takes its place."""
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    call(run, batch(2, 9))
    model.to("meta")
    with pytest.warns(UserWarning, match="meta") as caught:
        call(run, batch(2, 9, mask=False))
    assert str(caught[0].message) == f"the model was moved from cpu to meta {AFTER}"
    assert str(caught[1].message) == PLAIN + "the model is on the meta device, which holds no values"
    assert not run.captured


def test_a_model_on_two_devices() -> None:
    model = make("BertModel")
    model.pooler.to("meta")
    message = "graphs need a model on one device; this one is on cpu and meta"
    with (
        pytest.raises(RuntimeError, match="not on the expected device"),
        pytest.warns(UserWarning, match=message),
    ):
        call(graphs(model), batch(2, 9))


class MeanOfEverything(nn.Module):
    """Reads padding that its own mask excludes."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = make("BertModel")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.bert(input_ids, attention_mask).last_hidden_state.mean(1)


def test_a_model_that_reads_padding() -> None:
    model = MeanOfEverything().eval()
    run = graphs(model, [(2, 16)])
    inputs = batch(2, 9)
    message = (
        r"the outputs of bucket 2 x 16 differ from the model's by 0\.\d+: it reads padding that "
        "attention_mask excludes"
    )
    with torch.inference_mode():
        answer = says_once(run, lambda: run(**inputs), PLAIN + message)
        assert torch.equal(answer, model(**inputs))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model must be an nn\.Module, got a str$"):
        graphs("bert-base")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^expected a BERT, .* model; Linear has no encoder of these families$"
    ):
        graphs(nn.Linear(2, 2))
    holder = nn.Sequential(make("BertModel"))
    with pytest.raises(
        ValueError, match=r"^Sequential does not take input_ids; pass the transformer that it holds$"
    ):
        graphs(holder)
    model = make("BertModel")
    longest = WIDTH["max_position_embeddings"]
    with pytest.raises(
        ValueError, match=f"^bucket 2 x 64 is longer than the model's {longest} positions; use"
    ):
        graphs(model, [(2, 64)])
    for name in ("max_graphs", "max_bytes"):
        with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got 0$"):
            graphs(model, **{name: 0})
    assert repr(graphs(model)) == "GraphRunner(BertModel, buckets: batches rounded up; captured: none)"


def test_a_cpu_has_no_graphs_and_says_so() -> None:
    run = graphs(make("BertModel"))
    message = "cpu has no CUDA graphs: batches are padded to buckets, and run without a graph"
    says_once(run, lambda: call(run, batch(2, 9)), message)
