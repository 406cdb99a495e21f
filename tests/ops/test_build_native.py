"""The build of the native library, on sources of a few lines: what is left out, refused and kept."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from pathlib import Path

import pytest

from sparsebert_kernels.cpu import build_native

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the native library is for Linux"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]

X86 = platform.machine() == "x86_64"
EVERY_OBJECT = 63 + 64 + 128 if X86 else 1 + 64
INT8_WEIGHTS = {"BASELINE": 1, "NEON": 1, "AVX2": 2, "NEON_DOTPROD": 2, "AVX_VNNI": 4, "AVX512_VNNI": 8}
EVERY_INT8_OBJECT = 15 if X86 else 3 if platform.machine() == "aarch64" else 1
EXPORTED = 'extern "C" __attribute__((visibility("default"))) int {name}() {{ return {value}; }}\n'


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library whose functions tell what it was made of; ``objects`` adds up 1, 2, 4 ... for its objects."""
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "common.h").write_text("#define COMMON 1\n")
    (folder / "fp16.cpp").write_text("namespace SB_ISA { int here() { return 1; } }\n")
    (folder / "dispatch_fp16.cpp").write_text(EXPORTED.format(name="fp16", value="1"))
    (folder / "portable.cpp").write_text("namespace SB_ISA { int here() { return 1; } }\n")
    (folder / "avx512.cpp").write_text("namespace avx512 { int here() { return __AVX512F__; } }\n")
    (folder / "avx512_bf16.cpp").write_text(
        "namespace avx512_bf16 { int here() { return __AVX512BF16__; } }\n"
    )
    (folder / "amx.cpp").write_text(
        "#ifdef SB_AMX_EMULATED\nnamespace amx_emulated { int here() { return 1; } }\n"
        "#else\nnamespace amx { int here() { return __AVX512BF16__; } }\n#endif\n"
    )
    parts = []
    names = (
        "BASELINE",
        "AVX2",
        "AVX512",
        "AVX512_BF16",
        "AMX",
        "AMX_EMULATED",
        "FP16_EMULATED",
        "AVX512_FP16",
    )
    for weight, name in ((1, "NEON"), *((2**i, name) for i, name in enumerate(names))):
        parts.append(f"#ifdef SB_HAVE_{name}\n+ {weight}\n#endif\n")
    (folder / "dispatch.cpp").write_text(
        '#include "common.h"\n'
        + EXPORTED.format(name="objects", value="0\n" + "".join(parts))
        + EXPORTED.format(name="common", value="COMMON")
    )
    (folder / "laps.cpp").write_text(EXPORTED.format(name="laps", value="1"))
    (folder / "extensions.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) const char* sb_objects() { return SB_OBJECTS; }\n'
    )
    (folder / "laps.cpp").write_text(EXPORTED.format(name="laps", value="1"))
    (folder / "selection.cpp").write_text(EXPORTED.format(name="selection", value="1"))
    (folder / "int8.cpp").write_text("namespace SB_ISA { int here() { return 1; } }\n")
    units = "".join(
        f"#ifdef SB_HAVE_INT8_{name}\n+ {weight}\n#endif\n" for name, weight in INT8_WEIGHTS.items()
    )
    (folder / "dispatch_int8.cpp").write_text(EXPORTED.format(name="int8_objects", value=f"0\n{units}"))
    monkeypatch.setattr(build_native, "SOURCES", folder)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(build_native.REQUIRE_VARIABLE, raising=False)
    return folder


@pytest.fixture
def old_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A g++ from before AVX-512-BF16."""
    script = tmp_path / "old-g++"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-mavx512bf16*) echo "unrecognized option -mavx512bf16" >&2; exit 1;; esac\n'
        'exec g++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def build(folder: Path) -> tuple[ctypes.CDLL, list[str]]:
    said: list[str] = []
    path = build_native.build(folder / "out", folder / "cache", log=said.append)
    # A copy of its own name each time: the loader hands out a library it knows without looking at the file.
    fresh = folder / f"{len(list(folder.iterdir()))}.so"
    return ctypes.CDLL(str(shutil.copy(path, fresh))), said


def test_one_object_for_each_instruction_set(tmp_path: Path) -> None:
    library, _ = build(tmp_path)
    assert library.objects() == EVERY_OBJECT
    assert library.int8_objects() == EVERY_INT8_OBJECT
    library.sb_objects.restype = ctypes.c_char_p
    assert len(library.sb_objects().split()) == EVERY_OBJECT.bit_count() + EVERY_INT8_OBJECT.bit_count()


@pytest.mark.skipif(not X86, reason="AVX-VNNI is of x86-64")
def test_a_unit_that_the_compiler_does_not_know_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "old-g++"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *-mavxvnni*) echo "unrecognized option" >&2; exit 1;; esac\nexec g++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    library, said = build(tmp_path)
    assert library.int8_objects() == EVERY_INT8_OBJECT - INT8_WEIGHTS["AVX_VNNI"]
    assert [line for line in said if "int8_avx_vnni" in line and "unrecognized option" in line]


@pytest.mark.usefixtures("old_compiler")
def test_an_old_compiler_loses_instruction_sets_and_says_so(tmp_path: Path) -> None:
    library, said = build(tmp_path)
    assert library.objects() == EVERY_OBJECT & ~(8 | 16)
    if X86:
        assert [line for line in said if "avx512_bf16" in line and "unrecognized option" in line]


@pytest.mark.usefixtures("old_compiler")
@pytest.mark.skipif(not X86, reason="this machine has one instruction set")
def test_a_required_library_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_native.REQUIRE_VARIABLE, "1")
    with pytest.raises(build_native.NativeBuildError, match="avx512_bf16"):
        build(tmp_path)


@pytest.mark.skipif(not X86, reason="this machine has one instruction set")
def test_an_object_goes_with_the_one_it_calls(tmp_path: Path, sources: Path) -> None:
    (sources / "avx512.cpp").write_text("#error cannot\n")
    library, _ = build(tmp_path)
    assert library.objects() == 1 | 2 | 32 | 64 | 128


def test_nothing_is_compiled_twice(tmp_path: Path) -> None:
    _, first = build(tmp_path)
    _, second = build(tmp_path)
    assert [line for line in first if line.startswith("compiling")]
    assert not [line for line in second if line.startswith("compiling")]


def test_a_changed_header_is_compiled_in(tmp_path: Path, sources: Path) -> None:
    assert build(tmp_path)[0].common() == 1
    (sources / "common.h").write_text("#define COMMON 2\n")
    assert build(tmp_path)[0].common() == 2


def test_objects_for_another_machine_are_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "some-g++"
    monkeypatch.setenv("CXX", str(compiler))
    compiled = []
    for machine in ("", "-mtune=generic -D__another_machine__"):
        compiler.write_text(f'#!/bin/sh\nexec g++ {machine} "$@"\n')
        compiler.chmod(0o755)
        _, said = build(tmp_path)
        # Objects are compiled side by side: the order of the lines is not fixed.
        compiled.append(sorted(line for line in said if line.startswith("compiling")))
    assert compiled[0] == compiled[1] != []


@pytest.mark.parametrize("broken", ["portable.cpp", "dispatch.cpp"])
def test_a_failed_build_leaves_the_older_library(tmp_path: Path, sources: Path, broken: str) -> None:
    build(tmp_path)
    before = (tmp_path / "out/_native.so").read_bytes()
    (sources / broken).write_text("#error broken here\n")
    with pytest.raises(build_native.NativeBuildError, match="broken here"):
        build(tmp_path)
    assert (tmp_path / "out/_native.so").read_bytes() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_native.so"]


def test_without_a_compiler_the_command_says_what_is_lost_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    arguments = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert build_native.main(arguments) == 0
    said = capsys.readouterr().err
    assert "no C++ compiler /nonexistent" in said
    assert build_native.LOST in said
    monkeypatch.setenv(build_native.REQUIRE_VARIABLE, "1")
    assert build_native.main(arguments) == 1
    assert not (tmp_path / "out").exists()


def test_clang_is_refused_because_its_openmp_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "clang"
    script.write_text('#!/bin/sh\nexec g++ -D__clang__=1 "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(build_native.NativeBuildError, match=r"clang; set CXX to a g\+\+"):
        build(tmp_path)
