"""train(): a generator of steps over a learner, a source and a teacher; fit() runs it to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stillroom import checkpoint
from stillroom.contracts import Batch, HasBank, HasPast, Kept, Recorded, Signals, Source, Step, Teacher
from stillroom.errors import TrainError, say
from stillroom.files import faultpoint, fingerprint
from stillroom.fingerprints import fingerprint_of, unseen_in
from stillroom.gradients import Gradients, Looked, Looking, Sided, fill, filler, room_for
from stillroom.gradients.balance import one_sided
from stillroom.learner import Learner, frozen, set_to_rest
from stillroom.losses import l2
from stillroom.objectives import Objective
from stillroom.order import Order, Part, lengths_of
from stillroom.randomness import reseed, stream
from stillroom.settings import Mixed, Training, resolved_precision
from stillroom.taps.derivatives import trained_through

Prepare = Callable[[nn.Module, Batch], Batch]

LOOKING = {"checkpoint_every", "gradient_norms_every", "evaluate_at"}  # settings that change no weight


@dataclass(frozen=True)
class Rows:
    """Which examples a student learns from: those with a label, and the transfer set, which may have none."""

    labelled: Tensor
    transfer: Tensor | None = None

    @classmethod
    def of(cls, data: Source) -> Rows:
        """Return a source's training rows: labelled and unlabelled ones together are its transfer set."""
        train = data.splits["train"]
        return cls(getattr(data, "labelled", train), train)

    def order(self, settings: Training, *, seed: int, views: int = 1, lengths: Tensor | None = None) -> Order:
        """Return the batches of a training on these rows; ``lengths`` (by example number) for texts."""
        if isinstance(settings.batch, Mixed):
            transfer = self.labelled if self.transfer is None else self.transfer
            parts = [
                Part("labelled", self.labelled, settings.batch.labelled),
                Part("transfer", transfer, settings.batch.transfer),
            ]
        else:
            parts = [Part("labelled", self.labelled, settings.batch)]
        return Order(parts, seed=seed, views=views, lengths=lengths)


def saves_after(settings: Training, number: int, steps: int) -> bool:
    """Whether a checkpoint is written after step ``number`` (from 1).

    Every so often, by default in quarters, and at the end.
    """
    every = settings.checkpoint_every or max(1, steps // 4)
    return number % every == 0 or number == steps


def learning_rate(settings: Training, step: int, steps: int) -> float:
    """Return the rate at ``step`` (from 0): a linear warm-up, then constant, in steps, or a half cosine to 0."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / warm
    passed = (step - warm) / max(1, steps - warm)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * passed))
    if settings.schedule == "step":
        return settings.lr * settings.decay ** sum(step / steps >= mark for mark in settings.milestones)
    return settings.lr


def optimizer_of(learner: Learner, settings: Training) -> torch.optim.Optimizer:
    """Return the optimizer.

    A constant ``l2`` penalty under SGD without clipping or balancing becomes weight decay (2 x its weight).
    """
    # DOT applies decay and momentum in its own buffers.
    decay = 0.0 if settings.optimizer == "dot" else settings.weight_decay
    decays = {id(parameter): decay for parameter in learner.parameters()}
    for objective in learner.objectives:
        assert isinstance(objective, Objective)
        objective.folded = _folds(objective, settings)
        if objective.folded:
            for value in objective.parameters_read.values():
                decays[id(value)] += 2 * objective.weight_at(0)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            groups.setdefault(decays[id(parameter)], []).append(parameter)
    if not groups:
        raise TrainError(
            "There is nothing to train: got a student without trainable parameters. Unfreeze some of them."
        )
    listed = [{"params": members, "weight_decay": decay} for decay, members in groups.items()]
    if settings.optimizer == "dot":
        return torch.optim.SGD(listed, lr=settings.lr)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    return torch.optim.AdamW(listed, lr=settings.lr)


def _folds(objective: Objective, settings: Training) -> bool:
    return (
        objective.loss is l2
        and isinstance(objective.weight, int | float)
        and objective.every == 1
        and settings.optimizer == "sgd"
        and settings.clip is None
        and settings.balance is None
    )


def train(
    learner: Learner,
    data: Source,
    teacher: Teacher | None = None,
    settings: Training | None = None,
    *,
    rows: Rows | None = None,
    views: int = 1,
    seed: int = 0,
    folder: Path | None = None,
    prepare: Prepare | None = None,
    gradients: Gradients | None = None,
) -> Iterator[Step]:
    """Train ``learner`` on ``data``, giving each step to the caller as it is done.

    Nothing happens until the first step is asked for. With a ``folder``, checkpoints are written there and a killed
    training goes on from the last one to bit-identical weights, at the same number of threads and processes.
    ``prepare(student, batch)`` may change the inputs by looking at the student (an attack); ``gradients(learner,
    losses, weights)`` fills ``.grad`` itself. Under ``torch.distributed`` each process takes its share of every batch.

    Parts of the student in evaluation mode whose parameters all want no gradient stay so: a frozen BatchNorm keeps its
    statistics. So do parts without parameters (Dropout), unless the whole student is in evaluation mode.

    Raises:
        TrainError: the loss is not finite, a signal is missing, or two arguments cannot go together.

    Example:
        >>> for step in train(learner, data, teacher, Training(steps=1000)):
        ...     if step.number % 100 == 0:
        ...         print(step.number, float(step.losses["loss"]))
    """
    run = _Run(
        learner, data, teacher, settings or Training(), rows or Rows.of(data), views, seed, folder, prepare, gradients
    )
    state = torch.random.get_rng_state()
    try:
        with learner.reader:
            yield from run.steps()
    finally:
        torch.random.set_rng_state(state)
        learner.eval()


def fit(
    learner: Learner, data: Source, teacher: Teacher | None = None, settings: Training | None = None, **more: object
) -> Step:
    """Run :func:`train` to its end and return the last step."""
    last: Step | None = None
    for step in train(learner, data, teacher, settings, **more):  # type: ignore[arg-type]
        last = step
    if last is None:
        raise TrainError(
            "This training was already at its end: got a checkpoint of the last step. Remove it to train anew."
        )
    return last


class _Run:
    """The state of one training; its methods are the moments of a step."""

    def __init__(
        self,
        learner: Learner,
        data: Source,
        teacher: Teacher | None,
        settings: Training,
        rows: Rows,
        views: int,
        seed: int,
        folder: Path | None,
        prepare: Prepare | None,
        gradients: Gradients | None,
    ) -> None:
        self.learner, self.data, self.teacher, self.settings = learner, data, teacher, settings
        self.seed, self.folder, self.prepare = seed, folder, prepare
        self.gradients = filler(settings, gradients)
        self.looking = Looking(learner)
        self.total = settings.total_steps(len(rows.labelled))
        self.order = rows.order(settings, seed=seed, views=settings.views or views, lengths=lengths_of(data))
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank, self.world = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        )
        if self.settings.precision != "float32":
            learner.precision = resolved_precision(self.settings.precision)
        self.notes: list[str] = []
        self.told: set[str] = set()  # notes of how derivatives were read that were passed on
        if settings.balance is not None and (idle := one_sided(learner)):
            self.notes.append(idle)
        self._refuse()
        self.answers = self._attached(teacher)
        self.past = teacher if isinstance(teacher, HasPast) else None
        self.bank_rows = bank_rows(len(data.splits["train"])) if learner.banks else 0
        self.saved, self.inputs = 0, ""
        self.rests = set_to_rest(learner.student)
        self.wrapped: nn.Module = learner

    def _refuse(self) -> None:
        """Say no before anything is computed."""
        needs = [place.key for place in self.learner.teacher_places]
        if needs and self.teacher is None:
            raise TrainError(say("Objectives read a teacher", "no teacher", needs, "Give a Store or a live teacher."))
        if self.prepare is not None and isinstance(self.teacher, Recorded):
            raise TrainError(
                "prepare= changes the inputs by looking at the student, and a Store has no answers for changed inputs: "
                "got both. Give the live teacher instead."
            )
        if self.learner.banks and not isinstance(self.teacher, HasBank):
            raise TrainError(
                f"The objectives compare with other rows of a store ({', '.join(self.learner.banks)}): got a live "
                "teacher. "
                "Record its signals first and give the Store."
            )
        if self.gradients is not None and self.world > 1:
            raise TrainError(
                "gradients=, optimizer: dot and balance fill .grad by themselves, which several processes would not "
                f"share: got {self.world} processes. Use one process, or leave them out."
            )
        for part in self.order.parts:
            if part.count % self.world:
                raise TrainError(
                    say(
                        f"A batch is shared among {self.world} processes",
                        f"{part.count} {part.name} rows",
                        f"a multiple of {self.world}",
                        "Change train.batch.",
                    )
                )

    def _attached(self, teacher: Teacher | None) -> Teacher | None:
        """A store is asked for nothing but what is read, and prepares what does not depend on the student."""
        if not isinstance(teacher, Recorded):
            return teacher
        wanted, derived = [place.key for place in self.learner.teacher_places], []
        for objective in self._objectives():
            if objective.prepared is not None:
                source = objective.pairs[0]["teacher_logits"].key
                # on a view of the store: what a caller asks of the store itself stays what it was
                teacher = teacher.use([source]).derive(objective.prepared_name, source, _bound(objective))
                derived.append(objective.prepared_name)
                others = [
                    place.key
                    for other in self._objectives()
                    if other is not objective
                    for place in other.places("teacher")
                ]
                if source not in others and source in wanted:
                    wanted.remove(source)
        return teacher.use([*dict.fromkeys([*wanted, *derived])])

    def _objectives(self) -> list[Objective]:
        return list(self.learner.objectives)  # type: ignore[arg-type]

    def _signature(self) -> str:
        shapes = {name: list(value.shape) for name, value in self.learner.state_dict().items()}
        # without what a loss may count or keep while a training runs
        codes = {one.name: fingerprint_of(one.loss, weights=False) for one in self._objectives()}
        learns = [name for name, value in self.learner.named_parameters() if value.requires_grad]
        return fingerprint(
            {
                "settings": self.settings.model_dump(exclude=LOOKING),
                "seed": self.seed,
                "total": self.total,
                "shapes": shapes,
                "learns": learns,
                "student": fingerprint_of(self.learner.student, self.learner.reader.encode, weights=False),
                "views": self.order.views,
                "rows": [
                    [part.name, len(part.examples), int(part.examples.sum()), part.count] for part in self.order.parts
                ],
                "data": [getattr(self.data, name, None) for name in ("fingerprint", "labels_fingerprint")],
                "objectives": [one.described() | {"code": codes[one.name]} for one in self._objectives()],
                "teacher": getattr(self.teacher, "fingerprint", None),
            }
        )

    # --- the loop -------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        learner = self.learner
        self._size()
        if self.settings.channels_last:
            learner.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optimizer_of(learner, self.settings)
        first = self._resume()
        if self.world > 1:
            self.wrapped = DistributedDataParallel(learner)
        parts, modes = list(learner.modules()), self._train_mode()
        for step in range(first, self.total):
            done = self._step(step)
            yield done
            if saves_after(self.settings, done.number, self.total):
                self._must_be_finite(done.number)
            # After the caller has done its part of this step, so that a resumed run never misses it.
            if self.folder is not None and saves_after(self.settings, done.number, self.total):
                self._save(done.number)
            if [part.training for part in parts] != modes:  # the caller may have evaluated it
                modes = self._train_mode()

    def _train_mode(self) -> list[bool]:
        """Put the learner into training mode, all but what is frozen; return the mode of each part."""
        rests = [*self.rests, *frozen(self.learner.student)]
        self.learner.train()
        for part in rests:
            part.training = False
        return [part.training for part in self.learner.modules()]

    def _size(self) -> None:
        batch = self._batch(0)
        if not all(objective.sized for objective in self._objectives()):
            whole = self.teacher
            if isinstance(whole, Recorded):
                whole = whole.use([place.key for place in self.learner.teacher_places])
            shown = {} if whole is None else whole(batch)
            self.learner.size(batch, shown | self._bank(batch, 0), seed=self.seed)
        check_labels(batch)
        if self.learner.reader.derives:
            self.notes.append(room_for(self.learner, batch, self._signals(batch, 0)))

    def _resume(self) -> int:
        if self.folder is None:
            return 0
        self.inputs = self._signature()
        moment = checkpoint.load(self.folder, self.learner, self.optimizer, self._with_state(), self.inputs)
        self.saved = moment.step if moment else 0
        if moment and (hidden := unseen_in(student=self.learner.student, encode=self.learner.reader.encode)):
            self.notes.append(f"resumed, though {hidden} cannot be seen: give the same student")
        if moment and (differences := checkpoint.Moment.now(0, self.inputs, self.world).differences(moment)):
            self.notes.append("resumed, but not bit for bit: " + "; ".join(differences))
        return self.saved

    def _save(self, number: int) -> None:
        if self.rank == 0:
            assert self.folder is not None
            faultpoint("train:checkpoint")
            moment = checkpoint.Moment.now(number, self.inputs, self.world)
            checkpoint.save(self.folder, self.learner, self.optimizer, self._with_state(), moment)
        self.saved = number

    def _with_state(self) -> dict[str, Kept]:
        """What has a state besides the learner and the optimizer."""
        kept: dict[str, Kept] = {} if self.past is None else {"teacher": self.past}
        if isinstance(self.gradients, Kept):
            kept["gradients"] = self.gradients
        return kept

    def _batch(self, step: int) -> Batch:
        ids = self.order.ids(step)
        if self.world > 1:
            ids = ids[self.rank :: self.world].contiguous()
        batch = self.data.batch(ids)
        return batch if self.prepare is None else self.prepare(self.learner.student, batch)

    def _signals(self, batch: Batch, step: int) -> Signals:
        if self.answers is None:
            return {}
        signals = self.answers(batch)
        return signals | self._bank(batch, step) if self.bank_rows else signals

    def _bank(self, batch: Batch, step: int) -> Signals:
        """Other rows' signals, the same on every process."""
        if not self.bank_rows:
            return {}
        assert isinstance(self.teacher, HasBank)
        return self.teacher.bank(self.learner.banks, batch, rows=self.bank_rows, seed=self.seed, step=step)

    def _step(self, step: int) -> Step:
        learner, settings = self.learner, self.settings
        faultpoint("train:step")
        reseed(stream(self.seed, "noise", step, self.rank))
        batch = self._batch(step)
        rate = learning_rate(settings, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.wrapped(batch, self._signals(batch, step), step=step, steps=self.total)
        total = losses["loss"]
        if not math.isfinite(total.item()):
            raise self._not_finite(step, batch, losses)
        with trained_through(learner.reader.taps):
            looked = self._filled(step, losses)
        self.optimizer.step()
        if self.past is not None:
            self.past.advance(step)
        values = {name: value.detach() for name, value in losses.items()}
        read = (*self.learner.reader.notes, *(f"teacher: {note}" for note in getattr(self.answers, "notes", ())))
        notes, self.notes = (*(note for note in read if note not in self.told), *self.notes), []
        self.told.update(read)
        pull = self.gradients.pull if isinstance(self.gradients, Sided) else looked.pull if looked else None
        cosine, ratio = pull or (None, None)
        return Step(step + 1, self.total, values, rate, looked and looked.norms, notes, cosine, ratio)

    def _filled(self, step: int, losses: dict[str, Tensor]) -> Looked | None:
        """Fill ``.grad`` of all that is trained, and clip; return what was seen of the terms' gradients, if looked."""
        looked = self._looked(step, losses)
        self.optimizer.zero_grad(set_to_none=True)
        fill(self.gradients, self.learner, losses, self.learner.weights(step, self.total), self.settings.clip)
        return looked

    # --- looking at the terms ---------------------------------------------------------------------------

    def _looked(self, step: int, losses: dict[str, Tensor]) -> Looked | None:
        """Look at the first step, then every so often; never under several processes."""
        often = self.settings.gradient_norms_every
        if self.world > 1 or (step != 0 and (not often or step % often)):
            return None
        looked = self.looking(step, losses, self.learner.weights(step, self.total))
        self.notes += looked.notes
        return looked

    def _not_finite(self, step: int, batch: Batch, losses: Mapping[str, Tensor]) -> TrainError:
        terms = ", ".join(f"{name} = {float(value.detach()):.4g}" for name, value in losses.items())
        takes = self.learner.reader.takes
        read = {*(takes.values() if isinstance(takes, Mapping) else takes)}
        read |= {slot.name for one in self._objectives() for slot in one.reads.sides("column")}
        bad = [
            name
            for name, value in batch.items()
            if name in read and value.is_floating_point() and not bool(torch.isfinite(value).all())
        ]
        ids = batch["id"]
        if bad:
            broken = ~torch.isfinite(batch[bad[0]].reshape(len(ids), -1)).all(1)
            ids = ids[broken]
        where = f"the column '{bad[0]}' is not finite in examples" if bad else "the batch begins with examples"
        return TrainError(
            f"The loss is not finite at step {step + 1}: got {terms}; {where} {ids[:5, 0].tolist()}. {self._kept()} "
            "Lower train.lr, set train.clip, or mend those examples, then run again."
        )

    def _kept(self) -> str:
        if self.folder is not None and self.saved:
            return f"The last good checkpoint is step {self.saved} in {self.folder}."
        return "There is no checkpoint yet."

    def _must_be_finite(self, number: int) -> None:
        """Keep weights that are lost out of checkpoints: a finite loss may have had a gradient that was not."""
        lost = [name for name, value in self.learner.named_parameters() if not bool(torch.isfinite(value).all())]
        if lost:
            raise TrainError(
                f"Weights are not finite after step {number}: got NaN or infinity in {', '.join(lost[:5])}. "
                f"{self._kept()} "
                "Lower train.lr or set train.clip, then run again."
            )


def _bound(objective: Objective) -> Callable[[Tensor], Tensor]:
    assert objective.prepared is not None
    targets, options = objective.prepared.targets, dict(objective.options)
    return lambda values: targets(values, **options)


def bank_rows(rows: int) -> int:
    """Return how many other rows a bank holds: a quarter of the data, at least 16 and at most 2,048."""
    return max(1, min(rows, 2048, max(16, rows // 4)))


def check_labels(batch: Batch) -> None:
    """Refuse labels that are not whole numbers of at least -1."""
    labels = batch.get("labels")
    if labels is not None and not labels.is_floating_point() and labels.dim() == 1 and int(labels.min()) < -1:
        raise TrainError(
            say("Labels are out of range", int(labels.min()), "0 to classes - 1, or -1 for a row without a label")
        )


__all__ = [
    "Gradients",
    "Prepare",
    "Rows",
    "bank_rows",
    "fit",
    "learning_rate",
    "optimizer_of",
    "saves_after",
    "train",
]
