"""The linear layer whose weight is stored and multiplied in a packed format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsebert.cost.candidates import GPU_FORMATS, STORED, preferred, stored_dtype
from sparsebert.nn.checkpoint_form import BITS, VALUES, stored_mask, stored_weight, to_stored
from sparsebert.nn.shared_input import SharedInput
from sparsebert_kernels import formats, ops
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.formats import DensePrepacked, PackedWeight
from sparsebert_kernels.formats.dense import prepack
from sparsebert_kernels.formats.transpose import transposed_index

DEFAULT_TOKENS = 128

_AS_STORED: ContextVar[bool] = ContextVar("as_stored", default=False)


@contextlib.contextmanager
def as_stored() -> Iterator[None]:
    """While this is open, a `state_dict` holds sparse layers as `sparsebert.nn.checkpoint_form` says, not dense."""
    token = _AS_STORED.set(True)
    try:
        yield
    finally:
        _AS_STORED.reset(token)


class SparseLinear(nn.Module):
    """``x @ weight.T + bias`` over the kept weights only.

    weight     float [out_features, in_features]; float32, bfloat16, float16 or float64
    mask       bool, same shape, True = keep; defaults to ``weight != 0``. Masked weights are never read.
    bias       [out_features] or None; a Parameter is registered as it is, not copied
    format     a name in `sparsebert_kernels.formats.FORMATS`; ``options`` are the format's own
    trainable  makes ``values``, the kept weights, a Parameter (formats "element", "vector" and "panel", the
               latter two where the mask consists of whole vectors or blocks); else only gradients of x and
               bias exist

    The packed tensors are registered as non-persistent buffers. The `state_dict` is that of the `nn.Linear`
    it stands for, ``weight`` (dense) and ``bias``, so checkpoints move freely between the two; loading packs
    the weight and reports one of another shape, or with weights outside the mask, as an error. Inside
    `as_stored` it is the mask and the kept weights instead, which load as well.

    float32 and bfloat16 layers store that dtype and compute in it, float16 layers do on a GPU and store and
    compute float32 on a CPU. float64 layers, and layers on a device without packed kernels, hold the plain
    dense matrix (a trainable one keeps its float32 values) and pack again when they are moved back. ``.to()``
    repacks: on another kind of device in the format that is predicted to be the fastest there.

    Raises ValueError for a weight, mask, format or option that does not fit.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    values: Tensor
    weight_requires_grad: bool  # of the dense weight: for the way back

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        format: str = "element",
        trainable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        mask = _checked(weight, mask)
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.activation = "none"
        self.weight_requires_grad = weight.requires_grad
        self.shared_input: SharedInput | None = None
        self.plan: Any = None
        # Device type -> format and options: a layer that comes back is packed as it was.
        self._recipes = {weight.device.type: (format, options)}
        self._nnz = int(torch.count_nonzero(mask))
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)
        packed = self._pack(weight.detach(), mask, trainable)
        if trainable:
            _require_trainable(packed, weight.dtype)
        self._hold(packed, trainable)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        mask: Tensor | None = None,
        format: str = "element",
        *,
        trainable: bool = False,
        **options: Any,
    ) -> Self:
        """The sparse layer for ``linear`` [out, in], with its bias Parameter and training flag.

        Arguments and errors as for the class; ``linear`` itself is left alone.
        """
        layer = cls(linear.weight, mask, linear.bias, format=format, trainable=trainable, **options)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]; see `sparsebert_kernels.ops.linear`."""
        if not torch.compiler.is_compiling() and self.shared_input is not None:
            output = self.shared_input.output(self, x)
            if output is not None:
                return output
        return ops.linear(x, self.packed, self.bias, self.activation, self._transposed())

    @property
    def packed(self) -> PackedWeight:
        """The weight as the kernels take it, over the registered tensors."""
        tensors: dict[str, Any] = self._buffers
        if "values" not in tensors:
            tensors = {**tensors, "values": self.values}
        return self._format((self.out_features, self.in_features), tensors, self._geometry)

    @property
    def weight(self) -> Tensor:
        """The dense matrix [out_features, in_features] in the layer's dtype, computed; zeros where pruned."""
        return self.packed.to_dense().to(self.dtype)

    @property
    def mask(self) -> Tensor:
        """The mask (bool [out_features, in_features], True = keep), computed.

        Some formats store pruned weights as zeros, or kept zeros not at all: then it is where the weight is
        not zero.
        """
        kept = self.packed.kept()
        return kept if int(torch.count_nonzero(kept)) == self._nnz else self.weight != 0

    @property
    def recipe(self) -> tuple[str, dict[str, Any]]:
        """Format and options that the layer was packed with where it is now."""
        return self._recipes[self.device.type]

    @property
    def format(self) -> str:
        """Name of the format in use."""
        return self._format.name

    @property
    def trainable(self) -> bool:
        return "values" in self._parameters

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, index included (of its transposed index too, in a trainable layer)."""
        return self.packed.nbytes + sum(index.nbytes for index in self._transposed())

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return 1 - self._nnz / (self.out_features * self.in_features)

    def extra_repr(self) -> str:
        shape = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{shape}, format={self.format}, sparsity={self.sparsity:.1%}{fused}"

    def _transposed(self) -> list[Tensor]:
        """What `ops.linear` wants for a fast backward pass; kept by trainable layers only."""
        if not self.trainable:
            return []
        return [tensor for name, tensor in self._buffers.items() if name.startswith("transposed_")]  # type: ignore[misc]

    def _pack(self, weight: Tensor, mask: Tensor, trainable: bool) -> PackedWeight:
        format, options = self._recipes[weight.device.type]
        if format not in formats.FORMATS:
            raise unknown("format", format, formats.FORMATS)
        kernels = weight.device.type == "cpu" or (weight.device.type == "cuda" and format in GPU_FORMATS)
        if not trainable and (weight.dtype == torch.float64 or not kernels):
            kept = torch.where(mask, weight, weight.new_zeros(()))
            return DensePrepacked((self.out_features, self.in_features), {"values": kept}, {})
        stored = stored_dtype(weight.dtype, weight.device.type)
        return formats.pack(weight.to(stored), mask, format=format, **options)

    def _hold(self, packed: PackedWeight, trainable: bool) -> None:
        """Register the tensors of ``packed`` in place of those held so far."""
        self._buffers.clear()
        self.__dict__.pop("values", None)
        self._format, self._geometry = type(packed), packed.geometry()
        tensors = packed.tensors()
        values = tensors.pop("values")
        if self.trainable:
            self.values.data = values
        elif trainable:
            self.values = nn.Parameter(values)
        elif values.is_mkldnn:
            # Opaque, without a storage: as a buffer it would stop share_memory() and DistributedDataParallel.
            self.__dict__["values"] = values
        else:
            self.register_buffer("values", values, persistent=False)
        if trainable:
            index = transposed_index(packed)  # type: ignore[arg-type]
            tensors |= {f"transposed_{number}": tensor for number, tensor in enumerate(index)}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.device.type == "meta":
            raise ValueError(
                "a sparse layer on the meta device has lost its mask: sparsify_ the model once loaded"
            )
        probe = fn(torch.empty(1, dtype=self.dtype, device=self.device))
        if probe.device.type == "meta":
            if "values" in self.__dict__:
                self.register_buffer("values", self.__dict__.pop("values").to_dense(), persistent=False)
            return super()._apply(fn, recurse)
        if (probe.dtype, probe.device) == (self.dtype, self.device):
            return super()._apply(lambda tensor: _unchanged(tensor, fn(tensor)), recurse)
        return self._convert(fn, recurse)

    def _convert(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> Self:
        packed, trainable = self.packed, self.trainable
        weight = fn(self.weight.detach())
        mask = _checked(weight, packed.kept().to(weight.device))
        if weight.device.type not in self._recipes:
            self._choose_format(weight, mask)
        converted = self._pack(weight, mask, trainable)
        gradient = self.values.grad
        if gradient is not None:
            dense = fn(packed.replace(values=gradient).to_dense())
            gradient = self._pack(dense, mask, trainable).values
            self.values.grad = None
        values = self._parameters.pop("values", None)
        self._buffers.clear()
        super()._apply(fn, recurse)
        if values is not None:
            self._parameters["values"] = values
        self.dtype = weight.dtype
        self._hold(converted, trainable)
        if gradient is not None:
            self.values.grad = gradient
        return self

    def _choose_format(self, weight: Tensor, mask: Tensor) -> None:
        """For the first time on a kind of device: what was asked for, or is predicted to be the fastest."""
        device = weight.device
        made_for_gpus = [recipe for recipe in self._recipes.values() if recipe[0] in backend.FORWARD]
        if device.type not in ("cpu", "cuda") or weight.dtype == torch.float64:
            format, options = next(iter(self._recipes.values()))
        elif device.type == "cuda" and made_for_gpus:
            format, options = made_for_gpus[0]
        else:
            tokens = self.plan.tokens if self.plan else DEFAULT_TOKENS
            work = preferred(mask, weight.dtype, device, tokens, trainable=self.trainable)
            format, options = work.format, work.options
            if self.plan:
                unknown = dict.fromkeys(("predicted_us", "measured_us", "dense_us"))
                reason = f"chosen when the layer was moved to {device.type}"
                self.plan = replace(
                    self.plan, format=format, block=work.block, reason=reason, busy=False, **unknown
                )
        self._recipes[device.type] = format, options

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight, bias = self.weight, self.bias
        if _AS_STORED.get():
            stored = to_stored(weight, self.mask)
            destination.update({f"{prefix}{name}": tensor for name, tensor in stored.items()})
        else:
            destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()
        if bias is not None:
            destination[f"{prefix}bias"] = bias if keep_vars else bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key, *stored = (f"{prefix}{name}" for name in ("weight", BITS, VALUES))
        others = {name: tensor for name, tensor in state_dict.items() if name not in (key, *stored)}
        values = self._parameters.pop("values", None)
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if values is not None:
            self._parameters["values"] = values
        packed = all(name in state_dict for name in stored)
        if key not in state_dict and not packed:
            if strict:
                missing_keys.append(key)
            return
        try:
            if packed:
                bits, kept = (state_dict[name] for name in stored)
                weight = stored_weight(kept, stored_mask(bits, (self.out_features, self.in_features)))
            else:
                weight = state_dict[key]
            weight, mask = self._loadable(weight)
        except ValueError as error:
            error_msgs.append(f"{key}: {error}")
            return
        self._hold(self._pack(weight, mask, self.trainable), self.trainable)

    def _loadable(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.packed.kept()
        if weight.shape != mask.shape or not weight.is_floating_point():
            raise ValueError(
                f"the checkpoint has {list(weight.shape)} of {weight.dtype}, "
                f"the layer {list(mask.shape)} of {self.dtype}"
            )
        weight = weight.detach().to(self.device, self.dtype)
        if outside := int(((weight != 0) & ~mask).sum()):
            raise ValueError(
                f"{outside} weights of the checkpoint lie outside the layer's mask and are not zero"
            )
        return weight, mask

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if "values" in state:
            # As bytes: worker processes are sent a tensor's memory, which would go with this temporary one.
            state["values"] = state["values"].to_dense().view(torch.uint8).numpy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "values" in state:
            values = torch.from_numpy(state["values"]).view(STORED[self.dtype])
            self.__dict__["values"] = prepack(values, self._recipes["cpu"][1].get("tokens", DEFAULT_TOKENS))
        if self.shared_input is not None:
            self.shared_input.join(self)


class FusedActivation(nn.Identity):
    """Stands where an activation module stood that its up-projection now applies itself.

    The activation waits in ``original`` for `densify_`.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.train(original.training)


def _checked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The mask of ``weight``; ValueError unless the two fit each other and this layer."""
    if weight.dim() != 2 or weight.dtype not in STORED:
        known = ", ".join(str(dtype) for dtype in STORED)
        raise ValueError(
            f"weight is {list(weight.shape)} of {weight.dtype}; [out, in] in one of {known} is needed"
        )
    if mask is None:
        return weight.detach() != 0
    if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
        raise ValueError(
            f"mask is {list(mask.shape)} of {mask.dtype} on {mask.device}; "
            f"it must be {list(weight.shape)} of torch.bool (True = keep) on {weight.device}"
        )
    return mask


def _require_trainable(packed: PackedWeight, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise ValueError(
            "a trainable sparse layer stores float32 or bfloat16: convert the float64 model first"
        )
    if not isinstance(packed, ops.TRAINABLE):
        known = ", ".join(cls.name for cls in ops.TRAINABLE)
        raise ValueError(f"format {packed.name!r} cannot be trained; these can: {known}")
    if not getattr(packed, "aligned", True):
        raise ValueError(
            f"the mask does not consist of whole vectors or blocks: training in format {packed.name!r} would "
            "revive pruned weights; 'element' serves any mask"
        )


def _unchanged(tensor: Tensor, moved: Tensor) -> Tensor:
    """``moved`` if it still holds what ``tensor`` does: a packed weight's index must stay as it is."""
    if moved.dtype != tensor.dtype or (not tensor.is_floating_point() and not torch.equal(moved, tensor)):
        return tensor
    return moved
