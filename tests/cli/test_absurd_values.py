"""Values of options that nobody means: zero, negative, NaN, endless, empty, or of another kind.

Each is refused in one line, with exit code 2, before any work.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.cli import app
from tests.cli.tiny import refused, save, write_tables

HUGE = "1" + "0" * 30
# Command -> options that make it run; MODEL, DATA and TICKET are paths.
COMMANDS = {
    "bench": "--model MODEL",
    "prune": "--model MODEL --output new",
    "prune task": "--model MODEL --output new --task sst2 --data DATA --method snip",
    "train": "--model MODEL --task sst2 --data DATA --method imp --sparsity 0.5 --out run",
    "eval": "--model MODEL --task sst2 --data DATA",
    "transfer": "--model MODEL --data DATA --ticket t=TICKET --tasks sst2 --out run",
    "convert": "TICKET new",
}
VALUES: dict[str, list[tuple[str, str]]] = {
    "bench": [
        ("--sparsity 1.5", "--sparsity must be from 0 to 1, got 1.5; write 90 % as 0.9"),
        ("--sparsity 90", "did you mean 0.9?"),
        ("--sparsity 0,9", "--sparsity must be from 0 to 1, got 0,9; did you mean 0.9?"),
        ("--sparsity 0,05", "did you mean 0.05?"),
        ("--sparsity 0,90,95", "did you mean 0.9?"),
        ("--sparsity nan", "from 0 to 1, got nan"),
        ("--sparsity=", "--sparsity is empty; pass a value or omit it"),
        ("--granularity 0x1", "block_size must be two positive ints"),
        ("--granularity=", "--granularity is empty; pass a value or omit it"),
        (f"--granularity {HUGE}x1", "block_size must be at most"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        (f"--batch {HUGE}", "--batch must be at most 1048576, got"),
        ("--batch 1000000 --seq 512", "--batch 1000000 times 512 tokens must be at most 1048576 tokens"),
        ("--batch 1000000", "--batch 1000000 times 128 tokens must be at most 1048576 tokens"),
        ("--seq 0", "--seq must be at least 1, got 0"),
        ("--seq 600", "its limit is 512"),
        ("--threads 20000", f"threads must be at most {os.cpu_count()}, the CPUs of this machine"),
        ("--budget -1", "--budget must be at least 0, got -1"),
        ("--budget nan", "--budget must be at least 0, got nan"),
        ("--budget inf", "--budget must be at most 86400, got inf"),
        ("--seed -1", "seed must be from 0 to 2**32 - 1, got -1"),
        (f"--seed {HUGE}", "seed must be from 0 to"),
        ("--ticket TICKET --granularity 4x1", "--granularity 4x1 conflicts with --ticket"),
        ("--ticket TICKET --sparsity 0.5", "--sparsity 0.5 conflicts with --ticket"),
        ("--json new --plot new", "would overwrite the file of --json"),
        ("--vs=,", "--vs must name a baseline"),
    ],
    "prune": [
        ("--sparsity 0,9", "--sparsity must be from 0 to 1, got 0,9; did you mean 0.9?"),
        ("--sparsity 1.5", "--sparsity must be from 0 to 1, got 1.5; write 90 % as 0.9"),
        ("--seed -1", "a seed must be from 0 to 2**32 - 1, got -1"),
        (f"--seeds 1,{HUGE}", "a seed must be from 0 to"),
        ("--granularity 0x1", "block_size must be two positive ints"),
        ("--granularity=", "--granularity is empty; pass a value or omit it"),
        ("--scope=", "--scope is empty; pass a value or omit it"),
        ("--batches 4", "--batches applies only with --task: omit it"),
        ("--batch-size 4", "--batch-size applies only with --task: omit it"),
        ("--max-length 8", "--max-length applies only with --task: omit it"),
        ("--data data", "--data applies only with --task: omit it"),
        ("--regression", "--regression applies only with --train-file or --validation-file: omit it"),
        ("--text-columns a", "--text-columns applies only with --train-file or --validation-file"),
        ("--label-column a", "--label-column applies only with --train-file or --validation-file"),
    ],
    "prune task": [
        (f"--batches {HUGE}", "--batches must be at most 1e+09, got"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--max-length 0", "--max-length must be at least 1"),
        ("--max-length 513", "max_length must be at most 512, the positions of"),
    ],
    "train": [
        ("--steps 5 --epochs 3", "--steps conflicts with --epochs"),
        (f"--steps {HUGE}", "steps must be at most"),
        ("--epochs 1e300", "epochs must make at most"),
        ("--epochs inf", "epochs must be positive"),
        ("--batch-size 0", "batch_size must be at least 1"),
        (f"--batch-size {HUGE}", "batch_size must be at most"),
        (f"--save-steps {HUGE}", "save_steps must be at most"),
        ("--learning-rate nan", "learning_rate must be positive"),
        ("--weight-decay inf", "weight_decay must be at least 0"),
        ("--max-length 100000", "max_length must be at most 512, the positions of"),
        ("--sparsity 1.5", "sparsity must be in [0, 1), got 1.5; write 90 % as 0.9"),
        ("--sparsity nan", "sparsity must be"),
        ("--seed -1", "a seed must be from 0 to 2**32 - 1, got -1"),
        ("--granularity 0x1", "block_size must be two positive ints"),
        ("--step 0", "step"),
        ("--step nan", "step"),
        ("--rewind-step 3", "rewind"),
    ],
    "eval": [
        ("--max-length 513", "max_length must be at most 512, the positions of"),
        ("--min-row-weights 3", "--min-row-weights 3 requires --compact"),
        ("--seeds 1", "--seeds needs a folder of runs by seed"),
    ],
    "transfer": [
        ("--sparsity -1", "--sparsity must be from 0 to 1, got -1"),
        ("--tasks sst2=0", "steps must be at least 1"),
        ("--steps 5 --epochs 3", "--steps conflicts with --epochs"),
    ],
    "convert": [
        ("--threshold 0.5", "--threshold applies only with the folder of a movement pruning checkpoint"),
        ("--pruning-method topK", "--pruning-method applies only with the folder of a movement pruning"),
        ("--batch 4", "--batch applies only with --to model or sparse: omit it"),
        ("--seq 8", "--seq applies only with --to model or sparse: omit it"),
        ("--results RECORDS", "--results applies only with --to sparse: omit it"),
        ("--to model --model MODEL --results RECORDS", "--results applies only with --to sparse: omit it"),
        ("--to sparse --model MODEL --batch 0", "--batch must be at least 1, got 0"),
        (f"--to sparse --model MODEL --seq {HUGE}", "--seq must be at most 1048576, got"),
        ("--task 3", "holds one ticket"),
        ("--model=", "--model is empty; pass a value or omit it"),
    ],
}


@pytest.fixture(scope="module")
def paths(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: object, bert: Path, data: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("absurd")
    labels = {0: "negative", 1: "positive"}
    trained = save(folder / "trained", tokenizer, "BertForSequenceClassification", id2label=labels)
    ticket = folder / "ticket.safetensors"
    assert app.main(["prune", "--model", str(bert), "--sparsity", "0.5", "--output", str(ticket)]) == 0
    (folder / "records").touch()
    records = folder / "records"
    return {"MODEL": bert, "DATA": data, "TICKET": ticket, "TRAINED": trained, "RECORDS": records}


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [(command, *value) for command, values in VALUES.items() for value in values],
    ids=lambda value: value[:40],
)
def test_one_line_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    paths: dict[str, Path],
    command: str,
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = COMMANDS[command]
    if command == "eval":
        base = base.replace("MODEL", "TRAINED")
    arguments = [command.split()[0], *base.split(), *options.split()]
    for word, path in paths.items():
        arguments = [argument.replace(word, str(path)) for argument in arguments]
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", ".hidden", "a/b", " ", "a\nb", "x" * 300])
def test_a_task_of_the_user_stays_in_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bert: Path, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_tables(tmp_path / "csv", ("train.csv", "dev.csv"), "text,label", "{text},{label}")
    files = [
        "--train-file",
        str(tmp_path / "csv/train.csv"),
        "--validation-file",
        str(tmp_path / "csv/dev.csv"),
    ]
    before = sorted(tmp_path.rglob("*"))
    command = ["train", "--model", str(bert), "--method", "dense", "--steps", "1", *files, f"--task={name}"]
    assert "--task names a folder" in refused(capsys, *command)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_ticket_name_stays_in_its_folder(
    capsys: pytest.CaptureFixture[str],
    paths: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["transfer", "--model", str(paths["MODEL"]), "--tasks", "sst2", "--out", "run"]
    refused(capsys, *command, "--ticket", f"..={paths['TICKET']}")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_head_is_blamed_and_not_the_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bert: Path
) -> None:
    write_tables(tmp_path / "csv", ("train.csv", "dev.csv"), "text,label", "{text},{label}")
    command = ["eval", "--model", str(bert), "--validation-file", str(tmp_path / "csv" / "dev.csv")]
    assert "tiny-bert has no trained head" in refused(capsys, *command)


def test_a_text_of_many_pages_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(refused(capsys, "bench", "--model", "x" * 100_000)) < 1100


def test_sizes_beyond_the_memory_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [
        MemoryError("Unable to allocate 7.00 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904, 4]"),
        OverflowError("cannot fit 'int' into an index-sized integer"),
    ]
    for error in errors:

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(app, "command_line", lambda fail=fail: fail)
        assert "sizes beyond the memory of this machine: " in refused(capsys, "env")


def test_tokens_of_a_billion_in_a_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, paths: dict[str, Path]
) -> None:
    folder = tmp_path / "sparse"
    convert = ["convert", str(paths["TICKET"]), str(folder), "--to", "sparse", "--model", str(paths["MODEL"])]
    assert app.main(convert) == 0
    config = (folder / "config.json").read_text()
    assert '"tokens": 128' in config
    (folder / "config.json").write_text(config.replace('"tokens": 128', '"tokens": 1000000000'))
    capsys.readouterr()
    line = refused(capsys, "convert", str(folder), str(tmp_path / "new"))
    assert "tokens must be at most 1048576, got 1000000000" in line
