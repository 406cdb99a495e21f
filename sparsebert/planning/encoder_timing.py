"""Time the ways in which an encoder runs in alternation, on a few of its layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import key_in
from sparsebert.nn.encoder_layers import encoder_layers
from sparsebert.nn.fp16_range import LEFT_RANGE, left_range
from sparsebert.nn.fused_modules import (
    FUSED_ATTRIBUTES,
    Encoder,
    encoders_of,
    fuse_modules_,
    plain_class,
    require_native,
)
from sparsebert.nn.module_swap import HOOKS
from sparsebert.nn.plain_path import PlainPath
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.encoder_plan import LAYERS, TOLERANCES, EncoderPlan
from sparsebert.planning.plan import LayerPlan
from sparsebert_kernels.timing import Paired, paired

# Layers that together take about this long stand for the whole encoder in a timing.
SECONDS_A_RUN = 0.02
# The longest sequences that are timed, and the most tokens.
LENGTH, MAX_TIMED_TOKENS = 128, 1024

Plans = dict[str, LayerPlan]  # by the layer's key


def time_ways(
    model: nn.Module, ways: dict[str, Plans], mine: str, other: str, plan: EncoderPlan
) -> Paired | str:
    """Time two ways on a few layers of the encoder, in alternation.

    Args:
        model: The model.
        ways: Each way, with the plans of the layers for it.
        mine: One of the two ways.
        other: The other way.
        plan: The predicted times of one or both, and the tokens of a call.

    Returns:
        The seconds of all layers, or the reason why one of the ways cannot run.
    """
    (encoder, *_) = encoders_of(model)
    layers = getattr(encoder.module, encoder.family.layers)
    predicted = [plan.predicted_us[way] for way in (mine, other) if way in plan.predicted_us]
    run = min(predicted) / len(layers) / 1e6
    count = max(1, min(len(layers), round(SECONDS_A_RUN / max(run, 1e-9))))
    sample = [layers[number * len(layers) // count] for number in range(count)]
    norm: Any = encoder_layers(*encoder)[0].norms[1].weight
    tokens = min(plan.tokens, MAX_TIMED_TOKENS)
    positions = getattr(getattr(encoder.module, "config", None), "max_position_embeddings", LENGTH)
    length = min(tokens, LENGTH, positions)
    shape = -(-tokens // length), length, norm.numel()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(norm.dtype)
    sides = []
    with _in_eval([*sample, encoder.module]), torch.inference_mode():
        for way in (mine, other):
            try:
                sides.append(_runner(encoder, _packed_as_planned(model, sample, ways[way]), way, x))
            except PlainPath as reason:
                return str(reason)
        timing = paired(*sides)
    scale = len(layers) / count * plan.tokens / (shape[0] * shape[1])
    return replace(timing, mine=timing.mine * scale, other=timing.other * scale)


def _runner(encoder: Encoder, layers: Sequence[nn.Module], way: str, x: Tensor) -> Callable[[], Any]:
    """Return a function that runs some layers of an encoder on x [B, T, hidden], without hooks of the whole.

    Raises:
        PlainPath: The layers cannot run in one native call.
    """
    cls = plain_class(encoder.module)
    part = cls.__new__(cls)
    nn.Module.__init__(part)
    hooks = {name: getattr(part, name) for name in HOOKS}
    part.__dict__ |= {**vars(encoder.module), **hooks}
    for name in FUSED_ATTRIBUTES:
        vars(part).pop(name, None)
    part._modules = {**encoder.module._modules, encoder.family.layers: nn.ModuleList(layers).eval()}
    args, given = ((x,), {}) if encoder.family.encoder[0] else ((), {"inputs_embeds": x})
    if way != LAYERS:
        fuse_modules_(part, TOLERANCES[way])
        require_native(part, x)
        if left_range(part, TOLERANCES[way]):
            raise PlainPath(LEFT_RANGE)
    return functools.partial(part.forward, *args, **given)


def _packed_as_planned(model: nn.Module, layers: Sequence[nn.Module], plans: Plans) -> Sequence[nn.Module]:
    """Return layers of an encoder with their sparse layers packed as planned: copies of those that differ."""
    names = {module: name for name, module in model.named_modules()}
    packed = []
    for layer in layers:
        switches = {
            path: (plan.format, plan.options)
            for path, module in layer.named_modules()
            if isinstance(module, SparseLinear)
            and (plan := plans.get(key_in(model, names[module]))) is not None
            and module.recipe != (plan.format, plan.options)
        }
        # Weights made in inference mode count no changes, and an engine that copies them refuses them.
        with torch.inference_mode(False), torch.no_grad():
            layer = copy.deepcopy(layer) if switches else layer
            for path, (format, options) in switches.items():
                sparse: Any = layer.get_submodule(path)
                sparse.prepare_format(format, **options)()
        packed.append(layer)
    return packed


@contextmanager
def _in_eval(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules in eval mode for a while."""
    flags = [(each, each.training) for module in modules for each in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for each, training in flags:
            each.training = training
