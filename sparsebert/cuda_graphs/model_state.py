"""What a CUDA graph has read of a model: its tensors and modules; and why a model cannot run in graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sparsebert.cuda_graphs.calls import NoGraph
from sparsebert.nn.plain_path import is_foreign


@dataclass(frozen=True)
class Fingerprint:
    """What graphs depend on, as lists and tuples that are compared in each call.

    Graphs read tensors at the addresses of their capture. Tensors that layers derive from others, such as the
    joined biases of query, key and value, follow no change in place, so changes in place are counted too, as
    far as torch counts them: all but those through ``.data``, ``.numpy()`` and shared memory.

    Attributes:
        modules: Identity and class of each module.
        addresses: Address of each parameter and buffer.
        changes: How often each was changed in place.
        shapes: Shape of each.
        config: Entries of the model's configuration.
    """

    modules: tuple[list[int], list[type]]
    addresses: list[int]
    changes: list[int]
    shapes: list[torch.Size]
    config: dict[str, Any]


@dataclass(frozen=True)
class ModelState:
    """The state of a model before a call.

    Attributes:
        fingerprint: What graphs depend on.
        devices: Devices of the model's tensors.
        dtypes: Their floating-point dtypes.
        obstacle: Why the model cannot run in a graph in this call, or None.
    """

    fingerprint: Fingerprint
    devices: frozenset[torch.device]
    dtypes: frozenset[torch.dtype]
    obstacle: NoGraph | None

    @classmethod
    def of(cls, model: nn.Module, before: ModelState | None = None) -> ModelState:
        """Read the state of ``model``.

        This is a part of the time of each call, hence the passes over plain lists.

        Args:
            model: The model.
            before: The state of an earlier call. If the fingerprints are equal, so are devices and dtypes.
        """
        # `nn.Module.modules` yields a module once, and takes longer.
        modules = [model]
        tensors: list[Tensor] = []
        for module in modules:
            if module._modules:
                modules += [child for child in module._modules.values() if child is not None]
            if module._parameters:
                tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
            if module._buffers:
                tensors += [tensor for tensor in module._buffers.values() if tensor is not None]
        config = getattr(model, "config", None)
        fingerprint = Fingerprint(
            (list(map(id, modules)), list(map(type, modules))),
            [tensor.data_ptr() for tensor in tensors],
            _changes(tensors),
            [tensor.shape for tensor in tensors],
            {} if config is None else dict(vars(config)),
        )
        if before is not None and fingerprint == before.fingerprint:
            devices, dtypes = before.devices, before.dtypes
        else:
            devices = frozenset(tensor.device for tensor in tensors)
            dtypes = frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        return cls(fingerprint, devices, dtypes, _obstacle(modules, tensors, devices))

    @property
    def device(self) -> torch.device:
        """The device of all tensors.

        Raises:
            NoGraph: The model cannot run in a graph in this call.
        """
        if self.obstacle is not None:
            raise self.obstacle
        return next(iter(self.devices))

    def change_since(self, before: ModelState) -> str | None:
        """Return how the model has changed since ``before`` in a way that graphs do not follow, or None."""
        if self.fingerprint == before.fingerprint:
            return None
        if self.devices != before.devices:
            return f"the model was moved from {_names(before.devices)} to {_names(self.devices)}"
        if self.dtypes != before.dtypes:
            return f"the model was converted from {_names(before.dtypes)} to {_names(self.dtypes)}"
        if self.fingerprint.modules != before.fingerprint.modules:
            return "modules of the model were replaced"
        if self.fingerprint.config != before.fingerprint.config:
            return "the model's configuration was changed"
        return "weights of the model were changed"


def _changes(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # tensors made in inference mode count no changes
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _obstacle(
    modules: Sequence[nn.Module], tensors: Sequence[Tensor], devices: frozenset[torch.device]
) -> NoGraph | None:
    if any([module.training for module in modules]):  # noqa: C419 (a list is quicker)
        return NoGraph("training", "the model is in training mode; call model.eval() first")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return NoGraph(
            "gradients",
            "gradients are recorded, which graphs cannot; call it under torch.inference_mode()",
        )
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks or _has_hooks(modules):
        return NoGraph("hooks", "a module has forward hooks, which graphs would not call")
    if len(devices) != 1:
        return NoGraph("devices", f"graphs need a model on one device; this one is on {_names(devices)}")
    if next(iter(devices)).type == "meta":
        return NoGraph("meta", "the model is on the meta device, which holds no values")
    return None


def _has_hooks(modules: Iterable[nn.Module]) -> bool:
    return any(
        is_foreign(hook)
        for module in modules
        if module._forward_hooks or module._forward_pre_hooks
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def _names(values: Iterable[Any]) -> str:
    return " and ".join(sorted(str(value).removeprefix("torch.") for value in values)) or "no device"
