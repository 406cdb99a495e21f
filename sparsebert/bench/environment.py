"""Description of the machine and of the installation: part of every record; ``sparsebert env`` prints it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sparsebert
from sparsebert.bench.contention import load_average, usable_cores
from sparsebert.bench.cpu_extensions import Extension

# The extensions that decide which kernels can run; the full list of flags would hide them.
TELLING_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "bf16",
    "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("torch", "triton", "transformers", "numpy", "onnxruntime", "openvino", "nncf", "torchao")


@dataclass(frozen=True)
class Lack:
    """A missing component, the cost of its absence, and how to install it."""

    what: str
    cost: str
    remedy: str


@dataclass(frozen=True)
class Environment:
    """Machine, versions and libraries of a process."""

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
        """Return the fields as plain JSON values."""
        lists = {"isa_flags": list(self.isa_flags), "instruction_sets": list(self.instruction_sets)}
        return {**asdict(self), **lists}

    @property
    def machine(self) -> str:
        """CPU, cores and GPU in one line, for captions."""
        return f"{self.cpu}, cores: {self.cores}" + (f", {self.gpu}" if self.gpu else "")


def detect() -> Environment:
    """Describe this process's environment. Imports torch, but neither transformers nor triton."""
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


def lacks(environment: Environment, extensions: Sequence[Extension] = ()) -> list[Lack]:
    """Return the missing components, most costly first.

    Args:
        environment: The machine.
        extensions: The extensions of its CPU.
    """
    missing = {package for package, version in environment.versions.items() if version is None}
    compiler = os.environ.get("CXX", "g++")
    candidates = [
        (
            environment.kernels is None,
            f"the compiled kernel library ({environment.kernels_missing})",
            "sparse layers run through torch: correct, but at 90 % no faster than a good dense library",
            "unset SPARSEBERT_ISA, or name one of these"
            if "SPARSEBERT_ISA" in (environment.kernels_missing or "")
            else f"install {compiler} and reinstall sparsebert",
        ),
        (
            environment.kernels == "baseline",
            "AVX2, AVX-512 or NEON kernels",
            "the baseline kernels run at a fraction of the speed",
            "a newer CPU, or unset SPARSEBERT_ISA",
        ),
        (
            environment.kernels == "avx2" and "avx512f" in environment.isa_flags,
            "the AVX-512 kernels, although the CPU has AVX-512",
            "the AVX2 kernels run at about two thirds of the speed",
            "unset SPARSEBERT_ISA, or reinstall sparsebert",
        ),
        (
            environment.onednn is None,
            "oneDNN in torch",
            "dense layers cannot be prepacked, and the benchmark lacks its main baseline",
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
            "`sparsebert bench --vs` lacks the baseline onnxruntime",
            "pip install onnxruntime onnx",
        ),
        (
            shutil.which(compiler) is None,
            f"a C++ compiler ({compiler})",
            "`sparsebert bench --vs` lacks the baseline compile",
            "install g++",
        ),
        (
            environment.gpu_kernels_missing is not None,
            f"the GPU kernels ({environment.gpu_kernels_missing})",
            "sparse layers on the GPU are computed as dense ones",
            "pip install triton, and a GPU of compute capability 8.0 or newer",
        ),
        (
            environment.gpu is None,
            "a CUDA GPU",
            "everything runs on the CPU",
            "none needed for the CPU kernels",
        ),
    ]
    unusable = [
        Lack(
            f"{each.name}, which the CPU has: {each.missing}",
            f"slower kernels compute {each.brings}",
            "a newer Linux (AMX: 5.16), or a virtual machine that enables it",
        )
        for each in extensions
        if each.missing and not each.cpu_lacks_it
    ]
    return unusable + [Lack(what, cost, remedy) for lacking, what, cost, remedy in candidates if lacking]


def blas_name() -> str:
    """Return the library of torch's float32 matrix products, with its version if known."""
    import torch

    if torch.backends.mkl.is_available():
        version = _from_torch_config(r"Math Kernel Library Version ([\d.]+)")
        return f"MKL {version}" if version else "MKL"
    name = _from_torch_config(r"BLAS_INFO=([\w-]+)")
    names = {"open": "OpenBLAS", "accelerate": "Accelerate", "generic": "generic BLAS", "eigen": "Eigen"}
    return names.get(name, name) if name else "unknown BLAS"


def _from_torch_config(pattern: str) -> str | None:
    import torch

    match = re.search(pattern, torch.__config__.show())
    return match[1] if match else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first core in /proc/cpuinfo; empty off Linux."""
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
    """Return the git revision of a source checkout ("+": changed files), None for an installed package."""
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
