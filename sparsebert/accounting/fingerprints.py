"""Fingerprints: SHA-256 digests of the data, weights and tokenizer that a run reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Fingerprints = dict[str, str]

# Entries of a configuration that do not change what a model computes, or that follow from its tensors.
_NOT_FUNCTION = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config", "problem_type"),
    *("id2label", "label2id", "num_labels", "finetuning_task", "name_or_path"),
}
# The state that a fast tokenizer keeps of its last call.
_LAST_CALL = ("padding", "truncation")


def digest_of_examples(examples: Iterable[Any]) -> str:
    """Return the fingerprint of examples in their order: texts, labels, answers.

    Args:
        examples: Strings, tuples of strings, or dataclasses of such values and numbers.
    """
    digest = hashlib.sha256()
    names: dict[type, list[str]] = {}
    for example in examples:
        kind, values = type(example), example
        if is_dataclass(kind):
            # Not by dataclasses.astuple, which copies every value.
            if kind not in names:
                names[kind] = [each.name for each in fields(kind)]
            values = [getattr(example, name) for name in names[kind]]
        digest.update(json.dumps(values).encode() + b"\n")
    return _named(digest)


def digest_of_model(model: nn.Module, without: Collection[str] = ()) -> str:
    """Return the fingerprint of a model: its configuration, and name, dtype, shape and bytes of its tensors.

    Tensors of the base model have the same names under every head.

    Args:
        model: The model.
        without: Tensors to leave out, such as those of a fresh head, which the seed decides.
    """
    digest = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_diff_dict"):
        settings = {
            name: value
            for name, value in config.to_diff_dict().items()
            if name not in _NOT_FUNCTION and not name.startswith("_")
        }
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode() + b"\n")
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    for name, tensor in model.state_dict().items():
        if name in without or not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name.removeprefix(prefix)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return _named(digest)


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return the fingerprint of a tokenizer: its vocabulary, its rules and its special tokens."""
    try:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {name: value for name, value in rules.items() if name not in _LAST_CALL}
    except (
        Exception
    ):  # Without rules in Rust, or with a part in Python, for which Rust raises its base class.
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    content["special tokens"] = getattr(tokenizer, "special_tokens_map", {})
    return _named(hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()))


def combined(digests: Mapping[str, str]) -> str:
    """Return one fingerprint of several by name, such as those of a task's validation splits."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return _named(hashlib.sha256(json.dumps(digests, sort_keys=True).encode()))


def _named(digest: Any) -> str:
    return f"sha256:{digest.hexdigest()}"
