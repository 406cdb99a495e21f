"""Providers: each gives the masked model's answers in its own way, and says when it cannot run."""

import copy
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy
import pytest
import torch
from torch import nn

import sparsebert
from sparsebert.bench import output_check
from sparsebert.bench.providers import BACKENDS, BASELINES, base, deepsparse, onnx_runtime
from sparsebert.bench.providers.onednn import PrepackedLinear, prepack_
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.bert import resolve
from sparsebert.pruning import prune

COMPILED = ("compile", "compile-freezing", "compile-freezing-bf16", "torchao-int8", "inductor-int8")
IN_PROCESS = [name for name in BACKENDS if name not in (*COMPILED, "deepsparse")]


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


@pytest.fixture
def in_graphs(tiny):
    """The tiny model for graphs, which are plain calls here."""
    workload = copy.copy(tiny.workload)
    object.__setattr__(workload, "graphs", True)
    return dataclasses.replace(tiny, workload=workload)


@pytest.mark.parametrize("name", ["sparse", "eager"])
@pytest.mark.filterwarnings("ignore:cpu has no CUDA graphs")
def test_answers_in_graphs_pass_the_gate(name, in_graphs, monkeypatch):
    made = []

    def graphs(*args, **options):
        made.append(sparsebert.graphs(*args, **options))
        return made[-1]

    monkeypatch.setattr(base, "graphs", graphs)
    side, found = verdict(name, in_graphs)
    assert found.passed, str(found)
    assert side.run() > 0
    assert sorted(made[0].captured) == [(2, 9), (2, 16)]


def test_a_side_that_cannot_run_in_graphs_is_refused(in_graphs):
    class Training(type(BACKENDS["eager"]())):
        def convert(self, model, pruned):
            return model.train()

    with pytest.raises(
        ValueError, match=r"^eager cannot run in CUDA graphs: .* the model is in training mode"
    ):
        Training().build(in_graphs)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_answers_pass_the_gate(name, even):
    lack = BACKENDS[name]().available()
    if lack:
        pytest.skip(lack)
    assert verdict(name, even)[1].passed


@pytest.mark.slow
def test_a_compiled_model_does_not_run_the_code_of_another(even):
    """Frozen after plain: torch would run the second model by the code of the first, which is not frozen."""
    if lack := BACKENDS["compile"]().available():
        pytest.skip(lack)
    sides = [BACKENDS[name]().build(even) for name in ("compile", "compile-freezing")]
    torch._dynamo.utils.counters.clear()
    for side in sides:
        side.run()
    assert not torch._dynamo.utils.counters["stats"]  # nothing is compiled again
    (reference,) = even.reference()
    for side in sides:
        torch.testing.assert_close(side.answers()[0], reference, atol=1e-4, rtol=1e-4)


def test_batches_of_two_shapes_are_refused_where_the_graph_has_one(tiny, monkeypatch):
    with pytest.raises(ValueError, match="inductor-int8 needs batches of one shape, got 2 shapes"):
        BACKENDS["inductor-int8"]().build(tiny)


def test_the_fastest_form_of_onnxruntime_int8_takes_part_and_is_named(tiny, monkeypatch):
    if lack := BACKENDS["onnxruntime-int8"]().available():
        pytest.skip(lack)

    def fail(dense, target, pruned):
        raise RuntimeError("no fusion\nfor this model")

    monkeypatch.setattr(onnx_runtime, "_fused_dynamic", fail)
    monkeypatch.setattr(onnx_runtime, "fastest", lambda sides: max(sides))
    notes = BACKENDS["onnxruntime-int8"]().build(tiny).notes
    assert notes["form"] == "static"
    assert notes["without dynamic, fused"] == "no fusion for this model"


def test_int8_baselines_choose_scales_by_samples_of_the_workloads_shape_with_other_tokens(tiny):
    inputs = [batch["input_ids"] for batch in tiny.batches]
    samples = [batch["input_ids"] for batch in tiny.samples]
    assert sum(len(ids) for ids in samples) >= 32
    assert {ids.shape for ids in samples} == {ids.shape for ids in inputs}
    assert not any(torch.equal(ids, other) for ids in samples for other in inputs if ids.shape == other.shape)


def test_samples_take_the_shape_of_a_batch(tiny):
    batch = {name: values[:1, :7] for name, values in tiny.batches[0].items()}
    samples = tiny.samples_like(batch)
    assert {ids.shape for sample in samples for ids in sample.values()} == {(1, 7)}
    torch.testing.assert_close(samples[0]["input_ids"][0], tiny.samples[0]["input_ids"][0, :7])


class _FakeGraph:
    def get_property(self, name):
        return types.SimpleNamespace(get_type_name=lambda: "f32")

    def create_infer_request(self):
        return types.SimpleNamespace(infer=lambda feed, **options: [feed["input_ids"]])


@pytest.mark.parametrize(("name", "hint"), [("openvino", "f32"), ("openvino-bf16", "bf16")])
def test_openvino_gets_threads_one_stream_and_its_precision(name, hint, tiny, monkeypatch):
    """With a module in place of the library."""
    compiled = {}
    fake = types.ModuleType("openvino")
    fake.__version__ = "0"
    fake.convert_model = lambda model, example_input: (model, example_input)
    fake.Core = lambda: types.SimpleNamespace(
        compile_model=lambda graph, device, settings: compiled.update(settings) or _FakeGraph()
    )
    monkeypatch.setitem(sys.modules, "openvino", fake)
    side = BACKENDS[name]().build(tiny)
    assert compiled["INFERENCE_PRECISION_HINT"] == hint
    assert compiled["INFERENCE_NUM_THREADS"] == compiled["NUM_STREAMS"] == 1
    assert compiled["PERFORMANCE_HINT"] == "LATENCY"
    assert side.run() > 0
    assert side.notes == {"version": "0", "inference precision": "f32"}


@pytest.mark.parametrize(
    ("name", "package"), [("openvino", "openvino"), ("openvino-int8", "nncf"), ("torchao-int8", "torchao")]
)
def test_an_optional_library_that_is_missing_is_named_with_its_target(name, package, monkeypatch):
    present = object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else present)
    assert (
        BACKENDS[name]().available()
        == f"{package} not installed: `make setup-rivals` in a checkout, or pip install {package}"
    )


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
