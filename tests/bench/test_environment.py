"""The environment: found without guessing, and every lack says what it costs."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from sparsebert.bench.cpu_extensions import Extension, detect_extensions
from sparsebert.bench.environment import blas_name, detect, lacks
from sparsebert.report.environment import environment_tables
from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native


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


@pytest.mark.skipif(not cpu.available(), reason="no native library")
class TestExtensions:
    def test_each_says_what_it_is_for(self):
        extensions = {extension.name: extension for extension in detect_extensions()}
        assert all(extension.brings for extension in extensions.values())
        needed = {"baseline": (), "amx": ("amx_bf16", "amx_int8")}
        for name in cpu.instruction_sets():
            for extension in needed.get(name, (name,)):
                assert extensions[extension].missing is None
                assert extensions[extension].built
        assert set(cpu.instruction_sets()) <= set(native.built_objects())

    def test_asking_twice_changes_nothing(self):
        assert detect_extensions() == detect_extensions()

    def test_without_the_library_there_are_none(self, monkeypatch):
        monkeypatch.setattr(native, "available", lambda: False)
        assert detect_extensions() == []

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            (0, None),
            (1, "the CPU lacks it"),
            (2, "the operating system does not enable it"),
            (-22, "the operating system refuses the permission (Invalid argument)"),
        ],
    )
    def test_the_reason_is_named(self, monkeypatch, state, reason):
        class Library:
            @staticmethod
            def sb_extension(i, found):
                found._obj.value = state
                return None if i else b"amx_bf16"

        monkeypatch.setattr(native, "library", Library)
        assert native.extensions() == {"amx_bf16": reason}


def test_an_extension_that_linux_withholds_is_a_lack(here, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    refused = "the operating system refuses the permission (Invalid argument)"
    amx = Extension("amx_bf16", refused, False, "row panels in bf16", True)
    absent = Extension("avx512_fp16", native.CPU_LACKS_IT, True, "single weights in fp16", True)
    (lack,) = lacks(complete(here), [amx, absent])
    assert lack.what == f"amx_bf16, which the CPU has: {refused}"
    assert lack.cost == "slower kernels compute row panels in bf16"


def test_tables_show_the_extensions_of_records_that_have_them(here):
    row = {"environment": here.record(), "lacks": []}
    assert [table.title for table in environment_tables([row])] == ["Machine: components"]
    extension = Extension("amx_bf16", "refused", False, "row panels in bf16", False).record()
    components, extensions = environment_tables([row | {"extensions": [extension], "built": ["baseline"]}])
    assert ("kernels built for", "baseline") in components.rows
    assert extensions.rows == (("amx_bf16", "refused", "not in this build", "row panels in bf16"),)


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
