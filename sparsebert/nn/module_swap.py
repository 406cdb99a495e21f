"""One module in the place of another, with everything that others have attached to it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

# Handles of hooks refer to these dictionaries: the dictionaries move, so `handle.remove()` keeps working.
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
    """Give ``new`` the hooks of ``old``; their handles keep working."""
    for name in HOOKS:
        setattr(new, name, getattr(old, name))
    hooks: Iterable[Any] = new._load_state_dict_pre_hooks.values()
    for hook in hooks:
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``model`` has the module of that full name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
