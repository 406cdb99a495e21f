"""Models that cannot be loaded are refused in one line that says what is wrong with which."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebert.tasks.load_checked import load_config, load_weights
from tests.sparsify.models import build

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("BertModel").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def edit_config(**changes: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def weights(content: bytes, name: str = "model.safetensors") -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return replace


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_what_is_whole_is_loaded(folder: Path) -> None:
    assert load_config(str(folder)).model_type == "bert"
    assert load_weights(transformers.AutoModel, str(folder)).config.model_type == "bert"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not a usable JSON file"),
        (
            lambda folder: (folder / "config.json").write_bytes(b"\x80"),
            "config.json is not a usable JSON file",
        ),
        (lambda folder: (folder / "config.json").write_text("[1]"), "must hold a JSON object, got list"),
        (edit_config(hidden_size="wide"), "its config.json is not usable"),
        (edit_config(model_type="no such"), "its config.json is not usable"),
    ],
)
def test_configurations(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    line = refusal(lambda: load_config(str(folder)))
    assert message in line
    assert str(folder) in line


@pytest.mark.parametrize(
    "stored", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "mine"}, {}, "gptq"]
)
def test_weights_that_another_library_has_quantised(folder: Path, stored: Any) -> None:
    edit_config(quantization_config=stored)(folder)
    method = stored.get("quant_method") if isinstance(stored, dict) else stored
    line = refusal(lambda: load_config(str(folder)))
    assert line.startswith(f"{folder}: quant_method in its config.json is {method!r}; expected plain")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (weights(b""), "its weights are damaged or truncated"),
        (weights(b"\x7f" * 99), "its weights are damaged or truncated (SafetensorError"),
        (weights(b"hello", "pytorch_model.bin"), "its weights are damaged or truncated"),
        (weights(b"PK\x03\x04" + b"\x7f" * 99, "pytorch_model.bin"), "its weights are damaged or truncated"),
        (edit_config(intermediate_size=4), "its weights are not of the shapes in its config.json"),
    ],
)
def test_weights(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    line = refusal(lambda: load_weights(transformers.AutoModel, str(folder)))
    assert line.startswith(str(folder))
    assert message in line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "tensor",
    [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.bias",
        "bert.encoder.layer.1.output.dense.weight",
        "classifier.bias",
    ],
)
def test_values_that_are_not_finite(tmp_path: Path, tensor: str, value: float) -> None:
    model = build("BertForSequenceClassification")
    model.get_parameter(tensor).detach().view(-1)[-1] = value
    model.save_pretrained(tmp_path)
    line = refusal(lambda: load_weights(transformers.AutoModelForSequenceClassification, str(tmp_path)))
    assert line == f"{tmp_path}: its weights hold NaN or infinity in {tensor}"


def test_finite_values_whose_sum_overflows(tmp_path: Path) -> None:
    model = build("BertModel")
    model.pooler.dense.weight.detach().fill_(3e38)
    model.save_pretrained(tmp_path)
    assert load_weights(transformers.AutoModel, str(tmp_path)).pooler.dense.weight.min() == 3e38


def test_names_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_text("text")
    assert "is a file; expected a hub id or the folder" in refusal(
        lambda: load_config(str(tmp_path / "file"))
    )
    assert "is not a folder, not cached" in refusal(lambda: load_config(str(tmp_path / "missing")))


def test_a_run_in_place_of_its_model(folder: Path) -> None:
    folder.rename(folder.parent / "model")
    line = refusal(lambda: load_config(str(folder.parent)))
    assert line.endswith(f"did you mean {folder.parent / 'model'}?")
