"""The environment: found without guessing, and every lack says what it costs."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from sparsebert.bench.environment import blas_name, detect, lacks


@pytest.fixture(scope="module")
def here():
    return detect()


def test_what_is_found_is_plain_json(here):
    record = here.record()
    assert json.loads(json.dumps(record)).keys() == record.keys()
    assert record["versions"]["torch"]
    assert record["cores"] >= 1
    assert record["blas"] == blas_name()


def complete(here):
    return dataclasses.replace(
        here,
        kernels="avx512",
        onednn="v3",
        gpu="a GPU",
        gpu_kernels_missing=None,
        versions=dict.fromkeys(here.versions, "1"),
    )


def test_a_complete_machine_lacks_nothing(here, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert lacks(complete(here)) == []


def test_a_caption_names_the_gpu_if_there_is_one(here):
    cpu = dataclasses.replace(here, cpu="a CPU", cores=4, gpu=None)
    assert cpu.machine == "a CPU, cores: 4"
    assert dataclasses.replace(cpu, gpu="a GPU").machine == "a CPU, cores: 4, a GPU"


@pytest.mark.parametrize(
    ("changes", "what", "cost"),
    [
        ({"kernels": None, "kernels_missing": "not built"}, "not built", "no faster than"),
        ({"kernels": "baseline"}, "AVX2", "fraction"),
        ({"kernels": "avx2", "isa_flags": ("avx2", "avx512f")}, "AVX-512", "two thirds"),
        ({"onednn": None}, "oneDNN", "lacks its main baseline"),
        ({"gpu": None}, "GPU", "CPU"),
        ({"gpu_kernels_missing": "triton is not installed"}, "triton is not installed", "computed as dense"),
        ({"versions": {"transformers": None, "onnxruntime": "1"}}, "transformers", "no model"),
        ({"versions": {"transformers": "5", "onnxruntime": None}}, "onnxruntime", "baseline"),
    ],
)
def test_each_lack_is_named_with_its_cost(here, monkeypatch, changes, what, cost):
    monkeypatch.setenv("CXX", sys.executable)
    (lack,) = lacks(dataclasses.replace(complete(here), **changes))
    assert what in lack.what
    assert cost in lack.cost
    assert lack.remedy


def test_a_missing_compiler_costs_a_baseline(here, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (lack,) = lacks(complete(here))
    assert "no-such-compiler" in lack.what


def test_looking_around_imports_neither_transformers_nor_triton():
    code = "import sys; from sparsebert.bench.environment import detect; detect(); "
    code += "sys.exit(' '.join({'transformers', 'triton'} & sys.modules.keys()) or 0)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
