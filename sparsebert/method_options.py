"""Options of the command `train` for the lottery methods, each for those that know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of the lottery methods, by the names that the methods know them by; None is their default."""

    panel: ClassVar = "Options of methods"

    rewind: Annotated[
        str | None,
        typer.Option(
            help="what a round begins with: pretrained weights, those of a step, trained ones with the "
            "learning-rate anew, or none (all goes on: standard pruning)"
        ),
    ] = None
    rewind_step: Annotated[int | None, typer.Option(help="the step of --rewind step")] = None
    head: Annotated[
        str | None, typer.Option(help="the task's head before each round: rewind, keep or fresh")
    ] = None
    schedule_rounds: Annotated[
        int | None, typer.Option(help="rounds that the schedule spans; Chen et al.: 10")
    ] = None
    share: Annotated[
        str | None, typer.Option(help="what --step is a share of: original weights, or remaining ones")
    ] = None
    step: Annotated[float | None, typer.Option(help="share of weights pruned in a round")] = None
    batches: Annotated[int | None, typer.Option(help="batches that SNIP or importance looks at")] = None
    accumulate: Annotated[
        bool | None,
        typer.Option("--accumulate", help="importance: gradients of masks never cleared, as published"),
    ] = None
    per_example: Annotated[
        bool | None, typer.Option("--per-example", help="importance: abs of each example's gradient")
    ] = None
    keep_a_head: Annotated[
        bool | None, typer.Option("--keep-a-head", help="importance: the best head of each layer goes last")
    ] = None
    share_of_heads: Annotated[
        float | None, typer.Option(help="importance-search: share of the heads masked in a step")
    ] = None
    judged_on: Annotated[
        str | None, typer.Option(help="importance-search: train, or validation as published")
    ] = None
    rescore: Annotated[
        bool | None,
        typer.Option("--rescore/--no-rescore", help="importance-search: forget the scores of rejected masks"),
    ] = None
    penalty: Annotated[
        float | None, typer.Option(help="early-bird: weight of the coefficients' L1 norm in the loss")
    ] = None
    draw: Annotated[
        str | None,
        typer.Option(
            help="early-bird: when to draw the ticket: by mask distance, or fixed (--draw-at), as published"
        ),
    ] = None
    draw_at: Annotated[float | None, typer.Option(help="early-bird, fixed: share of an epoch")] = None
    every: Annotated[int | None, typer.Option(help="early-bird: steps between two masks")] = None
    epsilon: Annotated[float | None, typer.Option(help="early-bird: mask distance that is settled")] = None
    window: Annotated[int | None, typer.Option(help="early-bird: how many distances in a row")] = None
    absolute: Annotated[
        bool | None, typer.Option("--absolute", help="early-bird: coefficients rank by their size")
    ] = None
    bernoulli: Annotated[
        bool | None, typer.Option("--bernoulli", help="random-units: their number varies, as published")
    ] = None
    first: Annotated[float | None, typer.Option(help="snip-imp: sparsity that SNIP prunes to")] = None
    of: Annotated[
        str | None, typer.Option(help="one-shot: whose magnitudes, of pretrained or trained weights")
    ] = None
    scores_learning_rate: Annotated[
        float | None, typer.Option(help="of the scores, where masks are learned")
    ] = None
    initial_warmup: Annotated[
        float | None, typer.Option(help="times --warmup-steps: all is kept so long at the beginning")
    ] = None
    final_warmup: Annotated[
        float | None, typer.Option(help="times --warmup-steps: the density stays so long at the end")
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="soft-movement, mask T of smp: what scores must exceed; importance-search: share of the "
            "metric to hold"
        ),
    ] = None
    regularisation: Annotated[float | None, typer.Option(help="weight of the penalty on scores")] = None
    floor: Annotated[float | None, typer.Option(help="soft-movement: share of each matrix that stays")] = None
    mask: Annotated[
        str | None, typer.Option(help="smp: L (local), S (shared by matrices), G (global) or T (threshold)")
    ] = None
    ramp_steps: Annotated[int | None, typer.Option(help="smp: steps over which the density falls")] = None
    curve: Annotated[
        str | None, typer.Option(help="smp: the curve along which the density falls, cubic or linear")
    ] = None
    regularisation_over: Annotated[
        str | None, typer.Option(help="smp: what the penalty grows over, the run or the fall of the density")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="smp, mask S: divides the scores")] = None
    label_words: Annotated[
        str | None, typer.Option(help="smp: a word for each label, terrible,great, or task for known ones")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(help="smp: text around the examples', with a blank for the words: '{0} [MASK]'"),
    ] = None
    smp_compat: Annotated[
        bool | None, typer.Option("--smp-compat", help="smp: as its released code computes")
    ] = None
    instance_weight: Annotated[
        float | None, typer.Option(help="cap: of the term of representations of the same example")
    ] = None
    label_weight: Annotated[
        float | None, typer.Option(help="cap: of the term of those of the same label")
    ] = None
    contrast_temperature: Annotated[float | None, typer.Option(help="cap: divides the similarities")] = None
    negatives: Annotated[int | None, typer.Option(help="cap: representations drawn for each bank")] = None
    banks: Annotated[
        str | None, typer.Option(help="cap: some of pretrained,fine-tuned,snapshots; all of them without it")
    ] = None
    snapshot_every: Annotated[
        int | None, typer.Option(help="cap, cap-soft: steps between snapshots; an epoch without it")
    ] = None
    within: Annotated[
        str | None, typer.Option(help="shuffled: what is shuffled, each matrix or whole layers")
    ] = None
    proportions: Annotated[
        str | None,
        typer.Option(help="multi-task: turns of each task: equal, size (of its data), or numbers: 2,1"),
    ] = None
