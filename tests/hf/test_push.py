"""``model.push_to_hub``: one commit with config, weights and a card; the hub itself is played by a folder."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from sparsebert import compact_, compaction_description, densify_, prune, results, sparsify_
from tests.hf.test_model_card import BENCH, SEEDS
from tests.sparsify.models import answers, build, pruned, sparse_layers

transformers = pytest.importorskip("transformers")
REPOSITORY = "me/sparse-bert"


class Hub:
    """A repository that is a folder, behind the calls of ``HfApi``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, dict[str, Any]] = {}

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls["create_repo"] = options
        self.folder.mkdir(exist_ok=True)
        return type("RepoUrl", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls["create_branch"] = options

    def file_exists(self, repo_id: str, filename: str, **options: Any) -> bool:
        return (self.folder / filename).exists()

    def upload_folder(self, *, folder_path: str, **options: Any) -> str:
        self.calls["upload_folder"] = options
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return f"https://hub/{options['repo_id']}/commit"

    @property
    def card(self) -> ModelCard:
        return ModelCard.load(self.folder / "README.md")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_branch", "file_exists", "upload_folder"):
        played = getattr(hub, name)
        monkeypatch.setattr(
            HfApi, name, lambda self, *args, _played=played, **options: _played(*args, **options)
        )
    return hub


def of_kind(kind: str) -> tuple[Any, Any]:
    """A model that came from the hub, sparse, compacted, or both; and its ticket."""
    model = build()
    model.config._name_or_path = "google-bert/bert-base-uncased"
    weights = prune(model, "magnitude", sparsity=0.7)
    units = prune(model, "magnitude", sparsity=0.5, granularity="head+neuron")
    ticket = {"sparse": weights, "compacted": units, "both": units & weights}[kind]
    return (compact_ if kind == "compacted" else sparsify_)(model, ticket), ticket


@pytest.mark.parametrize("kind", ["sparse", "compacted", "both"])
def test_config_weights_and_card_in_one_commit(kind: str, hub: Hub) -> None:
    model, ticket = of_kind(kind)
    sparsity = model.config.quantization_config.sparsity
    seeds = {**SEEDS, "sparsity": sparsity, "dense_mean": 0.92, "dense_std": 0.005, "verdict": "winning"}
    rows = [seeds, {**BENCH, "ticket": {"sparsity": sparsity}}]
    url = model.push_to_hub(REPOSITORY, records=rows)
    assert url == f"https://hub/{REPOSITORY}/commit"
    assert {file.name for file in hub.folder.iterdir()} == {
        "config.json",
        "sparsebert.safetensors",
        "README.md",
    }

    loaded = type(model).from_pretrained(hub.folder)
    assert all(map(torch.equal, answers(loaded), answers(model)))
    assert sparse_layers(loaded).keys() == sparse_layers(model).keys()
    assert compaction_description(loaded) == compaction_description(model)

    card, text = hub.card, hub.card.text
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.tags == ["sparsebert", "sparse", "pruning"]
    assert f"- method: {ticket.metadata['method']}" in text
    listed = {
        line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| enc")
    }
    stored = model.config.quantization_config
    assert listed == {*stored.layers, *(stored.compaction or {}).get("linears", {})}
    assert len(listed) >= 8
    assert "accuracy: 0.9100 ± 0.0100; dense: 0.9200 ± 0.0050 (verdict: winning)" in text
    assert "2.50x against oneDNN" in text
    assert "A CPU" in text
    code = text.split("```python\n")[1].split("```")[0]
    assert code.startswith("import sparsebert")
    assert f'from_pretrained("{REPOSITORY}")' in code


def test_without_records_the_card_claims_nothing(hub: Hub) -> None:
    model, _ = of_kind("compacted")
    model.push_to_hub("sparse-bert")
    assert "## Quality\n\nNot measured." in hub.card.text
    assert "## Speed\n\nNot measured." in hub.card.text
    assert 'from_pretrained("me/sparse-bert")' in hub.card.text


def test_a_card_that_is_there_stays_until_there_is_something_to_say(hub: Hub) -> None:
    model, _ = of_kind("sparse")
    hub.folder.mkdir()
    (hub.folder / "README.md").write_text("written by hand")
    model.push_to_hub(REPOSITORY)
    assert (hub.folder / "README.md").read_text() == "written by hand"
    sparsity = model.config.quantization_config.sparsity
    model.push_to_hub(REPOSITORY, records=[{**BENCH, "ticket": {"sparsity": sparsity}}])
    assert "import sparsebert" in (hub.folder / "README.md").read_text()


def test_records_of_another_model_are_refused_before_anything_is_made(hub: Hub) -> None:
    model, _ = of_kind("sparse")
    with pytest.raises(
        ValueError, match=r"'bench' record must be of this model, .* it is of a model that is 99"
    ):
        model.push_to_hub(
            REPOSITORY, records=[results.stamp("bench", {**BENCH, "ticket": {"sparsity": 0.99}})]
        )
    assert not hub.folder.exists()
    assert not hub.calls


def test_the_options_are_those_of_transformers(hub: Hub) -> None:
    model, _ = of_kind("sparse")
    model.add_model_tags("mine")
    model.push_to_hub(
        REPOSITORY,
        private=True,
        revision="trial",
        create_pr=True,
        commit_message="better",
        commit_description="by far",
        max_shard_size="4KB",
        tags=["sparse", "yours"],
    )
    assert hub.calls["create_repo"] == {"private": True, "exist_ok": True}
    assert hub.calls["create_branch"] == {"branch": "trial", "exist_ok": True}
    assert hub.calls["upload_folder"] == {
        "repo_id": REPOSITORY,
        "commit_message": "better",
        "commit_description": "by far",
        "revision": "trial",
        "create_pr": True,
    }
    assert len([*hub.folder.glob("*.safetensors")]) > 3
    assert hub.card.data.tags == ["sparsebert", "sparse", "pruning", "mine", "yours"]


@pytest.mark.parametrize(
    "twin_of",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_push_themselves(twin_of: Any, hub: Hub) -> None:
    model, _ = of_kind("both")
    twin = twin_of(model)
    with torch.no_grad():
        twin.classifier.weight.add_(1)
    twin.push_to_hub(REPOSITORY)
    loaded = type(model).from_pretrained(hub.folder)
    assert all(map(torch.equal, answers(loaded), answers(twin)))


def test_a_loaded_model_pushes_a_card_and_a_dense_one_is_transformers_own_again(
    hub: Hub, tmp_path: Path
) -> None:
    model, ticket = pruned()
    sparsify_(model, ticket).save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    loaded.push_to_hub(REPOSITORY)
    assert "import sparsebert" in hub.card.text
    densify_(loaded)
    assert loaded.push_to_hub.__func__ is transformers.PreTrainedModel.push_to_hub
