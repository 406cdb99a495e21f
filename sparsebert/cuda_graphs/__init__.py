"""``graphs``: run a model in CUDA graphs, one for each bucket of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from sparsebert.bert import positions, require_module

if TYPE_CHECKING:
    from sparsebert.cuda_graphs.buckets import Shape
    from sparsebert.cuda_graphs.runner import GraphRunner


def graphs(
    model: nn.Module,
    buckets: Sequence[int | Shape] | None = None,
    *,
    max_graphs: int = 16,
    max_bytes: int | None = None,
) -> GraphRunner:
    """Return a callable that runs ``model`` in CUDA graphs, which launch all kernels of a call at once.

    With few tokens, a GPU waits for the host to launch the kernels of a model, dense or sparse. The runner is
    called like the model and returns the same outputs, in fresh tensors that later calls leave alone. A call
    copies the inputs into static tensors, padded on the right to the next bucket, replays the graph of that
    bucket, and copies the outputs without the padding. An attention mask excludes the padding: outputs at
    real tokens equal the model's up to rounding, which depends on the shape. Outputs of a sequence whose own
    mask excludes all tokens are undefined. A batch that has no mask and fills its bucket is computed without
    one.

    The first call that needs a graph captures it: warm-up and capture run on a side stream, and all graphs
    share one memory pool, which stays smallest if the largest bucket is captured first. The first outputs of
    each graph are compared with the model's. The model itself does not change; call it directly as before.

    Where a graph could give another result, the call runs like ``model(...)``, and a warning says why, once:
    a batch larger than each bucket; training mode, even of a single dropout layer; recorded gradients;
    autocast; forward hooks of other packages; arguments that cannot be padded, such as labels; too little
    memory; a failed capture. After a move, a conversion, or a change of weights, modules or configuration,
    the graphs are captured again, and a warning says so once. ``load_state_dict`` and other changes in place
    count as changes, because layers hold tensors derived from their weights. A change through ``.data``
    counts if it replaces the tensor.

    Threads and streams may share a runner: it launches one call at a time, and the device runs each call
    after the previous one. Inside another capture or torch.compile, the runner calls the model. On a CPU, it
    pads and cuts in the same way and calls the model without a graph, which serves tests; a warning says so
    once.

    Args:
        model: A BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT, MPNet or ModernBERT with any task
            head, in eval mode, on one device. The runner takes the inputs of its forward method: input_ids,
            attention_mask, token_type_ids and position_ids (integers; the mask also bool; [sequences,
            tokens]), inputs_embeds ([sequences, tokens, hidden] in the model's dtype), and options such as
            ``output_hidden_states``. A fused model (``fuse_``) also takes sequences in one row, without
            padding: input_ids [1, total tokens], cu_seq_lens_q (integers, [sequences + 1]) and max_length_q
            (an int), as in transformers; buckets then limit sequences and total tokens.
        buckets: Shapes (sequences, tokens of each) and numbers of total tokens to pad batches to; the bucket
            with the fewest tokens is used. A number such as 4096 stands for all shapes of that many tokens
            whose length is 16, 24, 32, 48, 64, 96, ... By default, the number of sequences is rounded up to
            1, 2, 3, 4, 6, 8, 12, ... and the length to the lengths above.
        max_graphs: Maximum number of graphs; beyond it, the least recently used one is dropped.
        max_bytes: Maximum size of the memory pool; by default a quarter of the GPU's memory. A bucket that
            exceeds it drops all other graphs; if it still does, it runs without a graph.

    Returns:
        The runner. ``runner.captured`` lists the shapes of its graphs, ``runner.nbytes`` is the size of the
        pool in bytes, and ``runner.clear()`` drops the graphs.

    Raises:
        ValueError: ``model`` is not a module of these families or takes no input_ids; a bucket is malformed,
            or longer than the model's positions; or a limit is not positive.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.cuda_graphs.buckets import Buckets
    from sparsebert.cuda_graphs.runner import GraphRunner, parameter_names
    from sparsebert.nn.encoder_layers import NAMES
    from sparsebert.nn.fused_modules import encoders_of

    require_module(model)
    if not encoders_of(model):
        raise ValueError(f"expected a {NAMES} model; {type(model).__name__} has no encoder of these families")
    if "input_ids" not in parameter_names(model):
        raise ValueError(
            f"{type(model).__name__} does not take input_ids; pass the transformer that it holds"
        )
    for name, limit in (("max_graphs", max_graphs), ("max_bytes", max_bytes)):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ValueError(f"{name} must be a positive integer, got {limit!r}")
    return GraphRunner(model, Buckets.parse(buckets, positions(model)), max_graphs, max_bytes)
