"""Replicas as ``nn.DataParallel`` makes them on each device, which takes several GPUs, on one device."""

from __future__ import annotations

from typing import Any

from torch import nn


def replica(model: nn.Module) -> Any:
    """Return a replica of a model: its parameters are plain attributes, its buffers copies."""
    modules = list(model.modules())
    copies: dict[nn.Module, Any] = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copied in copies.items():
        for name, child in module.named_children():
            setattr(copied, name, copies[child])
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            setattr(copied, name, None if tensor is None else tensor.detach().clone())
    return copies[model]
