"""The lottery loop: each round gets a ticket, trains and evaluates it. Finished rounds are not repeated."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import asdict, replace
from typing import Any

from sparsebert.accounting.meter import Meter
from sparsebert.accounting.usage import total
from sparsebert.atomic import replacing
from sparsebert.lottery.disk_space import round_bytes, weight_bytes
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import NeedsBatches, Rewind, Round, SearchingMethod, Source
from sparsebert.lottery.round_record import settings_fields, ticket_fields, training_fields
from sparsebert.lottery.round_start import RunPlan, start_round
from sparsebert.lottery.round_training import Trained, train_round
from sparsebert.lottery.run_context import RunContext
from sparsebert.lottery.run_folder import Record, RunFolder, digest
from sparsebert.lottery.start_ticket import identify_, require_start, start_ticket, weights_line
from sparsebert.mask_learning.learner import Learner
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import parse_granularity
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.best_masks import BestMasks
from sparsebert.training.heartbeat import heartbeat
from sparsebert.training.run_status import RunStatus
from sparsebert.training.snapshot import Snapshot
from sparsebert.training.trainer import silence_transformers

# Fingerprints that all rounds of a run share; its initial weights are in its folder.
_DATA = {"train": "training data", "validation": "validation data", "tokenizer": "a tokenizer"}


def run(
    experiment: Experiment,
    config: RunConfig,
    out: str | os.PathLike[str],
    context: RunContext | None = None,
) -> list[Record]:
    """Carry out a run, or continue it where it was interrupted.

    A killed run continues from its last checkpoint. On the same machine and with the same libraries it ends
    with exactly the same masks. A finished run is only read: nothing is computed or changed. Under
    ``torchrun`` every process calls this function; rank 0 decides the masks.

    Args:
        experiment: Model and data.
        config: Configuration of the run.
        out: Folder of the run.
        context: Callbacks for progress, and for the time before the work starts.

    Returns:
        The records of the rounds.

    Raises:
        ValueError: The folder holds another run, or the configuration does not fit the model.
        OSError: The disk is full. Finished rounds are kept.
        RuntimeError: A rewind did not restore every bit.
    """
    context = context or RunContext()
    distributed.join()
    folder = RunFolder(out)
    finished = folder.run_json.exists() and folder.finished()
    if not finished and distributed.is_main():
        context.before(experiment.model, config)
    loop = _Run(experiment, config, folder, context)
    if not folder.run_json.exists():
        loop.check()
    with silence_transformers(), contextlib.ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(folder.claimed(config.describe(), config.defaults()))
        distributed.wait()
        if folder.finished() is None:
            loop.execute()
        else:
            loop.say(f"{folder.path} is finished: nothing to do")
        distributed.wait()
        return folder.rounds_done()


class _Run:
    """A run in its folder."""

    def __init__(
        self, experiment: Experiment, config: RunConfig, folder: RunFolder, context: RunContext
    ) -> None:
        self.folder, self.environment, self.model = folder, context.environment, experiment.model
        self.carbon_intensity = context.carbon_intensity
        self.method, self.seed = config.method, config.training.seed
        self.start = None
        if config.start_ticket is not None:
            self.start = start_ticket(config.start_ticket, self.model, config.units)
            self._user_start = config.start_ticket
            config = replace(config, start_ticket=self.start)
        self.config, self.rounds = config, config.rounds
        self.say = context.say if distributed.is_main() else lambda text: None
        self.status = RunStatus(len(self.rounds), experiment.metric)
        self.experiment = replace(experiment, judge=self.status.noting(experiment.judge))
        self.steps = config.training.steps_of(len(experiment.train), distributed.count())
        if (config.distillation is None) != (experiment.teacher is None):
            missing = "a distillation" if config.distillation is None else "a teacher"
            raise ValueError(f"a teacher and a distillation go together: {missing} is missing")
        if self.method.rewind_step >= self.steps:
            raise ValueError(
                f"rewind_step must be below the {self.steps} steps of a round, got {self.method.rewind_step}"
            )

    def check(self) -> None:
        """Raise ValueError before any training if units, sparsity, ticket or data do not fit."""
        self.method.require(self.experiment, self.config)
        if self.config.ticket is not None:
            self.config.ticket.check(self.model)
            return
        if isinstance(self.method, MaskLearningMethod):
            self.method.rule.check(self.method.goal(self.config, self.steps))
        if self.start is not None:
            require_start(self.start, self.model, self.config)
            self.method.require_start(self.start, self.model, self.config, self.steps)
        if self.config.target:
            shares = self.method.shares(self.model, self.config.target)
            prune(self.model, "random", sparsity=shares, **asdict(self.config.units))
        else:
            self._dense_ticket()

    def execute(self) -> None:
        """Carry out the rounds that are not done yet, and finish the run."""
        rows = self.folder.rounds_done()
        done = len(rows)
        if done < len(self.rounds):
            self._require_same_data(rows)
            start = distributed.main_first(self._start)
            plan = RunPlan(self.method, self.folder, len(self.rounds), self.steps, start, self.seed)
            with heartbeat(self.say, self.status.line):
                for number in range(done, len(self.rounds)):
                    meter = Meter(gpu=self.config.training.on_gpu, saved=self.folder.usage(number))
                    with meter if distributed.is_main() else contextlib.nullcontext():
                        self._execute_round(number, plan, meter)
        if distributed.is_main():
            self._finish()

    def _require_same_data(self, rows: list[Record]) -> None:
        """Raise ValueError if finished rounds read other data, or by another tokenizer."""
        before = (rows[0].get("fingerprints") or {}) if rows else {}
        now = self.experiment.fingerprints
        for name, what in _DATA.items():
            if before.get(name, now.get(name)) != now.get(name):
                raise ValueError(
                    f"{self.folder.path} holds a run with {what} of fingerprint {before[name][:19]}, not "
                    f"{str(now.get(name))[:19]}: restore what it read, or choose another folder"
                )

    def _start(self) -> Snapshot:
        """Return the initial weights: from the model in the first session, from the folder in later ones."""
        if not self.folder.start.exists():
            self._require_space(0)
            self.method.initialise_(self.model, self.seed)
            Snapshot.of(self.model).save(self.folder.start)
        start = Snapshot.load(self.folder.start)
        start.restore_(self.model)
        if self.start is not None:
            identify_(self.start, self._user_start, self.model)
            if line := weights_line(self.start):
                self.say(line)
        return start

    def _execute_round(self, number: int, plan: RunPlan, meter: Meter) -> None:
        round_ = self.rounds[number]
        title = self._title(number)
        self.say(title)
        self.status.begin_round(number, title)
        self.status.begin_phase("deciding on the ticket")
        sessions = self._open_round(number) if distributed.is_main() else 0
        began = time.perf_counter()
        ticket = distributed.from_main(lambda: self._ticket(number, round_))
        seconds_deciding = time.perf_counter() - began
        self.status.begin_phase("preparing the training")
        start = distributed.main_first(lambda: start_round(self.model, plan, number))
        with self.method.round_hooks(
            number, self.experiment, self.config, self.folder.round(number)
        ) as hooks:
            trainee = self._learner(round_, ticket) or ticket
            del ticket  # its masks take a byte per weight, and a learner does not need them
            best_masks = self._best_masks(trainee, number)
            trained = train_round(
                self.experiment,
                self._round_config(round_),
                trainee,
                start,
                folder=self.folder.checkpoints(number),
                keep=self.folder.rewind if number == 0 else None,
                title=title,
                status=self.status,
                hooks=hooks,
                best_masks=best_masks,
                on_checkpoint=meter.save,
            )
        ticket = self._learned(trainee, best_masks, number) if isinstance(trainee, Learner) else trainee
        ticket.apply_(self.model)
        self.status.begin_phase("evaluating")
        if distributed.is_main():
            self._close_round(number, ticket, trained, seconds_deciding, sessions, meter)
        distributed.wait()

    def _title(self, number: int, sparsity: float | None = None) -> str:
        """Return the title of a round, with the sparsity of its ticket if it is known."""
        round_ = self.rounds[number]
        open_ended = round_.source in (Source.SEARCH, Source.LEARNED) and self.method.decides_sparsity
        if sparsity is None and not open_ended and not round_.title:
            sparsity = float(round_.sparsity)
        share = round_.title and f", {round_.title}" if sparsity is None else f", {sparsity:.1%} sparse"
        return f"round {number + 1} of {len(self.rounds)}{share}"

    def _open_round(self, number: int) -> int:
        """Create the round's folder, check the space on the disk, and return the number of this session."""
        self.folder.round(number).mkdir(exist_ok=True)
        self._require_space(number)
        return self.folder.count_session(number)

    def _require_space(self, number: int) -> None:
        """Raise OSError unless the disk has room for all files of a round."""
        self.folder.require_space(round_bytes(self.experiment, self.config, number, self.steps))

    def _learned(self, learner: Learner, best_masks: BestMasks | None, number: int) -> Ticket:
        """Close the learner, save its ticket and return it; the best masks, if there are any, come first."""
        best = best_masks.restore_() if best_masks else None
        ticket = learner.close_()
        if best:
            ticket.metadata["search"] = asdict(best)
        if distributed.is_main():
            ticket.save(self.folder.ticket(number))
        return ticket

    def _ticket(self, number: int, round_: Round) -> Ticket:
        """Return the ticket that the round trains: decided and saved once, later read from its file.

        A round that learns its ticket starts from a dense one, which is not saved.
        """
        if round_.source is Source.LEARNED:
            return self._dense_ticket()
        path = self.folder.ticket(number)
        if path.exists():
            return Ticket.load(path)
        if round_.source is Source.DENSE:
            ticket = self._dense_ticket()
        elif round_.source is Source.USER and self.start is not None:
            ticket = self.start
        elif round_.source is Source.USER:
            assert self.config.ticket is not None
            ticket = self.method.derive_ticket(self.config.ticket, self.model, self.seed)
        elif round_.source is Source.SEARCH:
            assert isinstance(self.method, SearchingMethod)
            self._restore_trained_(number - 1)
            last = self.folder.round(number - 1)
            ticket = self.method.find_ticket(self.experiment, self.config, last, round_)
            earlier = Ticket.load(self.folder.ticket(number - 1))
            ticket.metadata["model"]["weights"] = earlier.metadata["model"]["weights"]
        else:
            ticket = self._pruned(number, round_)
        ticket.save(path)
        return ticket

    def _restore_trained_(self, number: int) -> None:
        """Write the weights from the end of a round into the model, on the device of the training.

        Outputs on another device differ slightly. The device must be the same in a resumed run, so that its
        ticket is the same.
        """
        if self.config.training.on_gpu:
            self.model.cuda()
        Snapshot.load(self.folder.trained(number)).restore_(self.model)

    def _dense_ticket(self) -> Ticket:
        """Return the ticket that keeps all weights that later rounds may prune."""
        units = self.config.units
        if parse_granularity(units.granularity, units.block_size, units.round_to).pattern:
            units = replace(units, granularity="element")
        return prune(self.model, sparsity=0, **asdict(units))

    def _pruned(self, number: int, round_: Round) -> Ticket:
        """Prune the model by the round's scores and return the ticket."""
        earlier = None
        if round_.source is Source.TRAINED:
            earlier = Ticket.load(self.folder.ticket(number - 1))
            self._restore_trained_(number - 1)
        ticket = prune(
            self.model,
            round_.scores,
            sparsity=round_.sparsity,
            seed=self.seed,
            # A dense ticket restricts nothing, and may have other units.
            ticket=earlier if earlier is not None and earlier.sparsity else None,
            data=self._batches(),
            **asdict(self.config.units),
        )
        if earlier is not None:
            ticket.metadata["model"]["weights"] = earlier.metadata["model"]["weights"]
        return ticket

    def _learner(self, round_: Round, dense: Ticket) -> Learner | None:
        """Return the learner of the round's ticket, or None if the ticket is fixed."""
        if round_.source is not Source.LEARNED:
            return None
        assert isinstance(self.method, MaskLearningMethod)
        return self.method.learner(self.model, self.config, self.steps, dense, self.start)

    def _round_config(self, round_: Round) -> RunConfig:
        """Return the configuration with the learning rate of the round."""
        if round_.learning_rate is None:
            return self.config
        training = replace(self.config.training, learning_rate=round_.learning_rate)
        return replace(self.config, training=training)

    def _best_masks(self, trainee: Learner | Ticket, number: int) -> BestMasks | None:
        """Return the callback that keeps the best masks of a learner, if the method has one."""
        if not isinstance(trainee, Learner):
            return None
        assert isinstance(self.method, MaskLearningMethod)
        return self.method.best_masks(trainee, self.experiment, self.config, self.folder.best(number))

    def _batches(self) -> list[dict[str, Any]] | None:
        """Return the batches that the method's scores need."""
        if not isinstance(self.method, NeedsBatches):
            return None
        settings = self.config.training
        return self.experiment.first_batches(self.method.batches, settings.batch_size, self.seed)

    def _close_round(
        self,
        number: int,
        ticket: Ticket,
        trained: Trained,
        seconds_deciding: float,
        sessions: int,
        meter: Meter,
    ) -> None:
        """Save and evaluate the weights, write the round's record, and delete files of no later use."""
        Snapshot.of(self.model).save(self.folder.trained(number))
        began = time.perf_counter()
        metrics = self.experiment.evaluate(self.model)
        seconds = {
            "prune": seconds_deciding,
            "train": trained.seconds,
            "evaluate": time.perf_counter() - began,
        }
        row = self.folder.append(
            "round",
            {
                **self._names(),
                **settings_fields(self.config, number, self.steps),
                **ticket_fields(ticket, self.model),
                **training_fields(trained, meter.usage(), self.carbon_intensity),
                "ticket": str(self.folder.ticket(number).relative_to(self.folder.path)),
                "ticket_sha256": digest(self.folder.ticket(number)),
                "metrics": metrics,
                "chance": self.experiment.chance,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "sessions": sessions,
                "processes": distributed.count(),
                "fingerprints": dict(self.experiment.fingerprints),
                "environment": self.environment,
            },
        )
        self._clean_up(number)
        self.say(self._round_line(number, row))

    def _round_line(self, number: int, row: Record) -> str:
        """Return a line about a finished round."""
        durations = [sum(each["seconds"].values()) for each in self.folder.rounds_done()]
        return self.status.round_line(
            self._title(number, row["sparsity"]),
            row["steps"],
            row["loss"],
            row["metrics"],
            durations[-1],
            sum(durations) / len(durations),
        )

    def _clean_up(self, number: int) -> None:
        # Without rewinding, the next round continues from the last checkpoint of this round.
        if self.method.rewind is not Rewind.NONE:
            shutil.rmtree(self.folder.checkpoints(number), ignore_errors=True)
        if number:
            shutil.rmtree(self.folder.checkpoints(number - 1), ignore_errors=True)
        for each in set(range(number)) - {self._best_round()}:
            self.folder.trained(each).unlink(missing_ok=True)

    def _best_round(self) -> int:
        """Return the number of the finished round whose ticket and model become the run's."""
        return self.method.best_round(self.folder.rounds_done(), self.experiment.metric)

    def _finish(self) -> None:
        """Write the run's model, ticket and record, and delete all files that only a resume needs."""
        rows, best = self.folder.rounds_done(), self._best_round()
        if not self.folder.model.exists():
            Snapshot.load(self.folder.trained(best)).restore_(self.model)
            with replacing(self.folder.model, weight_bytes(self.experiment)) as unfinished:
                self.model.save_pretrained(unfinished)
                if self.experiment.save_extras is not None:
                    self.experiment.save_extras(str(unfinished))
        ticket = self.folder.ticket(best)
        with replacing(self.folder.final_ticket, ticket.stat().st_size) as unfinished:
            shutil.copyfile(ticket, unfinished)
        shutil.rmtree(self.folder.rewind, ignore_errors=True)
        for number in range(len(self.rounds)):
            shutil.rmtree(self.folder.checkpoints(number), ignore_errors=True)
            self.folder.trained(number).unlink(missing_ok=True)
            self.folder.best(number).unlink(missing_ok=True)
            self.folder.usage(number).unlink(missing_ok=True)
        self.folder.start.unlink(missing_ok=True)
        self.folder.append(
            "run",
            {
                **self._names(),
                "rounds": len(self.rounds),
                "round": best,
                "sparsity": rows[best]["sparsity"],
                "metrics": rows[best]["metrics"],
                "ticket": self.folder.final_ticket.name,
                "seconds": round(sum(sum(row["seconds"].values()) for row in rows), 3),
                "resources": total(row.get("resources") for row in rows),
                "fingerprints": dict(self.experiment.fingerprints),
                "environment": self.environment,
            },
        )

    def _names(self) -> Record:
        return {"method": self.method.name, "seed": self.seed, **self.config.names}
