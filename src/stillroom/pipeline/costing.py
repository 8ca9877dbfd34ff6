"""What a plan will take: a few steps of each model are timed on this machine, in a few seconds, and counted up."""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.contracts import Batch, Signals, Source, Teacher
from stillroom.errors import UserError
from stillroom.evaluate import plain_ids
from stillroom.learner import Learner
from stillroom.pipeline.checking import ROWS, copied
from stillroom.pipeline.plan import ArmPlan, Experiment
from stillroom.pipeline.synthesis import seconds_of_examples
from stillroom.pipeline.tasks import Task
from stillroom.pipeline.teaching import open_store, rows_recorded
from stillroom.progress import duration
from stillroom.settings import Mixed, Training, has_bf16
from stillroom.teachers import Live
from stillroom.train import Rows, train

TIMED = 3  # steps, after one that is not counted
FEW = 4  # rows of the first try
STEP = 0.25  # seconds that a timed step may take; longer ones are timed on fewer rows
FORWARD = 1 / 3  # of a step: backward costs about two forward passes
BUSY = 1.5
SHOWN = 0.05  # seconds
GRAPH, CALLS = 5.0, 400  # seconds that the exporter takes for a graph, and how often that is then called
START = 4.0  # seconds in which a further process starts: it imports PyTorch and opens the data
KINDS = {"teacher": "teacher", "record": "recording", "examples": "synthetic examples"}


@dataclass(frozen=True)
class Estimate:
    """How long a plan takes where each process has a core to itself: ``seconds`` of it, and of each kind of task.

    ``exact`` is false where whole batches took too long to time, and a part of one stood for them. ``busy``: how many
    times longer it takes while other work uses the processor as it did during the timing.
    """

    seconds: float
    kinds: Mapping[str, float]
    processes: int
    exact: bool
    busy: float

    def told(self) -> dict[str, str]:
        """Return two lines for a person: how long it will be, how sure that is, and of what it is made."""
        sure = "a third" if self.exact else "half (parts of batches were timed)"
        parts = [f"{kind} {duration(seconds)}" for kind, seconds in self.kinds.items()]
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        found = {
            "time": f"about {duration(self.seconds)} with {processes}; measured on {TIMED} steps of each model, give "
            f"or take {sure}",
            "by task": ", ".join(parts) + (", if done one after the other" if self.processes > 1 else ""),
        }
        if self.busy > BUSY:
            now = duration(self.seconds * self.busy)
            found["busy now"] = f"about {now} if other programs keep using the processor as they do now"
        return found


@dataclass(frozen=True)
class _Pace:
    """Seconds of a step on a whole batch, how many rows that has, and whether it was timed whole."""

    step: float
    rows: int
    exact: bool


def estimated(
    experiment: Experiment,
    tasks: Sequence[Task],
    processes: int,
    told: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Estimate | None:
    """Return what the tasks will take, shared among ``processes``; None without labels to try with.

    Each arm is timed with its own objectives on one thread; a stand-in for the teacher gives it answers of the right
    shapes. ``told`` hears (done, of, what) before each task is looked at.
    """
    if not experiment.data.classes:
        return None
    paces: dict[str, _Pace] = {}
    lengths: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    with _one_thread():
        teacher = _StandIn(_first_answers(experiment)) if experiment.teachers else None
        for place, task in enumerate(tasks):
            told(place, len(tasks), f"timing {task.title}")
            lengths[task.name] = _length(experiment, task, teacher, paces)
    busy = (time.perf_counter() - wall) / max(1e-3, time.process_time() - cpu)
    kinds: dict[str, float] = {}
    for task in tasks:
        kind = KINDS.get(task.kind, "students")
        kinds[kind] = kinds.get(kind, 0.0) + lengths[task.name]
    started = START if processes > 1 else 0.0
    whole = started + _wall(tasks, lengths, processes)
    kinds["export"] = _export(experiment, paces)
    whole += kinds["export"]
    shown = {kind: seconds for kind, seconds in kinds.items() if seconds >= SHOWN}
    return Estimate(whole, shown, processes, all(pace.exact for pace in paces.values()), busy)


def made_once(experiment: Experiment) -> Experiment:
    """Return the experiment with teachers that are built a single time: sizing and timing both look at them."""
    teachers = {
        name: plan if plan.make is None else replace(plan, make=cache(plan.make))
        for name, plan in experiment.teachers.items()
    }
    return replace(experiment, teachers=teachers)


def slow_precision(experiment: Experiment) -> str | None:
    """Return a warning where bf16 is asked for by name and this processor has no instructions for it, else None.

    It says how many times slower one product of matrices is, measured now.
    """
    trainings = [plan.training for plan in experiment.teachers.values() if plan.training is not None]
    trainings += [part.training for arm in experiment.arms.values() for part in (*arm.before, arm)]
    if has_bf16() or "bf16" not in {experiment.precision, *(one.precision for one in trainings)}:
        return None
    return (
        f"precision bf16 is {bf16_factor():.1f} times slower than float32 here (one product of matrices, measured "
        "now): this processor has no bf16 instructions. Write precision: auto, which takes bf16 only where it helps."
    )


def bf16_factor() -> float:
    """Return how many times longer a linear layer takes under autocast in bf16 than in float32, on one thread."""
    layer, rows = nn.Linear(384, 1536), torch.rand(64, 384, generator=torch.Generator().manual_seed(0))
    took: dict[bool, list[float]] = {False: [], True: []}
    with _one_thread(), torch.no_grad():
        for _ in range(TIMED + 1):
            for enabled, found in took.items():
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    layer(rows)
                found.append(time.process_time() - began)
    return statistics.median(took[True][1:]) / statistics.median(took[False][1:])


# --- one task ----------------------------------------------------------------------------------------------


class _StandIn:
    """Shows every batch what untrained teachers showed of a few rows: the shapes are right, and no store is needed."""

    def __init__(self, shown: Signals) -> None:
        self.shown = shown

    def __call__(self, batch: Batch) -> Signals:
        """Return as many rows as the batch has."""
        rows = torch.arange(len(batch["id"]))
        return {name: value[rows % len(value)] for name, value in self.shown.items()}

    def bank(self, names: Sequence[str], batch: Batch, *, rows: int, seed: int, step: int) -> Signals:
        """Return as many other rows, the same for every batch."""
        found, chosen = dict[str, Tensor](), torch.arange(rows)
        for name in names:
            found[f"{name}.bank"] = self.shown[name][chosen % len(self.shown[name])]
            found[f"{name}.bank.mask"] = torch.ones(len(batch["id"]), rows, dtype=torch.bool)
        return found


def _first_answers(experiment: Experiment) -> Signals:
    """Return what the teachers, trained or not, show the arms on a few rows."""
    batch, shown = experiment.data.batch(plain_ids(experiment.data.splits["train"][:ROWS])), dict[str, Tensor]()
    for name, plan in experiment.teachers.items():
        if plan.make is None:
            teacher: Teacher = open_store(experiment, name, Path(str(plan.store))).use(experiment.taps(name))
        else:
            teacher = Live(plan.make(), experiment.taps(name), encode=plan.encode)
        answers = teacher(batch)
        shown |= {f"{name}/{key}" if name else key: value for key, value in answers.items()}
        shown["logits"] = answers["logits"]
    return shown


def _length(experiment: Experiment, task: Task, teacher: Teacher | None, paces: dict[str, _Pace]) -> float:
    """Return the seconds of a task on one thread; what is alike is timed once."""
    if task.kind == "arm" and len(experiment.trials) > 1 and task.seed == experiment.seeds[0]:
        return 0.0  # the best of the trials is taken
    if task.kind == "examples":
        return math.prod(seconds_of_examples(experiment, task.owner))
    if task.kind in ("teacher", "record"):
        return _teacher(experiment, task, paces)
    arm = experiment.arms[task.owner]
    visible = arm.data(experiment.data)
    settings, rows = arm.settings(visible), arm.rows(visible)
    if arm.name not in paces:
        try:
            learner = Learner(arm.make_student(0), arm.objectives(), encode=arm.encode, precision=settings.precision)
            paces[arm.name] = _pace(learner, visible, teacher if arm.distils else None, settings, rows, experiment)
        except (
            UserError,
            RuntimeError,
        ):  # the stand-in will not do, as for texts whose steps are compared: time the student itself
            learner = Learner(arm.make_student(0), ["labels"], encode=arm.encode, precision=settings.precision)
            paces[arm.name] = _pace(learner, visible, None, settings, rows, experiment)
    pace, steps = paces[arm.name], settings.steps or 0
    looks = steps / settings.gradient_norms_every * len(arm.objectives()) if settings.gradient_norms_every else 0.0
    before = sum(part.training.total_steps(max(1, len(arm.rows(visible).labelled))) for part in arm.before)
    answered = _answered(experiment, arm) / pace.rows
    return (steps + before + looks * (1 - FORWARD) + answered * FORWARD) * pace.step


def _answered(experiment: Experiment, arm: ArmPlan) -> int:
    """Return how many rows a student answers beside its training: validation at each mark, the test split once."""
    splits = experiment.data.splits
    return len(arm.training.evaluate_at) * len(splits["validation"]) + len(splits["test"])


def _teacher(experiment: Experiment, task: Task, paces: dict[str, _Pace]) -> float:
    plan = experiment.teachers[task.owner]
    if plan.make is None:
        return 0.0
    settings, rows = plan.training or Training(steps=1), Rows(Rows.of(experiment.data).labelled)
    if task.kind == "record":
        settings = settings.model_copy(update={"precision": experiment.precision})
    elif plan.training is None:
        return 0.0
    key = f"teacher {task.owner} {settings.precision}"
    if key not in paces:
        learner = Learner(copied(plan.make()), ["labels"], encode=plan.encode, precision=settings.precision)
        paces[key] = _pace(learner, experiment.data, None, settings, rows, experiment)
    pace = paces[key]
    if task.kind == "record":
        return rows_recorded(experiment) * pace.step / pace.rows * FORWARD
    return settings.total_steps(len(rows.labelled)) * pace.step


def _export(experiment: Experiment, paces: Mapping[str, _Pace]) -> float:
    """Return the seconds of the graphs that are written and measured, as far as their models were timed."""
    if not experiment.onnx:
        return 0.0
    teacher = [pace for name, pace in paces.items() if name.startswith("teacher  ")][:1]
    known = teacher + [pace for name, pace in paces.items() if name == experiment.main.name]
    return sum(GRAPH + CALLS * pace.step / pace.rows * FORWARD for pace in known)


def _pace(
    learner: Learner, data: Source, teacher: Teacher | None, settings: Training, rows: Rows, experiment: Experiment
) -> _Pace:
    """Time steps on whole batches, or on a part of one where a whole one takes too long."""
    update = {"steps": 1 + TIMED, "epochs": None, "gradient_norms_every": 0}

    def timed(count: int) -> tuple[float, int]:
        part = settings.model_copy(update=update | {"batch": _part(settings.batch, count)})
        moments = [time.process_time()]  # of this process alone, whatever else the machine does
        for _ in train(learner, data, teacher, part, rows=rows, views=experiment.views):
            moments.append(time.process_time())
        return statistics.median(later - sooner for sooner, later in pairwise(moments[1:])), part.rows

    first, few = timed(FEW)
    count = min(settings.rows, int(few * STEP / first))
    seconds, counted = timed(count) if count > few else (first, few)
    return _Pace(seconds * settings.rows / counted, settings.rows, counted >= settings.rows)


def _part(batch: int | Mixed, rows: int) -> int | Mixed:
    """Return a batch of about so many rows, its two parts in the same proportion."""
    if isinstance(batch, int):
        return min(batch, rows)
    share = min(1.0, rows / batch.rows)
    return Mixed(labelled=math.ceil(batch.labelled * share), transfer=math.ceil(batch.transfer * share))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- all tasks ---------------------------------------------------------------------------------------------


def _wall(tasks: Sequence[Task], lengths: Mapping[str, float], processes: int) -> float:
    """Return when the last task ends, if each begins as soon as what it needs is done and a process is free."""
    waiting, running, now = list(tasks), list[tuple[float, str]](), 0.0
    while waiting or running:
        unready = {one.name for one in waiting} | {name for _, name in running}
        for task in [one for one in waiting if not unready & set(one.needs)][: processes - len(running)]:
            waiting.remove(task)
            heapq.heappush(running, (now + lengths[task.name], task.name))
        now = heapq.heappop(running)[0]
    return now


__all__ = ["Estimate", "bf16_factor", "estimated", "made_once", "slow_precision"]
