"""What this machine and this installation have: part of every record, and what `sparsebert env` prints."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sparsebert
from sparsebert.bench.contention import load_average, usable_cores

# The extensions that decide which kernels can run; a full flag list would bury them.
TELLING_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("torch", "triton", "transformers", "numpy", "onnxruntime")


@dataclass(frozen=True)
class Lack:
    """Something that is missing here, what that costs, and how to get it."""

    what: str
    cost: str
    remedy: str


@dataclass(frozen=True)
class Environment:
    """Machine, versions and libraries of one process."""

    cpu: str
    cores: int
    memory_bytes: int | None
    isa_flags: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str | None]
    blas: str
    onednn: str | None
    onednn_max_isa: str | None
    threads: int
    load: float | None
    kernels: str | None
    kernels_missing: str | None
    instruction_sets: tuple[str, ...]
    gpu: str | None
    gpu_kernels_missing: str | None
    sparsebert: str
    revision: str | None

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {"isa_flags": list(self.isa_flags), "instruction_sets": list(self.instruction_sets)}
        return {**asdict(self), **lists}

    @property
    def machine(self) -> str:
        """One line for captions."""
        return f"{self.cpu}, cores: {self.cores}" + (f", {self.gpu}" if self.gpu else "")


def detect() -> Environment:
    """Look around; imports torch, and neither transformers nor triton."""
    import torch

    from sparsebert_kernels import cpu, cuda

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Environment(
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        isa_flags=_isa_flags(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={package: _version(package) for package in PACKAGES},
        blas=blas_name(),
        onednn=_from_torch_config(r"MKL-DNN (v[\d.]+)") if torch.backends.mkldnn.is_available() else None,
        onednn_max_isa=os.environ.get("ONEDNN_MAX_CPU_ISA"),
        threads=torch.get_num_threads(),
        load=load_average(),
        kernels=cpu.instruction_set() if cpu.available() else None,
        kernels_missing=None if cpu.available() else cpu.why_unavailable(),
        instruction_sets=tuple(cpu.instruction_sets()) if cpu.available() else (),
        gpu=gpu,
        gpu_kernels_missing=cuda.why_unavailable(torch.device("cuda")) if gpu else None,
        sparsebert=sparsebert.__version__,
        revision=revision(),
    )


def lacks(environment: Environment) -> list[Lack]:
    """What is missing here, dearest first; empty on a complete machine."""
    missing = {package for package, version in environment.versions.items() if version is None}
    compiler = os.environ.get("CXX", "g++")
    candidates = [
        (
            environment.kernels is None,
            f"the compiled kernel library ({environment.kernels_missing})",
            "sparse layers run through torch: right, but at 90 % no faster than a good dense library",
            "unset SPARSEBERT_ISA, or name one of these"
            if "SPARSEBERT_ISA" in (environment.kernels_missing or "")
            else f"install {compiler} and install sparsebert anew",
        ),
        (
            environment.kernels == "baseline",
            "AVX2, AVX-512 or NEON kernels",
            "the baseline kernels run at a fraction of their speed",
            "a newer CPU, or unset SPARSEBERT_ISA",
        ),
        (
            environment.kernels == "avx2" and "avx512f" in environment.isa_flags,
            "the AVX-512 kernels, although the CPU has AVX-512",
            "the AVX2 kernels run at about two thirds of their speed",
            "unset SPARSEBERT_ISA, or install sparsebert anew",
        ),
        (
            environment.onednn is None,
            "oneDNN in torch",
            "dense layers cannot be prepacked, and the benchmark has no fair dense bar",
            "a torch wheel built with oneDNN",
        ),
        (
            "transformers" in missing,
            "transformers",
            "no model can be loaded; tickets and single layers still work",
            "pip install transformers",
        ),
        (
            "onnxruntime" in missing,
            "onnxruntime",
            "one baseline fewer in `sparsebert bench --vs`",
            "pip install onnxruntime onnx",
        ),
        (
            shutil.which(compiler) is None,
            f"a C++ compiler ({compiler})",
            "torch.compile cannot be a baseline in `sparsebert bench --vs`",
            "install g++",
        ),
        (
            environment.gpu_kernels_missing is not None,
            f"the GPU kernels ({environment.gpu_kernels_missing})",
            "sparse layers on the GPU are computed dense",
            "pip install triton, and a GPU of compute capability 8.0 or newer",
        ),
        (
            environment.gpu is None,
            "a CUDA GPU",
            "everything runs on the CPU",
            "none needed for the CPU kernels",
        ),
    ]
    return [Lack(what, cost, remedy) for lacking, what, cost, remedy in candidates if lacking]


def blas_name() -> str:
    """The library behind torch's own fp32 matrix products, with its version where it says so."""
    import torch

    if torch.backends.mkl.is_available():
        version = _from_torch_config(r"Math Kernel Library Version ([\d.]+)")
        return f"MKL {version}" if version else "MKL"
    named = re.search(r"BLAS_INFO=([\w-]+)", torch.__config__.show())
    names = {"open": "OpenBLAS", "accelerate": "Accelerate", "generic": "generic BLAS", "eigen": "Eigen"}
    return names.get(named[1], named[1]) if named else "unknown BLAS"


def _from_torch_config(pattern: str) -> str | None:
    import torch

    found = re.search(pattern, torch.__config__.show())
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Fields of the first core in /proc/cpuinfo; empty off Linux."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_model() -> str:
    name = _cpuinfo().get("model name")
    if not name and platform.system() == "Darwin":
        name = _output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def _isa_flags() -> tuple[str, ...]:
    fields = _cpuinfo()
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return tuple(flag for flag in TELLING_FLAGS if flag in present)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def revision() -> str | None:
    """Git revision of a source checkout ("+": changed files); None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    revision = _output_of("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    if revision is None:
        return None
    changed = _output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return revision + ("+" if changed else "")


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
