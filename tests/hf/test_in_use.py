"""Loaded sparse models in other people's hands: Trainer, pipelines, compilers."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebert import prune, sparsify_
from sparsebert.bert import resolve
from tests.cli.tiny import SHAPE, WORDS, sentences
from tests.sparsify.models import TOKENS, answers, pruned

transformers = pytest.importorskip("transformers")
trainer_module = pytest.importorskip("sparsebert.hf.trainer")
CLASSIFIER = transformers.AutoModelForSequenceClassification


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def sparse_classifier(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **SHAPE)
    model = transformers.BertForSequenceClassification(config).eval()
    ticket = prune(model, "magnitude", sparsity=0.5)
    return sparsify_(model, ticket, **options), ticket


class TestTrainer:
    @pytest.fixture
    def examples(self, tokenizer: Any) -> list[dict[str, Any]]:
        return [
            {**tokenizer(text, padding="max_length", max_length=8), "labels": label}
            for text, label in sentences()
        ]

    def trainer(self, model: Any, examples: Any, folder: Path, steps: int, **options: Any) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            save_steps=4,
            learning_rate=3e-3,
            per_device_train_batch_size=8,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        return transformers.Trainer(model, arguments, train_dataset=examples, eval_dataset=examples)

    def test_fine_tunes_a_ticket_that_was_loaded_within_its_masks(
        self, examples: Any, tmp_path: Path
    ) -> None:
        pytest.importorskip("accelerate")
        model, ticket = sparse_classifier(trainable=True)
        model.save_pretrained(tmp_path / "before")
        loaded = CLASSIFIER.from_pretrained(tmp_path / "before")
        trainer = self.trainer(loaded, examples, tmp_path / "run", steps=30)
        losses = [trainer.train().training_loss, trainer.evaluate()["eval_loss"]]
        assert losses[1] < 0.5 * losses[0]
        trainer.save_model(str(tmp_path / "after"))
        after = CLASSIFIER.from_pretrained(tmp_path / "after")
        torch.testing.assert_close(answers(after), answers(loaded.eval()))
        for key, mask in ticket.masks.items():
            assert torch.equal(resolve(after, key).mask, mask)
            assert not torch.equal(resolve(after, key).weight, resolve(model, key).weight)

    def test_goes_on_from_its_checkpoint(self, examples: Any, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        ends = []
        for name, stops in (("once", (8,)), ("twice", (4, 8))):
            for step in stops:
                model, _ = sparse_classifier(trainable=True)
                trainer = self.trainer(model, examples, tmp_path / name, step)
                trainer.train(resume_from_checkpoint=step != stops[0])
            ends.append(answers(trainer.model.eval(), TOKENS % len(WORDS)))
        assert torch.equal(ends[0][0], ends[1][0])

    def test_brings_back_the_best_of_its_checkpoints(self, examples: Any, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        model, _ = sparse_classifier(trainable=True)
        trainer = self.trainer(
            model, examples, tmp_path, 8, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True
        )
        trainer.train()
        best = CLASSIFIER.from_pretrained(trainer.state.best_model_checkpoint)
        torch.testing.assert_close(
            answers(trainer.model.eval(), TOKENS % len(WORDS)), answers(best, TOKENS % len(WORDS))
        )

    def test_loads_a_checkpoint_in_many_files(self, examples: Any, tmp_path: Path) -> None:
        """Mask bits and values of a layer may be in different files."""
        pytest.importorskip("accelerate")
        model, _ = sparse_classifier(trainable=True)
        model.save_pretrained(tmp_path / "checkpoint", max_shard_size="1KB")
        trainer = self.trainer(model, examples, tmp_path / "run", steps=1)
        tokens = TOKENS % len(WORDS)
        expected = answers(model, tokens)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
        assert torch.equal(answers(trainer.model, tokens)[0], expected[0])

    def test_uploads_the_weights_of_a_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = sparse_classifier()
        model.save_pretrained(tmp_path / "checkpoint", max_shard_size="4KB")
        pushed: list[str] = []
        monkeypatch.setattr(
            trainer_module, "_push_from_checkpoint", lambda self, folder: pushed.append(folder)
        )
        (tmp_path / "out").mkdir()
        trainer = SimpleNamespace(
            is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(tmp_path / "out"))
        )
        trainer_module.push_from_checkpoint(trainer, str(tmp_path / "checkpoint"))
        assert pushed == [str(tmp_path / "checkpoint")]
        weights = {file.name for file in (tmp_path / "checkpoint").glob("sparsebert*")}
        assert {file.name for file in (tmp_path / "out").iterdir()} == weights


def test_pipeline(tokenizer: Any, tmp_path: Path) -> None:
    model, _ = sparse_classifier()
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None)
    text = sentences()[0][0]
    expected = answers(model, tokenizer(text, return_tensors="pt")["input_ids"])[0].softmax(-1)[0]
    found = {each["label"]: each["score"] for each in classify([text])[0]}
    assert found["LABEL_1"] == pytest.approx(float(expected[1]), abs=1e-6)


class TestCompilers:
    @pytest.fixture
    def loaded(self, tmp_path: Path) -> Any:
        model, ticket = pruned("BertModel")
        sparsify_(model, ticket, format="element").save_pretrained(tmp_path)
        return transformers.AutoModel.from_pretrained(tmp_path)

    def test_compile_the_whole_graph(self, loaded: Any) -> None:
        torch._dynamo.reset()
        compiled: Any = torch.compile(loaded, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(answers(compiled), answers(loaded))

    def test_export(self, loaded: Any) -> None:
        file = io.BytesIO()
        with torch.no_grad():
            torch.export.save(torch.export.export(loaded, (TOKENS,), strict=False), file)
        file.seek(0)
        exported: Any = torch.export.load(file).module()
        torch.testing.assert_close(exported(TOKENS).last_hidden_state.detach(), answers(loaded)[0])
