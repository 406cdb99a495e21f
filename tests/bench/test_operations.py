"""Operations: useful FLOP and compulsory bytes of each part, by hand for a small BERT."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from sparsebert.bench.operations import Operation, attended_pairs, model_operations
from sparsebert.bench.providers.onednn import OneDnn, prepack_
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.workload import Workload
from sparsebert.fuse import fuse_
from sparsebert.nn.fused_modules import fuse_modules_
from sparsebert.sparsify import sparsify_
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import has_engine
from tests.fuse.models import FAMILIES, answers, make

LAYERS, HIDDEN, NEURONS = 2, 128, 512
needs_native = pytest.mark.skipif(not native.available(), reason="no native library")


def by_part(model: torch.nn.Module, workload: Workload) -> dict[str, Operation]:
    operations = {each.part: each for each in model_operations(model, workload)}
    assert tuple(operations) == ("qkv", "output", "up", "down", "attention")
    return operations


def test_a_dense_layer_multiplies_every_weight_and_moves_weights_inputs_and_outputs(
    even: PrunedModel,
) -> None:
    operations = by_part(even.workload.load_model(), even.workload)
    tokens, item = 32, 4
    up = operations["up"]
    assert up.flops == LAYERS * 2 * tokens * HIDDEN * NEURONS
    assert up.weight_bytes == LAYERS * item * HIDDEN * NEURONS
    assert up.bytes == up.weight_bytes + LAYERS * item * tokens * (HIDDEN + NEURONS)
    assert (up.precision, up.format, up.count) == ("fp32", "dense", LAYERS)


def test_query_key_and_value_read_their_input_once(even: PrunedModel) -> None:
    qkv = by_part(even.workload.load_model(), even.workload)["qkv"]
    assert qkv.count == 3 * LAYERS
    assert qkv.bytes - qkv.weight_bytes == LAYERS * 4 * 32 * (1 + 3) * HIDDEN


def test_attention_multiplies_each_pair_of_tokens_of_a_sequence_twice(even: PrunedModel) -> None:
    attention = by_part(even.workload.load_model(), even.workload)["attention"]
    assert attention.flops == LAYERS * 2 * (2 * 2 * 16 * 16 * HIDDEN)  # two sequences of 16 tokens
    assert attention.bytes == LAYERS * 4 * 32 * 4 * HIDDEN
    assert attention.weight_bytes == 0


def test_padding_is_not_useful_and_weights_move_once_a_batch(tiny: PrunedModel) -> None:
    """Two batches of 32 and 18 tokens, of which 14 would pad the second."""
    output = by_part(tiny.workload.load_model(), tiny.workload)["output"]
    tokens = (16 + 16 + 9 + 5) / 2
    assert output.flops == LAYERS * 2 * tokens * HIDDEN * HIDDEN
    assert output.bytes == output.weight_bytes + LAYERS * 4 * tokens * 2 * HIDDEN


@pytest.mark.parametrize("fuse", [False, pytest.param(True, marks=needs_native)])
def test_of_a_sparse_layer_kept_weights_and_stored_bytes_count(even: PrunedModel, fuse: bool) -> None:
    model = sparsify_(copy.deepcopy(even.model), even.ticket, format="element", tokens=32, fuse=fuse)
    with torch.inference_mode():
        model(**even.batches[0])
    operations = by_part(model, even.workload)
    kept = sum(int(mask.sum()) for key, mask in even.ticket.masks.items() if "output.dense" in key)
    downs = [layer.output.dense for layer in model.encoder.layer]
    outputs = [layer.attention.output.dense for layer in model.encoder.layer]
    assert operations["output"].flops + operations["down"].flops == 2 * 32 * kept
    assert operations["down"].format == "element"
    assert operations["down"].weight_bytes == sum(each.packed.nbytes for each in downs)
    assert operations["output"].weight_bytes == sum(each.packed.nbytes for each in outputs)


@needs_native
@pytest.mark.skipif(not has_engine(torch.bfloat16), reason="no paired engine here")
def test_the_paired_engine_moves_activations_in_bf16_and_its_own_weights(even: PrunedModel) -> None:
    model = even.workload.load_model()
    fuse_modules_(model, tolerance="int8")  # fuse_ would time the engines, and take the fastest
    with torch.inference_mode():
        model(**even.batches[0])
    operations = by_part(model, even.workload)
    down = operations["down"]
    assert (down.precision, down.format) == ("int8", "row_panel")
    assert down.weight_bytes < LAYERS * 1.2 * HIDDEN * NEURONS
    assert down.bytes - down.weight_bytes == LAYERS * 2 * 32 * (HIDDEN + NEURONS)
    assert operations["attention"].precision == "bf16"


@pytest.mark.skipif(OneDnn().available() is not None, reason="no oneDNN")
def test_prepacked_layers_count_like_those_that_they_replace(even: PrunedModel) -> None:
    plain = model_operations(even.workload.load_model(), even.workload)
    assert model_operations(prepack_(even.workload.load_model(), 32), even.workload) == plain
    in_bf16 = by_part(prepack_(even.workload.load_model().bfloat16(), 32), even.workload)
    assert in_bf16["up"].precision == "bf16"
    assert in_bf16["up"].bytes == {each.part: each for each in plain}["up"].bytes / 2


@needs_native
@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_every_family_compute_the_same_plain_and_fused(name: str) -> None:
    workload = Workload(name, batch=3, lengths=(9, 4, 1))
    plain = {each.part: each.flops for each in model_operations(make(name), workload)}
    fused = fuse_(make(name))
    answers(fused)
    assert {each.part: each.flops for each in model_operations(fused, workload)} == plain
    assert all(flops > 0 for flops in plain.values())


@needs_native
def test_local_attention_multiplies_pairs_within_its_window_alone() -> None:
    """Of four layers, two attend to four tokens on either side, and two to all nine."""
    workload = Workload("ModernBertModel", batch=1, lengths=(9,))
    model = make("ModernBertModel")
    attention = {each.part: each for each in model_operations(model, workload)}["attention"]
    near = sum(abs(query - key) <= 4 for query in range(9) for key in range(9))
    local = [layer.attention_type == "sliding_attention" for layer in model.layers]
    pairs = sum(near if each else 81 for each in local)
    assert near < 81
    assert sum(local) == 2
    assert attention.flops == 2 * pairs * 2 * model.config.hidden_size


@pytest.mark.parametrize("window", [None, 0, 1, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_attended_pairs_are_those_within_the_window(length: int, window: int | None) -> None:
    near = [
        (query, key)
        for query in range(length)
        for key in range(length)
        if window is None or abs(query - key) <= window
    ]
    assert attended_pairs(length, window) == len(near)


def test_an_operation_is_recorded_as_plain_values() -> None:
    operation = Operation("up", "fp32", "dense", 2, 8.0, 4.0, 3)
    assert operation.record() == dataclasses.asdict(operation)
