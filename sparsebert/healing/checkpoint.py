"""The state of an unfinished healing in one file, from which a killed process goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert_kernels.errors import first_line

_META = "healing"


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step.

    Attributes:
        identity: What the state belongs to: digests of weights, masks and texts, and the settings.
        numbers: Step, progress, tokens, seconds, losses.
        tensors: Parameters, moments of the optimizer, and the best parameters so far, by name.
    """

    identity: Mapping[str, Any]
    numbers: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        described = asdict(self) if not self.tensors else {"identity": self.identity, "numbers": self.numbers}
        described.pop("tensors", None)
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        with replacing(path, size) as unfinished:
            save_file(dict(self.tensors), unfinished, metadata={_META: json.dumps(described)})

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
        """Read a file; None if there is none.

        Args:
            path: The file.
            identity: The identity of the healing that is to go on.

        Raises:
            ValueError: The file is damaged, or belongs to another healing.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                described = json.loads(file.metadata()[_META])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises an error of its own for damaged files.
            raise ValueError(
                f"{path} is not the checkpoint of a healing ({first_line(error)}): delete it to start over"
            ) from None
        other = [name for name, value in identity.items() if described["identity"].get(name) != value]
        if other:
            raise ValueError(
                f"{path} is the checkpoint of another healing (its {other[0]} differs): delete it, or choose "
                "another output"
            )
        return cls(identity, described["numbers"], tensors)
