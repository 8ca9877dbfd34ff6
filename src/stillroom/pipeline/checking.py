"""What can be said of an experiment before anything is trained: do taps and shapes fit, is there room, and the cost."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stillroom.contracts import Batch, Segments, Signals
from stillroom.data.leaving_out import rows_told
from stillroom.errors import DataError, ModelError, TapError, TrainError, say
from stillroom.evaluate import plain_ids
from stillroom.gradients.room import room_for
from stillroom.learner import Learner
from stillroom.models.open_box import count_parameters
from stillroom.pipeline.plan import ArmPlan, Experiment
from stillroom.pipeline.teaching import open_store, recorded, taps_are_known
from stillroom.record import estimate
from stillroom.settings import Training
from stillroom.teachers import Live

ROWS = 4


def check_shapes(experiment: Experiment, processes: int | None = None) -> dict[str, str]:
    """Read a few rows with the untrained models and size every arm's objectives on them; return what was seen.

    ``processes``: how many tasks are performed at once, for the memory of steps with derivatives; by default what the
    recipe asks for.

    Raises:
        UserError: a tap is not in its model, shapes do not fit, or there are too few rows.
        TrainError: a step with derivatives would need more memory than is free.
    """
    data = experiment.data
    for name in ("train", "validation", "test"):
        if len(data.splits.get(name, ())) == 0:
            raise DataError(
                say(f"The data has no {name} rows", "0", "at least 1", "Choose another split or more data.")
            )
    batch = data.batch(plain_ids(data.splits["train"][:ROWS]))
    shown: Signals = {}
    for name in experiment.teachers:
        answers = _answers(experiment, name, batch)
        shown |= {f"{name}/{key}" if name else key: value for key, value in answers.items()}
        if name:
            shown["logits"] = answers["logits"]
    facts = {"data": rows_told(data)}
    processes = _processes(experiment) if processes is None else processes
    for name, arm in experiment.arms.items():
        facts[name] = _arm(arm, experiment, batch, shown, _at_once(experiment, arm, processes))
    return facts


def _answers(experiment: Experiment, name: str, batch: Batch) -> Signals:
    """What a teacher, trained or not, shows on a few rows."""
    plan = experiment.teachers[name]
    if plan.make is None:
        return open_store(experiment, name, Path(str(plan.store))).use(experiment.taps(name))(batch)
    module = plan.make()
    with _blaming(f"the teacher {name}".strip(), batch):
        taps_are_known(experiment, name, module, plan.encode)
        return Live(module, experiment.taps(name), encode=plan.encode)(batch)


@contextmanager
def _blaming(whose: str, signals: Mapping[str, Tensor]) -> Iterator[None]:
    """Say in words whose computing failed, and on which shapes: PyTorch alone knows neither.

    Raises:
        UserError: of the kind that fits.
    """
    try:
        yield
    except TapError as error:
        raise TapError(f"In {whose}: {error}") from error
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in signals.items() if name != "id")
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"A first try on {ROWS} rows failed in {whose}: got {shapes} and '{reason}'. Allowed: shapes that it is "
            "made for. "
            "Give inputs of the shape it takes, taps whose shapes fit, or as many outputs as there are classes."
        ) from error


def _arm(arm: ArmPlan, experiment: Experiment, batch: Batch, shown: Signals, at_once: int) -> str:
    visible = arm.data(experiment.data)
    settings, rows = arm.settings(visible), arm.rows(visible)
    student = copy.deepcopy(arm.make_student(0)).eval()
    with _blaming(f"the student of arm '{arm.name}'", batch):
        learner = Learner(student, arm.objectives(), encode=arm.encode, precision=settings.precision)
        extra = {f"{name}.bank": shown[name][:2] for name in learner.banks}
        extra |= {f"{name}.bank.mask": torch.ones(len(batch["id"]), 2, dtype=torch.bool) for name in learner.banks}
        seen = learner.reader(dict(batch), shown | extra)
    for objective in learner.objectives:
        told = {f"student's {key}": value for key, value in seen.items()} | {
            f"teacher's {key}": value for key, value in shown.items()
        }
        with _blaming(f"the objective '{objective.name}' of arm '{arm.name}'", told):
            objective.size(seen, shown | extra, dict(batch))  # type: ignore[operator]
    if any(isinstance(one, Segments) for one in learner.reader.taps):  # where a stretch starts is known only once sized
        with _blaming(f"the student of arm '{arm.name}'", batch), torch.no_grad():
            learner(dict(batch), shown | extra)
    note = ""
    if learner.reader.derives:
        with _blaming(f"the student of arm '{arm.name}'", batch):
            note = "; " + _room(arm.name, learner, batch, shown | extra, settings, at_once)
    transfer = "" if rows.transfer is None else f" + transfer set of {len(rows.transfer):,}"
    terms = ", ".join(f"{weight:g} {name}" for name, weight in learner.weights().items())
    return (
        f"{count_parameters(student):,} parameters, {terms}; {settings.steps:,} steps of {settings.rows} from "
        f"{len(rows.labelled):,} {'rows' if arm.distilled is None else 'synthetic examples'}{transfer}{note}"
    )


def _room(name: str, learner: Learner, batch: Batch, shown: Signals, settings: Training, at_once: int) -> str:
    """Return what a step with derivatives keeps; refuse what does not fit, alone or with as many others at once.

    Raises:
        TrainError: there is not enough memory.
    """
    note = room_for(learner, _counted(batch, settings.rows), shown)
    if at_once > 1:
        try:
            room_for(learner, _counted(batch, at_once * settings.rows), shown)
        except TrainError as error:
            raise TrainError(
                f"{error} These are {at_once} trainings of arm '{name}' at once, of {settings.rows} rows each: fewer "
                "at once need less (--set jobs=1)."
            ) from error
    return note


def _counted(batch: Batch, rows: int) -> Batch:
    """Return a batch that counts as one of ``rows``: only the first few are ever passed through the learner."""
    return batch | {"id": batch["id"][torch.arange(rows) % len(batch["id"])]}


def _processes(experiment: Experiment) -> int:
    """Return how many tasks the experiment's recipe asks to perform at once; objects in memory go one by one."""
    from stillroom.recipe import read_recipe

    jobs = read_recipe(experiment.recipe).jobs if experiment.recipe else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if jobs == "auto" else int(jobs)


def _at_once(experiment: Experiment, arm: ArmPlan, processes: int) -> int:
    """Return how many trainings of an arm go on at once: its learning rates are tried first, then its seeds."""
    trials = len(experiment.trials) if len(experiment.trials) > 1 else 0
    seeds = len(experiment.seeds) - (trials > 0)  # the first seed's was a trial
    return max(1, min(processes, max(trials, seeds)))


def expectations(experiment: Experiment) -> dict[str, str]:
    """Return the bytes that recording will write, for ``--plan``; and how many examples are left out, if any are."""
    gone = getattr(experiment.data, "left_out", 0)
    found = {"data": rows_told(experiment.data)} if gone else {}
    for name, plan in experiment.teachers.items():
        if plan.make is None:
            continue
        taps = experiment.taps(name)
        live = Live(plan.make(), taps, encode=plan.encode, precision=experiment.precision)
        weight = estimate(live, experiment.data, **recorded(experiment, name))
        text = f"{weight.rows:,} rows of {', '.join(taps)}, {experiment.views} views: {weight.bytes / 1e6:.1f} MB"
        found[f"record {name}".strip()] = text
    return found
