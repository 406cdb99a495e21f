"""``FusedEncoder``: an encoder of transformers whose layers run as one native call, or packed on a GPU.

Fusing changes the class of the encoder to a subclass with another forward method. The encoder itself, its
layers, parameters, hooks and names stay, and so does what is saved. The native description of the layers
(``NativeLayers``) is made on the first call, and again after a change of any module or tensor that it was
made from. On a GPU, ``PackedLayers`` describe the layers likewise, as soon as the encoder is fused, moved or
copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.encoder_layers import Family, encoder_family, encoder_result, result_class
from sparsebert.nn.fp16_range import within_range
from sparsebert.nn.native_layers import NativeLayers, current_layers
from sparsebert.nn.packed_layers import PackedLayers, prepare_packed_, runs_packed
from sparsebert.nn.packed_model import BOUNDS, RAGGED, run_packed_encoder
from sparsebert.nn.plain_path import (
    RECORDED_GRADIENTS,
    RECORDED_OUTPUTS,
    PlainPath,
    is_recording,
    kept_tokens,
    require_inference,
    say_once,
)
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import BadTokens
from sparsebert_kernels.ops import plain_inference

# Arguments of the encoders that do not change the result.
WITHOUT_EFFECT = ("position_ids", "return_dict")
# Attributes that calls leave in fused modules.
LEFT_BY_CALLS = ("_native", "_ends", "_packed", "_said")


class FusedEncoder(nn.Module):
    """The forward method of a fused encoder, mixed into the class of the encoder by ``fused_class``."""

    plain_class: Any  # the class of the encoder in transformers
    family: Family
    # The lowest precision in which the layers may compute: "fp32", "bf16" or "int8"; "fp16" for its engine.
    tolerance: str = "fp32"
    _native: NativeLayers | None = None
    _packed: PackedLayers | None = None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Run the layers natively, or one by one wherever the result could differ; a warning says why, once.

        The native result is zero at padding, and so is the packed one (but see ``run_packed_encoder``).

        Args:
            hidden_states: [B, T, hidden].
            attention_mask: Bool (True = attend) or added to the scores, [B, 1, T, T]; None attends to all.
            *args: Further arguments of the plain encoder.
            **kwargs: Further arguments of the plain encoder.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling or runs_packed(hidden_states):
            try:
                return self._run(hidden_states, attention_mask, args, kwargs)
            except PlainPath as reason:
                require_no_ragged(self, kwargs, reason)
                if not compiling:
                    say_once(self, str(reason))
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _run(self, x: Tensor, mask: Tensor | None, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        packed = runs_packed(x)
        if not packed and (reason := native.why_unavailable()):
            raise PlainPath(f"the native library is missing ({reason})")
        if not torch.compiler.is_compiling() and is_recording():
            raise PlainPath(RECORDED_OUTPUTS)
        if any(value is not None for value in args):
            raise PlainPath("the call has further positional arguments")
        for name, value in kwargs.items():
            is_known = name in WITHOUT_EFFECT or (packed and name in RAGGED)
            if value is not None and value is not False and not is_known:
                raise PlainPath(f"the call has the argument {name}")
        if packed:
            states = run_packed_encoder(self, x, mask, kwargs)
            return result_class(self.family, self.family.result)(last_hidden_state=states)
        if not x.is_cpu or x.dim() != 3:
            raise PlainPath(f"the input is {list(x.shape)} on {x.device}, not [batch, tokens, hidden] on cpu")
        if torch.is_grad_enabled() and x.requires_grad:
            raise PlainPath(RECORDED_GRADIENTS)
        if not plain_inference(x):
            raise PlainPath("the call is traced, transformed or under autocast")
        require_inference(self)
        kept = kept_tokens(mask, x)

        def run() -> tuple[Tensor, None]:
            described = current_layers(self)
            if x.dtype != described.form.stored:
                raise PlainPath(f"the input is {x.dtype}, not {described.form.stored} like the parameters")
            return described.encoder(x, kept), None

        try:
            states, _ = within_range(self, run)
        except BadTokens as error:
            raise PlainPath(str(error)) from None
        return encoder_result(self.family, states, kwargs.get("return_dict"))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        prepare_packed_(self)
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        prepare_packed_(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in LEFT_BY_CALLS}
        return _new_encoder, (self.plain_class,), state


def require_no_ragged(module: Any, given: Mapping[str, Any], reason: Exception) -> None:
    """Raise ValueError for ragged sequences that the plain model would take for one.

    Only its FlashAttention reads the bounds of sequences.
    """
    if given.get(BOUNDS) is None:
        return
    config = next((each.config for each in module.modules() if hasattr(each, "config")), None)
    if "flash" not in str(getattr(config, "_attn_implementation", "")):
        raise ValueError(f"sequences in one row ({BOUNDS}) need a fused encoder: {reason}")


_FUSED_CLASSES: dict[type, type[FusedEncoder]] = {}


def fused_class(plain_class: type) -> type[FusedEncoder]:
    """Return the fused class of an encoder's class, always the same."""
    if plain_class not in _FUSED_CLASSES:
        attributes = {"plain_class": plain_class, "family": encoder_family(plain_class)}
        bases = (FusedEncoder, plain_class)
        _FUSED_CLASSES[plain_class] = type(f"Fused{plain_class.__name__}", bases, attributes)
    return _FUSED_CLASSES[plain_class]


def _new_encoder(plain_class: type[nn.Module]) -> FusedEncoder:
    """Make an encoder for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = fused_class(plain_class)
    return cls.__new__(cls)
