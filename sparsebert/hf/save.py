"""``save_pretrained`` of sparse and compacted models: a folder that only sparsebert can load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsebert.hf.sparse_weights import is_weights, rename_dense, write_json

# The value of ``transformers_weights`` in config.json. transformers expects the name of a file and refuses
# this text with a message that quotes it, even where somebody has renamed the files.
LOCK = "import sparsebert before loading this folder"

_CONFIG = "config.json"
_SAVING: ContextVar[bool] = ContextVar("saving", default=False)
# Options of save_pretrained that concern the hub.
_HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")


class SavePretrained:
    """Replacement of a sparse model's ``save_pretrained``."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: object = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **options: Any,
    ) -> None:
        """Save the model, with the options of transformers' ``save_pretrained``.

        Every tensor is saved under its name in the model (``save_original_format=False``), and a
        ``state_dict`` is ignored, as for all models with a quantizer. Weights that an earlier call wrote to
        the folder are deleted.

        Raises:
            ValueError: ``save_directory`` is a file; or ``variant`` is set, but the folder of a sparse model
                holds one set of weights.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_directory must be a folder, but {folder} is a file")
        if variant is not None:
            raise ValueError(
                f"variant {variant!r}: the folder of a sparse model holds one set of weights; save to "
                "another folder instead"
            )
        folder.mkdir(parents=True, exist_ok=True)
        hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
        options["save_original_format"] = False
        with TemporaryDirectory(prefix=".saving.", suffix=".tmp", dir=folder) as temporary:
            token = _SAVING.set(True)
            try:
                # The method of the class: the model's attribute of this name is this object.
                type(self._model).save_pretrained(
                    self._model, temporary, is_main_process, max_shard_size=max_shard_size, **options
                )
            finally:
                _SAVING.reset(token)
            weights = rename_dense(Path(temporary))
            if weights is not None:
                _lock(Path(temporary) / _CONFIG, self._model.config, weights)
            written = _move(Path(temporary), folder)
        if weights is not None:
            _delete_weights(folder, keep=written)
        if push_to_hub:
            self._model.push_to_hub(hub.pop("repo_id", folder.name), max_shard_size=max_shard_size, **hub)


def is_saving() -> bool:
    """Whether ``SavePretrained`` is saving a model in this thread."""
    return _SAVING.get()


def parts(config: Any) -> Iterator[Any]:
    """Yield the configurations of a model's parts inside a configuration, at any depth."""
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if hasattr(part, "sub_configs"):
            yield part
            yield from parts(part)


def _lock(file: Path, config: Any, weights: str) -> None:
    """Make config.json name the file of the weights to sparsebert, and an impossible one to transformers.

    Where a part of the model is loaded without the rest, transformers reads the part's section alone.
    """
    contents = json.loads(file.read_text(encoding="utf-8"))
    described = contents["quantization_config"] | {"weights": weights}
    for section in _sections(config, contents):
        section |= {"quantization_config": described, "transformers_weights": LOCK}
    write_json(file, contents)


def _sections(config: Any, contents: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the contents of a config.json, and the sections of the model's parts in it."""
    yield contents
    for name in config.sub_configs:
        if isinstance(contents.get(name), dict):
            yield from _sections(getattr(config, name), contents[name])


def _move(source: Path, folder: Path) -> set[str]:
    """Move the contents of ``source`` to ``folder``, config.json last; return their names."""
    paths = sorted(source.iterdir(), key=lambda path: path.name == _CONFIG)
    for path in paths:
        os.replace(path, folder / path.name)
    return {path.name for path in paths}


def _delete_weights(folder: Path, keep: set[str]) -> None:
    """Delete the weights of earlier saves, dense and sparse."""
    for file in folder.iterdir():
        if file.name not in keep and is_weights(file.name):
            file.unlink()
