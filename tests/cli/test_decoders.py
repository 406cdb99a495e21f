"""Commands on decoders, GPT-2 and a Llama, and training of encoders beside the BERT-like ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import results
from sparsebert.cli import app
from sparsebert.tickets.ticket import Ticket
from tests import decoders
from tests.cli.tiny import QUICK, WORDS, refused

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

BUILD = {"gpt2": decoders.gpt2, "llama": decoders.llama}


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    """A text of one's own in which every word follows from the one before."""
    lines = ["the film is good and the plot is fine", "a film is bad and a plot is poor"] * 30
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text("\n".join(lines))
    files = ["--train-file", str(tmp_path / "train.txt"), "--validation-file", str(tmp_path / "valid.txt")]
    return [*files, "--lm", "causal"]


def trained(tmp_path: Path, name: str, text: list[str], *options: str) -> tuple[Path, list[dict[str, Any]]]:
    """Train a decoder by a method; return the run and the records of its rounds."""
    model = tmp_path / name
    if not model.exists():
        decoders.saved(model, BUILD[name]())
    run = tmp_path / "run"
    quick = ["--steps", "20", "--batch-size", "8", "--learning-rate", "0.02", "--max-length", "16"]
    there = ["--model", str(model), "--out", str(run), "--device", "cpu", *quick]
    assert app.main(["train", *there, *text, *options]) == 0
    return run, list(results.read(run / "log.jsonl", "round"))


@pytest.mark.parametrize("name", BUILD)
def test_a_ticket_from_training_to_the_report(
    name: str, tmp_path: Path, text: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, evaluate dense, masked and sparse, report, and convert; the text is learnt."""
    run, rounds = trained(tmp_path, name, text, "--method", "imp", "--sparsity", "0.5", "--step", "0.3")
    last = rounds[-1]
    assert len(rounds) > 2
    assert abs(last["sparsity"] - 0.5) < 0.01
    assert last["metrics"]["accuracy"] > 0.5
    assert 1 < last["metrics"]["perplexity"] < 6 < len(decoders.WORDS)
    assert "perplexity" not in last["chance"]
    model = ["--model", str(run / "model"), *text[2:], "--max-length", "16"]
    rows_file = str(tmp_path / "eval.jsonl")
    ticket = ["--ticket", str(run / "ticket.safetensors")]
    for options in ([], ticket, [*ticket, "--no-fuse"]):
        assert app.main(["eval", *model, *options, "--json", rows_file]) == 0
    for row in results.read(Path(rows_file), "eval"):
        assert row["metrics"] == pytest.approx(last["metrics"], rel=1e-4)
    capsys.readouterr()
    assert app.main(["report", str(run), rows_file]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert app.main(["convert", str(run), str(tmp_path / "sparse"), "--to", "sparse", "--seq", "16"]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    dense = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    prompt = torch.tensor([[3, 4]])
    tokens = [each.generate(prompt, max_new_tokens=12, pad_token_id=1).tolist() for each in (loaded, dense)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("method", ["one-shot", "snip", "gradual", "movement", "l0", "random"])
def test_methods_on_conv1d(method: str, tmp_path: Path, text: list[str]) -> None:
    """The ticket's pruned weights are zero in the trained model, a GPT-2 as transformers saves it."""
    sparsity = [] if method == "l0" else ["--sparsity", "0.5"]
    run, (*_, last) = trained(tmp_path, "gpt2", text, "--method", method, *sparsity)
    ticket = Ticket.load(run / "ticket.safetensors")
    model = transformers.GPT2LMHeadModel.from_pretrained(run / "model")
    zeros = 0
    for key, mask in ticket.masks.items():
        weight = model.get_submodule(f"transformer.{key}").weight.t()
        assert not weight[~mask].any()
        zeros += int((~mask).sum())
    assert zeros == last["prunable"] - last["kept"]


def test_a_killed_movement_run_ends_with_the_same_model(
    tmp_path: Path, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints hold a ``Conv1D`` in its own layout, also while its mask is learnt, square ones too."""
    from sparsebert.lottery import loop

    options = ("--method", "movement", "--sparsity", "0.5", "--save-steps", "5")
    _, whole = trained(tmp_path, "gpt2", text, *options)
    (tmp_path / "run").rename(tmp_path / "whole")
    learned = loop._Run._learned

    def killed(*arguments: Any) -> Ticket:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_learned", killed)
    with pytest.raises((AssertionError, KeyboardInterrupt)):
        trained(tmp_path, "gpt2", text, *options)
    monkeypatch.setattr(loop._Run, "_learned", learned)
    _, resumed = trained(tmp_path, "gpt2", text, *options)
    assert resumed[0]["masks_sha256"] == whole[0]["masks_sha256"]
    assert resumed[0]["metrics"] == whole[0]["metrics"]


def test_a_perplexity_is_that_of_the_model(tmp_path: Path, text: list[str]) -> None:
    """Against the loss that transformers computes for the same blocks."""
    run, _ = trained(tmp_path, "gpt2", text, "--method", "dense")
    (tmp_path / "one.txt").write_text("the film is good and the plot\n")
    one = ["--validation-file", str(tmp_path / "one.txt"), "--lm", "causal"]
    rows = tmp_path / "eval.jsonl"
    assert app.main(["eval", "--model", str(run / "model"), *one, "--json", str(rows)]) == 0
    (row,) = results.read(rows, "eval")
    model = transformers.GPT2LMHeadModel.from_pretrained(run / "model").eval()
    ids = torch.tensor([decoders.tokenizer()("the film is good and the plot")["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert row["metrics"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


class TestOtherFamilies:
    """ALBERT, whose layers share their weights, and DeBERTa train on a classification."""

    @pytest.mark.parametrize("family", ["Albert", "Deberta", "DebertaV2", "GPT2"])
    @pytest.mark.parametrize("method", ["imp", "movement"])
    def test_training(
        self, family: str, method: str, asked: list[str], tmp_path: Path, tokenizer: Any
    ) -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 30}
        sizes |= {"embedding_size": 8} if family == "Albert" else {}
        sizes |= {"relative_attention": True, "pos_att_type": "c2p|p2c"} if "Deberta" in family else {}
        sizes = {"n_embd": 20, "n_layer": 2, "n_head": 2} if family == "GPT2" else sizes
        config = getattr(transformers, f"{family}Config")(vocab_size=len(WORDS), pad_token_id=0, **sizes)
        folder = tmp_path / family
        getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = ["--model", str(folder), "--method", method, "--sparsity", "0.5", *QUICK]
        assert app.main(["train", *asked, *options]) == 0
        run = tmp_path / "run"
        last = list(results.read(run / "log.jsonl", "round"))[-1]
        assert abs(last["sparsity"] - 0.5) < 0.01
        ticket = ["--ticket", str(run / "ticket.safetensors"), "--no-fuse"]
        rows = tmp_path / "eval.jsonl"
        there = ["--model", str(run / "model"), *asked[:2], *asked[4:6], "--json", str(rows)]
        assert app.main(["eval", *there, *ticket]) == 0
        (row,) = results.read(rows, "eval")
        assert row["metrics"] == last["metrics"]


class TestBadInput:
    def test_an_encoder_reads_in_both_directions(
        self, capsys: pytest.CaptureFixture[str], there: list[str]
    ) -> None:
        line = refused(capsys, "train", "--task", "wikitext-2-clm", *there, "--method", "dense")
        assert "(bert) reads texts in both directions; wikitext-2-clm is causal" in line

    def test_a_decoder_has_no_mask(
        self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
    ) -> None:
        model = decoders.saved(tmp_path / "gpt2", decoders.gpt2())
        there = ["--model", str(model), "--data", str(data)]
        line = refused(capsys, "train", "--task", "wikitext-2", *there, "--method", "dense")
        assert "(gpt2) has no masked language model, and wikitext-2 needs one" in line

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--lm", "left"], "--lm must be masked or causal, got 'left'"),
            (
                ["--lm", "causal", "--labels", "a,b"],
                "--labels belongs to a table",
            ),
            (["--lm", "causal", "--max-length", "64"], "max_length must be at most 32, the positions of"),
        ],
    )
    def test_options(
        self,
        options: list[str],
        message: str,
        capsys: pytest.CaptureFixture[str],
        text: list[str],
        tmp_path: Path,
    ) -> None:
        model = decoders.saved(tmp_path / "gpt2", decoders.gpt2())
        asked = [
            "--model",
            str(model),
            "--method",
            "dense",
            *text[:4],
            *options,
            "--out",
            str(tmp_path / "r"),
        ]
        assert message in refused(capsys, "train", *asked)

    def test_an_empty_text(self, capsys: pytest.CaptureFixture[str], text: list[str], tmp_path: Path) -> None:
        model = decoders.saved(tmp_path / "gpt2", decoders.gpt2())
        (tmp_path / "train.txt").write_text("\n \n")
        line = refused(capsys, "train", "--model", str(model), "--method", "dense", *text)
        assert "train.txt: no examples" in line


def test_pruning_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: list[str]
) -> None:
    """Calibrated on texts, with a tokenizer that has no padding token; healing is refused."""
    model = decoders.saved(tmp_path / "gpt2", decoders.gpt2(pad_token_id=None))
    options = ["--method", "sparsegpt", "--sparsity", "0.5", "--texts", text[1], "--count", "8"]
    pruned = tmp_path / "pruned"
    assert app.main(["prune", "--model", str(model), *options, "--output", str(pruned)]) == 0
    out = capsys.readouterr().out
    assert "sparsebert bench" in out
    assert "sparsebert heal" not in out
    weights = transformers.GPT2LMHeadModel.from_pretrained(pruned).state_dict()
    for key, mask in Ticket.load(pruned / "ticket.safetensors").masks.items():
        assert not weights[f"transformer.{key}.weight"].t()[~mask].any()
    # Without a teacher too: what the model is comes first.
    line = refused(capsys, "heal", str(pruned), "--texts", text[1], "--output", str(tmp_path / "healed"))
    assert "GPT2LMHeadModel is a decoder: train it on text" in line
