"""The command ``python -m sparsebert_kernels.cuda.aot``: compile cases and print one JSON object for each."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context

from .compile_case import CompileCase
from .compiler import Compiled, compile_case
from .targets import TARGETS

PACKAGE = (__package__ or "").removesuffix(".aot")  # holds the kernel modules


def cases(modules: Sequence[str] = ()) -> Iterator[tuple[str, int, CompileCase]]:
    """Yield (module, number, case) for the modules, or for every kernel module of this package."""
    for name in modules or kernel_modules():
        module = importlib.import_module(name)
        for number, case in enumerate(module.compile_cases()):
            yield name, number, case


def kernel_modules() -> list[str]:
    """Return the modules of this package that define ``compile_cases``."""
    folder = importlib.import_module(PACKAGE).__path__
    names = [f"{PACKAGE}.{info.name}" for info in pkgutil.iter_modules(folder) if not info.ispkg]
    return [name for name in names if hasattr(importlib.import_module(name), "compile_cases")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object per case and target.

    Returns:
        Exit code 1 if a kernel has a problem and ``--check`` is set, else 0.
    """
    # Both variables are set before Triton is imported: its decorators read them at import time.
    os.environ.pop("TRITON_INTERPRET", None)
    # The default changes with Triton 3.10; all versions compile with the same setting.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    options, work = parse(arguments)
    problems = 0
    for compiled in _compile_all(work, options.jobs):
        print(json.dumps(asdict(compiled)), flush=True)
        for problem in compiled.problems:
            problems += 1
            where = f"{compiled.target}, triton {compiled.triton}"
            print(f"{compiled.family}, {compiled.label}, {where}: {problem}", file=sys.stderr)
    return 1 if problems and options.check else 0


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[tuple[str, int, str]]]:
    """Return the options, and the work: (module, number of the case, target) of each compilation."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert_kernels.cuda.aot",
        description="Compile the Triton kernels ahead of time, without a GPU.",
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="compile for this target only")
    parser.add_argument(
        "--module", action="append", default=[], help="compile this kernel module only, e.g. package.module"
    )
    parser.add_argument(
        "--default", action="store_true", help="compile only configurations of untuned devices in bfloat16"
    )
    parser.add_argument(
        "--match", type=re.compile, help="compile only cases whose label matches this regular expression"
    )
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a kernel has a problem")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    options = parser.parse_args(arguments)
    try:
        selected = [case for case in cases(options.module) if case[2].default or not options.default]
    except ModuleNotFoundError as error:
        parser.error(f"{error}; the kernel modules are {', '.join(kernel_modules())}")
    work = [
        (module, number, target)
        for target in options.target or TARGETS
        for module, number, case in selected
        if not case.targets or target in case.targets
        if options.match is None or options.match.search(case.label)
    ]
    return options, work


def _compile_all(work: Sequence[tuple[str, int, str]], jobs: int) -> Iterator[Compiled]:
    if jobs == 1 or len(work) < 2:
        yield from itertools.starmap(_compile_numbered, work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compile_numbered, *zip(*work, strict=True), chunksize=4)


def _compile_numbered(module: str, number: int, target: str) -> Compiled:
    """Compile a case by its number, since a kernel cannot be sent to a worker process."""
    case = next(case for _, index, case in cases([module]) if index == number)
    return compile_case(case, TARGETS[target])
