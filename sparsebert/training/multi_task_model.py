"""One encoder with a head for each of several tasks."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sparsebert.training.gradient_checkpointing import enable_gradient_checkpointing


@dataclass
class MultiTaskConfig:
    """The class and the config of each task's model.

    Attributes:
        tasks: Task -> class and config.
    """

    tasks: dict[str, tuple[type[Any], Any]]

    @property
    def _name_or_path(self) -> str:
        """Hub id or folder of the first task's model, which stands for the encoder."""
        return str(next(iter(self.tasks.values()))[1]._name_or_path)


class MultiTaskModel(nn.Module):
    """Models of one family that share an encoder. A batch selects its head by ``task``, an index.

    The ``state_dict`` holds each parameter once; a decoder that is tied to the embeddings appears as these.

    Args:
        config: Classes and configs by task.
        models: Task -> PreTrainedModel to take the encoder and the head from; None to initialise new models.

    Attributes:
        base: The encoder, with a pooler if one of the tasks needs it.
        heads: The rest of each task's model.

    Raises:
        ValueError: The models are of several families.
    """

    # The Trainer reads this attribute when a loaded state lacks names, such as the names of tied decoders.
    _keys_to_ignore_on_save: ClassVar[None] = None

    def __init__(self, config: MultiTaskConfig, models: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        if models is None:
            models = {name: cls(copy.deepcopy(each)) for name, (cls, each) in config.tasks.items()}
        prefixes = {model.base_model_prefix for model in models.values()}
        if len(prefixes) > 1:
            raise ValueError(f"tasks that share an encoder need models of one family, got {sorted(prefixes)}")
        (self._prefix,) = prefixes
        bases = [getattr(model, self._prefix) for model in models.values()]
        self.base = next((base for base in bases if getattr(base, "pooler", None) is not None), bases[0])
        self.heads = nn.ModuleList()
        for model in models.values():
            setattr(model, self._prefix, self.base)
            model.tie_weights()
            # A plain attribute instead of a submodule: forward can use it, without a second registration.
            vars(model)[self._prefix] = model._modules.pop(self._prefix)
            self.heads.append(model)
        self.register_state_dict_post_hook(_once)

    @classmethod
    def of(cls, models: Mapping[str, Any]) -> MultiTaskModel:
        """Combine the heads of all models with one encoder.

        The encoder comes from the first model with a pooler, or else from the first model.
        """
        config = MultiTaskConfig({name: (type(model), model.config) for name, model in models.items()})
        return cls(config, models)

    def forward(self, task: int, **inputs: Any) -> Any:
        return self.heads[task](**inputs)

    def task_model(self, task: str) -> Any:
        """Return the transformers model of one task; it shares its weights with this model."""
        head = self.heads[list(self.config.tasks).index(task)]
        model = copy.copy(head)
        vars(model).pop(self._prefix)
        model._modules = {self._prefix: self.base, **head._modules}
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a transformers folder for each task."""
        for name in self.config.tasks:
            self.task_model(name).save_pretrained(Path(folder) / name)

    def activation_checkpointing_enable(self) -> None:
        """Enable gradient checkpointing in the encoder."""
        enable_gradient_checkpointing(self.base)


def _once(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Keep only one name of each shared tensor in a state."""
    names = {name for name, _ in (*module.named_parameters(prefix), *module.named_buffers(prefix))}
    # The prefix of a state ends with a dot; named_parameters adds a second one.
    names = {name.replace(f"{prefix}.", prefix, 1) if prefix else name for name in names}
    for name in [name for name in state if name not in names]:
        del state[name]
