"""Compile the native CPU library ``_native.so`` from the C++ sources in ``src/``.

``setup.py`` runs this module when the package is installed, so it needs only the standard library. The first
command builds into the source tree, the second makes a sanitizer build elsewhere:

    python kernels/sparsebert_kernels/cpu/build_native.py
    python -m sparsebert_kernels.cpu.build_native --sanitize address,undefined --out build/sanitize

One object is compiled for each instruction set. An instruction set that the compiler does not support is left
out, and the library selects the best of the others at run time. CXX names the compiler, ``g++`` by default.
With SPARSEBERT_REQUIRE_NATIVE=1, a part that cannot be built is an error instead of a notice.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "_native.so"
REQUIRE_VARIABLE = "SPARSEBERT_REQUIRE_NATIVE"
PARALLEL_COMPILERS = 2

# GCC's intrinsics use undefined vectors on purpose, which triggers -Wmaybe-uninitialized.
COMMON_FLAGS = (
    "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-fno-exceptions", "-Wall", "-Wno-maybe-uninitialized",
)  # fmt: skip
OPTIMIZED_FLAGS = ("-O3",)
SANITIZED_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
# Switches off UBSan's checks for errors that AddressSanitizer finds too: they double the compile time.
LEFT_TO_ADDRESS = "-fno-sanitize=null,object-size"
# Without -fopenmp: the GOMP_ symbols resolve at run time from the libgomp that torch has loaded, so that both
# share one thread pool. The other flags link a C++ runtime statically and hide it from other libraries. The
# sources use no C++ runtime, and no exceptions, whose tables refer to it: a recent one needs a recent C
# library, and the wheel would not run on older systems.
LINK_FLAGS = ("-shared", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")

SHARED_SOURCES = ("portable.cpp", "int8.cpp", "fp16.cpp")  # each compiled for several instruction sets

LOST = (
    "sparsebert works without its native CPU kernels, but slower: sparse layers run through torch, at 90 %\n"
    "sparsity about as fast as a good dense library. To get them, install g++ and reinstall sparsebert."
)


class NativeBuildError(RuntimeError):
    """The library, or a required part of it, cannot be built; the message says why."""


@dataclass(frozen=True)
class InstructionSet:
    """One object of the library: ``source`` compiled with ``flags`` in addition to the common flags."""

    name: str
    source: str = "portable.cpp"
    flags: tuple[str, ...] = ()
    calls: str | None = None  # another instruction set whose object this one calls

    @property
    def all_flags(self) -> tuple[str, ...]:
        """All flags. A source that is compiled several times also gets the name of its namespace."""
        named = (f"-DSB_ISA={self.name}",) if self.source in SHARED_SOURCES else ()
        return (*named, *self.flags)


_AVX2 = ("-mtune=skylake", "-mavx2", "-mfma")
# Without -mtune, the compiler schedules wide vectors for a generic machine, up to a quarter slower.
_AVX512 = (*_AVX2, "-mtune=skylake-avx512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_FP16_EMULATED = InstructionSet("fp16_emulated", "fp16.cpp")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16", "-mavx512vnni")
# Real and emulated tiles give the same bits: a product and a sum are one operation where the source says so.
_EXACT = ("-ffp-contract=off",)
# Keyed by the compiler's macro for the target machine. The first set of a machine needs no flag and is always
# built.
INSTRUCTION_SETS: Mapping[str, tuple[InstructionSet, ...]] = {
    "__x86_64__": (
        InstructionSet("baseline"),
        InstructionSet("avx2", flags=_AVX2),
        InstructionSet("avx512", "avx512.cpp", _AVX512, calls="avx2"),
        InstructionSet("avx512_bf16", "avx512_bf16.cpp", _AVX512_BF16, calls="avx512"),
        InstructionSet("amx", "amx.cpp", (*_AVX512_BF16, *_EXACT), calls="avx512_bf16"),
        # Vectors of 64 bytes never cross from one object to another: how to pass them does not matter.
        InstructionSet(
            "amx_emulated", "amx.cpp", ("-DSB_AMX_EMULATED", "-Wno-psabi", *_EXACT), calls="baseline"
        ),
        InstructionSet("int8_baseline", "int8.cpp"),
        InstructionSet("int8_avx2", "int8.cpp", _AVX2),
        InstructionSet("int8_avx_vnni", "int8.cpp", (*_AVX2, "-mavxvnni")),
        InstructionSet("int8_avx512_vnni", "int8.cpp", (*_AVX512, "-mavx512vnni")),
        _FP16_EMULATED,
        InstructionSet("avx512_fp16", "fp16.cpp", (*_AVX512, "-mavx512fp16")),
    ),
    "__aarch64__": (
        InstructionSet("neon"),
        InstructionSet(
            "neon_bf16",
            "neon_bf16.cpp",
            ("-march=armv8.2-a+bf16+dotprod", "-Wno-psabi", *_EXACT),
            calls="neon",
        ),
        InstructionSet("int8_neon", "int8.cpp"),
        InstructionSet("int8_neon_dotprod", "int8.cpp", ("-march=armv8.2-a+dotprod",)),
        _FP16_EMULATED,
    ),
}
ANY_MACHINE = (InstructionSet("baseline"), InstructionSet("int8_baseline", "int8.cpp"), _FP16_EMULATED)


def build(out: Path, cache: Path, *, sanitize: str = "", log: Callable[[str], None] = print) -> Path:
    """Compile changed sources and link ``out/_native.so``.

    Args:
        out: Folder for the library.
        cache: Folder that keeps the objects, named by a digest of their sources and flags.
        sanitize: Sanitizers as for -fsanitize, e.g. "address,undefined".
        log: Called with each line of progress.

    Returns:
        The path of the library.

    Raises:
        NativeBuildError: A required part cannot be built; an existing library is unchanged.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    macros = _predefined_macros(compiler)
    sanitizers = (f"-fsanitize={sanitize}", LEFT_TO_ADDRESS) if sanitize else ()
    mode = (*SANITIZED_FLAGS, *sanitizers) if sanitize else OPTIMIZED_FLAGS
    targets = next((sets for macro, sets in INSTRUCTION_SETS.items() if macro in macros), ANY_MACHINE)
    cache.mkdir(parents=True, exist_ok=True)
    headers = [path.read_text() for path in sorted(SOURCES.glob("*.h"))]
    # The macros identify the compiler's version, its target machine and the instructions in use.
    salt = "\0".join((*compiler, *(f"{name} {value}" for name, value in sorted(macros.items())), *headers))

    def compiled(name: str, source: str, flags: Sequence[str]) -> Path | str:
        """Return the object file, or the compiler's errors."""
        arguments = [*COMMON_FLAGS, *mode, *flags]
        content = "\0".join((salt, (SOURCES / source).read_text(), *arguments))
        target = cache / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.o"
        if target.exists():
            return target
        log(f"compiling {name} ({source})")
        errors = _run_to_file(target, [*compiler, *arguments, "-c", str(SOURCES / source)], log)
        return errors or target

    with ThreadPoolExecutor(PARALLEL_COMPILERS) as pool:
        results = list(pool.map(lambda each: compiled(each.name, each.source, each.all_flags), targets))
    built: dict[str, Path] = {}
    for each, result in zip(targets, results, strict=True):
        if isinstance(result, Path) and (each.calls is None or each.calls in built):
            built[each.name] = result
            continue
        reason = result if isinstance(result, str) else f"needs {each.calls}"
        if required() or not each.flags:
            raise NativeBuildError(f"{each.source} for {each.name}: {reason}")
        log(f"left out: kernels for {each.name}, which {shlex.join(compiler)} cannot build: {reason}")

    have = [f"-DSB_HAVE_{name.upper()}" for name in built]
    shared = {
        "dispatch": have,
        "dispatch_fp16": have,
        "dispatch_int8": have,
        "extensions": [f'-DSB_OBJECTS="{" ".join(built)}"'],
        "selection": [],
        "laps": [],
    }
    for name, flags in shared.items():
        result = compiled(name, f"{name}.cpp", flags)
        if isinstance(result, str):
            raise NativeBuildError(f"{name}.cpp: {result}")
        built[name] = result
    out.mkdir(parents=True, exist_ok=True)
    objects = [str(path) for path in built.values()]
    errors = _run_to_file(out / LIBRARY, [*compiler, *LINK_FLAGS, *sanitizers, *objects], log)
    if errors:
        raise NativeBuildError(f"linking {LIBRARY}: {errors}")
    compiled_sets = (name for name in built if name not in shared)
    log(f"native CPU kernels for {', '.join(compiled_sets)}: {out / LIBRARY}")
    return out / LIBRARY


def required() -> bool:
    """Return whether SPARSEBERT_REQUIRE_NATIVE requires the whole library."""
    return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")


def notice(error: NativeBuildError) -> str:
    """Return the notice for an installation that continues without the library."""
    return f"native CPU kernels not built: {error}\n{LOST}"


def _predefined_macros(compiler: Sequence[str]) -> dict[str, str]:
    """Return the compiler's predefined macros, which identify it and its target machine."""
    if not sys.platform.startswith("linux"):
        raise NativeBuildError(f"they need Linux, got {sys.platform}")
    try:
        command = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise NativeBuildError(f"no C++ compiler {shlex.join(compiler)} ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        raise NativeBuildError(f"{shlex.join(compiler)}: {error.stderr.strip()}") from None
    definitions = (line.split(" ", 2) for line in output.splitlines())  # "#define NAME VALUE"
    macros = {words[1]: words[-1] for words in definitions}
    if "__clang__" in macros:
        # Clang's OpenMP calls another runtime (__kmpc_, not GOMP_ symbols), which torch on Linux has not
        # loaded.
        raise NativeBuildError(f"{shlex.join(compiler)} is clang; set CXX to a g++")
    return macros


def _run_to_file(target: Path, command: Sequence[str], log: Callable[[str], None]) -> str:
    """Run ``command -o target`` and replace ``target`` atomically; return the errors, "" if none."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        result = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if result.returncode != 0:
            return result.stderr.strip() or f"exit code {result.returncode}"
        if result.stderr:
            log(result.stderr.strip())
        os.replace(output, target)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a required library or a sanitizer build fails, else 0."""
    parser = argparse.ArgumentParser(description="Compile the native CPU kernels of sparsebert.")
    parser.add_argument("--sanitize", default="", metavar="LIST", help="as for -fsanitize: address,undefined")
    parser.add_argument(
        "--out", type=Path, default=SOURCES.parent, help="folder for the library (the package)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("build/native"), help="folder that keeps the objects"
    )
    options = parser.parse_args(arguments)
    try:
        build(options.out, options.cache, sanitize=options.sanitize)
    except NativeBuildError as error:
        fatal = bool(options.sanitize) or required()
        print(f"native CPU kernels not built: {error}" if fatal else notice(error), file=sys.stderr)
        return 1 if fatal else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
