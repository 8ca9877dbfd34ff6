"""What a plan will take, from a few timed steps of each student and teacher on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from stillroom.contracts import Source
from stillroom.learner import Learner
from stillroom.pipeline.plan import Experiment
from stillroom.pipeline.synthesis import seconds_of_examples
from stillroom.pipeline.tasks import Task
from stillroom.pipeline.teaching import rows_recorded
from stillroom.settings import Training
from stillroom.tensors import copy_of
from stillroom.train import Rows, train

TIMED = 3
FORWARD = 1 / 3  # of a step: backward costs about two forward passes


def seconds_of(experiment: Experiment, tasks: Sequence[Task], processes: int) -> float | None:
    """Return how many seconds the tasks will take, shared among ``processes``; None without labels to try with.

    Each model is timed on labels alone, one thread; what a teacher's objectives add is small beside the student itself.
    """
    if not experiment.data.classes:
        return None
    timed: dict[str, tuple[int, float]] = {}
    total = 0.0
    for task in tasks:
        adopted = task.kind == "arm" and len(experiment.trials) > 1 and task.seed == experiment.seeds[0]
        if adopted:
            continue
        if task.kind == "examples":
            total += math.prod(seconds_of_examples(experiment, task.owner))
            continue
        name = ("teacher " if task.kind in ("teacher", "record") else "arm ") + task.owner
        if name not in timed:
            timed[name] = (
                _teacher(experiment, task.owner) if name.startswith("teacher") else _arm(experiment, task.owner)
            )
        steps, seconds = timed[name]
        if task.kind == "record":
            total += rows_recorded(experiment) / 128 * seconds * FORWARD
        else:
            total += steps * seconds
    return total / max(1, processes)


def _teacher(experiment: Experiment, name: str) -> tuple[int, float]:
    plan = experiment.teachers[name]
    if plan.make is None:
        return 0, 0.0
    settings = plan.training or Training(steps=1)
    rows = Rows.of(experiment.data)
    steps = settings.total_steps(len(rows.labelled)) if plan.training else 0
    module = copy_of(plan.make(), "The teacher")
    return steps, _step(
        module, plan.encode, experiment.data, settings, Rows(rows.labelled), experiment.views
    )


def _arm(experiment: Experiment, name: str) -> tuple[int, float]:
    arm = experiment.arms[name]
    visible = arm.data(experiment.data)
    settings = arm.settings(visible)
    seconds = _step(arm.make_student(0), arm.encode, visible, settings, arm.rows(visible), experiment.views)
    before = sum(part.training.total_steps(max(1, len(arm.rows(visible).labelled))) for part in arm.before)
    return (settings.steps or 0) + before, seconds


def _step(
    module: nn.Module, encode: nn.Module | None, data: Source, settings: Training, rows: Rows, views: int
) -> float:
    """Return the median time of a step on one thread, after one that is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        update = {"steps": TIMED + 1, "epochs": None, "gradient_norms_every": 0}
        learner = Learner(module, ["labels"], encode=encode, precision=settings.precision)
        running = train(learner, data, None, settings.model_copy(update=update), rows=rows, views=views)
        times = []
        for _ in range(TIMED + 1):
            began = time.perf_counter()
            next(running)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])
    finally:
        torch.set_num_threads(threads)
