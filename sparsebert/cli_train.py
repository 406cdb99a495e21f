"""The commands `train` and `eval`; heavy modules are imported when they run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.options import Granularity, JsonFile, console, granularity_options, require_folders

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import Request
    from sparsebert.ticket import Ticket

Task = Annotated[
    str, typer.Option(help="sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, wikitext-2")
]
PretrainedModel = Annotated[str, typer.Option(help="a pre-trained BERT: hub id or local folder")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="folder with the task's files; without it, the hub")
]
TicketFile = Annotated[Path | None, typer.Option(help="ticket file")]
MaxLength = Annotated[int | None, typer.Option(help="tokens of an example; the task's own without it")]


def train(
    task: Task,
    model: PretrainedModel,
    method: Annotated[
        str,
        typer.Option(
            help="imp, standard, one-shot, snip, snip-imp, random, dense; on a given ticket: ticket, "
            "random-layerwise, random-reinit, shuffled"
        ),
    ] = "imp",
    sparsity: Annotated[float | None, typer.Option(help="share of zeros to reach, below 1")] = None,
    data: DataFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; it goes on where it was killed")
    ] = None,
    ticket: TicketFile = None,
    granularity: Granularity = "element",
    scope: Annotated[str, typer.Option(help="what competes: global, matrix or type")] = "global",
    pooler: Annotated[bool, typer.Option(help="prune the pooler too, as Chen et al. do")] = False,
    steps: Annotated[int | None, typer.Option(help="optimizer steps a round, instead of --epochs")] = None,
    epochs: Annotated[float, typer.Option(help="passes over the data a round")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="examples of a batch, on each device")] = 32,
    group_by_length: Annotated[
        bool, typer.Option("--group-by-length", help="batches of examples of about the same length")
    ] = False,
    gradient_accumulation: Annotated[int, typer.Option(help="batches of an optimizer step")] = 1,
    learning_rate: Annotated[float, typer.Option(help="at the beginning of a round")] = 2e-5,
    schedule: Annotated[str, typer.Option(help="of the learning rate: linear, cosine, constant")] = "linear",
    warmup_steps: Annotated[int, typer.Option(help="of the learning rate")] = 0,
    weight_decay: Annotated[float, typer.Option(help="of AdamW")] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 (mixed)")] = "fp32",
    device: Annotated[str, typer.Option(help="auto or cpu")] = "auto",
    max_length: MaxLength = None,
    save_steps: Annotated[int, typer.Option(help="steps between checkpoints")] = 500,
    seeds: Annotated[str, typer.Option(help="one run each: 1,2,3")] = "0",
    dense: Annotated[
        Path | None, typer.Option(help="folder of dense runs to judge by; those it lacks are made")
    ] = None,
    rewind: Annotated[
        str | None, typer.Option(help="pretrained, step, learning-rate or none (standard pruning)")
    ] = None,
    rewind_step: Annotated[int | None, typer.Option(help="the step of --rewind step")] = None,
    head: Annotated[str | None, typer.Option(help="each round: rewind, keep or fresh")] = None,
    schedule_rounds: Annotated[
        int | None, typer.Option(help="rounds that the schedule spans; Chen et al.: 10")
    ] = None,
    share: Annotated[str | None, typer.Option(help="--step is a share of the original or remaining")] = None,
    step: Annotated[float | None, typer.Option(help="share of weights pruned in a round")] = None,
    batches: Annotated[int | None, typer.Option(help="batches that SNIP sums gradients over")] = None,
    first: Annotated[float | None, typer.Option(help="snip-imp: sparsity that SNIP prunes to")] = None,
    of: Annotated[str | None, typer.Option(help="one-shot: magnitudes of pretrained or trained")] = None,
    within: Annotated[str | None, typer.Option(help="shuffled: in each matrix, or whole layers")] = None,
    json: JsonFile = None,
) -> None:
    """Find a ticket on a task, or train one that is given. What is killed goes on when started again."""
    chosen = _seeds(seeds)
    require_folders(json)
    import sparsebert.lottery.methods  # noqa: F401  (registers them)
    from sparsebert.bench import record
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.experiment import Request, Units
    from sparsebert.lottery.registry import lottery_method
    from sparsebert.train import over_seeds, short_name
    from sparsebert.train import train as train_ticket
    from sparsebert.training import ranks
    from sparsebert.training.settings import TrainingSettings

    hush_transformers()

    options = {
        "rewind": rewind,
        "rewind_step": rewind_step,
        "head": head,
        "schedule_rounds": schedule_rounds,
        "share": share,
        "step": step,
        "batches": batches,
        "first": first,
        "of": of,
        "within": within,
    }
    given = _ticket(ticket)
    requests = [
        Request(
            lottery_method(method, **options),
            0.0 if method == "dense" and sparsity is None else sparsity,
            Units(**granularity_options(granularity), scope=scope, include_pooler=pooler),
            TrainingSettings(
                steps=steps,
                epochs=epochs,
                batch_size=batch_size,
                group_by_length=group_by_length,
                learning_rate=learning_rate,
                schedule=schedule,
                warmup_steps=warmup_steps,
                weight_decay=weight_decay,
                gradient_accumulation=gradient_accumulation,
                precision=precision,
                device=device,
                save_steps=save_steps,
                seed=seed,
            ),
            given,
        )
        for seed in chosen
    ]
    folder = out or Path("runs") / _name(task, short_name(model), requests[0], seeds)

    def carry_out(request: Request, to: Path) -> list[dict[str, Any]]:
        first = request is requests[0]
        return train_ticket(
            task,
            model,
            request,
            to,
            data=data,
            max_length=max_length,
            say=_say,
            before=_say_gain if first else _say_nothing,
        )

    runs = [
        carry_out(request, folder / f"seed-{request.training.seed}" if len(chosen) > 1 else folder)
        for request in requests
    ]
    dense_runs = []
    if dense is not None:
        plain: dict[str, Any] = {
            "method": lottery_method("dense"),
            "sparsity": 0.0,
            "units": Units(),
            "ticket": None,
        }
        dense_runs = [
            carry_out(replace(request, **plain), dense / f"seed-{request.training.seed}")
            for request in requests
        ]
    if not ranks.is_main():
        return
    rows = [row for run in runs for row in run]
    if len(runs) > 1 or dense_runs:
        rows += [record.stamp("seeds", fields) for fields in over_seeds(task, runs, dense_runs)]
    if json is not None:
        record.append(json, rows)
    _print_rounds(rows)
    typer.echo(f"tickets, run log and trained model: {folder}")


def evaluate(
    task: Task,
    model: Annotated[str, typer.Option(help="a trained model: folder (model/ of a run) or hub id")],
    ticket: TicketFile = None,
    data: DataFolder = None,
    max_length: MaxLength = None,
    json: JsonFile = None,
) -> None:
    """Metrics of a trained model on a task's validation data, with a ticket applied first if one is given."""
    require_folders(json)
    from sparsebert.bench import record
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.train import evaluate as evaluate_model
    from sparsebert.train import short_name

    hush_transformers()
    pruned = _ticket(ticket)
    found = evaluate_model(task, model, ticket=pruned, data=data, max_length=max_length)
    fields: dict[str, Any] = {"task": task, "model": short_name(model), "metrics": found}
    fields["sparsity"] = pruned.sparsity if pruned else None
    if json is not None:
        record.append(json, [record.stamp("eval", fields)])
    for name, value in found.items():
        typer.echo(f"{name} {value:.4f}")


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text!r}: whole numbers are expected, such as 0 or 1,2,3") from None


def _ticket(path: Path | None) -> Ticket | None:
    if path is None:
        return None
    from sparsebert.ticket import Ticket

    return Ticket.load(path)


def _name(task: str, model: str, request: Request, seeds: str) -> str:
    """A folder for a run that was given none."""
    share = f"-{float(request.target) * 100:g}" if request.target else ""
    return f"{task}-{model.replace('/', '-')}-{request.method.name}{share}-seed-{seeds.replace(',', '-')}"


def _say(text: str) -> None:
    """On a terminal what is going on; elsewhere only what ends it."""
    if sys.stderr.isatty() or "nothing to do" in text:
        typer.echo(text, err=not text.endswith("nothing to do"))


def _say_gain(model: Any, request: Request) -> None:
    from sparsebert.lottery.gain import expected_gain

    for line in expected_gain(model, request):
        typer.echo(line)


def _say_nothing(model: Any, request: Request) -> None:
    pass


def _print_rounds(rows: list[dict[str, Any]]) -> None:
    from sparsebert.report.table import Table

    screen = console()
    for kind, columns in (
        ("round", ("round", "sparsity", "seed", "metrics", "loss", "minutes")),
        ("seeds", ("round", "sparsity", "seeds", "mean", "std", "verdict")),
    ):
        cells = tuple(_cells(row) for row in rows if row["kind"] == kind)
        if cells:
            screen.print(Table("", columns, cells).rich(screen.width))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    begin = (str(row["round"]), f"{row['sparsity']:.1%}")
    if row["kind"] == "seeds":
        std = "-" if row["std"] is None else f"{row['std']:.4f}"
        return (*begin, str(len(row["seeds"])), f"{row['mean']:.4f}", std, row.get("verdict", "-"))
    values = ", ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
    loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
    return (*begin, str(row["seed"]), values, loss, f"{sum(row['seconds'].values()) / 60:.1f}")
