"""Every sample of the README runs as it stands, but for the model's name: there is no network here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sparsebert.bert import structure
from sparsebert.cli.app import app
from sparsebert.report import render_docs

FILE = Path(__file__).parent.parent / "README.md"
README = FILE.read_text()
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("sparsebert ")
]
# Those that train or read a task depend on each other: they run in their order.
RESEARCH = [line for line in COMMANDS if re.search(r"--task|--train-file| eval | convert | report ", line)]
SENTENCES = ("zeros cost nothing now .", "a ticket is one small file .")


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny BERT with its tokenizer on disk; the current folder is its parent."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=5 + len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    monkeypatch.chdir(tmp_path)
    return str(folder)


def test_the_python_samples_run(model_folder: str) -> None:
    assert '"bert-base-uncased"' in PYTHON
    names: dict[str, object] = {}
    exec(PYTHON.replace('"bert-base-uncased"', repr(model_folder)), names)
    sparse = [m for m in names["model"].modules() if type(m).__name__ == "SparseLinear"]  # type: ignore[attr-defined]
    assert len(sparse) == 12
    assert Path("ticket.safetensors").exists()
    assert torch.is_tensor(names["ticket"].masks["encoder.layer.0.attention.self.query"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in RESEARCH])
def test_the_commands_are_understood(command: str, model_folder: str) -> None:
    """Two dense baselines, a tiny shape, a short budget: figures are not what is tested."""
    arguments = shlex.split(command)[1:]
    if "--ticket" in arguments:
        prune = "prune --model ./my-model --sparsity 0.9 --output ticket.safetensors"
        CliRunner().invoke(app, prune.split())
    if arguments[0] == "bench":
        arguments = [{"bert-base": "bert-tiny"}.get(word, word) for word in arguments]
        arguments += ["--vs", "onednn,eager", "--budget", "0.2", "--no-memory"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def write_tasks(folder: Path) -> None:
    """The tasks of the samples in miniature, where `--data` and the samples look for them."""
    rows = [(SENTENCES[i % 2], i % 2) for i in range(8)]
    tables = {
        "SST-2": ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)],
        "CoLA": [f"gj04\t{label}\t\t{text}" for text, label in rows],
        "MRPC": [
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            *(f"{label}\t1\t2\t{text}\t{text}" for text, label in rows),
        ],
    }
    files = {
        f"data/{task}/{split}.tsv": lines for task, lines in tables.items() for split in ("train", "dev")
    }
    files |= {f"data/wikitext-2/wiki.{split}.raw": SENTENCES * 4 for split in ("train", "valid")}
    reviews = ["stars,review", *(f"{label},{text}" for text, label in rows)]
    files |= {"reviews.csv": reviews, "held-out.csv": reviews}
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")


def write_movement_checkpoint(folder: Path, model_folder: str) -> None:
    """As HF's movement pruning leaves one."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_folder)
    state = model.state_dict()
    state |= {f"{key}.mask_scores": state[f"{key}.weight"] for key in structure(model).linears}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pruning_method": "topK"}))
    torch.save(state, folder / "pytorch_model.bin")


def test_the_research_commands_run_one_after_the_other(model_folder: str) -> None:
    """Two steps, two seeds, a tiny model: what comes out is not what is tested."""
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    write_tasks(Path())
    write_movement_checkpoint(Path("movement-checkpoint"), model_folder)
    steps = ["--steps", "2", "--batch-size", "4", "--max-length", "16", "--device", "cpu", "--data", "data"]
    more = {
        "train": steps,
        "transfer": steps,
        "eval": ["--max-length", "16", "--data", "data"],
        "prune": ["--batches", "1", "--batch-size", "4", "--max-length", "16", "--data", "data"],
        "convert": [],
        "report": [],
    }
    CliRunner().invoke(app, ["env", "--json", "results.jsonl"])
    smaller = {"bert-base-uncased": model_folder, "1,2,3": "1,2", "sst2,cola,mrpc=345": "sst2,cola,mrpc=1"}
    assert more.keys() == {line.split()[1] for line in RESEARCH}
    for command in RESEARCH:
        words = [smaller.get(word, word) for word in shlex.split(command)[1:]]
        result = CliRunner().invoke(app, [*words, *more[words[0]]])
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert Path("runs/transfer-my-model").is_dir()
    assert "Over seeds: my-model on sst2" in Path("report.html").read_text()


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) >= 4


def test_the_tables_are_those_of_the_result_files() -> None:
    assert (
        render_docs.main(["--check", *(str(FILE.parent / document) for document in render_docs.DOCUMENTS)])
        == 0
    )
