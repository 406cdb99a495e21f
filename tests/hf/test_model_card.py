"""The model card says what the folder and the records say, and claims nothing that they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsebert.hf.model_card import model_card

LAYER = {"shape": [4, 8], "kept": 8, "bias": True, "format": "element", "block": None}
TIMES = {"measured_us": 10.0, "dense_us": 40.0}
ORIGIN = {
    "method": "imp",
    "granularity": "block",
    "block_size": [4, 1],
    "seed": 3,
    "model": {"id": "google-bert/bert-base-uncased"},
}
SEEDS = {
    "kind": "seeds",
    "task": "sst2",
    "metric": "accuracy",
    "seeds": [1, 2],
    "mean": 0.91,
    "std": 0.01,
    "sparsity": 0.75,
}
JUDGED = {**SEEDS, "dense_mean": 0.92, "dense_std": 0.005, "verdict": "winning"}
EVAL = {"kind": "eval", "task": "sst2", "metrics": {"accuracy": 0.9, "f1": 0.8}, "sparsity": None}
BENCH = {
    "kind": "bench",
    "provider": "sparse",
    "ticket": {"sparsity": 0.75},
    "environment": {
        "cpu": "A CPU",
        "cores": 2,
        "kernels": "avx512",
        "versions": {"torch": "2.13"},
        "onednn": "v3",
        "blas": "MKL",
        "gpu": None,
    },
    "workload": {
        "model": "tiny",
        "random_weights": False,
        "batch": 8,
        "lengths": [128],
        "dtype": "float32",
        "threads": 1,
        "device": "cpu",
    },
    "ratio": {"onednn": {"median": 2.5}, "eager": {"median": 3.0}},
    "latency_ms": {"median": 12.34},
    "busy": False,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The config of a model of two matrices of which three quarters are zero."""
    stored = {
        "quant_method": "sparsebert",
        "layers": {"layer.0.up": {**LAYER, **TIMES}, "layer.0.down": {**LAYER, **TIMES}},
        "origin": ORIGIN,
        "tokens": 128,
        "sparsity": 0.75,
        "compaction": None,
        "machine": "cpu, avx512, float32",
    }
    config = {"architectures": ["BertForSequenceClassification"], "quantization_config": stored}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


def section(card: Any, name: str) -> str:
    return str(card.content).split(f"## {name}\n", 1)[1].split("\n## ", 1)[0].strip()


def test_what_the_model_is(folder: Path) -> None:
    card = model_card(folder, name="my-model")
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert (card.data.library_name, card.data.tags) == ("transformers", ["sparsebert", "sparse", "pruning"])
    begin = card.text.split("## ")[0]
    assert begin.startswith(
        "\n# my-model\n\nBertForSequenceClassification from google-bert/bert-base-uncased"
    )
    assert "google-bert/bert-base-uncased, 75.00% sparse (density 25.00%).\n" in begin
    assert "- method: imp\n- granularity: block\n- block size: [4, 1]\n- seed: 3" in begin


TAKEN_OUT = {
    "weights": {"configured": 1000, "exact": 480, "stored": 500},
    "min_row_weights": 0,
    "linears": {
        "layer.0.up": {"configured": [8, 8], "shape": [4, 8]},
        "layer.0.down": {"configured": [8, 8], "shape": [8, 4], "live": [6, 4]},
    },
}


def test_what_was_taken_out_of_it(folder: Path) -> None:
    change(folder, compaction=TAKEN_OUT, layers={})
    card = model_card(folder)
    assert "500 of 1,000 encoder weights remain (50.0%).\n" in card.text
    assert "lossy" not in card.text
    layers = section(card, "Sparsity of each matrix")
    assert "| layer.0.up | 8x8 | 4x8 | 32 | 50.0% |" in layers
    assert "| layer.0.down | 8x8 | 6x4 | 24 | 62.5% |" in layers
    assert section(card, "Speed") == "Not measured."


def test_of_what_is_left_after_that_the_sparse_part(folder: Path) -> None:
    change(folder, compaction=TAKEN_OUT)
    layers = section(model_card(folder), "Sparsity of each matrix")
    assert "| layer.0.up | 8x8 | 4x8 | 8 | 87.5% |" in layers


def test_that_something_was_lost_and_how_much(folder: Path) -> None:
    change(folder, compaction=TAKEN_OUT | {"min_row_weights": 10})
    assert "Compaction was lossy: it also removed rows of fewer than 10 weights." in model_card(folder).text
    moved = {"max": 1.234, "mean": 0.0567, "changed": 0.02}
    change(folder, compaction=TAKEN_OUT | {"min_row_weights": 10, "output_change": moved})
    drift = "which changed the outputs by 0.057 on average and 1.2 at most, and 2.0% of the predictions."
    assert f"rows of fewer than 10 weights, {drift}\n" in model_card(folder).text


def test_how_it_is_loaded_begins_with_our_import(folder: Path) -> None:
    code = section(model_card(folder, name="my-model"), "Load it")
    assert code.index("import sparsebert") < code.index("AutoModelForSequenceClassification.from_pretrained")
    assert 'from_pretrained("my-model")' in code
    assert "`sparsebert.densify_(model)` returns a plain dense model" in code
    change(folder, compaction=TAKEN_OUT)
    code = section(model_card(folder), "Load it")
    assert "`sparsebert.expand_(sparsebert.densify_(model))` returns a plain dense model" in code


def test_the_sparsity_of_each_matrix(folder: Path) -> None:
    assert "| layer.0.up | 4x8 | 4x8 | 8 | 75.0% |" in section(model_card(folder), "Sparsity of each matrix")


class TestQuality:
    def of(self, folder: Path, *records: dict[str, Any]) -> str:
        return section(model_card(folder, records), "Quality")

    def test_not_measured(self, folder: Path) -> None:
        assert self.of(folder) == self.of(folder, BENCH) == "Not measured."

    def test_against_the_dense_model(self, folder: Path) -> None:
        text = self.of(folder, EVAL, JUDGED)
        assert text == (
            "sst2, accuracy: 0.9100 ± 0.0100; dense: 0.9200 ± 0.0050 (verdict: winning). Seeds: 1, 2."
        )

    def test_a_verdict_of_before_near_chance_is_not_repeated(self, folder: Path) -> None:
        text = self.of(folder, JUDGED | {"dense_mean": 0.62, "dense_std": 0.13})
        assert "(verdict: undecided, because dense 0.6200 ± 0.1300 is too close to chance, 0.5000)" in text

    def test_that_no_dense_model_was_there(self, folder: Path) -> None:
        assert "dense" not in self.of(folder, SEEDS)
        assert self.of(folder, EVAL) == (
            "sst2: accuracy 0.9000, f1 0.8000. Not compared with the dense model."
        )

    def test_of_another_model_is_refused(self, folder: Path) -> None:
        with pytest.raises(
            ValueError,
            match=r"'seeds' record must be of this model, .* it is of a model that is 50\.00% sparse",
        ):
            self.of(folder, {**JUDGED, "sparsity": 0.5})


class TestSpeed:
    def of(self, folder: Path, *records: dict[str, Any]) -> str:
        return section(model_card(folder, records), "Speed")

    def test_of_the_whole_model_with_the_name_of_the_device(self, folder: Path) -> None:
        text = self.of(folder, BENCH)
        assert "2.50x against oneDNN, 3.00x against eager (MKL); 12.3 ms per batch." in text
        assert "batch 8, 128 tokens, float32" in text
        assert "A CPU" in text

    def test_on_a_gpu(self, folder: Path) -> None:
        environment = {**BENCH["environment"], "gpu": "A GPU"}
        workload = {**BENCH["workload"], "device": "cuda"}
        assert "A GPU." in self.of(folder, {**BENCH, "environment": environment, "workload": workload})

    def test_on_a_busy_machine(self, folder: Path) -> None:
        assert "do not quote these times" in self.of(folder, {**BENCH, "busy": True})

    def test_of_the_layers_alone(self, folder: Path) -> None:
        text = self.of(folder)
        assert text.startswith(
            "2 of 2 matrices, measured separately with 128 tokens: 0.02 ms against 0.08 ms"
        )
        assert "(4.0x) on cpu, avx512, float32. The whole model was not measured." in text

    def test_not_measured(self, folder: Path) -> None:
        change(folder, layers={"layer": {**LAYER, "measured_us": None, "dense_us": 40.0}})
        assert self.of(folder) == "Not measured."

    def test_of_another_ticket_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="'bench' record"):
            self.of(folder, {**BENCH, "ticket": {"sparsity": 0.9}})


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"id": "bert-base-uncased", "local": False}, "bert-base-uncased"),
        ({"id": "bert-base-uncased", "local": True}, None),
        ({"id": "google-bert/bert-base-uncased"}, "google-bert/bert-base-uncased"),
        ({"id": "my model, the second", "local": False}, None),
        # Of a ticket that does not say whether this is a folder.
        ({"id": "bert-base-uncased"}, None),
        ({"class": "BertModel"}, None),
    ],
)
def test_the_base_model_is_one_that_the_hub_knows(
    folder: Path, model: dict[str, Any], base: str | None
) -> None:
    change(folder, origin={"method": "imp", "model": model})
    assert model_card(folder).data.base_model == base


def test_a_local_base_model_is_said_to_be_one(folder: Path) -> None:
    change(folder, origin={"method": "imp", "model": {"id": "my-bert", "local": True}})
    card = model_card(folder, name="sparse")
    assert "BertForSequenceClassification from the local model my-bert, 75.00% sparse" in card.text
    assert card.data.base_model is None


@pytest.mark.parametrize("config", [None, "{}", "[", '{"quantization_config": {"quant_method": "gptq"}}'])
def test_folders_without_a_sparse_model(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="does not hold a sparse model"):
        model_card(tmp_path)
