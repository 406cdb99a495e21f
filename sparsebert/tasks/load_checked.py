"""Loading of models by hub id or folder, with one-line errors for unusable files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig

from sparsebert.checkpoints.weight_files import read_config
from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.nn.sparse_linear import as_stored
from sparsebert.tasks.renamed_weights import drop_missing_pooler_, outline_of, problem_of, read_renamed
from sparsebert.tasks.stored_shapes import require_sizes, require_stored_shapes
from sparsebert.tickets.file import brief
from sparsebert_kernels.errors import one_line


def load_config(name: str) -> Any:
    """Load the configuration of a model.

    Args:
        name: Hub id or folder of the model.

    Raises:
        ValueError: For a path that is not a model's folder, an unusable config.json, or weights quantised by
            another library.
        OSError: For a name that is neither a folder nor on the hub.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"model {name!r} is a file; expected a hub id or the folder of a model")
    if not path.is_dir():
        try:
            described, _ = PretrainedConfig.get_config_dict(name)
        except OSError:
            raise OSError(
                f"model {name!r} is not a folder, not cached, and not reachable on the hub"
            ) from None
    else:
        described = _described(path)
    require_sizes(described, name)
    stored = described.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if stored is not None and method != METHOD:
        raise ValueError(
            f"{name}: quant_method in its config.json is {brief(method)}; expected plain weights, or "
            f"weights saved by {METHOD}"
        )
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # The checks of each family's configuration raise different kinds.
        raise ValueError(f"{name}: its config.json is not usable: {one_line(error)}") from error


def load_outline(name: str) -> Any:
    """Return the base model of a folder or hub id without weights, on the meta device.

    Raises:
        ValueError: As :func:`load_config`, and for sizes that make no model.
        OSError: As :func:`load_config`.
    """
    return outline_of(AutoModel, name, {"config": load_config(name)})


def load_weights(cls: Any, name: str, *, fresh_head: bool = True, **options: Any) -> Any:
    """Return ``cls.from_pretrained(name, **options)``, with no random weights in place of missing ones.

    Names of wrappers and training code (``module.``, ``model.``, a table in a table), masked weights
    (``weight_orig`` and ``weight_mask``) and matrices without their pruned heads are read too. A bare encoder
    whose file holds no pooler gets none.

    Args:
        cls: A class of transformers, or one of its ``Auto`` classes.
        name: Hub id or folder of the model.
        fresh_head: Whether the file may lack the task's head, which then starts from random values.
        options: Options of ``from_pretrained``.

    Raises:
        ValueError: In one line, for files that are damaged, lack a tensor of the model, or hold tensors of
            the encoder that the model has no place for (scores, a LoRA, scales of quantised weights), or
            values that are not finite.
        OSError: For a model that is missing or holds no weights.
    """
    random = torch.random.get_rng_state()
    require_stored_shapes(cls, name, options)
    model, report, failure = _attempt(lambda: cls.from_pretrained(name, output_loading_info=True, **options))
    problem = "" if model is None else problem_of(model, report, fresh_head)
    if (failure or problem) and (renamed := read_renamed(cls, name, options)):
        # The values of a fresh head must not depend on how the other weights were found.
        torch.random.set_rng_state(random)
        model, report, failure = _attempt(renamed.load)
        problem = "" if model is None else problem_of(model, report, fresh_head)
    if failure is not None:
        raise (
            failure if isinstance(failure, OSError | ValueError) else _inone_line(failure, name)
        ) from failure
    if problem:
        raise ValueError(f"{name}: its weights {problem}")
    model._fresh_tensors = frozenset(report["missing_keys"])
    drop_missing_pooler_(model, report)
    _require_finite(model, name)
    return model


def fresh_tensors(model: Any) -> frozenset[str]:
    """Return the names of a loaded model's tensors that its file lacked, whose values the seed decides."""
    names: frozenset[str] = getattr(model, "_fresh_tensors", frozenset())
    return names


def _require_finite(model: Any, name: str) -> None:
    with as_stored():  # Without the zeros of sparse layers.
        state = model.state_dict()
    for tensor_name, tensor in state.items():
        # Formats of one byte have no sum.
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2:
            continue
        # A sum shows every NaN and infinity in one pass without a copy, but may itself overflow.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{name}: its weights hold NaN or infinity in {tensor_name}")


def _attempt(load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, Exception | None]:
    try:
        return *load(), None
    except Exception as error:  # Unpicklers and zip readers raise too many kinds to name.
        return None, None, error


def _inone_line(error: Exception, name: str) -> ValueError:
    reason = f"damaged or truncated ({type(error).__name__}: {one_line(error)})"
    if "ignore_mismatched_sizes" in str(error):
        reason = "not of the shapes in its config.json"
    return ValueError(f"{name}: its weights are {reason}")


def _described(folder: Path) -> Mapping[str, Any]:
    if not (folder / "config.json").is_file():
        inside = folder / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{folder} is not the folder of a model: it holds no config.json{hint}")
    return read_config(folder)
