"""The norm that follows a matrix, in models that normalise behind their layers and in front of them."""

from __future__ import annotations

import pytest
import torch

from sparsebert.bert import structure
from sparsebert.one_shot.norm_weights import norm_weights
from tests.architectures import build as build_any
from tests.pruning.gated_models import FAMILIES, WIDTH, batches, build


def readers(model):
    encoder = structure(model)
    return [keys[-1] for keys in (*encoder.heads, *encoder.neurons)]


def normalised(norm):
    scale = norm.weight.detach().double().abs()
    return scale / scale.square().mean().sqrt()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_bert_family_it_is_the_one_behind_the_residual_connection(family):
    model = build(family).eval()
    paths = {
        "attention.out_lin": "sa_layer_norm",
        "ffn.lin2": "output_layer_norm",
        "attention.output.dense": "attention.output.LayerNorm",
        "output.dense": "output.LayerNorm",
    }
    norms = {}
    for key in readers(model):
        matrix = next(path for path in paths if key.endswith(path))
        norms[key] = model.base_model.get_submodule(key.removesuffix(matrix) + paths[matrix])
        torch.nn.init.normal_(norms[key].weight)
    weights = norm_weights(model, readers(model), batches(1)[0])
    assert weights.keys() == norms.keys()
    for key, norm in norms.items():
        torch.testing.assert_close(weights[key], normalised(norm))
        assert len(weights[key]) == WIDTH


def test_before_layers_it_is_the_next_one_that_reads_the_residual_stream():
    model = build_any("ModernBertModel")
    norms = {"layers.0.attn.Wo": model.layers[0].mlp_norm, "layers.0.mlp.Wo": model.layers[1].attn_norm}
    for norm in norms.values():
        torch.nn.init.uniform_(norm.weight)
    weights = norm_weights(model, list(norms), {"input_ids": torch.arange(3, 12)[None]})
    for key, norm in norms.items():
        torch.testing.assert_close(weights[key], normalised(norm))


def test_matrices_without_a_norm_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    model.forward = lambda input_ids: torch.nn.Sequential.forward(model, input_ids)
    assert norm_weights(model, ["0"], {"input_ids": torch.randn(2, 4)}) == {}


def test_a_norm_of_zeros_says_nothing():
    model = build().eval()
    torch.nn.init.zeros_(model.bert.encoder.layer[1].output.LayerNorm.weight)
    weights = norm_weights(model, readers(model), batches(1)[0])
    assert set(readers(model)) - set(weights) == {"encoder.layer.1.output.dense"}
