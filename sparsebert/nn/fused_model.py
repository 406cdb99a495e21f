"""``FusedModel``: a base model of transformers that runs as one native call, from token ids to the pooler.

On a GPU, the model embeds the tokens that are kept, and the layers of its encoder run packed
(``packed_model``).

The base model's class changes like that of its encoder, which ``FusedEncoder`` fuses by itself: where a call
needs a module around the encoder (embeddings given by the caller, hooks on the embeddings), the base model
runs as before, and its encoder natively.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.encoder_layers import Family, model_family, model_result
from sparsebert.nn.fp16_range import within_range
from sparsebert.nn.fused_encoder import LEFT_BY_CALLS, FusedEncoder, require_no_ragged
from sparsebert.nn.native_ends import Ends
from sparsebert.nn.native_layers import NativeLayers, current_layers
from sparsebert.nn.packed_layers import runs_packed
from sparsebert.nn.packed_model import run_packed_model
from sparsebert.nn.plain_path import (
    RECORDED_GRADIENTS,
    RECORDED_OUTPUTS,
    PlainPath,
    is_recording,
    kept_tokens,
    require_inference,
    say_once,
)
from sparsebert.nn.sentence_call import attach_vectors, wanted_reduction
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import BadTokens, OutOfRange, WeightedMask
from sparsebert_kernels.ops import plain_inference

MASK_DTYPES = (torch.bool, torch.int64)
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "return_dict")
# Attributes of the config that ask for more outputs or another attention, in any version of transformers.
REQUESTS = ("output_hidden_states", "output_attentions", "_output_attentions", "is_causal")


class FusedModel(nn.Module):
    """The forward method of a fused base model, mixed into its class by ``fused_model_class``."""

    plain_class: Any  # the class of the base model in transformers
    family: Family
    tolerance: str = "fp32"  # as of a fused encoder
    config: Any
    _native: NativeLayers | None = None  # of a base model that runs the layers itself
    _ends: Ends | None = None

    def run_fused(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model natively, or, wherever the result could differ, as its plain class does.

        A warning says why the layers run one by one, once for each reason; it comes from the encoder where
        that is a module of its own.
        """
        packed = runs_packed(args[0] if args else kwargs.get("input_ids"))
        if not torch.compiler.is_compiling() or packed:
            try:
                return self._run_packed(args, kwargs) if packed else self._run(args, kwargs)
            except OutOfRange:
                pass  # the plain model raises torch's error
            except (PlainPath, BadTokens) as reason:
                require_no_ragged(self, kwargs, reason)
                if self._runs_layers:
                    say_once(self, str(reason))
        return self.plain_class.forward(self, *args, **kwargs)

    def _run_packed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = self._given(args, kwargs)
        for name in REQUESTS:
            if getattr(self.config, name, False):
                raise PlainPath("the configuration asks for hidden states or attentions")
        return run_packed_model(self, given)

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name."""
        given = dict(zip(self.family.arguments, args, strict=False))
        if len(args) > len(given) or given.keys() & kwargs.keys():
            raise PlainPath("the call has further positional arguments")
        return {**given, **kwargs}

    @property
    def _runs_layers(self) -> bool:
        return not self.family.encoder[0]

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if reason := native.why_unavailable():
            raise PlainPath(f"the native library is missing ({reason})")
        if is_recording():
            raise PlainPath(RECORDED_OUTPUTS)
        given = self._given(args, kwargs)
        # Not vars(): the attributes of configurations, their dictionary among them, are slow to look up.
        config = object.__getattribute__(self.config, "__dict__")
        return_dict = given.get("return_dict", config.get("return_dict"))
        if self.family.relative_bias and return_dict is None:
            return_dict = config.get("return_dict")
        if any(config.get(name) for name in REQUESTS):
            raise PlainPath("the configuration asks for hidden states or attentions")
        for name, value in given.items():
            is_input = name in INPUTS or (self._runs_layers and name == "inputs_embeds")
            if not is_input and value is not None and value is not False:
                raise PlainPath(f"the call has the argument {name}")
        require_inference(self)
        runner = self if self._runs_layers else self._modules[self.family.encoder[0]]
        states, pooled = within_range(runner, lambda: self._states(given))
        if return_dict is False and self.family.relative_bias:
            return states, pooled
        result = model_result(self.family, states, pooled)
        return result.to_tuple() if return_dict is False else result

    def _states(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the last layer's output, and the pooler's, if any."""
        described, ends = self._described()
        ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
        mask = given.get("attention_mask")
        if embedded is not None:
            return self._of_embedded(described, ends, ids, embedded, mask), None
        return self._of_ids(described, ends, ids, mask, given.get("token_type_ids"))

    def _described(self) -> tuple[NativeLayers, Ends]:
        """Return the native descriptions of the layers and of what surrounds them, as they are now."""
        if self._runs_layers:
            described = current_layers(self)
        else:
            encoder = self._modules[self.family.encoder[0]]
            if not isinstance(encoder, FusedEncoder):
                raise PlainPath("the encoder is not fused")
            if encoder._forward_hooks or encoder._forward_pre_hooks or "forward" in vars(encoder):
                raise PlainPath("the encoder has hooks")
            described = current_layers(encoder)
        ends = self._ends
        if ends is None or ends.form != described.form or not ends.is_current():
            ends = self.__dict__["_ends"] = Ends(self, self.family, described.form)
        ends.require_undisturbed()
        return described, ends

    def _of_ids(
        self, described: NativeLayers, ends: Ends, ids: Any, mask: Any, types: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(ids, Tensor) or not ids.is_cpu or ids.dtype != torch.int64 or ids.dim() != 2:
            raise PlainPath("the token ids are not int64 [batch, tokens] on the CPU")
        if not ids.shape[1]:
            raise PlainPath("the texts have no tokens")
        if not plain_inference(ids):
            raise PlainPath("the call is traced, transformed or under autocast")
        if types is not None and (
            self.family.embeddings.types is None
            or type(types) is not Tensor
            or types.dtype != torch.int64
            or types.shape != ids.shape
            or not types.is_cpu
        ):
            raise PlainPath("the token types are not int64 like the token ids")
        converted = False
        if mask is not None:
            if type(mask) is not Tensor or mask.shape != ids.shape or not mask.is_cpu:
                raise PlainPath("the attention mask is not [batch, tokens] on the CPU")
            if converted := mask.dtype not in MASK_DTYPES:
                mask = mask.bool()
        # A pooling gets the caller's own mask.
        reduction = None if mask is None or converted else wanted_reduction(self)
        run = functools.partial(
            described.encoder.of_ids, ids, mask, types, ends.native, dtype=described.form.stored
        )
        try:
            states, pooled, vectors = run(reduction=reduction)
        except WeightedMask:  # left to the pooling
            return run()[:2]
        if reduction is not None and vectors is not None:
            attach_vectors(states, vectors, mask, reduction)
        return states, pooled

    def _of_embedded(self, described: NativeLayers, ends: Ends, ids: Any, embedded: Any, mask: Any) -> Tensor:
        """Run the layers of a base model without an encoder of its own on the caller's embeddings."""
        if ids is not None or not isinstance(embedded, Tensor) or embedded.dim() != 3:
            raise PlainPath("the call has token ids and embeddings, or none")
        if torch.is_grad_enabled() and embedded.requires_grad:
            raise PlainPath(RECORDED_GRADIENTS)
        stored = described.form.stored
        if not embedded.is_cpu or embedded.dtype != stored or not embedded.numel():
            raise PlainPath(f"the input is {embedded.dtype} on {embedded.device}, not {stored} on cpu")
        if not plain_inference(embedded):
            raise PlainPath("the call is traced, transformed or under autocast")
        if mask is not None:
            if type(mask) is not Tensor or mask.shape != embedded.shape[:2] or not mask.is_cpu:
                raise PlainPath("the attention mask is not [batch, tokens] on the CPU")
            mask = kept_tokens(mask.bool()[:, None, None], embedded)
        x = self._modules["embeddings"](inputs_embeds=embedded)  # type: ignore[misc]
        return described.encoder(x, mask, ends.after_embeddings)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in LEFT_BY_CALLS}
        return _new_model, (self.plain_class,), state


_FUSED_CLASSES: dict[type, type[FusedModel]] = {}


def fused_model_class(plain_class: Any) -> type[FusedModel]:
    """Return the fused class of a base model's class, always the same.

    It bears the name of the plain class, which transformers writes into configurations, and its signature.
    """
    if plain_class not in _FUSED_CLASSES:

        @functools.wraps(plain_class.forward)
        def forward(self: FusedModel, *args: Any, **kwargs: Any) -> Any:
            return self.run_fused(args, kwargs)

        attributes = {
            "plain_class": plain_class,
            "family": model_family(plain_class),
            "forward": forward,
            "__module__": plain_class.__module__,
            "__qualname__": plain_class.__qualname__,
            "__doc__": plain_class.__doc__,
        }
        _FUSED_CLASSES[plain_class] = type(plain_class.__name__, (FusedModel, plain_class), attributes)
    return _FUSED_CLASSES[plain_class]


def _new_model(plain_class: type) -> FusedModel:
    """Make a model for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = fused_model_class(plain_class)
    return cls.__new__(cls)
