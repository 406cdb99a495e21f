"""Providers: each gives the masked model's answers in its own way, and says when it cannot run."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from sparsebert.bench import output_check
from sparsebert.bench.providers import BACKENDS, BASELINES, deepsparse
from sparsebert.bench.providers.onednn import PrepackedLinear, prepack_
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.bert import resolve
from sparsebert.pruning import prune

IN_PROCESS = [name for name in BACKENDS if name not in ("compile", "deepsparse")]


def verdict(name, pruned):
    side = BACKENDS[name]().build(pruned)
    try:
        masks = [batch["attention_mask"] for batch in pruned.batches]
        precision = BACKENDS[name]().precision(pruned)
        return side, output_check.compare(
            name, side.answers(), pruned.reference(), masks, precision=precision
        )
    finally:
        side.close()


@pytest.mark.parametrize("name", IN_PROCESS)
def test_answers_pass_the_gate(name, tiny):
    lack = BACKENDS[name]().available()
    if lack:
        pytest.skip(lack)
    side, found = verdict(name, tiny)
    assert found.passed, str(found)
    assert side.run() > 0


@pytest.mark.slow
def test_compiled_answers_pass_the_gate(tiny):
    lack = BACKENDS["compile"]().available()
    if lack:
        pytest.skip(lack)
    assert verdict("compile", tiny)[1].passed


@pytest.mark.slow
def test_deepsparse_answers_pass_the_gate_in_its_worker(tiny):
    lack = BACKENDS["deepsparse"]().available()
    if lack:
        pytest.skip(lack)
    assert verdict("deepsparse", tiny)[1].passed


def test_the_deepsparse_worker_compiles_once_for_each_shape(tmp_path):
    """With an engine that answers its number."""
    (tmp_path / "deepsparse.py").write_text(
        "import itertools, numpy\n"
        "__version__ = '0'\n"
        "numbers = itertools.count()\n"
        "class Engine:\n"
        "    def __init__(self, **options): self.number = next(numbers)\n"
        "    def run(self, batch, val_inp): return [numpy.array(self.number)]\n"
    )
    shapes = [(2, 8), (2, 16), (2, 8)]
    arrays = {f"{index}_input_ids": numpy.zeros(shape, int) for index, shape in enumerate(shapes)}
    numpy.savez(tmp_path / "inputs.npz", **arrays)
    load = {"load": "graph", "inputs": str(tmp_path / "inputs.npz"), "batches": 3, "names": ["input_ids"]}
    requests = [{**load, "threads": 1}, {"answers": str(tmp_path / "answers.npz")}]
    done = subprocess.run(
        [sys.executable, deepsparse.WORKER],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ['{"version": "0"}', "{}"]
    with numpy.load(tmp_path / "answers.npz") as answers:
        assert [int(answers[str(index)]) for index in range(3)] == [0, 1, 0]


def test_building_leaves_the_subject_as_it_was(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    for name in ("sparse", "onednn", "bf16"):
        BACKENDS[name]().build(tiny)
    after = tiny.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weight_bytes_are_those_of_the_pruned_matrices(tiny):
    numel = sum(mask.numel() for mask in tiny.ticket.masks.values())
    dense, half = (BACKENDS[name]().build(tiny).weight_bytes for name in ("eager", "bf16"))
    assert dense == 4 * numel
    assert half == 2 * numel
    assert BACKENDS["sparse"]().build(tiny).weight_bytes < 0.3 * dense


def test_the_sparse_side_says_which_formats_it_runs(tiny):
    assert BACKENDS["sparse"]().build(tiny).notes["formats"] == "12 element"


def test_every_baseline_has_a_reason_or_none_and_a_summary():
    for name in BASELINES:
        provider = BACKENDS[name]()
        lack = provider.available()
        assert provider.summary
        assert lack is None or "\n" not in lack


def test_compile_without_a_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", sys.executable)
    assert BACKENDS["compile"]().available() is None
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert "/nowhere/g++ is not found: install g++" in BACKENDS["compile"]().available()


def test_deepsparse_without_its_python_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("SPARSEBERT_DEEPSPARSE_PYTHON", raising=False)
    assert "SPARSEBERT_DEEPSPARSE_PYTHON" in BACKENDS["deepsparse"]().available()
    monkeypatch.setenv("SPARSEBERT_DEEPSPARSE_PYTHON", "/nowhere/python")
    assert "/nowhere/python is not a program" in BACKENDS["deepsparse"]().available()


def test_a_missing_library_says_how_to_install_it(monkeypatch):
    present = object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else present)
    assert BACKENDS["onnxruntime"]().available() == "onnxruntime not installed: pip install onnxruntime"


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    lack = BACKENDS["compile"]().available()
    assert torch.cuda.is_available() or "no-such-compiler is not found" in lack


needs_onednn = pytest.mark.skipif(BACKENDS["onednn"]().available() is not None, reason="no oneDNN in torch")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepacked_layer_answers_as_the_layer_it_was_made_from(dtype, bias):
    linear = nn.Linear(96, 40, bias=bias).to(dtype)
    x = torch.randn(2, 5, 96, dtype=dtype)
    with torch.inference_mode():
        answer = PrepackedLinear(linear, tokens=10)(x)
        torch.testing.assert_close(
            answer, linear(x), atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2
        )


@needs_onednn
def test_prepacking_covers_every_linear_of_the_model(tiny):
    model = prepack_(tiny.workload.load_model(), tokens=32)
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert isinstance(resolve(model, tiny.keys[0]), PrepackedLinear)


@needs_onednn
def test_wrong_numbers_from_onednn_are_noticed(monkeypatch):
    honest = PrepackedLinear.forward
    monkeypatch.setattr(PrepackedLinear, "forward", lambda self, x: honest(self, x) + 1)
    assert "differs from F.linear by" in BACKENDS["onednn"]().available()


def test_what_a_ticket_empties_is_gone_from_both_of_ours():
    """Half of the neurons pruned: as dense as what is left, and the record says what was removed."""
    workload = Workload("bert-tiny", batch=2, lengths=(16, 9))
    model = workload.load_model()
    pruned = prepare_pruned_model(
        workload, prune(model, "random", sparsity=0.5, granularity="neuron"), model=model
    )
    dense = sum(mask.numel() * 4 for mask in pruned.ticket.masks.values())
    for name in ("compact", "sparse"):
        side, found = verdict(name, pruned)
        assert found.passed, str(found)
        assert side.weight_bytes < 0.6 * dense
    assert "encoder weights removed" in side.notes["removed"]
