"""A model is cut into segments that compute what the whole model computes."""

from __future__ import annotations

import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.linear_layers import prunable
from sparsebert.one_shot.segments import segments_of

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}


def bert(**options):
    config = transformers.BertConfig(num_hidden_layers=3, **SMALL | options)
    return transformers.BertModel(config).eval()


def batches():
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return [
        {"input_ids": torch.randint(50, (2, 7)), "attention_mask": mask},
        {"input_ids": torch.randint(50, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.int64)},
    ]


def inputs_in_model(model, key, data):
    """The inputs that the matrix has in runs of the whole model."""
    seen = []
    handle = resolve(model, key).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in data:
        model(**batch)
    handle.remove()
    return seen


@torch.no_grad()
def inputs_in_segments(model, keys, data):
    found = {}
    segment, *others = segments_of(model, keys, data)
    for following in (*others, None):
        for stage in segment.stages:
            found |= {key: list(segment.inputs(stage[0])) for key in stage}
        segment = segment.following(following) if following else None
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        bert(),
        transformers.DistilBertModel(
            transformers.DistilBertConfig(dim=32, n_heads=2, hidden_dim=48, n_layers=2, vocab_size=50)
        ).eval(),
        transformers.ModernBertModel(
            transformers.ModernBertConfig(
                num_hidden_layers=4,
                pad_token_id=0,
                local_attention=4,
                **SMALL,
                cls_token_id=1,
                sep_token_id=2,
            )
        ).eval(),
        transformers.MPNetModel(transformers.MPNetConfig(num_hidden_layers=2, **SMALL)).eval(),
    ],
    ids=["BERT", "DistilBERT", "ModernBERT", "MPNet"],
)
def test_every_matrix_gets_the_input_that_it_has_in_the_whole_model(model):
    data, keys = batches(), prunable(model)
    found = inputs_in_segments(model, keys, data)
    assert found.keys() == set(keys)
    for key in keys:
        for got, expected in zip(found[key], inputs_in_model(model, key, data), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_layers_are_segments_and_query_key_and_value_are_one_stage():
    model = bert()
    parts = segments_of(model, structure(model).linears, batches())
    assert [part.module for part in parts] == list(model.encoder.layer)
    assert [len(stage) for stage in parts[0].stages] == [3, 1, 1, 1]


def test_a_model_whose_layers_are_not_a_chain_is_one_segment():
    class Skipping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    model = Skipping()
    data = [{"x": torch.randn(4, 8)}, {"x": torch.randn(2, 8)}]
    (part,) = segments_of(model, ["layers.0", "layers.1", "layers.2"], data)
    assert part.module is model
    with torch.no_grad():
        found = inputs_in_segments(model, ["layers.0", "layers.1", "layers.2"], data)
        for key, inputs in found.items():
            for got, expected in zip(inputs, inputs_in_model(model, key, data), strict=True):
                assert torch.equal(got, expected)


def test_layers_that_are_shared_are_refused():
    config = transformers.AlbertConfig(embedding_size=16, num_hidden_layers=2, **SMALL)
    model = transformers.AlbertModel(config).eval()
    with pytest.raises(ValueError, match=r"runs several times in a pass, as shared layers do"):
        segments_of(model, prunable(model), batches())


def test_a_matrix_that_does_not_run_is_named():
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(8, 8), "unused": torch.nn.Linear(8, 8)})
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ValueError, match="unused did not run on the calibration data"):
        segments_of(model, ["used", "unused"], [{"x": torch.randn(2, 8)}])
