"""Tasks by name, their folders in the usual layouts, and the refusal of what is not the task's data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert.tasks import TASKS, Example, Question, find_task, load

Write = Callable[..., Path]

# Header (none for CoLA) and two rows of both classes or different scores, as GLUE's own files write them.
GLUE = {
    "sst2": ("SST-2", ["sentence\tlabel"], ["good \t1", "bad \t0"]),
    "cola": ("CoLA", [], ["gj04\t1\t\tIt rains.", "gj04\t0\t*\tRains it."]),
    "mrpc": (
        "MRPC",
        ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"],
        ["1\t7\t8\tone\tuno", "0\t9\t10\ttwo\ttre"],
    ),
    "stsb": (
        "STS-B",
        ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"],
        ["0\tg\tf\ty\t1\tnone\tnone\tone\tuno\t5.000", "1\tg\tf\ty\t1\tnone\tnone\ttwo\ttre\t0.25"],
    ),
    "qqp": (
        "QQP",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"],
        ["0\t1\t2\tone\tuno\t1", "1\t3\t4\ttwo\ttre\t0"],
    ),
    "mnli": (
        "MNLI",
        ["index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"],
        ["0\tg\tone\tuno\tneutral\tcontradiction", "1\tg\ttwo\ttre\tneutral\tentailment"],
    ),
    "qnli": (
        "QNLI",
        ["index\tquestion\tsentence\tlabel"],
        ["0\tone\tuno\tnot_entailment", "1\ttwo\ttre\tentailment"],
    ),
    "rte": (
        "RTE",
        ["index\tsentence1\tsentence2\tlabel"],
        ["0\tone\tuno\tnot_entailment", "1\ttwo\ttre\tentailment"],
    ),
    "wnli": ("WNLI", ["index\tsentence1\tsentence2\tlabel"], ["0\tone\tuno\t1", "1\ttwo\ttre\t0"]),
}
PAIRS = (("one", "uno"), ("two", "tre"))
READ = {
    "sst2": [Example(("good ",), 1), Example(("bad ",), 0)],
    "cola": [Example(("It rains.",), 1), Example(("Rains it.",), 0)],
    "mrpc": [Example(PAIRS[0], 1), Example(PAIRS[1], 0)],
    "stsb": [Example(PAIRS[0], 5.0), Example(PAIRS[1], 0.25)],
    "qqp": [Example(PAIRS[0], 1), Example(PAIRS[1], 0)],
    # On the hub entailment is 0, neutral 1, contradiction 2; in QNLI and RTE entailment is 0.
    "mnli": [Example(PAIRS[0], 2), Example(PAIRS[1], 0)],
    "qnli": [Example(PAIRS[0], 1), Example(PAIRS[1], 0)],
    "rte": [Example(PAIRS[0], 1), Example(PAIRS[1], 0)],
    "wnli": [Example(PAIRS[0], 1), Example(PAIRS[1], 0)],
}


def fill(write: Write, task: str, below: str = "") -> None:
    folder, header, rows = GLUE[task]
    names = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for name in ["train", *names]:
        write(f"{below}{folder}/{name}.tsv", *header, *rows)


class TestTasks:
    def test_glue_squad_conll_and_wikitext_are_known(self) -> None:
        assert set(TASKS) == {*GLUE, "squad", "squad2", "conll2003", "wikitext-2", "wikitext-2-clm"}
        assert all(task.name == name for name, task in TASKS.items())

    def test_an_unknown_name_offers_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"unknown task 'sst-2'; known: .*; did you mean 'sst2'\?"):
            find_task("sst-2")

    def test_outputs_of_a_head(self) -> None:
        outputs = {name: task.num_labels for name, task in TASKS.items()}
        assert outputs == dict.fromkeys(GLUE, 2) | {
            "mnli": 3,
            "stsb": 1,
            "squad": 2,
            "squad2": 2,
            "conll2003": 9,
            **dict.fromkeys(("wikitext-2", "wikitext-2-clm"), 0),
        }

    def test_labels_are_in_the_order_of_the_hub(self) -> None:
        assert {name: task.labels for name, task in TASKS.items() if task.labels} == {
            "sst2": ("negative", "positive"),
            "cola": ("unacceptable", "acceptable"),
            "mrpc": ("not_equivalent", "equivalent"),
            "qqp": ("not_duplicate", "duplicate"),
            "mnli": ("entailment", "neutral", "contradiction"),
            "qnli": ("entailment", "not_entailment"),
            "rte": ("entailment", "not_entailment"),
            "wnli": ("not_entailment", "entailment"),
            "conll2003": (
                *("O", "B-PER", "I-PER", "B-ORG", "I-ORG"),
                *("B-LOC", "I-LOC", "B-MISC", "I-MISC"),
            ),
        }

    def test_primary_metrics_are_those_of_chen_et_al_and_of_the_official_scripts(self) -> None:
        assert {name: task.metric for name, task in TASKS.items()} == dict.fromkeys(TASKS, "accuracy") | {
            "cola": "mcc",
            "stsb": "pearson",
            "mnli": "accuracy_matched",
            "squad": "f1",
            "squad2": "f1",
            "conll2003": "f1",
        }


@pytest.mark.parametrize("task", GLUE)
class TestGlue:
    @pytest.mark.parametrize("below", ["glue/", ""])
    def test_rows_become_examples(self, write: Write, tmp_path: Path, task: str, below: str) -> None:
        fill(write, task, below)
        data = load(task, tmp_path)
        assert data.task is TASKS[task]
        assert data.train == READ[task]
        assert list(data.validation) == list(TASKS[task].splits)
        assert all(examples == READ[task] for examples in data.validation.values())
        assert [type(example.label) for example in READ[task]] == [type(row.label) for row in data.train]

    def test_the_folder_may_be_the_tasks_own(self, write: Write, tmp_path: Path, task: str) -> None:
        fill(write, task)
        assert load(task, tmp_path / GLUE[task][0]).train == READ[task]

    def test_a_label_that_is_not_in_the_set_is_named_by_file_and_line(
        self, write: Write, tmp_path: Path, task: str
    ) -> None:
        fill(write, task)
        folder, header, rows = GLUE[task]
        position = 1 if task == "cola" else 0 if task == "mrpc" else -1
        fields = rows[1].split("\t")
        fields[position] = "-"
        write(f"{folder}/train.tsv", *header, rows[0], "\t".join(fields))
        with pytest.raises(ValueError, match=rf"train\.tsv:{len(header) + 2}: label .*must be .*, got '-'"):
            load(task, tmp_path)

    def test_a_file_without_examples_is_refused(self, write: Write, tmp_path: Path, task: str) -> None:
        fill(write, task)
        folder, header, _ = GLUE[task]
        write(f"{folder}/train.tsv", *header)
        with pytest.raises(ValueError, match=r"train\.tsv: no examples$"):
            load(task, tmp_path)

    def test_labels_that_are_all_the_same_are_refused(self, write: Write, tmp_path: Path, task: str) -> None:
        fill(write, task)
        folder, header, rows = GLUE[task]
        write(f"{folder}/train.tsv", *header, rows[0], rows[0])
        with pytest.raises(
            ValueError, match=r"train\.tsv: all 2 examples have the label [\w.]+; two different labels are"
        ):
            load(task, tmp_path)


class TestFolders:
    def test_mnlis_two_validation_sets_stay_apart(self, write: Write, tmp_path: Path) -> None:
        fill(write, "mnli")
        folder, header, rows = GLUE["mnli"]
        write(f"{folder}/dev_mismatched.tsv", *header, *rows, rows[0])
        validation = load("mnli", tmp_path).validation
        assert {split: len(examples) for split, examples in validation.items()} == {
            "validation_matched": 2,
            "validation_mismatched": 3,
        }

    def test_what_was_read_is_said(self, write: Write, tmp_path: Path) -> None:
        fill(write, "sst2")
        assert load("sst2", tmp_path).source == {"train": "train.tsv", "validation": "dev.tsv"}

    def test_without_training_nothing_asks_for_its_file(self, write: Write, tmp_path: Path) -> None:
        fill(write, "qnli")
        (tmp_path / "QNLI" / "train.tsv").unlink()
        with pytest.raises(ValueError, match=r"QNLI does not hold qnli; expected train\.tsv and dev\.tsv$"):
            load("qnli", tmp_path)
        data = load("qnli", tmp_path, train=False)
        assert not data.train
        assert data.validation["validation"] == READ["qnli"]

    def test_a_folder_without_the_task_says_what_belongs_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"does not hold rte; expected train\.tsv and dev\.tsv in RTE/$"):
            load("rte", tmp_path)

    def test_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nowhere is not a folder of task data"):
            load("rte", tmp_path / "nowhere")

    def test_another_tasks_files_are_refused(self, write: Write, tmp_path: Path) -> None:
        fill(write, "sst2")
        with pytest.raises(ValueError, match=r"train\.tsv:1: no column '#1 String'"):
            load("mrpc", tmp_path / "SST-2")

    def test_scores_outside_the_scale_are_refused(self, write: Write, tmp_path: Path) -> None:
        fill(write, "stsb")
        folder, header, rows = GLUE["stsb"]
        for score in ("5.1", "nan", "-0.5"):
            write(f"{folder}/dev.tsv", *header, rows[0], rows[1].replace("0.25", score))
            with pytest.raises(ValueError, match=rf"tsv:3: label must be .* from 0 to 5, got '{score}'$"):
                load("stsb", tmp_path)


class TestWikiText:
    def test_lines_with_text_are_kept_as_they_are(self, write: Write, tmp_path: Path) -> None:
        for name in ("train", "valid"):
            write(f"wikitext-2/wiki.{name}.tokens", " ", " = Title = ", " ", f" the <unk> {name} ")
        data = load("wikitext-2", tmp_path)
        assert data.train == [" = Title = ", " the <unk> train "]
        assert data.validation == {"validation": [" = Title = ", " the <unk> valid "]}

    def test_without_its_training_text_the_smaller_part_is_trained_on(
        self, write: Write, tmp_path: Path
    ) -> None:
        for name in ("valid", "test"):
            write(f"wikitext-2/wiki.{name}.raw.txt", name)
        data = load("wikitext-2", tmp_path)
        assert (data.train, data.validation["validation"]) == (["valid"], ["test"])
        assert data.source == {"train": "wiki.valid.raw.txt", "validation": "wiki.test.raw.txt"}

    def test_blank_text_is_refused(self, write: Write, tmp_path: Path) -> None:
        for name in ("train", "valid"):
            write(f"wikitext-2/wiki.{name}.raw", " ", "")
        with pytest.raises(ValueError, match=r"wiki\.train\.raw: no examples"):
            load("wikitext-2", tmp_path)


class TestSquad:
    ASKED = '{"id": "q1", "question": "who", "answers": [{"text": "cat", "answer_start": 4}]}'

    def file(self, asked: str) -> str:
        return f'{{"data": [{{"paragraphs": [{{"context": "the cat sat", "qas": [{asked}]}}]}}]}}'

    def test_questions_carry_their_paragraph_and_answers(self, write: Write, tmp_path: Path) -> None:
        for name in ("train", "dev"):
            write(f"squad-v1.1/{name}-v1.1.json", self.file(self.ASKED))
        data = load("squad", tmp_path)
        assert data.train == [Question("q1", "who", "the cat sat", (("cat", 4),))]
        assert data.validation["validation"] == data.train

    @pytest.mark.parametrize(
        ("asked", "complaint"),
        [
            ("", "no examples"),
            (ASKED.replace("answer_start", "start"), "an object lacks 'answer_start'"),
            (ASKED.replace(": 4", ": 3"), "the context of question q1 lacks 'cat' at character 3"),
            (ASKED.replace(": 4", ": -7"), "the context of question q1 lacks 'cat' at character -7"),
            (ASKED.replace(": 4", ': "4"'), "not a SQuAD file: "),
            (ASKED.split("[")[0] + "[]}", "question q1 has no answer"),
            (ASKED + ",", ":1: not JSON"),
        ],
    )
    def test_what_is_not_squad_is_refused(
        self, write: Write, tmp_path: Path, asked: str, complaint: str
    ) -> None:
        for name in ("train", "dev"):
            write(f"squad-v1.1/{name}-v1.1.json", self.file(asked))
        with pytest.raises(ValueError, match=rf"train-v1\.1\.json.*{complaint}"):
            load("squad", tmp_path)


IMPORTS = """
import sys, sparsebert.tasks, sparsebert.tasks.metrics, sparsebert.interop.bert_tickets
print({module.split(".")[0] for module in sys.modules} & {"transformers", "datasets", "sklearn", "scipy"})
"""


def test_big_libraries_wait_until_they_are_needed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "set()"
