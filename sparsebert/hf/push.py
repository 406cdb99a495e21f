"""``push_to_hub`` of sparse and compacted models: the saved folder with a model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from sparsebert.hf.model_card import model_card

_CARD = "README.md"


class PushToHub:
    """Replacement of a model's ``push_to_hub`` that adds a card with instructions for loading."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        repo_id: str,
        *,
        records: Iterable[Mapping[str, Any]] = (),
        commit_message: str = "Upload model",
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Iterable[str] = (),
    ) -> CommitInfo:
        """Upload the model and its card in one commit, with the options of transformers' ``push_to_hub``.

        Args:
            records: Measurements for the card, as for ``sparsebert.hf.model_card.model_card``. Without them,
                a card that the repository already has stays.

        Raises:
            ValueError: A record is of another model, or as ``huggingface_hub.HfApi``.
        """
        records = list(records)
        extra_tags = [*(self._model.model_tags or ()), *([tags] if isinstance(tags, str) else tags)]
        api = HfApi(library_name="sparsebert", token=token)
        with TemporaryDirectory() as folder:
            self._model.save_pretrained(folder, max_shard_size=max_shard_size)
            model_card(folder, records)  # refuses records of another model before there is a repository
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if records or not api.file_exists(repo_id, _CARD, revision=revision):
                card = model_card(folder, records, name=repo_id)
                card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *extra_tags]))
                card.save(Path(folder) / _CARD)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )
