"""Replacement of a module in a model, hooks included."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

# Hook handles refer to these dictionaries. They are moved, not copied, so that `handle.remove()` keeps
# working.
HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Move the hooks of ``old`` to ``new``; their handles keep working."""
    for name in HOOKS:
        setattr(new, name, getattr(old, name))
    hooks: Iterable[Any] = new._load_state_dict_pre_hooks.values()
    for hook in hooks:
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of this full name with ``module``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def is_replica(module: nn.Module) -> bool:
    """Whether ``nn.DataParallel`` made the module for one call on one device."""
    return bool(vars(module).get("_is_replica"))
