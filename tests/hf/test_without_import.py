"""Sparse folders in processes that have not imported sparsebert: nothing loads them, whatever is tried."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import compact_, sparsify_
from sparsebert.hf.save import LOCK
from tests.hf.folders import edit_config, to_format_2
from tests.hf.test_compacted import with_empty_lines
from tests.sparsify.models import answers, build, pruned

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
REPOSITORY, REVISION = "me/sparse", "0" * 40

# Each way to load is an expression of `folder`; each result is the last line of an exception, or "loaded".
WAYS = {
    "AutoModel": "t.AutoModel.from_pretrained(folder)",
    "its class": "t.BertForSequenceClassification.from_pretrained(folder)",
    "another class": "t.AutoModelForTokenClassification.from_pretrained(folder)",
    "any sizes": "t.AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)",
    "pickles": "t.AutoModel.from_pretrained(folder, use_safetensors=False)",
    "a new config": "t.AutoModel.from_pretrained(folder, config=t.BertConfig.from_pretrained(folder))",
    "dtype and device": "t.AutoModel.from_pretrained(folder, dtype='bfloat16', device_map='cpu')",
    "pipeline": "t.pipeline('text-classification', model=folder)",
}
TRY = """
import json, sys, warnings
warnings.simplefilter("ignore")
import transformers as t
t.logging.set_verbosity_error()
results = {}
for name, folder, way in json.load(open(sys.argv[1])):
    try:
        eval(way)
        results[name] = "loaded"
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
results["modules"] = sorted(name for name in sys.modules if name.split(".")[0] == "sparsebert")
print(json.dumps(results))
"""


def run(code: str, attempts: list[tuple[str, str, str]], folder: Path) -> dict[str, Any]:
    """Make the attempts (name, folder, way) in a process of their own; return what became of each."""
    (folder / "attempts.json").write_text(json.dumps(attempts))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", code, str(folder / "attempts.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def as_repository(folder: Path, cache: Path, name: str) -> None:
    """Put the folder into a cache of the hub."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sparse model saved in several ways, and folders that somebody has tampered with."""
    root = tmp_path_factory.mktemp("folders")
    model, ticket = pruned()
    sparsify_(model, ticket, format="element")
    model.save_pretrained(root / "one file")
    model.save_pretrained(root / "many files", max_shard_size="4KB")
    compact_(build(), with_empty_lines(build())).save_pretrained(root / "compacted")
    for kind in ("one file", "many files"):
        as_repository(root / kind, root / "hub", f"{REPOSITORY}-{kind.split()[0]}")
    for kind in ("as transformers advises", "without a lock", "renamed"):
        shutil.copytree(root / "one file", root / kind)
    edit_config(root / "as transformers advises", lambda config: config.pop("quantization_config"))
    for key in ("quantization_config", "transformers_weights"):
        edit_config(root / "without a lock", lambda config, key=key: config.pop(key))
    (root / "renamed" / "sparsebert.safetensors").rename(root / "renamed" / "model.safetensors")
    return root


KINDS = ("one file", "many files", "compacted", "as transformers advises", "without a lock", "renamed")
HUB = (f"{REPOSITORY}-one", f"{REPOSITORY}-many")


@pytest.fixture(scope="module")
def outcomes(folders: Path) -> dict[str, Any]:
    places = {kind: str(folders / kind) for kind in KINDS} | {name: name for name in HUB}
    attempts = [(f"{place}: {way}", path, WAYS[way]) for place, path in places.items() for way in WAYS]
    return run(TRY, attempts, folders)


@pytest.mark.parametrize("place", [*KINDS, *HUB])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_load_it_fails(place: str, way: str, outcomes: dict[str, Any]) -> None:
    assert not outcomes["modules"]
    assert outcomes[f"{place}: {way}"].split(":")[0] in ("OSError", "ValueError")


@pytest.mark.parametrize("place", ["one file", "many files", "compacted", "renamed", *HUB])
@pytest.mark.parametrize("way", ["AutoModel", "its class", "pipeline"])
def test_the_error_says_what_to_import(place: str, way: str, outcomes: dict[str, Any]) -> None:
    assert LOCK in outcomes[f"{place}: {way}"]


def test_with_the_import_it_loads_from_the_hub(folders: Path) -> None:
    attempts = [(name, name, WAYS["AutoModel"]) for name in HUB]
    results = run(f"import sparsebert\n{TRY}", attempts, folders)
    assert [results[name] for name in HUB] == ["loaded", "loaded"]


def test_a_folder_of_before_still_loads(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "one file", tmp_path / "old")
    to_format_2(tmp_path / "old")
    cls = transformers.AutoModelForSequenceClassification
    old, new = (cls.from_pretrained(folder) for folder in (tmp_path / "old", folders / "one file"))
    assert all(map(torch.equal, answers(old), answers(new)))


def test_no_file_has_a_name_that_transformers_looks_for(folders: Path) -> None:
    for kind in ("one file", "many files", "compacted"):
        assert not [*(folders / kind).glob("model*"), *(folders / kind).glob("pytorch_model*")]


@pytest.mark.parametrize("first", ["dense", "many files"])
def test_weights_of_an_earlier_save_are_deleted(first: str, tmp_path: Path) -> None:
    model, ticket = pruned()
    if first == "dense":
        model.save_pretrained(tmp_path, max_shard_size="4KB")
    else:
        sparsify_(pruned()[0], ticket).save_pretrained(tmp_path, max_shard_size="4KB")
    sparsify_(model, ticket).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "sparsebert.safetensors"}


def test_weights_stay_where_the_new_ones_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ticket = pruned()
    sparsify_(model, ticket).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_variant_is_refused(tmp_path: Path) -> None:
    model, ticket = pruned()
    sparsify_(model, ticket)
    with pytest.raises(ValueError, match="variant 'fp16': the folder of a sparse model holds one set"):
        model.save_pretrained(tmp_path / "new", variant="fp16")
    assert not (tmp_path / "new").exists()


def test_the_method_of_the_class_is_refused(tmp_path: Path) -> None:
    model, ticket = pruned()
    sparsify_(model, ticket)
    with pytest.raises(ValueError, match="call model"):
        transformers.PreTrainedModel.save_pretrained(model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    model, ticket = pruned()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="save_directory must be a folder"):
        sparsify_(model, ticket).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("weights", ["../other/model.safetensors", "model.safetensors", 3])
def test_only_our_files_can_be_named(weights: Any, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "one file", tmp_path / "copy")
    edit_config(tmp_path / "copy", lambda config: config["quantization_config"].update(weights=weights))
    with pytest.raises(ValueError, match=r"config\.json: "):
        transformers.AutoModel.from_pretrained(tmp_path / "copy")
