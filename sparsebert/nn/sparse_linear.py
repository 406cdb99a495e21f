"""``SparseLinear``: a linear layer whose weight is stored and multiplied in a packed format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsebert.cost.candidates import GPU_FORMATS, STORED, preferred, stored_dtype
from sparsebert.cost.default_tokens import tokens_after_move
from sparsebert.cost.precision import LOWER_PRECISIONS, pack_as
from sparsebert.nn.checkpoint_form import BITS, VALUES, stored_weight, to_stored
from sparsebert.nn.precomputed import take_precomputed
from sparsebert.tickets.bits import unpack_bits
from sparsebert_kernels import cpu, formats, ops
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.formats import DensePrepacked, PackedWeight, PanelSparse
from sparsebert_kernels.formats.base import as_bytes
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS, prepack
from sparsebert_kernels.formats.transpose import transposed_index

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})
# Attribute of the first of joined projections with their join, which the hooks of their attention and a fused
# encoder share.
JOINED = "_joined_projections"
# Attributes that calls leave in a layer, with references to its tensors.
KEPT_BY_CALLS = ("_packed", "_transposed_index", JOINED)
_AS_STORED: ContextVar[bool] = ContextVar("as_stored", default=False)


@contextlib.contextmanager
def as_stored() -> Iterator[None]:
    """Let ``state_dict`` return sparse layers in checkpoint form (``sparsebert.nn.checkpoint_form``)."""
    token = _AS_STORED.set(True)
    try:
        yield
    finally:
        _AS_STORED.reset(token)


class SparseLinear(nn.Module):
    """Compute ``x @ weight.T + bias`` over the kept weights only.

    Args:
        weight: [out_features, in_features] in float32, bfloat16, float16 or float64. Masked weights are never
            read.
        mask: Bool of the same shape, True = keep; ``weight != 0`` by default.
        bias: [out_features] or None. A Parameter is registered itself, not a copy.
        format: A name in ``sparsebert_kernels.formats.FORMATS``.
        trainable: Make ``values``, the kept weights, a Parameter. Only formats "element", "vector" and
            "panel" can be trained, the latter two only with a mask of whole vectors or blocks. Otherwise,
            only x and the bias have gradients.
        precision: Precision below the weight's dtype in which to compute on a CPU: "bf16" or "int8"; "" for
            the dtype's. The layer then holds its exact weights beside the packed ones.
        **options: Options of the format.

    The ``state_dict`` is that of the ``nn.Linear`` that the layer replaces: ``weight`` (dense) and ``bias``.
    Checkpoints therefore move freely between the two. Loading packs the weight; another shape, or weights
    outside the mask, are errors. Inside ``as_stored``, the ``state_dict`` holds the mask and the kept
    weights, which load as well. The packed tensors are non-persistent buffers.

    float32 and bfloat16 layers store their dtype and compute in it, or in a lower ``precision``: inputs are
    rounded, and outputs have the dtype of the inputs. ``weight``, copies and saved files stay exact. float16
    layers store and compute float16 on a GPU, and float32 on a CPU. float64 layers, and layers on a device
    without packed kernels, hold the plain dense matrix until they are converted or moved again; a trainable
    layer stays packed, with float32 values in place of float64. ``.to()`` repacks; on another kind of
    device, in the format with the least predicted time there.

    Raises:
        ValueError: Weight, mask, format and options do not fit together.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    values: Tensor
    weight_requires_grad: bool  # the dense weight's flag, for `densify_`
    # Class of the `Conv1D` of transformers that the layer stands for; its state_dict holds [in, out].
    conv1d: type[nn.Module] | None = None

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        format: str = "element",
        trainable: bool = False,
        precision: str = "",
        **options: Any,
    ) -> None:
        super().__init__()
        mask = _checked(weight, mask)
        if precision:
            _require_precision(precision, trainable)
            options["precision"] = precision
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.activation = "none"
        self.weight_requires_grad = weight.requires_grad
        self.plan: Any = None
        # Device type -> format and options: a layer that returns to a device is packed as before.
        self._recipes = {weight.device.type: (format, options)}
        self._nnz = int(torch.count_nonzero(mask))
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)
        packed = self._pack(weight.detach(), mask, trainable)
        if trainable:
            _require_trainable(packed, weight.dtype)
        self._hold(packed, trainable, self._exact(weight.detach(), mask, packed))

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
        """Make a sparse layer from ``linear``, with its bias Parameter and training flag.

        ``linear`` itself stays as it is. Arguments and errors are those of the class.
        """
        layer = cls(linear.weight, mask, linear.bias, format=format, trainable=trainable, **options)
        return layer.train(linear.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map x [..., in_features] to [..., out_features] and add the residual, if any.

        See ``sparsebert_kernels.ops.linear``.
        """
        if residual is None and (output := take_precomputed(self, x)) is not None:
            return output
        buffers = self._buffers
        if BITS in buffers and self.precision:
            y = ops.linear_in_precision_of_weight(x, self.packed, self.bias, self.activation)
            return y if residual is None else y + residual
        if x.requires_grad and "transposed_0" not in buffers and not torch.compiler.is_compiling():
            self._keep_transposed(x)
        transposed = self._transposed() if "transposed_0" in buffers else ()
        # The look-up of self.bias takes longer; only replicas of DataParallel need it.
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return ops.linear(x, self.packed, bias, self.activation, transposed, residual)

    @property
    def precision(self) -> str:
        """The precision below the layer's dtype in which it computes; "" if it computes in its dtype."""
        return self._recipes[self.device.type][1].get("precision", "") if BITS in self._buffers else ""

    @property
    def packed(self) -> PackedWeight:
        """The packed weight for the kernels, over the registered tensors."""
        tensors: dict[str, Any] = self._buffers
        if "values" not in tensors:
            tensors = {**tensors, "values": self.values}
        if torch.compiler.is_compiling():
            return self._format((self.out_features, self.in_features), tensors, self._geometry)
        # Kept from call to call, since it holds what its kernels derive from it, until a tensor is replaced.
        packed: PackedWeight | None = self.__dict__.get("_packed")
        if packed is None or not packed.consists_of(tensors):
            packed = self._format((self.out_features, self.in_features), tensors, self._geometry)
            self.__dict__["_packed"] = packed
        return packed

    @property
    def weight(self) -> Tensor:
        """The dense matrix [out_features, in_features] in the layer's dtype, computed on access."""
        if BITS in self._buffers:
            return stored_weight(self._buffers[VALUES], self.mask).to(self.dtype)  # type: ignore[arg-type]
        return self.packed.to_dense().to(self.dtype)

    @property
    def mask(self) -> Tensor:
        """The mask (bool [out_features, in_features], True = keep), computed on access.

        Formats that store pruned weights as zeros, or drop kept zeros, lose the mask. In these formats, the
        nonzero weights are the mask.
        """
        bits = self._buffers.get(BITS)
        if bits is not None:
            return unpack_bits(bits, (self.out_features, self.in_features)).to(bits.device)
        kept = self.packed.kept()
        return kept if int(torch.count_nonzero(kept)) == self._nnz else self.weight != 0

    @property
    def recipe(self) -> tuple[str, dict[str, Any]]:
        """Format and options of the layer on its present device."""
        return self._recipes[self.device.type]

    @property
    def format(self) -> str:
        """Name of the packed format in use."""
        return self._format.name

    @property
    def trainable(self) -> bool:
        """Whether the kept weights are a Parameter."""
        return "values" in self._parameters

    @property
    def device(self) -> torch.device:
        """The device of the kept weights."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, its index, the transposed index that the layer keeps, if any, and the
        exact weights of one that computes in a lower precision.
        """
        exact = (self._buffers[name] for name in (BITS, VALUES) if name in self._buffers)
        others = (*self._transposed(), *(tensor for tensor in exact if tensor is not None))
        return self.packed.nbytes + sum(tensor.nbytes for tensor in others)

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return 1 - self._nnz / (self.out_features * self.in_features)

    def prepare_format(self, format: str, **options: Any) -> Callable[[], None]:
        """Pack the weight in another format, and return a function that switches the layer to it.

        The layer does not change before the call of that function, which cannot fail. Bias, hooks and, in a
        trainable layer, the Parameter ``values`` stay; its data and gradient take the new layout.

        Args:
            format: A name in ``sparsebert_kernels.formats.FORMATS``.
            **options: Options of the format, and ``precision``, as for the class.

        Raises:
            ValueError: As the class does.
        """
        if options.get("precision"):
            _require_precision(options["precision"], self.trainable)
        weight, mask, recipe = self.weight.detach(), self.mask, (format, options)
        packed = self._pack(weight, mask, self.trainable, recipe)
        exact = self._exact(weight, mask, packed)
        gradient = None
        if self.trainable:
            _require_trainable(packed, self.dtype)
            if self.values.grad is not None:
                dense = self.packed.replace(values=self.values.grad).to_dense()
                gradient = self._pack(dense, mask, True, recipe).values

        def switch() -> None:
            self._recipes[self.device.type] = recipe
            if self.trainable:
                self.values.grad = None
            self._hold(packed, self.trainable, exact)
            if gradient is not None:
                self.values.grad = gradient

        return switch

    def extra_repr(self) -> str:
        shape = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        lower = f", precision={self.precision}" if self.precision else ""
        return f"{shape}, format={self.format}{lower}, sparsity={self.sparsity:.1%}{fused}"

    def _transposed(self) -> list[Tensor]:
        """Return the transposed index, which makes the backward pass fast; empty unless it is kept."""
        compiling = torch.compiler.is_compiling()
        kept: list[Tensor] = [] if compiling else self.__dict__.get("_transposed_index", [])
        if not kept or kept[0] is not self._buffers.get("transposed_0"):
            buffers = self._buffers.items()
            kept = [tensor for name, tensor in buffers if name.startswith("transposed_")]  # type: ignore[misc]
            if not compiling:
                self.__dict__["_transposed_index"] = kept
        return kept

    def _keep_transposed(self, x: Tensor) -> None:
        """Keep the transposed index from the first x with gradients on, for frozen panels on a GPU.

        The backward pass would otherwise compute it in every step and wait for the device each time, which a
        CUDA graph cannot capture. It takes 1 to 2 % of the bytes of the weight. A compiled layer has it if an
        eager call came first.
        """
        if (
            not self.trainable
            and torch.is_grad_enabled()
            and self._format is PanelSparse
            and backend.covers(self._format.name, x.device)
        ):
            self._register_transposed(transposed_index(self.packed))  # type: ignore[arg-type]

    def _register_transposed(self, index: Sequence[Tensor]) -> None:
        for number, tensor in enumerate(index):
            self.register_buffer(f"transposed_{number}", as_bytes(tensor), persistent=False)

    def _pack(
        self,
        weight: Tensor,
        mask: Tensor,
        trainable: bool,
        recipe: tuple[str, dict[str, Any]] | None = None,
    ) -> PackedWeight:
        """Pack a weight by ``recipe``, format and options, or by the layer's own for the weight's device."""
        format, options = recipe or self._recipes[weight.device.type]
        if format not in (known := {**formats.FORMATS, **formats.INT8_FORMATS}):
            raise unknown("format", format, known)
        if weight.device.type == "cpu":
            cpu.warn_if_unavailable()
        kernels = weight.device.type == "cpu" or (weight.device.type == "cuda" and format in GPU_FORMATS)
        if not trainable and (weight.dtype == torch.float64 or not kernels):
            kept = torch.where(mask, weight, weight.new_zeros(()))
            return DensePrepacked((self.out_features, self.in_features), {"values": kept}, {})
        packing = {name: value for name, value in options.items() if name != "precision"}
        stored = stored_dtype(weight.dtype, weight.device.type, options.get("precision", ""))
        return pack_as(weight, mask, stored, format=format, **packing)

    def _exact(self, weight: Tensor, mask: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
        """Return the weights to keep beside ``packed``, in checkpoint form; {} if it holds them exactly."""
        exact = (weight.dtype, stored_dtype(weight.dtype, weight.device.type))
        return {} if packed.dtype in exact else to_stored(weight, mask)

    def _hold(self, packed: PackedWeight, trainable: bool, exact: Mapping[str, Tensor] = _NOTHING) -> None:
        """Register the tensors of ``packed``, and of the weights beside it, instead of the present ones."""
        self._buffers.clear()
        for name in ("values", *KEPT_BY_CALLS):  # else the old tensors would stay in memory until a call
            self.__dict__.pop(name, None)
        self._format, self._geometry = type(packed), packed.geometry()
        tensors = packed.tensors()
        values = tensors.pop("values")
        if self.trainable:
            self.values.data = values
        elif trainable:
            self.values = nn.Parameter(values)
        elif values.is_mkldnn:
            # An opaque tensor without storage: as a buffer it would break share_memory() and
            # DistributedDataParallel.
            self.__dict__["values"] = values
        else:
            self.register_buffer("values", values, persistent=False)
        for name, tensor in tensors.items():
            self.register_buffer(name, as_bytes(tensor), persistent=False)
        if trainable:
            self._register_transposed(transposed_index(packed))  # type: ignore[arg-type]
        for name, tensor in exact.items():
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.device.type == "meta":
            raise ValueError(
                "a sparse layer on the meta device has lost its mask: load the model first, then sparsify_ it"
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
        kept = self.mask if self.precision else packed.kept()
        mask = _checked(weight, kept.to(weight.device))
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
        self._hold(converted, trainable, self._exact(weight, mask, converted))
        if gradient is not None:
            self.values.grad = gradient
        return self

    def _choose_format(self, weight: Tensor, mask: Tensor) -> None:
        """Choose a format on the first move to a kind of device: on a GPU an earlier GPU format, else the
        fastest.
        """
        device = weight.device
        gpu_recipes = [recipe for recipe in self._recipes.values() if recipe[0] in backend.FORWARD]
        if device.type not in ("cpu", "cuda") or weight.dtype == torch.float64:
            format, options = next(iter(self._recipes.values()))
        elif device.type == "cuda" and gpu_recipes:
            format, options = gpu_recipes[0]
        else:
            planned = self.plan.tokens if self.plan else DEFAULT_TOKENS
            tokens = tokens_after_move(planned, gpu=device.type == "cuda")
            work = preferred(mask, weight.dtype, device, tokens, trainable=self.trainable)
            format, options = work.format, work.options
            if self.plan:
                no_times = dict.fromkeys(("predicted_us", "measured_us", "dense_us"))
                reason = f"chosen when the layer was moved to {device.type}"
                self.plan = replace(
                    self.plan,
                    format=format,
                    block=work.block,
                    tokens=tokens,
                    reason=reason,
                    busy=False,
                    **no_times,
                )
        self._recipes[device.type] = format, options

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight, bias = self.weight, self.bias
        if _AS_STORED.get():
            stored = to_stored(weight, self.mask)
            destination.update({f"{prefix}{name}": tensor for name, tensor in stored.items()})
        else:
            weight = weight if self.conv1d is None else weight.t().contiguous()
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
                weight = stored_weight(kept, unpack_bits(bits, (self.out_features, self.in_features)))
            else:
                weight = state_dict[key] if self.conv1d is None else state_dict[key].t()
            weight, mask = self._loadable(weight)
        except ValueError as error:
            error_msgs.append(f"{key}: {error}")
            return
        loaded = self._pack(weight, mask, self.trainable)
        self._hold(loaded, self.trainable, self._exact(weight, mask, loaded))

    def _loadable(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask if self.precision else self.packed.kept()
        if weight.shape != mask.shape or not weight.is_floating_point():
            raise ValueError(
                f"the checkpoint has {list(weight.shape)} of {weight.dtype}, "
                f"the layer needs {list(mask.shape)} of {self.dtype}"
            )
        weight = weight.detach().to(self.device, self.dtype)
        if outside := int(((weight != 0) & ~mask).sum()):
            raise ValueError(f"{outside} nonzero weights of the checkpoint lie outside the layer's mask")
        return weight, mask

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in KEPT_BY_CALLS:
            state.pop(name, None)
        if "values" in state:
            # Bytes, not a tensor: torch sends worker processes a reference to a tensor's memory, which would
            # be freed with this temporary tensor.
            state["values"] = state["values"].to_dense().view(torch.uint8).numpy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "values" in state:
            options = self._recipes["cpu"][1]
            stored = stored_dtype(self.dtype, "cpu", options.get("precision", ""))
            values = torch.from_numpy(state["values"]).view(stored)
            self.__dict__["values"] = prepack(values, options.get("tokens", DEFAULT_TOKENS))


def _checked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask of ``weight``; raise ValueError unless the two fit together."""
    if weight.dim() != 2 or weight.dtype not in STORED:
        dtypes = ", ".join(str(dtype) for dtype in STORED)
        raise ValueError(
            f"weight must be [out, in] in one of {dtypes}, got {list(weight.shape)} of {weight.dtype}"
        )
    if mask is None:
        return weight.detach() != 0
    if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
        raise ValueError(
            f"mask must be {list(weight.shape)} of torch.bool (True = keep) on {weight.device}, "
            f"got {list(mask.shape)} of {mask.dtype} on {mask.device}"
        )
    return mask


def _require_precision(precision: str, trainable: bool) -> None:
    if precision not in LOWER_PRECISIONS:
        raise unknown("precision", precision, LOWER_PRECISIONS)
    if trainable:
        raise ValueError(f"a trainable sparse layer computes in its own dtype, not in {precision}")


def _require_trainable(packed: PackedWeight, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise ValueError(
            "a trainable sparse layer must store float32 or bfloat16, got float64: convert the model first"
        )
    if not isinstance(packed, ops.TRAINABLE):
        trainable = ", ".join(cls.name for cls in ops.TRAINABLE)
        raise ValueError(f"format {packed.name!r} cannot be trained; these can: {trainable}")
    if not getattr(packed, "aligned", True):
        raise ValueError(
            f"the mask does not consist of whole vectors or blocks: training in format {packed.name!r} would "
            "revive pruned weights; format 'element' can train any mask"
        )


def _unchanged(tensor: Tensor, moved: Tensor) -> Tensor:
    """Return ``moved`` if it equals ``tensor``, else ``tensor``: a packed weight's index must not change."""
    if moved.dtype != tensor.dtype or (not tensor.is_floating_point() and not torch.equal(moved, tensor)):
        return tensor
    return moved
