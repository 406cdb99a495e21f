"""LayerNorm folded into the product behind it: the same function, and errors in bfloat16 on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import layernorm_folding
from benchmarks.layernorm_folding import Product, errors, in_bfloat16, measured, modelled
from sparsebert.report.layernorm_tables import FORMS, MEASURES, PARAMETERS
from sparsebert.results import read

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "results" / "layernorm.jsonl"
TOKENS, OUT, HIDDEN = 40, 24, 48


@pytest.fixture
def product() -> Product:
    torch.manual_seed(0)
    gamma = 1 + torch.randn(HIDDEN) / 4
    return Product(torch.randn(OUT, HIDDEN), torch.randn(OUT), gamma, torch.randn(HIDDEN), 1e-12)


@pytest.fixture
def sums() -> Tensor:
    torch.manual_seed(1)
    return 3 * torch.randn(TOKENS, HIDDEN) + torch.randn(TOKENS, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = made.with_name("vocab.txt")
    vocabulary.write_text("\n".join([*words, *(f"##{word}" for word in words[5:])]))
    config = transformers.BertConfig(
        vocab_size=57, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(made)
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(made)
    return str(made)


def test_in_float64_the_folded_form_is_layernorm_and_product(product: Product, sums: Tensor) -> None:
    double, exact = product.mapped(Tensor.double), sums.double()
    folded = double.folded(exact, exact, lambda values: values)
    expected = F.linear(
        F.layer_norm(exact, (HIDDEN,), double.gamma, double.beta, double.eps), double.weight, double.bias
    )
    assert (folded - expected).abs().max() < 1e-10


def test_the_ordinary_form_is_that_of_torch_in_bfloat16(product: Product, sums: Tensor) -> None:
    half = product.mapped(Tensor.bfloat16)
    normalised = F.layer_norm(sums.bfloat16(), (HIDDEN,), half.gamma, half.beta, half.eps)
    torchs = F.linear(normalised, half.weight, half.bias).float()
    emulated = product.mapped(in_bfloat16).ordinary(in_bfloat16(sums))
    assert (emulated - torchs).norm() < 2**-9 * torchs.norm()


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_sums_far_from_zero_cost_the_folded_form_its_accuracy(
    product: Product, sums: Tensor, parameters: str
) -> None:
    near, far = (errors(product, sums + shift, parameters) for shift in (0.0, 300.0))
    for measure in MEASURES:
        assert near["folded"][measure] < 1.5 * near["ordinary"][measure]
        assert far["folded_early_statistics"][measure] > 5 * near["folded"][measure]


def test_parameters_in_bfloat16_are_exact_where_nothing_rounds_them(product: Product, sums: Tensor) -> None:
    rounded, given = (errors(product, sums, parameters) for parameters in ("fp32", "bf16"))
    assert given["ordinary"]["rms"] < rounded["ordinary"]["rms"]
    again = errors(product.mapped(in_bfloat16), sums, "fp32")
    assert again == given


def test_every_product_behind_a_layernorm_of_a_layer_is_measured(folder: str) -> None:
    rows = list(measured("tiny-bert", folder))
    products = [(row["layer"], row["product"]) for row in rows if row["parameters"] == "bf16"]
    of_later_layers = ("query", "key", "value", "ffn_up")
    assert products == [(0, "ffn_up"), *((layer, kind) for layer in (1, 2) for kind in of_later_layers)]
    assert len(rows) == 2 * len(products)
    for row in rows:
        assert row["shape"] == ([64, 32] if row["product"] == "ffn_up" else [32, 32])
        assert row["errors"].keys() == FORMS.keys()
        for each in row["errors"].values():
            assert all(0 < each[measure] < 0.02 for measure in MEASURES)


def test_the_time_of_a_layernorm_is_its_traffic_and_a_launch() -> None:
    *_, longest = modelled()
    assert longest["tokens"] == 16384
    traffic = 2 * 16384 * 768 * 2 / 4.3e12
    assert longest["layernorm_us"] == pytest.approx(traffic * 1e6 + longest["kernel_us"], abs=0.01)
    assert longest["dense_us"] > longest["sparse_us"] > longest["layernorm_us"]


def test_the_stored_times_are_those_of_the_model() -> None:
    """Otherwise: ``python -m benchmarks.layernorm_folding --out`` this file, then ``render_docs --write``."""
    stored = [row for row in read(STORED) if row["part"] == "time"]
    for row, fields in zip(stored, modelled(), strict=True):
        assert fields.items() <= row.items()


def test_what_docs_say_of_the_errors_is_what_was_measured() -> None:
    """``docs/gpu.md`` says it without figures, which stand in ``kernels/README.md``."""
    rows = [row for row in read(STORED) if row["part"] == "error"]

    def ratios(parameters: str, measure: str) -> list[float]:
        return [
            row["errors"]["folded"][measure] / row["errors"]["ordinary"][measure]
            for row in rows
            if row["parameters"] == parameters
        ]

    assert max(ratios("fp32", "rms")) < 1
    assert max(ratios("fp32", "largest")) < 1
    assert max(abs(ratio - 1) for ratio in ratios("bf16", "rms")) < 0.02
    larger = [ratio > 1 for ratio in ratios("bf16", "largest")]
    assert 0 < sum(larger) < len(larger) / 2


def test_the_records_replace_those_of_an_earlier_run(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layernorm_folding, "weights_folder", lambda: folder)
    out = tmp_path / "layernorm.jsonl"
    out.write_text("earlier\n")
    monkeypatch.setattr("sys.argv", ["layernorm_folding", "--model", folder, "--out", str(out)])
    assert layernorm_folding.main() == 0
    rows = read(out, "layernorm_folding")
    assert {row.get("model") for row in rows} == {"all-MiniLM-L6-v2", "tiny-bert", None}
    assert folder not in json.dumps(rows)
    assert "tiny-bert: ordinary" in capsys.readouterr().out


def test_a_model_without_such_layernorms_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=57, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "tiny-gpt2")
    monkeypatch.setattr(layernorm_folding, "weights_folder", lambda: folder)
    monkeypatch.setattr("sys.argv", ["layernorm_folding", "--model", str(tmp_path / "tiny-gpt2")])
    with pytest.raises(SystemExit, match="2"):
        layernorm_folding.main()
    assert "tiny-gpt2 must be a BERT" in capsys.readouterr().err
