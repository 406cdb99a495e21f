"""The native library: loading, instruction sets, and computing without it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native

SCRIPT = """
import torch
from sparsebert_kernels import cpu, formats, ops
weight, mask, x = torch.randn(20, 30), torch.rand(20, 30) < 0.3, torch.randn(7, 30)
answer = ops.linear(x, formats.pack(weight, mask, format="element"))
torch.testing.assert_close(answer, x @ torch.where(mask, weight, 0).T)
print(cpu.available(), cpu.instruction_set(), cpu.instruction_sets(), cpu.why_unavailable(), sep="|")
"""


@pytest.fixture
def load_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Reload the library with other environment variables; the test's end restores the former state."""
    before = cpu.instruction_set()

    def forget() -> None:
        native.library.cache_clear()
        native.why_unavailable.cache_clear()

    def set_variables(**variables: str) -> None:
        monkeypatch.delenv(native.INSTRUCTION_SET_VARIABLE, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    yield set_variables
    monkeypatch.undo()
    forget()
    if native.available():
        native.use_instruction_set(before)


class TestWithoutTheLibrary:
    def test_a_new_process_computes_and_names_the_missing_file_as_the_reason(self, tmp_path: Path) -> None:
        environment = {**os.environ, native.LIBRARY_VARIABLE: str(tmp_path / "_native.so")}
        command = [sys.executable, "-c", SCRIPT]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        available, name, names, why = result.stdout.strip().split("|")
        assert (available, name, names) == ("False", "none", "()")
        assert "not built" in why

    def test_a_file_that_is_no_library_is_named_as_the_reason(
        self, tmp_path: Path, load_anew: Callable[..., None]
    ) -> None:
        (tmp_path / "_native.so").write_text("not a library")
        load_anew(SPARSEBERT_NATIVE=str(tmp_path / "_native.so"))
        assert (cpu.available(), cpu.instruction_set(), cpu.instruction_sets()) == (False, "none", ())
        assert "cannot be loaded" in str(cpu.why_unavailable())

    @pytest.mark.skipif(not native.available(), reason="needs the native library")
    def test_an_unknown_instruction_set_is_named_with_those_there_are(
        self, load_anew: Callable[..., None]
    ) -> None:
        names = cpu.instruction_sets()
        load_anew(SPARSEBERT_ISA="nonsense")
        why = str(cpu.why_unavailable())
        assert "SPARSEBERT_ISA='nonsense' is not supported here" in why
        assert all(name in why for name in names)


@pytest.mark.skipif(not native.available(), reason="needs the native library")
class TestInstructionSets:
    def test_the_best_is_in_use_by_default(self) -> None:
        """In a new process: the library selects it once."""
        names = cpu.instruction_sets()
        assert names[-1] in ("baseline", "neon")
        environment = {k: v for k, v in os.environ.items() if k != native.INSTRUCTION_SET_VARIABLE}
        command = [sys.executable, "-c", SCRIPT]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert result.stdout.strip().split("|")[:2] == ["True", names[0]], result.stderr

    @pytest.mark.parametrize("name", cpu.instruction_sets())
    def test_the_environment_can_name_any(self, name: str, load_anew: Callable[..., None]) -> None:
        load_anew(SPARSEBERT_ISA=name)
        assert (cpu.instruction_set(), cpu.why_unavailable()) == (name, None)

    def test_a_switch_holds_until_the_next(self, instruction_set: str) -> None:
        assert cpu.instruction_set() == instruction_set

    def test_a_switch_to_an_unknown_one_changes_nothing(self) -> None:
        before = cpu.instruction_set()
        with pytest.raises(ValueError, match=f"'avx9000' is not supported here; supported: .*{before}"):
            native.use_instruction_set("avx9000")
        assert cpu.instruction_set() == before

    def test_the_library_brings_no_thread_pool_of_its_own(self) -> None:
        """Its OpenMP symbols are torch's: nothing in it asks the system's loader for another libgomp."""
        library = os.environ.get(native.LIBRARY_VARIABLE) or native.LIBRARY
        headers = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True)
        assert "Dynamic section" in headers.stdout, headers.stderr
        assert "libgomp" not in headers.stdout


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``torch`` is linked to ``openmp``; ``native`` calls into ``openmp`` without being linked to it."""
    folder = tmp_path_factory.mktemp("libraries")
    declared = 'extern "C" int omp_for_this_test();'
    sources = {
        "openmp": 'extern "C" int omp_for_this_test() { return 7; }',
        "torch": f'{declared} extern "C" int user() {{ return omp_for_this_test(); }}',
        "native": f'{declared} extern "C" int answer() {{ return omp_for_this_test(); }}',
    }
    links = {"torch": [f"-L{folder}", "-lopenmp", f"-Wl,-rpath,{folder}"]}
    made = {}
    for name, text in sources.items():
        source, made[name] = folder / f"{name}.cpp", folder / f"lib{name}.so"
        source.write_text(text)
        command = ["g++", "-shared", "-fPIC", str(source), "-o", str(made[name]), *links.get(name, [])]
        subprocess.run(command, check=True)
    return made


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the native library is for Linux")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
class TestSymbolsOfTorch:
    """The wheels of torch for Arm load OpenMP for torch alone; the native library needs it too."""

    def test_a_library_finds_the_symbols_of_one_that_torch_has_loaded_for_itself(
        self, libraries: dict[str, Path]
    ) -> None:
        ctypes.CDLL(str(libraries["torch"]))
        with pytest.raises(OSError, match="undefined symbol"):
            ctypes.CDLL(str(libraries["native"]))
        native._share_symbols(libraries["torch"], "omp_for_this_test")
        assert ctypes.CDLL(str(libraries["native"])).answer() == 7

    def test_a_symbol_that_is_nowhere_is_an_error(self, libraries: dict[str, Path]) -> None:
        with pytest.raises(AttributeError):
            native._share_symbols(libraries["torch"], "omp_that_nobody_has")

    @pytest.mark.skipif(not native.available(), reason="needs the native library")
    def test_the_native_library_has_its_threads_from_the_library_that_torch_uses(self) -> None:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        everywhere = ctypes.CDLL(None)
        for symbol in ("GOMP_parallel", "omp_get_num_threads"):
            torchs, ours = (
                ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
                for library in (torch_library, everywhere)
            )
            assert torchs == ours
