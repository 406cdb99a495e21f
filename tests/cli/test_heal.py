"""``sparsebert heal``: folders stay what they were, records say what was done, a killed command goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsebert
from sparsebert import Ticket, results
from sparsebert.cli import app
from sparsebert.hf.sentence_modules import DENSE_TYPE, SPARSE_TYPE
from sparsebert.pruning import prune
from sparsebert.tasks.models import load_as_saved
from tests.cli.tiny import WORDS, refused, save

transformers = pytest.importorskip("transformers")

QUICK = ["--steps", "6", "--learning-rate", "0.003"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    lines = {" ".join(draw.choices(WORDS[5:], k=draw.randint(3, 8))) for _ in range(150)}
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(sorted(lines)) + "\n")
    return path


@pytest.fixture
def pruned(bert: Path, tokenizer: Any, tmp_path: Path) -> Path:
    """The tiny BERT with zeros in its weights."""
    model = load_as_saved(str(bert))
    prune(model, "magnitude", sparsity=0.6).apply_(model)
    folder = tmp_path / "pruned"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "healed"


@pytest.fixture
def asked(pruned: Path, bert: Path, texts: Path, output: Path) -> list[str]:
    return [
        "heal",
        str(pruned),
        "--teacher",
        str(bert),
        "--texts",
        str(texts),
        "--output",
        str(output),
        *QUICK,
    ]


def zeros(folder: Path) -> Ticket:
    return Ticket.from_model(sparsebert.densify_(load_as_saved(str(folder))))


class TestPairs:
    @pytest.fixture
    def pairs(self, texts: Path, tmp_path: Path) -> Path:
        lines = texts.read_text().split("\n")[:-1]
        path = tmp_path / "pairs.csv"
        path.write_text(
            "\n".join(["premise,hypothesis", *map(",".join, zip(lines, lines[::-1], strict=True))])
        )
        return path

    def test_two_columns_are_read_together(self, asked: list[str], pairs: Path, output: Path) -> None:
        asked[asked.index("--texts") + 1] = str(pairs)
        assert app.main([*asked, "--texts-column", "premise,hypothesis"]) == 0
        assert output.is_dir()

    @pytest.mark.parametrize("columns", ["premise,", "premise,hypothesis,label", "premise,answer"])
    def test_other_columns_are_refused(
        self, columns: str, asked: list[str], pairs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked[asked.index("--texts") + 1] = str(pairs)
        assert (columns if columns.count(",") != 1 or columns[-1] == "," else "answer") in refused(
            capsys, *asked, "--texts-column", columns
        )


class TestTask:
    @pytest.fixture
    def table(self, texts: Path, tmp_path: Path) -> Path:
        """The texts with labels, and each with another text beside it."""
        lines = texts.read_text().split("\n")[:-1]
        rows = [f"{line},{other},{number % 2}" for number, (line, other) in enumerate(pairwise(lines))]
        path = tmp_path / "train.csv"
        path.write_text("\n".join(["text,other,label", *rows]) + "\n")
        return path

    def test_it_learns_from_the_texts_alone(self, asked: list[str], table: Path, output: Path) -> None:
        asked[asked.index("--texts") + 1] = str(table)
        assert app.main([*asked, "--texts-column", "text"]) == 0
        unlabelled = load_as_saved(str(output)).state_dict()
        shutil.rmtree(output)
        del asked[asked.index("--texts") : asked.index("--texts") + 2]
        assert app.main([*asked, "--train-file", str(table)]) == 0
        healed = load_as_saved(str(output)).state_dict()
        assert all(torch.equal(healed[name], unlabelled[name]) for name in unlabelled)

    def test_pairs_are_read_together(self, asked: list[str], table: Path, output: Path) -> None:
        del asked[asked.index("--texts") : asked.index("--texts") + 2]
        assert app.main([*asked, "--train-file", str(table), "--text-columns", "text,other"]) == 0
        assert output.is_dir()

    def test_texts_or_a_task(self, asked: list[str], table: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--texts applies only with unlabelled texts" in refused(capsys, *asked, "--task", "sst2")
        assert "--label-map applies only with --task" in refused(capsys, *asked, "--label-map", "0=1")
        del asked[asked.index("--texts") : asked.index("--texts") + 2]
        assert "--texts is missing" in refused(capsys, *asked)
        own = ["--train-file", str(table), "--validation-file", str(table)]
        assert f"--validation-file {table} does not apply" in refused(capsys, *asked, *own)


class TestFolders:
    def test_a_dense_folder_keeps_its_zeros_and_loads_without_this_package(
        self, asked: list[str], pruned: Path, output: Path
    ) -> None:
        assert app.main(asked) == 0
        assert zeros(output) == zeros(pruned)
        healed, before = (transformers.AutoModel.from_pretrained(folder) for folder in (output, pruned))
        key = "encoder.layer.0.output.dense.weight"
        assert not torch.equal(healed.get_parameter(key), before.get_parameter(key))
        assert transformers.AutoTokenizer.from_pretrained(output)("a film")["input_ids"]
        assert [path.name for path in output.parent.iterdir() if "unfinished" in path.name] == []

    def test_a_sparse_folder_stays_sparse(
        self, asked: list[str], pruned: Path, output: Path, tmp_path: Path
    ) -> None:
        sparse = tmp_path / "sparse"
        assert app.main(["convert", str(pruned), str(sparse), "--to", "sparse", "--no-measure"]) == 0
        asked[1] = str(sparse)
        assert app.main(asked) == 0
        healed, before = (load_as_saved(str(folder)) for folder in (output, sparse))
        formats = [
            [layer.format for layer in model.modules() if isinstance(layer, sparsebert.SparseLinear)]
            for model in (healed, before)
        ]
        assert formats[0] == formats[1] != []
        assert zeros(output) == zeros(pruned)
        origin = json.loads((output / "config.json").read_text())["quantization_config"]["origin"]
        assert origin["history"][-1]["operation"] == "heal"

    @pytest.mark.parametrize("type", [DENSE_TYPE, SPARSE_TYPE])
    def test_a_sentence_transformers_folder_keeps_its_modules(
        self, type: str, asked: list[str], pruned: Path, output: Path, tmp_path: Path
    ) -> None:
        source = pruned
        if type == SPARSE_TYPE:
            source = tmp_path / "sparse"
            assert app.main(["convert", str(pruned), str(source), "--to", "sparse", "--no-measure"]) == 0
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": type},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (source / "modules.json").write_text(json.dumps(modules))
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
        (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
        asked[1] = str(source)
        assert app.main(asked) == 0
        assert json.loads((output / "modules.json").read_text()) == modules
        assert (output / "1_Pooling" / "config.json").exists()

    def test_a_dense_model_and_a_ticket_need_no_teacher(
        self, bert: Path, texts: Path, output: Path, tmp_path: Path
    ) -> None:
        ticket = tmp_path / "ticket.safetensors"
        assert app.main(["prune", "--model", str(bert), "--sparsity", "0.6", "--output", str(ticket)]) == 0
        options = ["--ticket", str(ticket), "--texts", str(texts), "--output", str(output), *QUICK]
        assert app.main(["heal", str(bert), *options]) == 0
        assert zeros(output) == Ticket.load(ticket) == Ticket.load(output / "ticket.safetensors")

    def test_the_ticket_of_a_folder_stays_with_the_identity_of_the_new_weights(
        self, asked: list[str], bert: Path, texts: Path, output: Path, tmp_path: Path
    ) -> None:
        source = tmp_path / "one-shot"
        calibration = ["--method", "sparsegpt", "--sparsity", "0.6", "--texts", str(texts), "--count", "64"]
        assert app.main(["prune", "--model", str(bert), *calibration, "--output", str(source)]) == 0
        asked[1] = str(source)
        assert app.main(asked) == 0
        before, after = (Ticket.load(folder / "ticket.safetensors") for folder in (source, output))
        assert before == after
        after.check(load_as_saved(str(output)), weights=True)
        assert [step["operation"] for step in after.metadata["history"]] == ["prune_", "heal"]


class TestReport:
    def test_it_says_what_was_gained(self, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert app.main(asked) == 0
        work, loss, cosine, used, wrote = capsys.readouterr().out.splitlines()
        assert work.startswith("6 steps, ")
        assert loss.startswith("held-out loss ")
        assert cosine.startswith("cosine to the dense model's embeddings 0.")
        assert used.startswith("used ")
        assert wrote.startswith("wrote ")

    def test_a_record_holds_it(self, asked: list[str], tmp_path: Path) -> None:
        assert app.main([*asked, "--json", str(tmp_path / "records.jsonl")]) == 0
        (record,) = results.read(tmp_path / "records.jsonl", "heal")
        assert record["steps"] == 6
        assert record["loss_after"] < record["loss_before"]
        assert {"tokens", "seconds", "agreement_before", "agreement_after", "environment"} <= record.keys()

    def test_nothing_better_is_said(
        self, asked: list[str], pruned: Path, output: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked[asked.index("--learning-rate") + 1] = "1e-12"
        assert app.main(asked) == 0
        assert "no state was better on the held-out texts" in capsys.readouterr().out
        before, after = (load_as_saved(str(folder)).state_dict() for folder in (pruned, output))
        assert all(torch.equal(before[name], after[name]) for name in before)


KILL_AT_STEP_4 = """
import os, signal, sys
from sparsebert.cli import app
from sparsebert.healing import training
training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = 0.0, float("inf")
line = training.Healer._line
def dying(self, state, left):
    if state.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return line(self, state, left)
training.Healer._line = dying
app.main(sys.argv[1:])
"""


def test_a_killed_command_goes_on_when_it_is_repeated(asked: list[str], pruned: Path, output: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", KILL_AT_STEP_4, *asked], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    assert output.with_name("healed.unfinished").exists()
    assert app.main(asked) == 0
    assert zeros(output) == zeros(pruned)
    assert not output.with_name("healed.unfinished").exists()


class TestBadInput:
    @pytest.fixture
    def refusal(self, asked: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run(*arguments: str, without: str | None = None) -> str:
            if without is not None:
                index = asked.index(without)
                del asked[index : index + 2]
            return refused(capsys, *asked, *arguments)

        return run

    def test_no_teacher_is_known(self, refusal: Callable[..., str], pruned: Path) -> None:
        message = refusal(without="--teacher")
        assert f"{pruned} does not record the dense model" in message
        assert message.endswith("pass that as --teacher")

    def test_no_time(self, refusal: Callable[..., str]) -> None:
        assert refusal("--minutes", "0", without="--steps").endswith(
            "minutes must be a positive number, got 0"
        )

    def test_minutes_and_steps(self, refusal: Callable[..., str]) -> None:
        assert "--steps conflicts with --minutes" in refusal("--minutes", "1")

    def test_a_model_without_zeros(self, refusal: Callable[..., str], asked: list[str], bert: Path) -> None:
        asked[1] = str(bert)
        assert "the model has no zeros in its encoder" in refusal()

    def test_too_few_texts(self, refusal: Callable[..., str], asked: list[str], tmp_path: Path) -> None:
        few = tmp_path / "few.txt"
        few.write_text("a good film\nthe bad plot\n")
        asked[asked.index("--texts") + 1] = str(few)
        assert "healing needs at least 100 different texts, got 2" in refusal()

    def test_another_architecture(
        self, refusal: Callable[..., str], asked: list[str], tokenizer: Any, tmp_path: Path
    ) -> None:
        asked[asked.index("--teacher") + 1] = str(save(tmp_path / "other", tokenizer, num_hidden_layers=1))
        assert "the teacher must have the model's architecture" in refusal()

    def test_an_output_that_exists(self, refusal: Callable[..., str], output: Path) -> None:
        output.mkdir()
        assert refusal().endswith("already exists; choose another")
