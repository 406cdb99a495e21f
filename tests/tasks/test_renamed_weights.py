"""Weights under names of wrappers and training code are the model's; missing ones are never random."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import structure, weight_of
from sparsebert.tasks import find_task
from sparsebert.tasks.load_checked import load_weights
from sparsebert.tasks.models import load_as_saved, load_model
from tests.checkpoints.stored import State, inside, prefixed, without, write
from tests.sparsify.models import MODELS, answers, build

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    return build("BertForSequenceClassification")


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "plain"
    model.save_pretrained(path)
    return path


def base_below(prefix: str) -> Callable[[State], State]:
    """The encoder below another name than ``bert``, the head beside it."""
    return inside("bert.", prefix)


RENAMED: dict[str, Callable[[State], Any]] = {
    **{
        prefix: prefixed(prefix)
        for prefix in (
            "module.",
            "_orig_mod.",
            "model.",
            "net.",
            "base_model.model.",
            "module._orig_mod.",
            "_orig_mod.module.model.net.",
            "student.",
            "_fsdp_wrapped_module.",
        )
    },
    "encoder alone in DataParallel": inside("bert.", "bert.module."),
    "one compiled layer": inside("encoder.layer.0.", "encoder.layer.0._orig_mod."),
    "sentence-transformers": base_below("0.auto_model."),
    "home-made": base_below("encoder."),
}
NESTED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "lightning": lambda state: {"state_dict": prefixed("model.")(state), "global_step": 7, "loops": {}},
    "deepspeed": lambda state: {"module": prefixed("module.")(state), "args": [1, 2]},
}


@pytest.mark.parametrize("name", [*RENAMED, *NESTED])
def test_names_of_wrappers_and_training_code(name: str, model: Any, folder: Path, tmp_path: Path) -> None:
    state = (RENAMED | NESTED)[name](model.state_dict())
    stored = write(tmp_path / "m", folder, state, pickled=name in NESTED)
    loaded = load_as_saved(str(stored))
    assert torch.equal(answers(loaded.eval())[0], answers(model)[0])
    assert loaded.config.name_or_path == str(stored)


def test_the_same_in_a_pickle_and_in_several_files(model: Any, folder: Path, tmp_path: Path) -> None:
    state = prefixed("module.")(model.state_dict())
    pickled = write(tmp_path / "pickled", folder, state, pickled=True)
    several = write(tmp_path / "several", folder, {})
    (several / "model.safetensors").unlink()
    halves = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    files = {}
    for number, half in enumerate(halves):
        torch.save(half, several / f"pytorch_model-{number}.bin")
        files |= dict.fromkeys(half, f"pytorch_model-{number}.bin")
    index = {"metadata": {}, "weight_map": files}
    (several / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for stored in (pickled, several):
        assert torch.equal(answers(load_as_saved(str(stored)).eval())[0], answers(model)[0])


def test_the_layer_norms_of_old_checkpoints(model: Any, folder: Path, tmp_path: Path) -> None:
    state = {
        f"module.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "Norm.bias", "Norm.beta"
        ): value
        for name, value in model.state_dict().items()
    }
    assert torch.equal(
        answers(load_as_saved(str(write(tmp_path / "m", folder, state))).eval())[0], answers(model)[0]
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_family_and_head(name: str, tmp_path: Path) -> None:
    """Tied decoders, which files leave out, are not missing."""
    model = build(name)
    model.save_pretrained(tmp_path / "plain")
    state = prefixed("module.model.")(model.state_dict())
    for folder in (tmp_path / "plain", write(tmp_path / "renamed", tmp_path / "plain", state)):
        loaded = load_as_saved(str(folder)).eval()
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(answers(loaded), answers(model), strict=True)
        )


def test_a_fresh_head_does_not_depend_on_names(model: Any, folder: Path, tmp_path: Path) -> None:
    encoder = {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}
    heads = []
    for name, change in (("plain", dict), ("renamed", prefixed("module."))):
        stored = write(tmp_path / name, folder, change(encoder))
        torch.manual_seed(5)
        heads.append(load_weights(transformers.AutoModelForSequenceClassification, str(stored)).classifier)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.std() > 0


class TestPrunedPairs:
    @pytest.fixture
    def pruned(self, model: Any) -> Any:
        pruned = copy.deepcopy(model)
        for key in structure(pruned).linears[:4]:
            torch_prune.l1_unstructured(pruned.bert.get_submodule(key), "weight", 0.5)
        torch_prune.l1_unstructured(pruned.bert.pooler.dense, "bias", 0.5)
        return pruned

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.model."])
    def test_they_are_masked_weights(self, pruned: Any, folder: Path, tmp_path: Path, prefix: str) -> None:
        stored = write(tmp_path / "m", folder, prefixed(prefix)(pruned.state_dict()))
        loaded = load_as_saved(str(stored)).eval()
        assert torch.equal(answers(loaded)[0], answers(pruned)[0])
        key = structure(loaded).linears[0]
        assert (weight_of(loaded, key) == 0).float().mean() == 0.5

    def test_a_mask_beside_the_weight_is_applied(self, model: Any, folder: Path, tmp_path: Path) -> None:
        """Masked layers of other projects keep the name of the weight."""
        name = "bert.encoder.layer.1.output.dense.weight"
        mask = torch.rand(24, 40) < 0.5
        stored = write(tmp_path / "m", folder, {**model.state_dict(), f"{name}_mask": mask})
        loaded = load_as_saved(str(stored)).state_dict()[name]
        assert torch.equal(loaded, model.state_dict()[name] * mask)

    @pytest.mark.parametrize("half", ["query.weight_mask", "query.weight_orig"])
    def test_half_a_pair_is_refused(self, pruned: Any, folder: Path, tmp_path: Path, half: str) -> None:
        state = without(f"layer.0.attention.self.{half}")(pruned.state_dict())
        assert f"self.{half} is missing" in refusal(write(tmp_path / "m", folder, state))

    def test_a_message_names_the_folder_once(
        self, pruned: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "m", folder, without("0.attention.self.query.weight_mask")(pruned.state_dict()))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"^m holds half a pruned weight"):
            load_as_saved("./m")

    def test_a_mask_of_other_values_is_refused(self, pruned: Any, folder: Path, tmp_path: Path) -> None:
        state = {**pruned.state_dict()}
        name = "bert.encoder.layer.0.attention.self.query.weight_mask"
        state[name] = state[name] * 0.5
        assert "holds values other than 0 and 1" in refusal(write(tmp_path / "m", folder, state))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_as_saved(str(folder))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(folder))
    return line


def numbered(model: Any) -> State:
    """Of three layers, where the config has two."""
    state = model.state_dict()
    return state | {
        name.replace("r.1.", "r.2."): value for name, value in state.items() if "layer.1." in name
    }


LORA = "bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
LORA_REFUSAL = f"hold {LORA!r}, for which BertForSequenceClassification has no"
SURPLUS: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "matrix": (
        lambda model: without("layer.1.output.dense.weight")(model.state_dict()),
        "lack bert.encoder.layer.1.output.dense.weight",
    ),
    "bias": (
        lambda model: without("layer.0.output.dense.bias")(model.state_dict()),
        "lack bert.encoder.layer.0.output.dense.bias",
    ),
    "embeddings": (
        lambda model: without("word_embeddings")(model.state_dict()),
        "lack bert.embeddings.word_embeddings.weight",
    ),
    "pooler of a classifier": (
        lambda model: without("pooler")(model.state_dict()),
        "lack bert.pooler.dense.weight and 1 other tensors",
    ),
    "trained head": (lambda model: without("classifier")(model.state_dict()), "lack classifier.weight"),
    "everything": (
        lambda model: {"xlnet.layer.0.q": torch.ones(2, 2)},
        "hold 'xlnet.layer.0.q', for example",
    ),
    "two encoders": (
        lambda model: prefixed("student.")(model.state_dict()) | prefixed("teacher.")(model.state_dict()),
        "several encoders (prefixes 'student.bert.', 'teacher.bert.')",
    ),
    "LoRA": (
        lambda model: {
            **inside("query.weight", "query.base_layer.weight")(model.state_dict()),
            LORA: torch.ones(2, 24),
        },
        LORA_REFUSAL,
    ),
    "LoRA beside whole names": (
        lambda model: {**model.state_dict(), LORA: torch.ones(2, 24)},
        LORA_REFUSAL,
    ),
    "scores": (
        lambda model: {
            **model.state_dict(),
            "bert.encoder.layer.0.output.dense.mask_scores": torch.ones(24, 40),
        },
        "dense.mask_scores', for which",
    ),
    "scales": (
        lambda model: {**model.state_dict(), "bert.encoder.layer.0.output.dense.weight_scale": torch.ones(1)},
        "dense.weight_scale', for which",
    ),
    "a layer more": (numbered, "hold 'bert.encoder.layer.2."),
}


@pytest.mark.parametrize("name", SURPLUS)
def test_what_is_missing_or_has_no_place_is_refused_by_name(
    name: str, model: Any, folder: Path, tmp_path: Path
) -> None:
    change, message = SURPLUS[name]
    assert message in refusal(write(tmp_path / "m", folder, change(model)))


def test_an_encoder_without_a_pooler_gets_none(folder: Path, tmp_path: Path) -> None:
    build("BertForMaskedLM").save_pretrained(tmp_path / "mlm")
    encoder = load_weights(transformers.AutoModel, str(tmp_path / "mlm"))
    assert structure(encoder).pooler is None
    assert encoder(torch.arange(2, 8)[None]).pooler_output is None


def test_a_task_of_another_model_still_starts_from_a_fresh_head_and_pooler(tmp_path: Path) -> None:
    mlm = build("BertForMaskedLM")
    mlm.save_pretrained(tmp_path / "mlm")
    words = {
        word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good"))
    }
    transformers.BertTokenizer(vocab=words).save_pretrained(tmp_path / "mlm")
    model, _ = load_model(str(tmp_path / "mlm"), find_task("sst2"))
    assert isinstance(model.classifier.weight, Tensor)
    assert torch.equal(
        weight_of(model, "encoder.layer.0.output.dense"), weight_of(mlm, "encoder.layer.0.output.dense")
    )
