"""Every GPU kernel configuration, compiled ahead of time for every target, without a GPU.

    python -m benchmarks.aot [--triton FOLDER ...] [--out FILE] [--markdown FILE]

`--triton` names a folder with another version of triton, which is used besides the installed one. Nothing is
timed: the records describe the compiled kernels and the bound that they set on the speed. An interrupted run
continues when started again, because triton caches what it has compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fresh_process import python_path
from benchmarks.output import show
from sparsebert import results
from sparsebert.atomic import write_text
from sparsebert.bench.contention import usable_cores
from sparsebert.bench.environment import revision
from sparsebert.report.aot_tables import aot_tables, configuration_tables


def compiled_by(triton: Path | None, arguments: Sequence[str] = ()) -> list[results.Record]:
    """Compile all cases with the triton in a folder (None: the installed one) and return the records.

    Raises:
        RuntimeError: The compiler process fails.
    """
    path = python_path(triton.resolve()) if triton else python_path()
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "sparsebert_kernels.cuda.aot", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"compiling with triton in {triton or 'the environment'} failed, see above")
    commit = revision()
    return [
        results.stamp("aot", {**json.loads(line), "revision": commit}) for line in done.stdout.splitlines()
    ]


def main() -> int:
    """Return exit code 1 if a configuration has a problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--triton",
        action="append",
        type=Path,
        default=[],
        help="folder with another version of triton; repeatable",
    )
    parser.add_argument("--out", type=Path, help="write the records to this file and replace its content")
    parser.add_argument("--markdown", type=Path, help="write all tables to this file")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="number of processes")
    parser.add_argument(
        "--default", action="store_true", help="only the configurations of an untuned device in bfloat16"
    )
    parser.add_argument("--target", action="append", default=[], help="only this target; repeatable")
    options = parser.parse_args()
    arguments = ["--jobs", str(options.jobs), *["--default"] * options.default]
    arguments += [word for target in options.target for word in ("--target", target)]
    rows = [row for triton in (*options.triton, None) for row in compiled_by(triton, arguments)]
    text = "\n\n".join(table.markdown() for table in [*aot_tables(rows), *configuration_tables(rows)])
    if options.out:
        _write(options.out, "".join(json.dumps(row) + "\n" for row in rows))
    if options.markdown:
        _write(options.markdown, f"# GPU kernels, compiled ahead of time\n\n{text}\n")
    show(aot_tables(rows))
    return 1 if any(row["problems"] for row in rows) else 0


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)


if __name__ == "__main__":
    sys.exit(main())
