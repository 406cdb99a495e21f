"""``sparsebert prune`` by methods that are calibrated on texts and write a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparsebert.one_shot.all_methods  # noqa: F401  (registers the methods)
from sparsebert import results
from sparsebert.cli import app
from sparsebert.cli.one_shot import ONE_SHOT
from sparsebert.lottery.find_runs import load_ticket
from sparsebert.one_shot.layer_problem import LAYER_METHODS
from sparsebert.one_shot.prune_model import MODEL_METHODS
from sparsebert.one_shot.prune_units import UNIT_METHODS
from sparsebert.tickets.ticket import Ticket
from tests import brief_timings
from tests.cli.tiny import WORDS, refused, save

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _brief_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    brief_timings.shorten(monkeypatch)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    words = [word for word in WORDS if word.isalpha()]
    different = (
        " ".join(words[(i + j * (1 + i // len(words))) % len(words)] for j in range(3 + i % 5))
        for i in range(40)
    )
    file.write_text("\n".join(different) + "\n")
    return file


@pytest.fixture
def asked(bert: Path, texts: Path, tmp_path: Path) -> list[str]:
    return [
        *("prune", "--model", str(bert), "--texts", str(texts), "--count", "36"),
        *("--sparsity", "0.5", "--output", str(tmp_path / "pruned")),
    ]


def test_the_folder_holds_changed_weights_their_ticket_and_the_tokenizer(asked, bert, tmp_path, capsys):
    assert app.main([*asked, "--method", "sparsegpt", "--json", str(tmp_path / "r.jsonl")]) == 0
    model = transformers.AutoModel.from_pretrained(tmp_path / "pruned")
    ticket = load_ticket(tmp_path / "pruned", model)
    ticket.check(model, weights=True)
    assert Ticket.from_model(model) == ticket
    assert ticket.sparsity == pytest.approx(0.5, abs=0.01)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")
    dense = transformers.AutoModel.from_pretrained(bert)
    key = "encoder.layer.0.output.dense"
    kept = ticket.masks[key]
    changed = model.get_submodule(key).weight[kept] - dense.get_submodule(key).weight[kept]
    assert changed.abs().max() > 1e-4
    (record,) = results.read(tmp_path / "r.jsonl")
    assert (record["method"], record["calibration"]["texts"]) == ("sparsegpt", 36)
    assert "Outputs lost on the calibration texts" in capsys.readouterr().out
    assert not (tmp_path / "pruned.unfinished").exists()


def test_bench_runs_the_folder_by_its_ticket(asked, tmp_path, capsys):
    assert app.main([*asked, "--method", "sparsegpt"]) == 0
    timed = ["--vs", "eager", "--seq", "8", "--budget", "0.1", "--no-memory", "--no-measure"]
    assert app.main(["bench", "--model", str(tmp_path / "pruned"), *timed]) == 0
    assert "50.0% element-sparse" in capsys.readouterr().out


def test_texts_that_are_cut_are_counted(asked, texts, capsys):
    texts.write_text(texts.read_text() + f"{'good ' * 600}\n")
    assert app.main([*asked, "--count", "41", "--method", "wanda"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "is cut" in line)
    assert "1 of 41 texts reach the" in line


def test_a_speed_takes_the_place_of_the_sparsity(asked, tmp_path, capsys):
    at = asked.index("--sparsity")
    without = [*asked[:at], *asked[at + 2 :]]
    assert app.main([*without, "--method", "wanda", "--milliseconds", "500", "--batch", "4"]) == 0
    assert "asked for 500 ms: predicted" in capsys.readouterr().out


def test_heads_and_neurons_reach_a_speed_too(asked, tmp_path, capsys):
    at = asked.index("--sparsity")
    command = [*asked[:at], *asked[at + 2 :], "--method", "ziplm", "--granularity", "head+neuron"]
    assert app.main([*command, "--milliseconds", "500", "--batch", "4"]) == 0
    assert "asked for 500 ms: predicted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("pruned*")] == ["pruned"]


def test_a_ticket_for_a_gpu_is_predicted_only(asked, tmp_path, capsys):
    at = asked.index("--sparsity")
    command = [*asked[:at], *asked[at + 2 :], "--method", "wanda", "--speedup", "1", "--device", "h100"]
    assert app.main([*command, "--granularity", "element,32x2"]) == 0
    assert "ms dense on NVIDIA H100), not measured here" in capsys.readouterr().out
    speed = Ticket.load(tmp_path / "pruned" / "ticket.safetensors").metadata["speed"]
    assert (speed["device"], speed["measured_milliseconds"]) == ("h100", None)


def test_a_killed_run_for_a_speed_goes_on_with_the_sparsity_that_it_had_found(asked, tmp_path, monkeypatch):
    at = asked.index("--sparsity")
    command = [
        *asked[:at],
        *asked[at + 2 :],
        "--method",
        "sparsegpt",
        "--milliseconds",
        "500",
        "--batch",
        "4",
    ]

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparsebert.workflows.one_shot.write_folder", killed)
        assert app.main(command) != 0
    assert (tmp_path / "pruned.unfinished").exists()
    with monkeypatch.context() as patch:
        patch.setattr("sparsebert.workflows.one_shot.target_for", killed)
        assert app.main(command) == 0
    assert [path.name for path in tmp_path.glob("pruned*")] == ["pruned"]


def test_a_speed_that_no_density_reaches_leaves_nothing(asked, tmp_path, capsys):
    at = asked.index("--sparsity")
    command = [*asked[:at], *asked[at + 2 :], "--method", "wanda", "--speedup", "1000", "--batch", "4"]
    assert "1000" in refused(capsys, *command)
    assert not list(tmp_path.glob("pruned*"))


def test_a_run_that_is_killed_after_measuring_keeps_what_it_has(asked, tmp_path, monkeypatch):
    at = asked.index("--sparsity")
    command = [*asked[:at], *asked[at + 2 :], "--method", "wanda", "--milliseconds", "500", "--batch", "4"]

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparsebert.workflows.one_shot.write_text", killed)
        assert app.main(command) != 0
    assert (tmp_path / "pruned.measured.unfinished").exists()
    assert app.main(command) == 0
    assert [path.name for path in tmp_path.glob("pruned*")] == ["pruned"]


def test_a_folder_that_exists_is_not_overwritten(asked, tmp_path, capsys):
    kept = tmp_path / "pruned" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"another model")
    assert "already exists; choose another" in refused(capsys, *asked, "--method", "sparsegpt")
    assert kept.read_bytes() == b"another model"


def test_a_singular_hessian_is_refused_or_its_matrix_pruned_by_magnitude(asked, capsys):
    singular = [*asked, "--method", "sparsegpt", "--damping", "0"]
    message = refused(capsys, *singular)
    assert "is singular with damping 0" in message
    assert "allow magnitude there" in message
    assert app.main([*singular, "--magnitude-where-singular"]) == 0
    assert "pruned by magnitude" in capsys.readouterr().err


@pytest.mark.parametrize("granularity", ["row", "16x16"])
def test_a_matrix_behind_values_that_are_pruned_out_is_named(asked, granularity, tmp_path, capsys):
    at = asked.index("--sparsity")
    command = [*asked[:at], "--sparsity", "0.98", *asked[at + 2 :]]
    command += ["--method", "alps", "--granularity", granularity]
    message = refused(capsys, *command)
    assert "attention.output.dense is singular: its inputs do not vary, as behind values that are" in message
    assert app.main([*command, "--magnitude-where-singular"]) == 0
    model = transformers.AutoModel.from_pretrained(tmp_path / "pruned")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_pattern_has_its_own_sparsity(asked, tmp_path):
    at = asked.index("--sparsity")
    assert app.main([*asked[:at], *asked[at + 2 :], "--method", "wanda", "--granularity", "2:4"]) == 0
    assert Ticket.load(tmp_path / "pruned" / "ticket.safetensors").sparsity == 0.5


def test_equal_texts_count_once(asked, texts, capsys):
    texts.write_text("the same text\n" * 40)
    at = asked.index("--count")
    message = refused(capsys, *asked[:at], *asked[at + 2 :], "--method", "sparsegpt")
    assert "at least 32 different texts are needed to calibrate, got 1" in message


def test_few_texts_are_said_to_be_few_if_they_were_asked_for(asked, capsys):
    assert app.main([*asked, "--method", "wanda", "--count", "5"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "sparsebert: warning: calibrated on 5 different texts: at least 32 are recommended, and 512 are usual"
    ]


def test_texts_are_cut_at_the_positions_of_the_model(asked, texts, tokenizer, tmp_path, capsys):
    short = save(tmp_path / "short", tokenizer, max_position_embeddings=16)
    texts.write_text(texts.read_text() + f"{'good ' * 60}\n")
    asked[asked.index("--model") + 1] = str(short)
    command = [*asked, "--method", "wanda", "--count", "41"]
    assert app.main(command) == 0
    assert "1 of 41 texts reach the 16 tokens at which a text is cut" in capsys.readouterr().err
    command[command.index("--output") + 1] = str(tmp_path / "other")
    message = refused(capsys, *command, "--max-length", "17")
    assert f"max_length must be at most 16, the positions of {short}, got 17" in message


def test_texts_of_one_length_calibrate(asked, texts, tmp_path):
    words = [word for word in WORDS if word.isalpha()]
    texts.write_text(
        "\n".join(f"{a} {b} {c}" for a in words[:4] for b in words[:3] for c in words[:3]) + "\n"
    )
    assert app.main([*asked, "--method", "alps"]) == 0
    assert Ticket.load(tmp_path / "pruned" / "ticket.safetensors").sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_table_without_a_column_of_texts_names_its_columns(asked, tmp_path, capsys, name):
    data = pytest.importorskip("datasets").Dataset.from_dict({"review": ["good", "bad"], "stars": [5, 1]})
    {"a.csv": data.to_csv, "a.jsonl": data.to_json, "a.parquet": data.to_parquet}[name](tmp_path / name)
    message = refused(capsys, *asked, "--method", "sparsegpt", "--texts", str(tmp_path / name))
    assert message.endswith(
        f"{name}: no column text, sentence, texts, sentences or content; name the column of the texts, one "
        "of review, stars"
    )


def test_the_command_knows_every_method():
    assert set(ONE_SHOT) >= LAYER_METHODS.keys() | UNIT_METHODS.keys() | MODEL_METHODS.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "magnitude"], "--texts applies only with a one-shot method"),
        (["--method", "sparsegpt", "--output", "x.safetensors"], "--output must be a folder"),
        (["--method", "sparsegpt", "--count", "4000"], "4000 texts are needed, got 40"),
        (["--method", "sparsegpt", "--count", "0"], "--count must be at least 1, got 0"),
        (["--method", "sparsegpt", "--scope", "type"], "--scope does not apply to method sparsegpt"),
        (["--method", "sparsegpt", "--speedup", "2"], "--sparsity conflicts with --speedup"),
        (["--method", "sparsegpt", "--threads", "2"], "--threads applies only with --speedup"),
        (["--method", "sparsegpt", "--device", "h100"], "--device applies only with --speedup"),
        (
            ["--method", "sparsegpt", "--granularity", "element,4x1"],
            "granularity lists 2, among which each matrix chooses by milliseconds: name one, or pass a speed",
        ),
        (["--method", "sparsegpt", "--biases"], "--biases applies only with a method that scores"),
        (["--method", "sparsegpt", "--texts-column", "a"], "holds one text a line and no columns"),
        (["--method", "wanda", "--damping", "0.1"], "--damping does not apply to method wanda"),
        (
            ["--method", "ziplm", "--granularity", "head", "--sparsity", "0.95"],
            "sparsity 0.95 would keep no head",
        ),
        (["--method", "sparsegpt", "--allocate", "all"], "value of allocate"),
        (
            ["--method", "sparsegpt", "--granularity", "2:4", "--allocate", "error"],
            "conflicts with granularity",
        ),
    ],
    ids=str,
)
def test_bad_input_is_one_line(asked, tmp_path, capsys, more, message):
    assert message in refused(capsys, *asked, *more)
    assert not (tmp_path / "pruned").exists()


def test_texts_are_required(asked, capsys):
    at = asked.index("--texts")
    assert "--texts is missing" in refused(capsys, *asked[:at], *asked[at + 4 :], "--method", "sparsegpt")
