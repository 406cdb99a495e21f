"""The lottery loop: rounds of ticket, training and evaluation, each of which is done once and for all."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from sparsebert.atomic import replacing
from sparsebert.bert import resolve, structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import LearnedMethod
from sparsebert.lottery.method import NeedsBatches, Rewind, Round, SearchingMethod, Source
from sparsebert.lottery.round_start import Course, begin_round
from sparsebert.lottery.round_training import Trained, train_round
from sparsebert.lottery.run_folder import Record, RunFolder, digest
from sparsebert.mask_learning.learner import Learner
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import parse_granularity
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.best_masks import BestChoice
from sparsebert.training.snapshot import Snapshot
from sparsebert.training.trainer import quiet

# A checkpoint holds the weights and two moments of each; there are up to two, and one being written.
_COPIES_IN_CHECKPOINTS = 9
_OTHER_COPIES = 3


def run(
    experiment: Experiment,
    request: RunConfig,
    out: str | os.PathLike[str],
    say: Callable[[str], None] = lambda text: None,
) -> list[Record]:
    """Carry out a run in the folder ``out``, or go on with it where it was interrupted; its records.

    A run that was killed goes on from its last checkpoint and ends with the same masks, to the bit, on the
    same machine with the same libraries. A run that is done is only read: nothing is computed or changed.
    ``say`` is told what is going on. Under ``torchrun`` every process calls this; rank 0 decides the masks.

    Raises ValueError for a folder with another run or a request that does not fit the model, OSError where
    the disk is full, RuntimeError if a rewind did not restore every bit; what was done before stays.
    """
    distributed.join()
    folder = RunFolder(out)
    loop = _Run(experiment, request, folder, say)
    if not folder.run_json.exists():
        loop.rehearse()
    with quiet(), folder.claimed(request.describe()) if distributed.is_main() else contextlib.nullcontext():
        distributed.wait()
        if folder.finished() is None:
            loop.carry_out()
        else:
            say(f"{folder.path} is finished: nothing to do")
        distributed.wait()
        return folder.rounds_done()


class _Run:
    """A run in a folder that is claimed."""

    def __init__(
        self, experiment: Experiment, request: RunConfig, folder: RunFolder, say: Callable[[str], None]
    ) -> None:
        self.experiment, self.request, self.folder, self.say = experiment, request, folder, say
        self.model = experiment.model
        self.method, self.seed = request.method, request.training.seed
        self.rounds = self.method.rounds(request.target)
        self.steps = request.training.steps_of(len(experiment.train), distributed.count())
        if (request.distillation is None) != (experiment.teacher is None):
            raise ValueError("a teacher and a distillation go together: one of them is missing")
        if self.method.rewind_step >= self.steps:
            raise ValueError(f"rewinding to step {self.method.rewind_step} of rounds of {self.steps} steps")

    def rehearse(self) -> None:
        """Find out before hours of training whether units, sparsity, ticket and data fit model and method."""
        self.method.require(self.experiment, self.request)
        if self.request.ticket is not None:
            self.request.ticket.check(self.model)
            return
        if isinstance(self.method, LearnedMethod):
            self.method.check(self.method.goal(self.request, self.steps))
        if self.request.target:
            prune(self.model, "random", sparsity=self.request.target, **asdict(self.request.units))
        else:
            self._whole()

    def carry_out(self) -> None:
        done = len(self.folder.rounds_done())
        if done < len(self.rounds):
            start = distributed.main_first(self._start)
            course = Course(self.method, self.folder, len(self.rounds), self.steps, start, self.seed)
            for number in range(done, len(self.rounds)):
                self._carry_out_round(number, course)
        if distributed.is_main():
            self._finish()

    def _start(self) -> Snapshot:
        """The weights to begin with: from the model the first time, from the folder ever after."""
        if not self.folder.start.exists():
            self.folder.require_space(_OTHER_COPIES * self._bytes())
            self.method.begin_(self.model, self.seed)
            Snapshot.of(self.model).save(self.folder.start)
        start = Snapshot.load(self.folder.start)
        start.restore_(self.model)
        return start

    def _carry_out_round(self, number: int, course: Course) -> None:
        round_ = self.rounds[number]
        unknown = round_.source in (Source.SEARCH, Source.LEARNED) and self.method.decides_sparsity
        share = "" if unknown else f", {float(round_.sparsity):.1%} sparse"
        title = f"round {number + 1} of {len(self.rounds)}{share}"
        self.say(title)
        sessions = self._open_round(number) if distributed.is_main() else 0
        began = time.perf_counter()
        ticket = distributed.from_main(lambda: self._ticket(number, round_))
        decided = time.perf_counter() - began
        beginning = distributed.main_first(lambda: begin_round(self.model, course, number))
        with self.method.round_hooks(
            number, self.experiment, self.request, self.folder.round(number)
        ) as companion:
            subject = self._learner(round_, ticket) or ticket
            del ticket  # a byte for each weight, which a learner has no use for
            choice = self._choice(subject, number)
            trained = train_round(
                self.experiment,
                self._training_request(round_),
                subject,
                beginning,
                folder=self.folder.checkpoints(number),
                keep=self.folder.rewind if number == 0 else None,
                title=title,
                companion=companion,
                choice=choice,
            )
        if isinstance(subject, Learner):
            chosen = choice.restore_() if choice else None
            ticket = subject.close_()
            if chosen:
                ticket.metadata["search"] = asdict(chosen)
            if distributed.is_main():
                ticket.save(self.folder.ticket(number))
        else:
            ticket = subject
        ticket.apply_(self.model)
        if distributed.is_main():
            self._close_round(number, ticket, trained, decided, sessions)
        distributed.wait()

    def _open_round(self, number: int) -> int:
        """Make the round's folder, if there is room; how many sessions it has had, this one included."""
        self.folder.round(number).mkdir(exist_ok=True)
        self.folder.require_space((_COPIES_IN_CHECKPOINTS + _OTHER_COPIES) * self._bytes())
        return self.folder.count_session(number)

    def _ticket(self, number: int, round_: Round) -> Ticket:
        """The ticket that the round trains; decided once, and read from its file ever after.

        Where training decides, the one that it begins with, in no file: it keeps everything.
        """
        if round_.source is Source.LEARNED:
            return self._whole()
        path = self.folder.ticket(number)
        if path.exists():
            return Ticket.load(path)
        if round_.source is Source.DENSE:
            ticket = self._whole()
        elif round_.source is Source.USER:
            assert self.request.ticket is not None
            ticket = self.method.given(self.request.ticket, self.model, self.seed)
        elif round_.source is Source.SEARCH:
            assert isinstance(self.method, SearchingMethod)
            self._restore_trained_(number - 1)
            before = self.folder.round(number - 1)
            ticket = self.method.found(self.experiment, self.request, before, round_)
            earlier = Ticket.load(self.folder.ticket(number - 1))
            ticket.metadata["model"]["weights"] = earlier.metadata["model"]["weights"]
        else:
            ticket = self._pruned(number, round_)
        ticket.save(path)
        return ticket

    def _restore_trained_(self, number: int) -> None:
        """Put the weights that a round ended with into the model, where that round trained it: answers of
        another device differ a little, and a ticket that goes by them must not depend on a kill."""
        if self.request.training.on_gpu:
            self.model.cuda()
        Snapshot.load(self.folder.trained(number)).restore_(self.model)

    def _whole(self) -> Ticket:
        """Keeps all that the later rounds may prune."""
        units = self.request.units
        if parse_granularity(units.granularity, units.block_size).pattern:
            units = replace(units, granularity="element")
        return prune(self.model, sparsity=0, **asdict(units))

    def _pruned(self, number: int, round_: Round) -> Ticket:
        earlier = None
        if round_.source is Source.TRAINED:
            earlier = Ticket.load(self.folder.ticket(number - 1))
            self._restore_trained_(number - 1)
        ticket = prune(
            self.model,
            round_.scores,
            sparsity=round_.sparsity,
            seed=self.seed,
            # One that keeps everything holds nobody back, whatever units it was made of.
            ticket=earlier if earlier is not None and earlier.sparsity else None,
            data=self._batches(),
            **asdict(self.request.units),
        )
        if earlier is not None:
            ticket.metadata["model"]["weights"] = earlier.metadata["model"]["weights"]
        return ticket

    def _learner(self, round_: Round, whole: Ticket) -> Learner | None:
        """What learns the round's ticket, where training decides on it."""
        if round_.source is not Source.LEARNED:
            return None
        assert isinstance(self.method, LearnedMethod)
        return self.method.learner(self.model, self.request, self.steps, whole)

    def _training_request(self, round_: Round) -> RunConfig:
        """The request with the round's own learning rate."""
        if round_.learning_rate is None:
            return self.request
        training = replace(self.request.training, learning_rate=round_.learning_rate)
        return replace(self.request, training=training)

    def _choice(self, subject: Learner | Ticket, number: int) -> BestChoice | None:
        """What chooses among the masks that a learner comes by."""
        if not isinstance(subject, Learner):
            return None
        assert isinstance(self.method, LearnedMethod)
        return self.method.choice(subject, self.experiment, self.request, self.folder.best(number))

    def _batches(self) -> list[dict[str, Any]] | None:
        if not isinstance(self.method, NeedsBatches):
            return None
        settings = self.request.training
        return self.experiment.first_batches(self.method.batches, settings.batch_size, self.seed)

    def _close_round(
        self, number: int, ticket: Ticket, trained: Trained, decided: float, sessions: int
    ) -> None:
        """Keep the weights, judge them, write the round's record and delete what no later round needs."""
        Snapshot.of(self.model).save(self.folder.trained(number))
        began = time.perf_counter()
        metrics = self.experiment.evaluate(self.model)
        seconds = {"prune": decided, "train": trained.seconds, "evaluate": time.perf_counter() - began}
        units = self.request.units
        self.folder.append(
            "round",
            {
                **self._names(),
                "round": number,
                "rounds": len(self.rounds),
                **_counts(ticket, self.model),
                "granularity": units.granularity,
                "block_size": units.block_size,
                "scope": units.scope,
                "source": self.rounds[number].source.value,
                "rewind": self.method.rewind.value,
                "head": self.method.head.value,
                "ticket": str(self.folder.ticket(number).relative_to(self.folder.path)),
                "ticket_sha256": digest(self.folder.ticket(number)),
                "masks_sha256": ticket.digest,
                "steps": trained.steps,
                "search": ticket.metadata.get("search"),
                "loss": trained.loss,
                "metrics": metrics,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "sessions": sessions,
                "processes": distributed.count(),
                "distillation": asdict(self.request.distillation) if self.request.distillation else None,
                "memory": _peak_memory(),
                "versions": ticket.metadata["versions"],
            },
        )
        self._clean_up(number)

    def _clean_up(self, number: int) -> None:
        # Without rewinding the next round goes on from the last checkpoint of this one.
        if self.method.rewind is not Rewind.NONE:
            shutil.rmtree(self.folder.checkpoints(number), ignore_errors=True)
        if number:
            shutil.rmtree(self.folder.checkpoints(number - 1), ignore_errors=True)
        for each in set(range(number)) - {self._best()}:
            self.folder.trained(each).unlink(missing_ok=True)

    def _best(self) -> int:
        """The round whose ticket and model are the run's, of those that are done."""
        return self.method.best(self.folder.rounds_done(), self.experiment.metric)

    def _finish(self) -> None:
        rows, best = self.folder.rounds_done(), self._best()
        if not self.folder.model.exists():
            Snapshot.load(self.folder.trained(best)).restore_(self.model)
            with replacing(self.folder.model) as unfinished:
                self.model.save_pretrained(unfinished)
                if self.experiment.save_extras is not None:
                    self.experiment.save_extras(str(unfinished))
        with replacing(self.folder.final_ticket) as unfinished:
            shutil.copyfile(self.folder.ticket(best), unfinished)
        shutil.rmtree(self.folder.rewind, ignore_errors=True)
        for number in range(len(self.rounds)):
            shutil.rmtree(self.folder.checkpoints(number), ignore_errors=True)
            self.folder.trained(number).unlink(missing_ok=True)
            self.folder.best(number).unlink(missing_ok=True)
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
            },
        )

    def _names(self) -> Record:
        return {"method": self.method.name, "seed": self.seed, **self.request.names}

    def _bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())


def _counts(ticket: Ticket, model: Any) -> Record:
    encoder = structure(model).linears
    pruned = {key: int((~mask).sum()) for key, mask in ticket.masks.items()}
    prunable = sum(mask.numel() for mask in ticket.masks.values())
    return {
        "sparsity": ticket.sparsity,
        "density": ticket.density,
        "kept": prunable - sum(pruned.values()),
        "prunable": prunable,
        "encoder_sparsity": sum(pruned.get(key, 0) for key in encoder)
        / sum(resolve(model, key).get_parameter("weight").numel() for key in encoder),
    }


def _peak_memory() -> Record:
    # Linux counts in kibibytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak
