"""Run the encoder of a model fused, in place, and undo it: ``fuse_`` and ``unfuse_``."""

from __future__ import annotations

import torch
from torch import nn

from sparsebert.bert import require_module
from sparsebert.cost.precision import require_tolerance
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.encoder_plan import FP32, PACKED, PAIRED, EncoderPlan
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS


def fuse_(model: nn.Module, *, tolerance: str = "fp32") -> nn.Module:
    """Let each base model in ``model`` run fused where it is, in place.

    On a CPU, that is one call of the native library; on a GPU, tokens without padding (see below).

    For BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT, MPNet and ModernBERT, with any task head
    or in a sentence-transformers model, sparse or dense, before or after ``sparsify_`` and ``compact_``. The
    call includes embeddings, last LayerNorm and pooler. Signatures and results stay the same, except that
    hidden states at padding are zero: padding is never computed, so a batch takes as long as its tokens.
    Names, hooks, parameters, copies, pickles and saved files do not change.

    Where another result could be expected, the layers run one by one as before, and a warning says why, once:
    recorded gradients, training, requested hidden states or attentions, hooks or replaced modules inside the
    encoder, on a CPU another dtype than float32 and bfloat16 (float16 too: no engine takes such models), a
    mask that differs between queries, rows of a batch that begin with padding or hold nothing else, weights
    made under ``torch.inference_mode()`` that the native form copies, an attention that the user registered,
    compilers (on a CPU), tracers and replicas of ``nn.DataParallel``; in MPNet and ModernBERT also padding
    between tokens, and in ModernBERT ``position_ids``. For ``inputs_embeds``, ``position_ids`` and hooks
    around the encoder, embeddings and pooler run as before, and the layers fused. A model in bfloat16 needs,
    on a CPU, an instruction set with products of bfloat16.

    On a GPU, BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and DistilBERT run on the tokens that are kept,
    packed side by side: one product computes query, key and value, whose parameters become views of one
    matrix; the products after attention and activation add the residual; attention is torch's FlashAttention
    for variable lengths, or ``scaled_dot_product_attention`` where that does not run (float32). The number of
    tokens is read from the device once a call. ``torch.compile`` traces the packed layers as one graph; where
    they must run one by one, it does so without a warning. In a compiled call and in the capture of a CUDA
    graph, which cannot wait for the device, padding is computed; to avoid that, pass all sequences in one
    row, with ``cu_seq_lens_q`` and ``max_length_q`` as for FlashAttention in transformers. The pooler then
    answers for each of the sequences. A model that moves to another device runs fused there.

    In a sentence-transformers model on a CPU, the same call computes mean or first-token pooling and
    normalisation where these modules follow the transformer, without hooks.

    On a CPU, dense weights are copied into the native form, and copied again in the first call after a
    change: by optimizers, ``load_state_dict``, replaced modules or tensors, and all in-place operations that
    torch counts. torch does not count changes through ``.data``, ``.numpy()`` or shared memory; there, each
    call compares 61 values spread over each weight. This notices a change of the whole weight or of a
    fiftieth of its rows side by side (an averaged or merged weight, a pruned head), but not of single values:
    call ``unfuse_`` and ``fuse_`` after those, or write under ``torch.no_grad()`` instead of through
    ``.data``.

    Args:
        model: The model to change. Call it in eval mode under ``torch.inference_mode()``.
        tolerance: The lowest precision in which the encoder may compute on a CPU: "fp32", "bf16" or "int8".
            Parameters and outputs keep their dtypes. Below fp32, the engines that the tolerance allows are
            timed in alternation, with dense layers in int8 too if it allows them, and the fastest is used;
            ``plan(model)`` says which. A model in bfloat16 needs no tolerance for bfloat16.

    Returns:
        The model.

    Raises:
        ValueError: The model has no encoder of a known class, a layer of one has no fused form where it is,
            or the tolerance is unknown. The model is then unchanged.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.nn.encoder_layers import NAMES
    from sparsebert.nn.fused_modules import encoders_of
    from sparsebert.nn.native_layers import require_fusible
    from sparsebert.planning.engine_choice import (
        decide_encoder,
        encoders_on_gpu,
        set_encoder_plan_,
        why_not_packed,
    )

    require_module(model)
    require_tolerance(tolerance)
    encoders = encoders_of(model)
    if not encoders:
        raise ValueError(f"expected a {NAMES} model; {type(model).__name__} has no encoder of these families")
    if encoders_on_gpu(model):
        if reason := why_not_packed(model):
            raise ValueError(f"{type(model).__name__} cannot be fused on a GPU: {reason}")
        set_encoder_plan_(model, EncoderPlan(PACKED, "requested", fuse=True, decided_by="user"))
        return model
    for encoder in encoders:
        require_fusible(*encoder)
    if tolerance == "fp32":
        in_bf16 = next(encoders[0].module.parameters()).dtype == torch.bfloat16
        way = PAIRED if in_bf16 else FP32
        set_encoder_plan_(model, EncoderPlan(way, "requested", fuse=True, decided_by="user"))
        return model
    plans = [module.plan for module in model.modules() if isinstance(module, SparseLinear) and module.plan]
    tokens = plans[0].tokens if plans else DEFAULT_TOKENS
    decision = decide_encoder(model, plans, tokens=tokens, fuse=True, quick=True, tolerance=tolerance)
    if decision:
        decision.settle_by_timing()
        decision.apply_()
    return model


def unfuse_(model: nn.Module) -> nn.Module:
    """Undo ``fuse_`` in place, and return the model; one that is not fused does not change.

    Raises:
        ValueError: ``model`` is not a module.
    """
    from sparsebert.planning.engine_choice import set_encoder_plan_

    require_module(model)
    set_encoder_plan_(model, None)
    return model
