"""From hidden states to sentence embeddings, as the folder of a sentence-transformers model describes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsebert.json_object import load_json
from sparsebert_kernels.errors import one_line

# Maps hidden states [texts, tokens, hidden] and their mask [texts, tokens] to embeddings [texts, features].
SentenceHead = Callable[[Tensor, Tensor], Tensor]

_MODULES = "modules.json"
_ENCODER = "Transformer"
# Settings of a pooling before version 6 of the library, in the order in which their results are joined.
_FORMER_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def sentence_head(name: str) -> SentenceHead | None:
    """Return the modules after the encoder of a sentence-transformers model as one function.

    Args:
        name: Hub id or folder of the model.

    Returns:
        The function; None for a model of another library.

    Raises:
        ValueError: A module is of a type other than Pooling, Normalize and Dense, or its settings are not
            readable.
    """
    file = _file_of(name, _MODULES)
    if file is None:
        return None
    steps: list[SentenceHead] = []
    for module in _read(file):
        kind, path = str(module.get("type")).rpartition(".")[2], str(module.get("path") or "")
        if kind == "Pooling":
            steps.append(_pooling(_read(_needed(name, f"{path}/config.json"))))
        elif kind == "Dense":
            steps.append(_dense(name, path))
        elif kind not in (_ENCODER, "Normalize"):  # lengths of vectors do not change their cosines
            raise ValueError(
                f"{name}: its {_MODULES} names the module {kind}; embeddings are compared after Pooling, "
                "Dense and Normalize"
            )
    if not steps:
        return mean_of_tokens

    def head(states: Tensor, mask: Tensor) -> Tensor:
        for step in steps:
            states = step(states, mask)
        return states

    return head


def longest_text(name: str) -> int | None:
    """Return the tokens at which a sentence-transformers model cuts texts; None if its folder names none."""
    file = _file_of(name, "sentence_bert_config.json")
    length = None if file is None else _read(file).get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each text's real tokens, [texts, hidden]."""
    return _pooled("mean", states, mask)


def _pooling(settings: Mapping[str, Any]) -> SentenceHead:
    named = settings.get("pooling_mode")
    if named is None:
        named = [mode for key, mode in _FORMER_MODES.items() if settings.get(key)]
    modes = [named] if isinstance(named, str) else list(named) or ["mean"]
    if unsupported := [mode for mode in modes if mode not in _FORMER_MODES.values()]:
        raise ValueError(
            f"pooling_mode must be one of {', '.join(_FORMER_MODES.values())}, got {unsupported[0]}"
        )

    def pool(states: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([_pooled(mode, states, mask) for mode in modes], dim=-1)

    return pool


def _pooled(mode: str, states: Tensor, mask: Tensor) -> Tensor:
    states, real = states.float(), mask[..., None].to(torch.float32)
    rows = torch.arange(len(mask))
    if mode == "cls":
        return states[rows, mask.int().argmax(dim=1)]
    if mode == "lasttoken":
        return states[rows, mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)]
    if mode == "max":
        return states.masked_fill(real == 0, -math.inf).amax(dim=1)
    if mode == "weightedmean":
        real = real * real.cumsum(dim=1)
    # Padding may hold anything, NaN included.
    total = states.masked_fill(real == 0, 0.0).mul(real).sum(dim=1)
    count = real.sum(dim=1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _dense(name: str, path: str) -> SentenceHead:
    from safetensors.torch import load_file

    settings = _read(_needed(name, f"{path}/config.json"))
    function = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    activations: dict[str, Callable[[Tensor], Tensor]] = {
        "Tanh": torch.tanh,
        "Identity": lambda x: x,
        "ReLU": torch.relu,
        "GELU": torch.nn.functional.gelu,
    }
    if function not in activations:
        raise ValueError(
            f"{name}: the activation of {path} must be one of {', '.join(activations)}, got {function}"
        )
    weights = load_file(_needed(name, f"{path}/model.safetensors"))
    weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")

    def dense(states: Tensor, mask: Tensor) -> Tensor:
        out = torch.nn.functional.linear(states.float(), weight, None if bias is None else bias.float())
        return activations[function](out)

    return dense


def _read(file: Path) -> Any:
    try:
        return load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable: {one_line(error)}") from None


def _needed(name: str, file: str) -> Path:
    path = _file_of(name, file)
    if path is None:
        raise ValueError(f"{name} holds no {file}, which its {_MODULES} needs")
    return path


def _file_of(name: str, file: str) -> Path | None:
    """Return a file of a folder or of a hub id; None if there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        resolved = cached_file(name, file)
    except OSError:
        return None
    return None if resolved is None else Path(resolved)
