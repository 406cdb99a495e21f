"""LoRA on sparse layers: importing this module lets peft adapt ``SparseLinear`` as it adapts ``nn.Linear``.

``sparsebert.hf.import_hook`` imports it with peft. Every ``LoraConfig`` then carries the mapping that peft
asks for (``_register_custom_module``), so that ``get_peft_model`` and ``PeftModel.from_pretrained`` need no
option.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import tuners_utils
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from sparsebert.bert import is_adapted
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.reference import activate

# Initial values that leave the base weights as they are.
INITIAL_VALUES = (True, False, "gaussian", "eva")


class SparseLoraLinear(Linear):
    """A LoRA adapter over a ``SparseLinear``: ``activation(x @ W.T + bias + scaling * lora_B(lora_A(x)))``.

    Merging fills the pruned weights, so the layer is dense until the adapter is unmerged.

    Attributes:
        fused_activation: The activation that the sparse layer applied itself; the adapter's output is added
            before it.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)
        base = self.get_base_layer()
        self.fused_activation: str = base.activation
        base.activation = "none"
        self._unmerged: SparseLinear | None = None

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features  # type: ignore[return-value]

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **options: Any) -> None:
        """See peft. Raise ValueError for a variant that would change the base weights."""
        if config.init_lora_weights not in INITIAL_VALUES:
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} changes the base weights, which a sparse "
                f"layer cannot hold: use one of {', '.join(map(repr, INITIAL_VALUES))}, or densify_ first"
            )
        variant = self.resolve_lora_variant(config=config)
        if not isinstance(variant, DoraLinearVariant | None):
            raise ValueError(
                f"{type(variant).__name__} is not supported on sparse layers: use plain LoRA or DoRA, or "
                "densify_ the model first"
            )
        super().update_layer(adapter_name, *args, config=config, **options)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return activate(super().forward(x, *args, **options), self.fused_activation)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into a dense copy of the base layer, which takes its place."""
        base = self.get_base_layer()
        if not isinstance(base, SparseLinear):
            super().merge(safe_merge, adapter_names)
            return
        dense = _dense_copy(base)
        merged_before = list(self.merged_adapters)
        self.base_layer: nn.Module = dense
        try:
            super().merge(safe_merge, adapter_names)
        finally:
            self.base_layer = base
        if self.merged_adapters == merged_before:
            return
        every = torch.ones_like(dense.weight, dtype=torch.bool)
        merged = SparseLinear(dense.weight.detach(), every, dense.bias, format="dense").train(base.training)
        self._unmerged = self._unmerged or base
        self.base_layer = merged.requires_grad_(False)
        warnings.warn(
            "merging a LoRA adapter fills the pruned weights of a sparse layer: the layer is dense now",
            stacklevel=2,
        )

    def unmerge(self) -> None:
        """Put the sparse layer back, exactly as it was."""
        if self._unmerged is None:
            super().unmerge()
            return
        self.base_layer, self._unmerged = self._unmerged, None
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the layer to put in place of the adapter; peft calls this to unload a model."""
        if merge:
            self.merge(safe_merge, adapter_names)
        elif self.merged:
            self.unmerge()
        base: nn.Module = self.get_base_layer()
        if isinstance(base, SparseLinear):
            base.activation = self.fused_activation
        return base


def _dense_copy(sparse: SparseLinear) -> nn.Linear:
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(sparse.weight.detach().clone(), requires_grad=False)
    if sparse.bias is not None:
        linear.bias = nn.Parameter(sparse.bias.detach().clone(), requires_grad=False)
    return linear


def _extend() -> None:
    """Let every ``LoraConfig`` know the sparse layer, and "all-linear" include it."""
    initialize, include_linear = LoraConfig.__post_init__, tuners_utils._maybe_include_all_linear_layers

    @functools.wraps(initialize)
    def post_init(self: Any) -> None:
        initialize(self)
        self._register_custom_module({SparseLinear: SparseLoraLinear})

    @functools.wraps(include_linear)
    def include_sparse(peft_config: Any, model: nn.Module) -> Any:
        shorthand = getattr(peft_config, "target_modules", None)
        peft_config = include_linear(peft_config, model)
        if isinstance(shorthand, str) and shorthand.lower() == tuners_utils.INCLUDE_LINEAR_LAYERS_SHORTHAND:
            peft_config.target_modules |= {
                name
                for name, module in model.named_modules()
                if isinstance(module, SparseLinear) and not is_adapted(name)
            }
        return peft_config

    LoraConfig.__post_init__ = post_init
    tuners_utils._maybe_include_all_linear_layers = include_sparse


_extend()
