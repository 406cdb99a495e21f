"""Files that earlier code has written are read as it meant them, and its killed runs go on to the same end.

The files lie in `written_before/`; `expected.json` says what the code that wrote them made of them.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import Ticket, compaction_description, densify_, expand_, sparsify_
from tests.house.written_before import make_files as written

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

EXPECTED = json.loads((written.FOLDER / "expected.json").read_text())
# The optimizer steps that are left after the last checkpoint of a killed run.
STEPS_LEFT = {
    "imp": 24,
    "imp-rewound": 22,
    "movement": 8,
    "smp": 8,
    "l0": 8,
    "early-bird": 24,
    "cap": 8,
    "multi-task": 8,
}
# Options by the names that they have had since, for when the earlier ones are gone.
RENAMED = {"--share": "--step-relative-to", "--every": "--mask-interval"}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files that commands only read."""
    for name in ("tiny-bert", "data", "tickets", "foreign", "sparse", "results.jsonl", "tables.jsonl"):
        (tmp_path / name).symlink_to(written.FOLDER / name)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def runs(here: Path) -> None:
    """A copy of the finished runs, as ``runs``."""
    with tarfile.open(written.FOLDER / "runs.tar.xz") as archive:
        archive.extractall(here, filter="data")


@pytest.fixture
def killed(here: Path) -> None:
    """A copy of the killed ones, as ``killed``."""
    with tarfile.open(written.FOLDER / "killed.tar.xz") as archive:
        archive.extractall(here, filter="data")


def train(capsys: pytest.CaptureFixture[str], options: str, *more: str) -> None:
    written.sparsebert("train --help")
    known = capsys.readouterr().out
    for earlier, later in RENAMED.items():
        if re.search(rf"{later}\b", known):
            options = options.replace(f"{earlier} ", f"{later} ")
    assert written.sparsebert(f"{written.TRAIN} {options}", *more) == 0


def contents(folder: Path) -> dict[Path, bytes]:
    """The files in a folder, but for locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def require_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def require_outcome(run: Path, expected: dict[str, Any]) -> None:
    found = written.outcome(run)
    assert found["ticket"] == expected["ticket"]
    assert found["rounds"] == expected["rounds"]
    for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        assert mine == pytest.approx(theirs)
    for mine, theirs in zip(found["search"], expected["search"], strict=True):
        # Later versions write more of a search.
        assert ({name: mine[name] for name in theirs} if isinstance(theirs, dict) else mine) == theirs
    assert found["answers"].keys() == expected["answers"].keys()
    for name, answers in expected["answers"].items():
        require_close(found["answers"][name], answers)


def missing(found: list[list[str]], expected: list[list[str]]) -> list[list[str]]:
    """The rows whose numbers do not all stand in some row that was found."""
    counted = [Counter(row) for row in found]
    return [row for row in expected if not any(Counter(row) <= each for each in counted)]


class TestTickets:
    @pytest.mark.parametrize("name", EXPECTED["tickets"])
    def test_masks_removed_modules_and_metadata(self, name: str) -> None:
        ticket = Ticket.load(f"tickets/{name}.safetensors")
        assert written.contents(ticket) == EXPECTED["tickets"][name]

    def test_the_kinds_of_content_that_a_ticket_has(self) -> None:
        """What the files must hold for the test above to say something."""
        told = EXPECTED["tickets"]
        assert told["biases"]["bias_masks"]
        assert told["removed"]["removed"]
        assert "pooler.dense" in told["pooler"]["masks"]
        assert told["metadata"]["metadata"].items() >= written.METADATA.items()
        assert len(told["combined"]["metadata"]["history"]) > 0

    def test_saved_again_they_hold_the_same(self) -> None:
        for name, expected in EXPECTED["tickets"].items():
            Ticket.load(f"tickets/{name}.safetensors").save("again")
            assert written.contents(Ticket.load("again")) == expected

    @pytest.mark.parametrize("name", written.FOREIGN)
    def test_in_formats_of_others(self, name: str) -> None:
        source, _ = written.FOREIGN[name]
        assert written.sparsebert(f"convert foreign/{name} back --model tiny-bert") == 0
        assert written.bits(Ticket.load("back").masks) == EXPECTED["tickets"][source]["masks"]

    @pytest.mark.usefixtures("runs")
    def test_of_a_run_s_folder(self) -> None:
        assert written.sparsebert("convert runs/imp back --model tiny-bert") == 0
        assert written.fingerprint(Ticket.load("back")) == EXPECTED["runs"]["runs/imp"]["ticket"]


@pytest.mark.parametrize("name", EXPECTED["sparse"])
class TestSparseFolders:
    def test_answers_formats_and_compaction(self, name: str) -> None:
        expected = EXPECTED["sparse"][name]
        model = written.load(Path("sparse", name))
        require_close(written.answers(model), expected["answers"])
        assert json.loads(json.dumps(compaction_description(model))) == expected["compaction"]
        assert written.formats(model).keys() == expected["formats"].keys()
        if name != "converted":  # whose formats were chosen for the machine that it was made on
            assert written.formats(model) == expected["formats"]

    def test_masks(self, name: str) -> None:
        expected, model = EXPECTED["sparse"][name], written.load(Path("sparse", name))
        if expected["compaction"]:
            expand_(densify_(model) if expected["formats"] else model)
            require_close(written.answers(model), expected["answers"])
            return
        masks = EXPECTED["tickets"][expected["ticket"]]["masks"]
        found = Ticket.from_model(model, include_pooler="pooler.dense" in masks)
        assert written.bits(found.masks) == masks

    def test_saved_again(self, name: str) -> None:
        before = json.loads(Path("sparse", name, "config.json").read_text())["quantization_config"]
        written.load(Path("sparse", name)).save_pretrained("again")
        after = json.loads(Path("again/config.json").read_text())["quantization_config"]
        assert after["origin"] == before["origin"]
        require_close(written.answers(written.load(Path("again"))), EXPECTED["sparse"][name]["answers"])


@pytest.mark.usefixtures("runs")
def test_the_state_dict_of_a_sparse_model() -> None:
    model = written.load(Path("runs/dense/seed-2/model"))
    sparsify_(model, Ticket.load("tickets/element.safetensors"), format="element", compact=False)
    model.load_state_dict(torch.load("sparse/element/state_dict.pt", weights_only=True))
    require_close(written.answers(model), EXPECTED["sparse"]["element"]["answers"])


@pytest.mark.usefixtures("runs")
class TestFinishedRuns:
    @pytest.mark.parametrize("run", EXPECTED["runs"])
    def test_tickets_metrics_and_model(self, run: str) -> None:
        require_outcome(Path(run), EXPECTED["runs"][run])

    @pytest.mark.parametrize("name", written.FINISHED)
    def test_started_again_nothing_is_done_or_changed(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = contents(Path("runs"))
        train(capsys, written.FINISHED[name], "--out", f"runs/{name}", "--json", "again.jsonl")
        assert contents(Path("runs")) == before

    def test_of_several_seeds_the_summary_is_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        train(capsys, written.FINISHED["seeds"], "--out", "runs/seeds", "--json", "again.jsonl")
        mine, theirs = (
            [row | {"timestamp": None} for row in written.records(Path(file), "seeds")]
            for file in ("again.jsonl", "results.jsonl")
        )
        assert len(theirs) == 2
        for row, expected in zip(mine, theirs, strict=True):
            assert {name: row.get(name) for name in expected} == expected

    def test_of_a_transfer_are_not_done_again(self) -> None:
        before = contents(Path("runs"))
        assert written.sparsebert(written.TRANSFER, "--json", "again.jsonl") == 0
        assert contents(Path("runs")) == before
        mine, theirs = (
            [row["values"] for row in written.records(Path(file), "transfer")]
            for file in ("again.jsonl", "results.jsonl")
        )
        assert mine == theirs

    def test_evaluated_they_have_the_same_metrics(self) -> None:
        for command in written.RECORDS:
            if command.startswith("eval"):
                assert written.sparsebert(command, "--json", "again.jsonl") == 0
        mine, theirs = (written.records(Path(file), "eval") for file in ("again.jsonl", "results.jsonl"))
        assert len(mine) == len(theirs) > 4
        for row, expected in zip(mine, theirs, strict=True):
            assert row["metrics"] == pytest.approx(expected["metrics"])
            assert row["sparsity"] == expected["sparsity"]


@pytest.mark.usefixtures("runs", "killed")
@pytest.mark.parametrize("name", written.KILLED)
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_end(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = [], torch.optim.AdamW.step

    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(name)
        return step(*arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    options, _ = written.KILLED[name]
    train(capsys, options, "--out", f"killed/{name}")
    require_outcome(Path("killed", name), EXPECTED["killed"][name])
    assert len(steps) == STEPS_LEFT[name]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("name", "source"), [("records", "results.jsonl"), ("folders", "runs")])
def test_a_report_shows_the_same_numbers(name: str, source: str) -> None:
    assert written.sparsebert(f"report {source} --json new.jsonl") == 0
    expected = EXPECTED[name]
    assert len(expected) > 8
    assert not missing(written.numbers(Path("new.jsonl")), expected)


def test_tables_that_a_report_wrote_are_shown_again() -> None:
    assert written.sparsebert("report tables.jsonl --json again.jsonl") == 0
    assert not missing(written.numbers(Path("again.jsonl")), EXPECTED["records"])
