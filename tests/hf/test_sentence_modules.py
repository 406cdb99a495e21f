"""Folders of sentence-transformers models with a sparse encoder, in processes with and without sparsebert."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebert import densify_, prune, sparsify_
from sparsebert.hf.sentence_modules import SPARSE_TYPE
from tests.cli.tiny import SHAPE, WORDS
from tests.hf.folders import to_format_2
from tests.hf.test_without_import import run

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", reason="sentence-transformers: make setup-all")
TEXTS = [" ".join(WORDS[-3:]), WORDS[-1]]

ENCODE = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
import sentence_transformers as s
results = {{}}
for name, folder, way in json.load(open(sys.argv[1])):
    try:
        results[name] = eval(way).encode({TEXTS!r}).tolist()
    except Exception as error:
        results[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(results))
"""
PLAIN = "s.SentenceTransformer(folder, device='cpu')"
TRUSTED = "s.SentenceTransformer(folder, device='cpu', trust_remote_code=True)"


def build(folder: Path) -> Any:
    config = transformers.BertConfig(vocab_size=len(WORDS), **SHAPE)
    transformers.BertModel(config).eval().save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return library.SentenceTransformer(str(folder), device="cpu")


def types(folder: Path) -> list[str]:
    return [module["type"] for module in json.loads((folder / "modules.json").read_text())]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a sparse model, beside the dense one, and the embeddings to expect."""
    root = tmp_path_factory.mktemp("sentences")
    model = build(root / "bert")
    model.save_pretrained(str(root / "dense"))
    encoder = model[0].auto_model
    sparsify_(encoder, prune(encoder, "magnitude", sparsity=0.7), format="element")
    model.save_pretrained(str(root / "sparse"))
    return root / "sparse", model.encode(TEXTS)


def test_modules_json_names_a_type_that_imports_sparsebert(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    dense = types(folder.parent / "dense")
    assert types(folder) == [SPARSE_TYPE, *dense[1:]]
    assert "sparsebert" not in dense[0]


@pytest.fixture(scope="module")
def outcomes(saved: tuple[Path, Any]) -> dict[str, Any]:
    folder, _ = saved
    own_type = folder.parent / "own type"
    shutil.copytree(folder, own_type)
    modules = (folder / "modules.json").read_text()
    (own_type / "modules.json").write_text(modules.replace(SPARSE_TYPE, types(folder.parent / "dense")[0]))
    no_modules = folder.parent / "no modules"
    shutil.copytree(folder, no_modules)
    (no_modules / "modules.json").unlink()
    without = [
        ("plain", str(folder), PLAIN),
        ("own type", str(own_type), PLAIN),
        ("no modules", str(no_modules), PLAIN),
        # Last: this one imports sparsebert.
        ("trusted", str(folder), TRUSTED),
        ("then plain", str(folder), PLAIN),
    ]
    return run(ENCODE, without, folder.parent)


def test_it_loads_without_the_import_if_its_code_is_trusted(
    saved: tuple[Path, Any], outcomes: dict[str, Any]
) -> None:
    for name in ("trusted", "then plain"):
        np.testing.assert_allclose(outcomes[name], saved[1], atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "own type", "no modules"])
def test_it_never_answers_with_random_weights(
    name: str, saved: tuple[Path, Any], outcomes: dict[str, Any]
) -> None:
    """Before version 6, sentence-transformers imports a type of another package without being told to."""
    if name == "plain" and int(library.__version__.split(".")[0]) < 6:
        np.testing.assert_allclose(outcomes[name], saved[1], atol=1e-5)
    else:
        assert "sparsebert" in outcomes[name]


def test_with_the_import_it_loads(saved: tuple[Path, Any]) -> None:
    """The import comes last here; everywhere else in these tests it comes first."""
    folder, expected = saved
    code = f"import sentence_transformers, sparsebert\n{ENCODE}"
    results = run(code, [("plain", str(folder), PLAIN)], folder.parent)
    np.testing.assert_allclose(results["plain"], expected, atol=1e-5)


def test_saved_again_sparse_and_dense(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder, expected = saved
    loaded = library.SentenceTransformer(str(folder), device="cpu")
    loaded.save_pretrained(str(tmp_path / "sparse"))
    assert types(tmp_path / "sparse") == types(folder)
    densify_(loaded[0].auto_model)
    loaded.save_pretrained(str(tmp_path / "dense"))
    assert types(tmp_path / "dense") == types(folder.parent / "dense")
    dense = library.SentenceTransformer(str(tmp_path / "dense"), device="cpu")
    np.testing.assert_allclose(dense.encode(TEXTS), expected, atol=1e-5)


def test_a_folder_of_before_still_loads(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder, expected = saved
    shutil.copytree(folder, tmp_path / "old")
    to_format_2(tmp_path / "old")
    modules = (folder / "modules.json").read_text()
    (tmp_path / "old" / "modules.json").write_text(
        modules.replace(SPARSE_TYPE, types(folder.parent / "dense")[0])
    )
    loaded = library.SentenceTransformer(str(tmp_path / "old"), device="cpu")
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-5)
