"""Fused models in sentence-transformers and in the pipelines of transformers."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert import fuse_, prune, sparsify_, unfuse_
from tests.cli.tiny import SHAPE, WORDS
from tests.fuse.models import MARKS

transformers = pytest.importorskip("transformers")
pytestmark = MARKS

VOCABULARY = {word: index for index, word in enumerate(WORDS)}
PLAIN_WORDS = [word for word in WORDS if not word.startswith("[")]
TEXTS = [" ".join(PLAIN_WORDS[:n]) for n in (1, 4, 0, 7, 2)]


def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab=VOCABULARY)


def bert(head: str = "BertModel") -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **SHAPE)
    return getattr(transformers, head)(config).eval()


class TestSentenceTransformers:
    @pytest.fixture
    def library(self) -> Any:
        return pytest.importorskip("sentence_transformers", reason="sentence-transformers: make setup-all")

    def sentences(self, library: Any, folder: Path, pooling: Any = "mean", normalize: bool = True) -> Any:
        bert().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        modules = library.sentence_transformer.modules
        transformer = modules.Transformer(str(folder))
        parts = [transformer, modules.Pooling(transformer.get_embedding_dimension(), pooling)]
        parts += [modules.Normalize()] if normalize else []
        return library.SentenceTransformer(modules=parts, device="cpu")

    @pytest.mark.parametrize("pooling", ["mean", "cls", "max", ("cls", "mean")], ids=str)
    @pytest.mark.parametrize("normalize", [False, True])
    def test_embeddings_stay_the_same(
        self, library: Any, pooling: Any, normalize: bool, tmp_path: Path
    ) -> None:
        model = self.sentences(library, tmp_path, pooling, normalize)
        expected = model.encode(TEXTS, batch_size=2)
        assert np.allclose(fuse_(model).encode(TEXTS, batch_size=2), expected, atol=1e-5)
        tokens = model.encode(TEXTS, output_value="token_embeddings")
        assert [each.shape for each in tokens] == [
            each.shape for each in unfuse_(model).encode(TEXTS, output_value="token_embeddings")
        ]

    def test_a_batch_takes_three_native_calls(
        self, library: Any, tmp_path: Path, native_calls: list[str]
    ) -> None:
        model = fuse_(self.sentences(library, tmp_path))
        native_calls.clear()
        model.encode(TEXTS[:2])
        assert native_calls == ["sb_encoder", "sb_pool", "sb_pool"]

    def test_what_is_saved(self, library: Any, tmp_path: Path) -> None:
        model = self.sentences(library, tmp_path / "bert")
        model.save_pretrained(str(tmp_path / "plain"), create_model_card=False)
        fuse_(model).save_pretrained(str(tmp_path / "fused"), create_model_card=False)
        modules = [json.loads((tmp_path / name / "modules.json").read_text()) for name in ("plain", "fused")]
        assert modules[0] == modules[1]
        loaded = library.SentenceTransformer(str(tmp_path / "fused"), device="cpu")
        assert np.allclose(loaded.encode(TEXTS), model.encode(TEXTS), atol=1e-5)

    def test_sparse_models_copies_and_pickles(self, library: Any, tmp_path: Path) -> None:
        model = self.sentences(library, tmp_path)
        encoder = model[0].auto_model
        sparsify_(encoder, prune(encoder, sparsity=0.7))
        expected = model.encode(TEXTS)
        fuse_(model)
        for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert np.allclose(each.encode(TEXTS), expected, atol=1e-5)
        assert [type(module) for module in unfuse_(model)] == [
            type(module) for module in copy.deepcopy(model)
        ]
        assert np.allclose(model.encode(TEXTS), expected, atol=1e-5)

    def test_a_prompt_that_pooling_leaves_out(self, library: Any, tmp_path: Path) -> None:
        model = self.sentences(library, tmp_path)
        model[1].include_prompt = False
        expected = model.encode(TEXTS, prompt=f"{PLAIN_WORDS[3]} ")
        assert np.allclose(fuse_(model).encode(TEXTS, prompt=f"{PLAIN_WORDS[3]} "), expected, atol=1e-5)

    def test_gradients(self, library: Any, tmp_path: Path) -> None:
        model = fuse_(self.sentences(library, tmp_path)).train()
        features = model.preprocess(TEXTS)
        with pytest.warns(UserWarning, match="gradients are recorded|training mode"):
            model(features)["sentence_embedding"].sum().backward()
        assert model[0].auto_model.embeddings.word_embeddings.weight.grad is not None


class TestPipelines:
    def results(self, task: str, head: str, texts: Any, **options: Any) -> tuple[Any, Any]:
        model = bert(head)
        pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer(), device="cpu")
        plain = pipe(texts, **options)
        fuse_(model)
        return plain, pipe(texts, **options)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_feature_extraction(self, batch_size: int) -> None:
        for plain, fused in zip(
            *self.results("feature-extraction", "BertModel", TEXTS, batch_size=batch_size), strict=True
        ):
            # A batch is padded; what is padding is zero in a fused model.
            plain, fused = np.array(plain), np.array(fused)
            assert plain.shape == fused.shape
            kept = fused.any(-1)
            assert np.allclose(plain[kept], fused[kept], atol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_text_classification(self, batch_size: int) -> None:
        options = {"batch_size": batch_size, "top_k": None}
        plain, fused = self.results("text-classification", "BertForSequenceClassification", TEXTS, **options)
        for before, after in zip(plain, fused, strict=True):
            assert [each["label"] for each in before] == [each["label"] for each in after]
            assert np.allclose(
                [each["score"] for each in before], [each["score"] for each in after], atol=1e-5
            )

    def test_fill_mask(self) -> None:
        texts = [f"{text} [MASK]" for text in TEXTS]
        plain, fused = self.results("fill-mask", "BertForMaskedLM", texts)
        for before, after in zip(plain, fused, strict=True):
            assert np.allclose(
                [each["score"] for each in before], [each["score"] for each in after], atol=1e-5
            )
