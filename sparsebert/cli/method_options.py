"""The options of `train` that belong to its methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of the lottery methods, by the names that the methods know them by; None is their default.

    The help says what that is: a method's own where it differs from the others'.
    """

    panel: ClassVar = "Options of methods"

    rewind: Annotated[
        str | None,
        typer.Option(help="pretrained, or step, learning-rate (cap-structured's), none (standard's)"),
    ] = None
    rewind_step: Annotated[int | None, typer.Option(help="the step of --rewind step")] = None
    head: Annotated[
        str | None, typer.Option(help="each round: rewind, keep (imp's, standard's) or fresh")
    ] = None
    schedule_rounds: Annotated[
        int | None, typer.Option(help="rounds that the schedule spans: 1; Chen et al.: 10")
    ] = None
    share: Annotated[str | None, typer.Option(help="--step is a share of the original or remaining")] = None
    step: Annotated[
        float | None,
        typer.Option(
            help="share of weights pruned in a round, or a step of a search: 0.1; super-tickets 0.05"
        ),
    ] = None
    batches: Annotated[int | None, typer.Option(help="batches of training data to look at: 32, SNIP 8")] = (
        None
    )
    accumulate: Annotated[
        bool | None,
        typer.Option("--accumulate", help="importance: gradients of masks never cleared, as published"),
    ] = None
    per_example: Annotated[
        bool | None, typer.Option("--per-example", help="importance: abs of each example's gradient")
    ] = None
    per_token: Annotated[
        bool | None, typer.Option("--per-token", help="importance: abs of each token's part of the gradient")
    ] = None
    keep_a_head: Annotated[
        bool | None, typer.Option("--keep-a-head", help="importance: the best head of each layer goes last")
    ] = None
    share_of_heads: Annotated[
        float | None, typer.Option(help="importance-search: share of the heads masked in a step, 0.1")
    ] = None
    judged_on: Annotated[
        str | None,
        typer.Option(help="importance-search, magnitude-search: train, or validation as published"),
    ] = None
    most_steps: Annotated[
        int | None, typer.Option(help="magnitude-search: times that --step is pruned at most, 9")
    ] = None
    rescore: Annotated[
        bool | None,
        typer.Option("--rescore/--no-rescore", help="importance-search: forget the scores of rejected masks"),
    ] = None
    penalty: Annotated[
        float | None, typer.Option(help="early-bird: of the coefficients' L1 norm, 0.0001")
    ] = None
    draw: Annotated[
        str | None,
        typer.Option(help="early-bird: by mask distance, or fixed, at --draw-at as published"),
    ] = None
    draw_at: Annotated[float | None, typer.Option(help="early-bird, fixed: share of an epoch, 0.2")] = None
    every: Annotated[int | None, typer.Option(help="early-bird: steps between two masks, 10")] = None
    epsilon: Annotated[float | None, typer.Option(help="early-bird: mask distance that is settled, 0.1")] = (
        None
    )
    window: Annotated[int | None, typer.Option(help="early-bird: how many distances in a row, 5")] = None
    heads_sparsity: Annotated[
        float | None,
        typer.Option(
            help="early-bird: share of the heads to prune, instead of --sparsity; published: a third"
        ),
    ] = None
    neurons_sparsity: Annotated[
        float | None, typer.Option(help="early-bird: share of the neurons, with it; published: 0.4")
    ] = None
    search_learning_rate: Annotated[
        float | None,
        typer.Option(help="early-bird: of the search, where not --learning-rate; published: 2e-5"),
    ] = None
    absolute: Annotated[
        bool | None, typer.Option("--absolute", help="early-bird: coefficients rank by their size")
    ] = None
    bernoulli: Annotated[
        bool | None, typer.Option("--bernoulli", help="random-units: their number varies, as published")
    ] = None
    first: Annotated[float | None, typer.Option(help="snip-imp: sparsity that SNIP prunes to, 0.5")] = None
    of: Annotated[str | None, typer.Option(help="one-shot: magnitudes of pretrained or trained")] = None
    scores_learning_rate: Annotated[
        float | None,
        typer.Option(help="of the scores, where masks are learned: 0.01; smp 0.02, l0 0.1"),
    ] = None
    initial_warmup: Annotated[
        float | None,
        typer.Option(help="times --warmup-steps: all is kept so long at the beginning; 1, cap 2"),
    ] = None
    final_warmup: Annotated[
        float | None,
        typer.Option(help="times --warmup-steps: the density stays so long at the end; 2, cap 3"),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="soft-movement, mask T of smp: what scores must exceed, 0.1; importance-search, "
            "magnitude-search: share of the metric to hold, 0.9"
        ),
    ] = None
    regularisation: Annotated[
        float | None, typer.Option(help="weight of the penalty on scores: 400, l0 125, movement 0")
    ] = None
    floor: Annotated[
        float | None, typer.Option(help="soft-movement: share of each matrix that stays, 0.005")
    ] = None
    mask: Annotated[str | None, typer.Option(help="smp: S, or L, G, T")] = None
    ramp_steps: Annotated[
        int | None, typer.Option(help="smp: steps over which the density falls; 7/12 of the run")
    ] = None
    curve: Annotated[str | None, typer.Option(help="smp: along which it falls, cubic or linear")] = None
    regularisation_over: Annotated[
        str | None, typer.Option(help="smp: the penalty grows over the run, or the fall of the density")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="smp, mask S: divides the scores, 1")] = None
    label_words: Annotated[
        str | None, typer.Option(help="smp: a word for each label, terrible,great, or task for known ones")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(help="smp: text around the examples', with a blank for the words: '{0} [MASK]'"),
    ] = None
    choose_every: Annotated[
        int | None,
        typer.Option(help="smp: steps between judgements by the validation data; the best masks are kept"),
    ] = None
    smp_compat: Annotated[
        bool | None, typer.Option("--smp-compat", help="smp: as its released code computes")
    ] = None
    instance_weight: Annotated[
        float | None, typer.Option(help="cap: of the term of representations of the same example, 0.1")
    ] = None
    label_weight: Annotated[
        float | None, typer.Option(help="cap: of the term of those of the same label, 10")
    ] = None
    contrast_temperature: Annotated[float | None, typer.Option(help="cap: divides the similarities, 0.1")] = (
        None
    )
    negatives: Annotated[int | None, typer.Option(help="cap: representations drawn for each bank, 4096")] = (
        None
    )
    banks: Annotated[
        str | None, typer.Option(help="cap: some of pretrained,fine-tuned,snapshots; all of them without it")
    ] = None
    snapshot_every: Annotated[
        int | None, typer.Option(help="cap, cap-soft: steps between snapshots; an epoch without it")
    ] = None
    within: Annotated[str | None, typer.Option(help="shuffled: in each matrix, or whole layers")] = None
    proportions: Annotated[
        str | None, typer.Option(help="multi-task: equal turns, by size, or a number for each task: 2,1")
    ] = None
