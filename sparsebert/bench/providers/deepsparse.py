"""DeepSparse 1.8.0, the reference CPU engine for sparse models until its end of life in 2025.

It needs old versions of onnx and numpy, so it runs in a worker process with an environment of its own; the
variable SPARSEBERT_DEEPSPARSE_PYTHON names the Python of that environment. Its licence allows evaluation
only: it serves as a baseline and is never a dependency.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch

from sparsebert.bench.memory import Memory
from sparsebert.bench.onnx_export import export
from sparsebert.bench.providers.base import Backend, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel

VARIABLE = "SPARSEBERT_DEEPSPARSE_PYTHON"
WORKER = Path(__file__).with_name("deepsparse_worker.py")
SETUP = "python3.11 -m venv DIR && DIR/bin/pip install deepsparse==1.8.0 'numpy<2'"


class DeepSparseWorker:
    """The process that runs the engine; each request and each reply is one line of JSON."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "NM_DISABLE_ANALYTICS": "True", "DO_NOT_TRACK": "1", "PYTHONPATH": ""},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            ValueError: The worker reports an error or has ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the DeepSparse worker has no pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ValueError(f"the DeepSparse worker ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(f"DeepSparse: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


class DeepSparse(Backend):
    name: ClassVar[str] = "deepsparse"
    summary: ClassVar[str] = "DeepSparse 1.8.0, exported masked model"
    in_worker: ClassVar[bool] = True

    def available(self) -> str | None:
        python = os.environ.get(VARIABLE)
        if not python:
            return f"set {VARIABLE} to the Python of an environment with DeepSparse: {SETUP}"
        if shutil.which(python) is None:
            return f"{VARIABLE}={python} is not a program; set it to the path of a Python"
        done = subprocess.run(
            [python, "-c", "import deepsparse"], capture_output=True, env={"DO_NOT_TRACK": "1"}
        )
        return None if done.returncode == 0 else f"{python} cannot import deepsparse: {SETUP}"

    def precision(self, pruned: PrunedModel) -> str:
        return "float32"

    def build(self, pruned: PrunedModel, *, consume: bool = False) -> BuiltBackend:
        self.require_cpu(pruned)
        if pruned.judged:
            raise ValueError("its worker returns the outputs of the timed batches alone")
        worker = DeepSparseWorker(os.environ[VARIABLE])
        folder = tempfile.TemporaryDirectory()

        def close() -> None:
            worker.close()
            folder.cleanup()

        try:
            graph = export(pruned, Path(folder.name) / "masked.onnx")
            inputs = Path(folder.name) / "inputs.npz"
            arrays = {
                f"{index}_{name}": batch[name].numpy()
                for index, batch in enumerate(pruned.batches)
                for name in pruned.inputs
            }
            numpy.savez(inputs, **arrays)  # type: ignore[arg-type]
            loaded = worker.ask(
                load=str(graph),
                inputs=str(inputs),
                batches=len(pruned.batches),
                names=list(pruned.inputs),
                threads=pruned.workload.threads,
            )
        except BaseException:
            close()
            raise

        def answers() -> list[torch.Tensor]:
            written = Path(folder.name) / "answers.npz"
            worker.ask(answers=str(written))
            with numpy.load(written) as arrays:
                return [torch.from_numpy(arrays[str(index)]) for index in range(len(pruned.batches))]

        return BuiltBackend(
            run=lambda: float(worker.ask(run=True)["seconds"]),
            answers=answers,
            notes={"version": loaded["version"]},
            memory=lambda: Memory(**worker.ask(memory=True)),
            close=close,
        )
