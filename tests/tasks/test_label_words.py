"""A language model's head restricted to label words: the same logits, losses like those of task heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sparsebert.tasks import Task, find_task
from sparsebert.tasks.label_words import RELEASED, WORDS, word_ids, words_for
from sparsebert.tasks.models import load_model, template_of

transformers = pytest.importorskip("transformers")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, "good", "bad", "film", "the", "yes", "no", "ter", "##rible")
SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": len(VOCABULARY)}
FAMILIES = {
    "Bert": SHAPE | {"intermediate_size": 24},
    "Roberta": SHAPE | {"intermediate_size": 24, "pad_token_id": 0},
    "Electra": SHAPE | {"intermediate_size": 24, "embedding_size": 16},
    "DistilBert": {
        "dim": 16,
        "n_heads": 2,
        "n_layers": 2,
        "hidden_dim": 24,
        "vocab_size": len(VOCABULARY),
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})


def saved(folder: Path, tokenizer: Any, family: str = "Bert", head: str = "ForMaskedLM") -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    getattr(transformers, f"{family}{head}")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[2, 8, 7, 5, 3], [2, 8, 7, 6, 3]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_words_at_the_first_token(
    tmp_path: Path, tokenizer: Any, family: str
) -> None:
    name = saved(tmp_path, tokenizer, family)
    model, _ = load_model(name, find_task("sst2"), label_words=("bad", "good"))
    whole = getattr(transformers, f"{family}ForMaskedLM").from_pretrained(name).eval()
    with torch.no_grad():
        found = model.eval()(**batch(), labels=torch.tensor([1, 0]))
        expected = whole(**batch()).logits[:, 0, [6, 5]]
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.loss, F.cross_entropy(expected, torch.tensor([1, 0])))
    assert model.state_dict().keys() == whole.state_dict().keys()
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in whole.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_words_at_the_first_mask_where_there_is_one(
    tmp_path: Path, tokenizer: Any, family: str
) -> None:
    name = saved(tmp_path, tokenizer, family)
    model, _ = load_model(name, find_task("sst2"), label_words=("bad", "good"))
    whole = getattr(transformers, f"{family}ForMaskedLM").from_pretrained(name).eval()
    ids = torch.tensor([[2, 8, 4, 5, 3], [2, 4, 7, 4, 3], [2, 8, 7, 6, 3]])
    with torch.no_grad():
        found = model.eval()(input_ids=ids).logits
        expected = whole(input_ids=ids).logits[..., [6, 5]]
    torch.testing.assert_close(found, torch.stack([expected[0, 2], expected[1, 1], expected[2, 0]]))


def test_a_model_is_saved_with_its_template(tmp_path: Path, tokenizer: Any) -> None:
    name, template = saved(tmp_path / "start", tokenizer), "{0} the [MASK]"
    model, _ = load_model(name, find_task("sst2"), label_words=("bad", "good"), template=template)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    again, _ = load_model(str(tmp_path / "trained"), find_task("sst2"), trained=True)
    assert template_of(again) == template
    assert template_of(transformers.AutoModelForMaskedLM.from_pretrained(name)) is None
    with pytest.raises(ValueError, match=r"template must hold one \[MASK\] .* got '\{0\}'"):
        load_model(name, find_task("sst2"), label_words=("bad", "good"), template="{0}")


def test_a_span_begins_with_yes_and_ends_with_no(tmp_path: Path, tokenizer: Any) -> None:
    name = saved(tmp_path, tokenizer)
    words = words_for(find_task("squad"), "task")
    assert words == ("yes", "no")
    model, _ = load_model(name, find_task("squad"), label_words=words)
    whole = transformers.BertForMaskedLM.from_pretrained(name).eval()
    start, end = torch.tensor([1, 9]), torch.tensor([2, 3])  # the second answer lies beyond its window
    with torch.no_grad():
        found = model.eval()(**batch(), start_positions=start, end_positions=end)
        logits = whole(**batch()).logits
    torch.testing.assert_close(found.start_logits, logits[..., 9])
    torch.testing.assert_close(found.end_logits, logits[..., 10])
    losses = F.cross_entropy(logits[:1, :, 9], start[:1]), F.cross_entropy(logits[..., 10], end)
    torch.testing.assert_close(found.loss, sum(losses) / 2)


def released_score(
    model: Any, ids: torch.Tensor, word: int, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Transcribe kongds/SMP, emmental/modeling_bert_smp.py: the scores and the loss of a regression.

    The head (dense, activation, LayerNorm, the word's row of the tied decoder, its bias) is applied to the
    encoder's output at each [MASK], or at the first token of a text without one. The loss is
    MSE(scores.squeeze(), labels.squeeze()), without a scale.
    """
    hidden, head = model.bert(ids).last_hidden_state, model.cls.predictions
    at = ids == VOCABULARY.index("[MASK]")
    at[~at.any(-1), 0] = True
    x = head.transform.dense(hidden[at])
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + model.config.layer_norm_eps).sqrt()
    x = centred / spread * head.transform.LayerNorm.weight + head.transform.LayerNorm.bias
    scores = (x @ model.bert.embeddings.word_embeddings.weight[word] + head.bias[word])[:, None]
    return scores, (scores.squeeze() - labels.squeeze()).square().mean()


@pytest.mark.parametrize(
    "rows", [[[2, 8, 7, 5, 3], [2, 8, 7, 6, 3]], [[2, 8, 4, 5, 3], [2, 5, 7, 6, 3]], [[2, 8, 7, 6, 3]]]
)
def test_a_score_is_the_logit_of_one_word_as_in_the_released_code(
    tmp_path: Path, tokenizer: Any, rows: list[list[int]]
) -> None:
    name, ids = saved(tmp_path, tokenizer), torch.tensor(rows)
    labels = torch.tensor([4.25, 0.5])[: len(ids)]
    model, _ = load_model(name, find_task("stsb"), label_words=("yes",))
    whole = transformers.BertForMaskedLM.from_pretrained(name).eval()
    torch.nn.init.normal_(whole.cls.predictions.bias, generator=torch.Generator().manual_seed(1))
    model.load_state_dict(whole.state_dict())
    expected, loss = released_score(whole, ids, VOCABULARY.index("yes"), labels)
    found = model.eval()(input_ids=ids, labels=labels)
    assert found.logits.shape == (len(ids), 1)
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.loss, loss)
    key = "encoder.layer.0.output.dense.weight"
    loss.backward()
    found.loss.backward()
    torch.testing.assert_close(model.bert.get_parameter(key).grad, whole.bert.get_parameter(key).grad)


def test_a_trained_score_is_loaded_for_a_regression_only(tmp_path: Path, tokenizer: Any) -> None:
    model, _ = load_model(saved(tmp_path / "start", tokenizer), find_task("stsb"), label_words=("yes",))
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    again, _ = load_model(str(tmp_path / "trained"), find_task("stsb"), trained=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch()).logits, again.eval()(**batch()).logits)
    with pytest.raises(ValueError, match="was trained on a regression, sst2 is a classification"):
        load_model(str(tmp_path / "trained"), find_task("sst2"), trained=True)


def test_it_is_saved_as_the_language_model_it_is_and_knows_its_words(tmp_path: Path, tokenizer: Any) -> None:
    name = saved(tmp_path / "start", tokenizer)
    model, _ = load_model(name, find_task("sst2"), label_words=("bad", "good"))
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    again, _ = load_model(str(tmp_path / "trained"), find_task("sst2"), trained=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch()).logits, again.eval()(**batch()).logits)
        resumed = type(model).from_pretrained(tmp_path / "trained").eval()
        assert torch.equal(model(**batch()).logits, resumed(**batch()).logits)
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "trained")
    assert type(plain) is transformers.BertForMaskedLM
    assert again.config.id2label == {0: "negative", 1: "positive"}
    with pytest.raises(ValueError, match="label"):
        load_model(str(tmp_path / "trained"), find_task("cola"), trained=True)
    with pytest.raises(ValueError, match="was trained on a classification, squad is a span"):
        load_model(str(tmp_path / "trained"), find_task("squad"), trained=True)


def test_a_model_without_such_a_head_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    name = saved(tmp_path, tokenizer, head="Model")
    with pytest.raises(ValueError, match=r"need the head of a masked language model; .* is a BertModel"):
        load_model(name, find_task("sst2"), label_words=("bad", "good"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("terrible", "good"), "'terrible' must be one token of the model, got 2"),
        (("awful", "good"), "'awful' is not in the model's vocabulary"),
        (("good", "good"), "'good' stands for two labels"),
    ],
)
def test_words_that_are_no_tokens_are_refused(tokenizer: Any, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        word_ids(words, tokenizer)


def test_a_word_of_roberta_is_the_one_after_a_space() -> None:
    """Its vocabulary cuts a word at the beginning of a text into pieces."""
    from tokenizers import ByteLevelBPETokenizer

    pieces = ByteLevelBPETokenizer()
    texts = ["a great film", "the plot is terrible", "it is great"]
    pieces.train_from_iterator(texts * 9, vocab_size=400, show_progress=False, special_tokens=["<unk>"])
    roberta = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, unk_token="<unk>")
    assert len(roberta("great", add_special_tokens=False)["input_ids"]) > 1
    assert roberta.convert_ids_to_tokens(word_ids(("terrible", "great"), roberta)) == ["Ġterrible", "Ġgreat"]


def test_every_task_with_labels_has_words_in_their_order() -> None:
    for name, words in WORDS.items():
        assert len(words) == find_task(name).num_labels
    assert words_for(find_task("sst2"), "task") == ("terrible", "great")
    assert words_for(find_task("sst2"), " bad, good ") == ("bad", "good")
    assert words_for(find_task("stsb"), "task") == ("Yes",)


def test_the_released_code_calls_a_contradiction_yes() -> None:
    """Its labels of MNLI are renumbered, its words are not; the published masks depend on it.

    Its eval.sh exchanges the words of WNLI, too.
    """
    mnli = find_task("mnli")
    assert dict(zip(mnli.labels, words_for(mnli, "task"), strict=True)) == {
        "entailment": "Yes",
        "neutral": "Maybe",
        "contradiction": "No",
    }
    released = words_for(mnli, "task", released=True)
    assert dict(zip(mnli.labels, released, strict=True))["contradiction"] == "Yes"
    assert words_for(find_task("wnli"), "task", released=True) == ("Yes", "No")
    assert {name for name in WORDS if WORDS[name] != RELEASED[name]} == {"mnli", "wnli"}


@pytest.mark.parametrize(
    ("task", "asked", "message"),
    [
        ("stsb", "yes,no", "stsb needs 1 label word, got 2: yes,no"),
        ("wikitext-2", "task", "need a task with classes, scores or spans; wikitext-2 models language"),
        ("mnli", "yes,no", "mnli needs 3 label words, got 2: yes,no"),
    ],
)
def test_tasks_that_have_no_words_are_refused(task: str, asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        words_for(find_task(task), asked)


@pytest.mark.parametrize(("kind", "example"), [("classification", "terrible,great"), ("regression", "Yes")])
def test_an_own_task_has_no_built_in_words(kind: Any, example: str) -> None:
    own = Task("own", kind, ("accuracy",), ("a", "b") if kind == "classification" else ())
    with pytest.raises(ValueError, match=f"own has no built-in label words; pass some, such as {example}$"):
        words_for(own, "task")
