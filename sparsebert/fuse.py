"""Run the encoder of a model as one native call, in place, and undo it: ``fuse_`` and ``unfuse_``."""

from __future__ import annotations

from torch import nn

from sparsebert.bert import require_module
from sparsebert.nn.encoder_layers import NAMES, encoder_family, model_family
from sparsebert.nn.fused_encoder import FusedEncoder, fused_class, require_fusible
from sparsebert.nn.fused_model import FusedModel, fused_model_class
from sparsebert.nn.fused_pooling import fuse_pooling_, unfuse_pooling_


def fuse_(model: nn.Module) -> nn.Module:
    """Let each base model in ``model`` run in one call of the native CPU library, in place.

    For BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT, MPNet and ModernBERT, with any task head
    or in a sentence-transformers model, sparse or dense, before or after ``sparsify_`` and ``compact_``. The
    call includes embeddings, last LayerNorm and pooler. Signatures and results stay the same, except that
    hidden states at padding are zero: padding is never computed, so a batch takes as long as its tokens.
    Names, hooks, parameters, copies, pickles and saved files do not change.

    Where another result could be expected, the layers run one by one as before, and a warning says why, once:
    recorded gradients, training, requested hidden states or attentions, hooks or replaced modules inside the
    encoder, another device or dtype than float32 on the CPU, a mask that differs between queries, rows of a
    batch that begin with padding or hold nothing else, weights made under ``torch.inference_mode()`` that the
    native form copies, an attention that the user registered, compilers and tracers; in MPNet and ModernBERT
    also padding between tokens, and in ModernBERT ``position_ids``. For ``inputs_embeds``, ``position_ids`` and
    hooks around the encoder, embeddings and pooler run as before, and the layers natively.

    Dense weights are copied into the native form, and copied again in the first call after a change: by
    optimizers, ``load_state_dict``, replaced modules or tensors, and all in-place operations that torch
    counts. torch does not count changes through ``.data``, ``.numpy()`` or shared memory; there, each call
    compares 61 values spread over each weight. This notices a change of the whole weight or of a fiftieth of
    its rows side by side (an averaged or merged weight, a pruned head), but not of single values: call
    ``unfuse_`` and ``fuse_`` after those, or write under ``torch.no_grad()`` instead of through ``.data``.

    Args:
        model: The model to change. Call it in eval mode under ``torch.inference_mode()``.

    Returns:
        The model.

    Raises:
        ValueError: The model has no encoder of a known class, or a layer of one has no native form. The model
            is then unchanged.
    """
    require_module(model)
    modules = list(model.modules())
    encoders = [(module, family) for module in modules if (family := encoder_family(type(module)))]
    bases = [module for module in modules if model_family(type(module))]
    if not encoders and not any(isinstance(module, FusedEncoder | FusedModel) for module in modules):
        raise ValueError(f"expected a {NAMES} model; {type(model).__name__} has no encoder of these families")
    for encoder, family in encoders:
        require_fusible(encoder, family)
    for encoder, family in encoders:
        if family.encoder[0]:
            encoder.__class__ = fused_class(type(encoder))
    for base in bases:
        base.__class__ = fused_model_class(type(base))
    for module in modules:
        fuse_pooling_(module)
    return model


def unfuse_(model: nn.Module) -> nn.Module:
    """Undo ``fuse_`` in place, and return the model; one that is not fused does not change.

    Raises:
        ValueError: ``model`` is not a module.
    """
    require_module(model)
    for module in model.modules():
        unfuse_pooling_(module)
        if isinstance(module, FusedEncoder | FusedModel):
            module.__class__ = module.plain_class
            for name in ("_native", "_ends", "_said"):
                vars(module).pop(name, None)
    return model
