"""The command line: quick help, one clear line and exit code 2 on bad input, records on request."""

import itertools

import pytest

from sparsebert.bench import providers, runner
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert.bench.providers import BACKENDS
from sparsebert.cli import app
from sparsebert.planning import layer_timing
from sparsebert.results import read
from sparsebert.tickets.ticket import Ticket
from tests import brief_timings

QUICK = ["--model", "bert-tiny", "--seq", "16", "--budget", "0.01", "--no-memory"]


def refused(capsys, *arguments: str) -> str:
    """Run, expect exit code 2 with one line on stderr and nothing on stdout; give back the line."""
    assert app.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("sparsebert: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnch"], "'bench'"),
        (["bench", "--bach", "3"], "--batch"),
        (["bench", "--batch", "three"], "--batch"),
        (["bench", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["bench", "--sparsity", "90"], "did you mean 0.9"),
        (["bench", "--ticket", "a.safetensors", "--sparsity", "0.8"], "omit one of them"),
        (
            ["bench", "--ticket", "a.safetensors", "--granularity", "4x1"],
            "--granularity 4x1 conflicts with --ticket",
        ),
        (["bench", "--sparsity", "much"], "got 'much'"),
        (["bench", "--sparsity", "-0.1"], "must be from 0 to 1, got -0.1"),
        (["bench", "--vs", "onedn"], "did you mean 'onednn'"),
        (["bench", "--vs", ","], "--vs must name a baseline"),
        (["bench", "--profile", "--vs", "eager"], "--vs eager conflicts with --profile, which has no"),
        (["bench", "--profile", "--no-fuse"], "--no-fuse conflicts with --profile, which shows both"),
        (
            ["bench", "--profile", "--sparsity", "0.8,0.9", "--plot", "bars.png"],
            "--profile --plot draws one sparsity, got 2",
        ),
        (
            ["bench", "--calibrate-with", "/nowhere/at/all.txt"],
            "--calibrate-with: file /nowhere/at/all.txt does not exist",
        ),
        (["bench", "--dtype", "float23"], "did you mean 'float32'"),
        (["bench", "--threads", "0"], "threads must be a positive integer, got 0"),
        (["bench", "--json", "/nowhere/at/all.jsonl"], "does not exist"),
        (["bench", "--plot", "/nowhere/at/all.png"], "does not exist"),
        (
            ["bench", "--plot", "plot.jpg"],
            "--plot: cannot draw plot.jpg: a picture's name ends with .png, .svg",
        ),
        (["bench", "--plot", "plot"], "cannot draw plot:"),
        (
            ["bench", "--lengths-from", "/nowhere/at/all.txt"],
            "--lengths-from: file /nowhere/at/all.txt does not exist",
        ),
        (["bench", "--model", "bert-bas"], "did you mean 'bert-base'"),
        (["bench", "--model", "bert-tiny", "--ticket", "/nowhere/ticket.safetensors"], "ticket.safetensors"),
        (["bench", "--model", "bert-tiny", "--granularity", "elemnt"], "element"),
        (["bench", *QUICK, "--format", "elemnt"], "element"),
        (["bench", *QUICK, "--budget", "nan"], "--budget must be at least 0, got nan"),
        (["bench", *QUICK, "--budget", "-1"], "--budget must be at least 0, got -1.0"),
        (["bench", *QUICK, "--format", "csr", "--no-measure"], "--no-measure applies to --format auto"),
        (["bench", *QUICK, "--tolerance", "bf15"], "unknown tolerance 'bf15'; known: bf16, fp32, int8"),
        (
            ["bench", *QUICK, "--dtype", "fp16", "--fuse", "--vs", "eager"],
            "the encoder cannot be fused: no engine takes models in torch.float16",
        ),
        (
            ["bench", *QUICK, "--format", "row_panel"],
            "format 'row_panel' rounds to bf16: allow it with the tol",
        ),
        (
            ["bench", *QUICK, "--format", "vector_int8"],
            "format 'vector_int8' rounds to int8: allow it with the",
        ),
        (["bench", *QUICK, "--format", "csr", "--measure"], "--measure applies to --format auto"),
        (["env", "--json", "/nowhere/at/all.jsonl"], "does not exist"),
        (["prune", "--output", "x"], "--model"),
        (["prune", "--model", "bert-tiny", "--output", "/nowhere/at/all"], "does not exist"),
        (
            ["prune", "--model", "bert-tiny", "--output", "x", "--sparsity", "0.5,0.9"],
            "a ticket has one sparsity",
        ),
        (["prune", "--model", "bert-tiny", "--output", "x", "--method", "magnitud"], "magnitude"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_right(
    capsys, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_baseline_that_cannot_run_is_refused_when_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("SPARSEBERT_DEEPSPARSE_PYTHON", raising=False)
    assert "deepsparse cannot run here" in refused(capsys, "bench", *QUICK, "--vs", "deepsparse")


def test_env_says_what_is_found_and_appends_a_record(capsys, tmp_path):
    assert app.main(["env", "--json", str(tmp_path / "env.jsonl")]) == 0
    assert "compiled kernels" in capsys.readouterr().out
    (row,) = read(tmp_path / "env.jsonl", kind="environment")
    assert row["environment"]["cpu"]


def test_prune_writes_a_ticket_that_bench_takes(capsys, tmp_path):
    ticket, results = tmp_path / "ticket.safetensors", tmp_path / "results.jsonl"
    arguments = ["--model", "bert-tiny", "--output", str(ticket), "--sparsity", "0.8", "--granularity", "4x1"]
    assert app.main(["prune", *arguments, "--json", str(results)]) == 0
    assert "80.00% sparse (density 20.00%)" in capsys.readouterr().out
    assert Ticket.load(ticket).sparsity == pytest.approx(0.8, abs=1e-3)
    arguments = [*QUICK, "--ticket", str(ticket), "--vs", "eager", "--json", str(results)]
    assert app.main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert "80.0% 4x1-sparse" in out
    assert "random weights" in out
    assert [row["kind"] for row in read(results)] == ["prune", "bench", "bench"]


def test_bench_without_timing_the_formats(capsys, monkeypatch):
    monkeypatch.setattr(layer_timing, "paired", lambda *_: pytest.fail("a timing"))
    arguments = [*QUICK, "--no-measure", "--sparsity", "0.99", "--vs", "eager"]
    assert app.main(["bench", *arguments]) == 0
    assert "element" in capsys.readouterr().out


def test_bench_of_a_pattern_needs_no_sparsity(tmp_path):
    arguments = [*QUICK, "--granularity", "2:4", "--vs", "eager", "--json", str(tmp_path / "results.jsonl")]
    assert app.main(["bench", *arguments]) == 0
    assert read(tmp_path / "results.jsonl")[0]["ticket"]["sparsity"] == 0.5


def test_bench_takes_a_mask_pt(tmp_path):
    ours, theirs, results = (str(tmp_path / name) for name in ("ticket", "mask.pt", "results.jsonl"))
    assert app.main(["prune", "--model", "bert-tiny", "--output", ours, "--sparsity", "0.8"]) == 0
    assert app.main(["convert", ours, theirs, "--to", "bert-tickets"]) == 0
    assert app.main(["bench", *QUICK, "--ticket", theirs, "--vs", "eager", "--json", results]) == 0
    assert read(results)[0]["ticket"]["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_bench_sweeps_sparsities_and_plots_them(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    results, picture = tmp_path / "results.jsonl", tmp_path / "plot.png"
    arguments = [
        *QUICK,
        "--sparsity",
        "0.5,0.9",
        "--vs",
        "onednn",
        "--json",
        str(results),
        "--plot",
        str(picture),
    ]
    assert app.main(["bench", *arguments]) == 0
    assert [row["ticket"]["sparsity"] for row in read(results)] == pytest.approx(
        [0.5, 0.5, 0.9, 0.9], abs=1e-3
    )
    assert picture.stat().st_size > 10_000
    assert "vs oneDNN" in capsys.readouterr().out


def test_real_lengths_are_read_from_a_file(tmp_path, capsys):
    lengths, results = tmp_path / "lengths.txt", tmp_path / "results.jsonl"
    lengths.write_text("5\n9\n7\n")
    arguments = [
        *QUICK,
        "--vs",
        "eager",
        "--batch",
        "2",
        "--lengths-from",
        str(lengths),
        "--json",
        str(results),
    ]
    assert app.main(["bench", *arguments]) == 0
    assert read(results)[0]["workload"]["lengths"] == [5, 9]
    assert "5 to 9 tokens" in capsys.readouterr().out


def test_a_ticket_of_another_model_is_refused(capsys, tmp_path):
    ticket = tmp_path / "ticket.safetensors"
    app.main(["prune", "--model", "bert-tiny", "--output", str(ticket)])
    capsys.readouterr()
    line = refused(capsys, "bench", "--model", "minilm", "--ticket", str(ticket))
    assert "encoder.layer" in line


def test_a_red_gate_prints_the_error_and_no_figures(capsys, monkeypatch):
    def wrong(*arguments):
        raise OutputMismatchError("outputs differ: sparse: error 1e+00 > tolerance 1e-04")

    monkeypatch.setattr(runner, "run", wrong)
    assert app.main(["bench", *QUICK]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error 1e+00" in err


def test_baselines_are_listed_with_what_each_needs(capsys, monkeypatch):
    monkeypatch.delenv("SPARSEBERT_DEEPSPARSE_PYTHON", raising=False)
    assert app.main(["bench", "--vs", "help"]) == 0
    out = capsys.readouterr().out
    assert "onednn" in out
    assert "set SPARSEBERT_DEEPSPARSE_PYTHON" in out


def test_all_baselines_run_but_those_that_cannot_which_are_named(capsys, monkeypatch, tmp_path):
    """With two baselines in place of all."""
    backends = {name: BACKENDS[name] for name in ("sparse", "eager", "bf16", "openvino")}
    monkeypatch.setattr(providers, "BASELINES", ("eager", "bf16", "openvino"))
    monkeypatch.setattr(backends["openvino"], "available", lambda self: "not installed: pip install it")
    out = tmp_path / "out.jsonl"
    assert app.main(["bench", *QUICK, "--vs", "all", "--json", str(out)]) == 0
    shown, said = capsys.readouterr()
    assert "without openvino: not installed" in said
    assert "vs fastest dense" in shown
    assert "Not compared: openvino (not installed: pip install it)" in " ".join(shown.split())
    rows = read(out)
    assert [row["provider"] for row in rows] == ["sparse", "eager", "bf16"]
    assert rows[0]["left_out"] == {"openvino": "not installed: pip install it"}


def test_texts_for_calibration_need_a_tokenizer(capsys, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a sentence\nanother one\n")
    line = refused(capsys, "bench", *QUICK, "--calibrate-with", str(texts))
    assert "bert-tiny has random weights and no tokenizer" in line


def test_a_profile_is_printed_recorded_and_drawn(capsys, monkeypatch, tmp_path):
    brief_timings.shorten_ceilings(monkeypatch)
    out, bars = tmp_path / "out.jsonl", tmp_path / "bars.png"
    assert app.main(["bench", *QUICK, "--profile", "--json", str(out), "--plot", str(bars)]) == 0
    printed = capsys.readouterr().out
    assert "Where the time goes" in printed
    assert "Roofline: element-sparse layers" in printed
    assert {row["kind"] for row in read(out)} == {"profile"}
    assert bars.stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [[], ["--graphs"]])
def test_bench_runs_on_a_gpu(capsys, graphs):
    assert app.main(["bench", *QUICK, "--device", "cuda", *graphs]) == 0
    printed = capsys.readouterr().out
    assert "vs compile" in printed
    assert ("CUDA graphs" in printed) == bool(graphs)


@pytest.mark.parametrize(("device", "baselines"), [("cpu", "onednn,eager"), ("cuda", "compile,eager")])
def test_bench_compares_with_dense_libraries_of_the_device(device, baselines, monkeypatch):
    asked = []

    def usable(names, *, required):
        asked.append((names, required))
        raise ValueError("enough")

    monkeypatch.setattr("sparsebert.cli.bench.usable_baselines", usable)
    assert app.main(["bench", *QUICK, "--device", device]) == 2
    assert asked == [(baselines, False)]


def test_graphs_need_a_gpu(capsys):
    assert "CUDA graphs (--graphs) need --device cuda; the device is cpu" in refused(
        capsys, "bench", *QUICK, "--graphs"
    )


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *itertools.product(["prune", "train", "transfer"], ["--fuse", "--no-fuse"]),
        ("train", "--tolerance=bf16"),
        ("transfer", "--tolerance=bf16"),
    ],
)
def test_options_of_execution_are_named_by_the_commands_that_run_a_model(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([command, "--model", "bert-base", option]) == 2
    assert capsys.readouterr().err == (
        f"sparsebert: {option.partition('=')[0]} does not apply to {command}: a ticket has no precision; "
        "choose it where the model runs, in bench, eval or convert --to sparse\n"
    )
