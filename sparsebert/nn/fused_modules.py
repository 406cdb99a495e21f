"""The modules of a model that fusing changes: encoders, base models, and what sentence-transformers adds."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsebert.nn.encoder_layers import Family, encoder_family, model_family
from sparsebert.nn.fused_encoder import LEFT_BY_CALLS, FusedEncoder, fused_class
from sparsebert.nn.fused_model import FusedModel, fused_model_class
from sparsebert.nn.fused_pooling import fuse_pooling_, unfuse_pooling_
from sparsebert.nn.fused_qkv import is_fused
from sparsebert.nn.joined_linears import forget_join_
from sparsebert.nn.packed_layers import prepare_packed_
from sparsebert.nn.plain_path import is_foreign

FUSED = (FusedEncoder, FusedModel)
# Attributes that fused modules hold beside those of their plain classes.
FUSED_ATTRIBUTES = (*LEFT_BY_CALLS, "tolerance")


class Encoder(NamedTuple):
    """A module that runs the layers of an encoder, fused or not."""

    module: Any
    family: Family


def encoders_of(model: nn.Module) -> list[Encoder]:
    """Return the encoders of known families in ``model``."""
    families = ((module, encoder_family(plain_class(module))) for module in model.modules())
    return [Encoder(module, family) for module, family in families if family is not None]


def plain_class(module: Any) -> Any:
    """Return the class of a module before it was fused."""
    return module.plain_class if isinstance(module, FUSED) else type(module)


def fuse_modules_(model: nn.Module, tolerance: str = "fp32") -> None:
    """Give the modules of ``model`` their fused classes, in place, with a tolerance for ``native_form``."""
    for module in model.modules():
        cls = plain_class(module)
        family = encoder_family(cls)
        if family is not None and family.encoder[0]:
            module.__class__ = fused_class(cls)
        elif model_family(cls) is not None:
            module.__class__ = fused_model_class(cls)
        if isinstance(module, FUSED) and tolerance != "fp32":
            vars(module)["tolerance"] = tolerance
        if isinstance(module, FusedEncoder):
            prepare_packed_(module)
        fuse_pooling_(module)


def unfuse_modules_(model: nn.Module) -> None:
    """Give the modules of ``model`` their plain classes again, in place."""
    for module in model.modules():
        unfuse_pooling_(module)
        if not is_fused(module):  # of the hooks otherwise
            forget_join_(module)
        if isinstance(module, FUSED):
            module.__class__ = module.plain_class
            for name in FUSED_ATTRIBUTES:
                vars(module).pop(name, None)


def holds_foreign_code(encoder: Encoder) -> bool:
    """Whether modules inside an encoder have patched forward methods, or hooks of other packages."""
    for module in encoder.module.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if module is not encoder.module and ("forward" in vars(module) or any(map(is_foreign, hooks))):
            return True
    return False


def require_native(module: FusedEncoder | FusedModel, x: Tensor) -> None:
    """Run the layers of a fused module natively on x [B, T, hidden].

    Raises:
        PlainPath: They must run one by one; the message says why.
    """
    if isinstance(module, FusedEncoder):
        module._run(x, None, (), {})
    else:
        module._run((), {"inputs_embeds": x})
