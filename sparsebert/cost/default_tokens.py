"""The number of tokens that layers are planned for unless the caller names one."""

from __future__ import annotations

from torch import nn

from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

# With fewer, every kernel of a layer of BERT-base takes little more than its launch, in any format: a plan
# for them would keep most layers dense.
DEFAULT_GPU_TOKENS = 4096


def on_gpu(model: nn.Module) -> bool:
    """Whether a model has parameters on a GPU."""
    return any(parameter.device.type == "cuda" for parameter in model.parameters())


def default_tokens(gpu: bool) -> int:
    """Return the tokens to plan for on a GPU or a CPU."""
    return DEFAULT_GPU_TOKENS if gpu else DEFAULT_TOKENS


def tokens_after_move(tokens: int, gpu: bool) -> int:
    """Return the tokens to plan for where a model has moved, or was loaded, that was planned for ``tokens``.

    The default of a CPU becomes that of a GPU.
    """
    return DEFAULT_GPU_TOKENS if gpu and tokens == DEFAULT_TOKENS else tokens
