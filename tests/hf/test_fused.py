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
from sparsebert.nn.fused_modules import fuse_modules_
from sparsebert_kernels.cpu import fp16
from sparsebert_kernels.cpu.encoder import has_engine
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

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_a_batch_takes_one_native_call(
        self, library: Any, pooling: str, normalize: bool, tmp_path: Path, native_calls: list[str]
    ) -> None:
        model = self.sentences(library, tmp_path, pooling, normalize)
        expected = model.encode(TEXTS[:2])
        for each in (fuse_(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            native_calls.clear()
            answer = each.encode(TEXTS[:2])
            assert native_calls == ["sb_encoder"]
            assert np.allclose(answer, expected, atol=1e-5)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_hooks_see_what_they_see_without_fusing(
        self, library: Any, place: int, tmp_path: Path, native_calls: list[str]
    ) -> None:
        model = self.sentences(library, tmp_path)
        seen: list[Any] = []

        def look(module: Any, args: Any, features: Any) -> None:
            seen.append({name: each.clone() for name, each in features.items() if "embedding" in name})
            features["token_embeddings"][:] = 0

        model[place].register_forward_hook(look)
        expected = model.encode(TEXTS[:2])
        assert np.allclose(fuse_(model).encode(TEXTS[:2]), expected, atol=1e-5)
        assert native_calls.count("sb_pool") == (1 if place == 2 else 2)
        assert seen[0].keys() == seen[1].keys()
        for name in seen[0].keys() - {"token_embeddings"}:
            assert torch.allclose(seen[0][name], seen[1][name], atol=1e-5)

    def test_modules_in_between_and_after_run(self, library: Any, tmp_path: Path) -> None:
        modules = library.sentence_transformer.modules
        parts = [*self.sentences(library, tmp_path, normalize=False)]
        dense = modules.Dense(SHAPE["hidden_size"], 3, activation_function=torch.nn.Tanh())
        weights = modules.LayerNorm(SHAPE["hidden_size"])
        with torch.no_grad():
            weights.norm.bias += 1
        for chain in ([*parts, dense, modules.Normalize()], [*parts, weights], parts[:1]):
            model = library.SentenceTransformer(modules=chain, device="cpu")
            if len(chain) == 1:
                features = model.preprocess(TEXTS)
                with torch.inference_mode():
                    expected = model(dict(features))["token_embeddings"]
                    states = fuse_(model)(dict(features))["token_embeddings"]
                kept = features["attention_mask"].bool()
                assert torch.allclose(states[kept], expected[kept], atol=1e-5)
                continue
            expected = model.encode(TEXTS)
            assert np.allclose(fuse_(model).encode(TEXTS), expected, atol=1e-5)
            unfuse_(model)

    def test_a_module_that_is_replaced_or_removed(self, library: Any, tmp_path: Path) -> None:
        model, plain = (self.sentences(library, tmp_path / name) for name in ("one", "two"))
        fuse_(model).encode(TEXTS)
        model[1].pooling_mode = plain[1].pooling_mode = "cls"
        assert np.allclose(model.encode(TEXTS), plain.encode(TEXTS), atol=1e-5)
        for each in (model, plain):
            del each[2]
        assert np.allclose(model.encode(TEXTS), plain.encode(TEXTS), atol=1e-5)
        model[1] = plain[1]
        assert np.allclose(model.encode(TEXTS), plain.encode(TEXTS), atol=1e-5)

    def test_masks_that_weight_tokens(self, library: Any, tmp_path: Path) -> None:
        model = self.sentences(library, tmp_path)
        features = {
            "input_ids": torch.full((2, 3), 5),
            "attention_mask": torch.tensor([[1, 2, 1], [1, 1, 1]]),
        }
        with torch.inference_mode():
            answer = fuse_(model)(dict(features))["sentence_embedding"]
        states = unfuse_(copy.deepcopy(model))[0].auto_model(
            features["input_ids"], attention_mask=features["attention_mask"].bool()
        )[0]
        weights = features["attention_mask"][..., None]
        mean = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
        assert torch.allclose(answer, mean, atol=1e-5)

    @pytest.mark.skipif(not has_engine(torch.bfloat16), reason="no paired engine here")
    def test_models_in_bfloat16(self, library: Any, tmp_path: Path, native_calls: list[str]) -> None:
        model = self.sentences(library, tmp_path)
        exact = model.encode(TEXTS)
        plain = model.bfloat16().encode(TEXTS, convert_to_tensor=True)
        answer = fuse_(model).encode(TEXTS, convert_to_tensor=True)
        assert answer.dtype == plain.dtype == torch.bfloat16
        error, error_of_torch = (np.linalg.norm(each.float().numpy() - exact) for each in (answer, plain))
        assert error <= 1.2 * error_of_torch
        native_calls.clear()
        model.encode(TEXTS)
        assert native_calls == ["sb_encoder"]

    def test_models_in_the_fp16_engine(self, library: Any, tmp_path: Path, native_calls: list[str]) -> None:
        model = self.sentences(library, tmp_path)
        expected = model.encode(TEXTS)
        with fp16.emulation():
            fuse_modules_(model, "fp16")
            native_calls.clear()
            answer = model.encode(TEXTS)
            assert [name for name in native_calls if name != "sb_fp16_supported"] == ["sb_encoder"]
            assert 0 < np.abs(answer - expected).max() < 2e-3
            norm = model[0].auto_model.encoder.layer[0].output.LayerNorm.weight
            with torch.no_grad():
                norm *= 1e6
            with pytest.warns(RuntimeWarning, match="beyond fp16's range"):
                answer = model.encode(TEXTS)
        assert np.allclose(answer, unfuse_(model).encode(TEXTS), atol=1e-5)

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
