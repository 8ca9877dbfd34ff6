"""What can be said of an experiment before anything is trained: do taps and shapes fit, is there room, and the cost."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from stillroom.contracts import Batch, Segments, Signals, Source
from stillroom.data.leaving_out import rows_told
from stillroom.data.splits import labelled_rows, labels_known
from stillroom.errors import DataError, ExportError, ModelError, TrainError, say
from stillroom.evaluate import plain_ids
from stillroom.gradients.room import room_for
from stillroom.learner import Learner
from stillroom.pipeline.dry_step import blaming, try_step
from stillroom.pipeline.plan import ArmPlan, Experiment, TeacherPlan
from stillroom.pipeline.space import check_batch, check_recording
from stillroom.pipeline.teaching import open_store, recorded, taps_are_known
from stillroom.record import estimate
from stillroom.settings import Training
from stillroom.taps import read
from stillroom.tasks import (
    check_answers,
    check_known,
    check_labels,
    check_objective,
    check_targets,
    probabilities,
    softened_twice,
)
from stillroom.teachers import Live
from stillroom.tensors import copy_of, count_parameters

ROWS = 4
TARGETS = 256  # rows whose targets are looked at
LARGE = 1_000_000  # numbers of a row


def check_shapes(experiment: Experiment, processes: int | None = None) -> dict[str, str]:
    """Read a few rows with the untrained models, try a step of every training; return what was seen.

    Refused is what Stillroom does not measure (see :mod:`stillroom.tasks`) and what would fail later: no rows, no tap,
    shapes or classes that do not fit, a step that its model does not take. No model that is trained is touched.
    ``processes``: how many tasks are performed at once, for the memory of steps with derivatives; by default what the
    recipe asks for.

    Raises:
        UserError: of the kind that fits what was refused.
        TrainError: a step with derivatives would need more memory than is free.
    """
    data = experiment.data
    check_recording(experiment)
    for name in ("train", "validation", "test"):
        if len(data.splits.get(name, ())) == 0:
            given = f"0 of {len(data):,} examples (of copies one is kept)"
            raise DataError(
                say(f"The data has no {name} rows", given, "at least 1", "Choose another split or more data.")
            )
    _exported(experiment)
    check_known(labels_known(data), data.classes)
    batch = data.batch(plain_ids(data.splits["train"][: _few(data)]))
    check_labels(batch.get("labels"), len(batch["id"]))
    facts, shown = {"data": rows_told(data)}, Signals()
    for name, plan in experiment.teachers.items():
        if plan.training is not None:
            check_batch(f"teacher {name}".strip(), plan.training.rows, len(labelled_rows(data)))
        answers = _answers(experiment, name, batch)
        shown |= {f"{name}/{key}" if name else key: value for key, value in answers.items()}
        if name:
            shown["logits"] = answers["logits"]
        if plan.training is None and experiment.reads_logits and probabilities(answers["logits"]):
            facts[f"teacher {name}".strip()] = softened_twice("it")
    processes = _processes(experiment) if processes is None else processes
    for name, arm in experiment.arms.items():
        _targets(experiment, arm)
        facts[name] = _arm(arm, experiment, batch, shown, _at_once(experiment, arm, processes))
    return facts


def _exported(experiment: Experiment) -> None:
    """See that there are rows enough to make a graph from and to hold it against."""
    counts = {name: len(experiment.data.splits[name]) for name in ("train", "test")}
    if experiment.onnx and (counts["train"] < 2 or counts["test"] < 3):
        given = f"{counts['train']} rows of train and {counts['test']} of test"
        do = "Give more data or a larger test split, or write no graph: export: {onnx: false}."
        raise ExportError(say("Too few rows to export with", given, "at least 2 of train and 3 of test", do))


def _few(data: Source) -> int:
    """Return how many rows are tried: fewer where one is large, since every layer takes its time."""
    first = data.batch(plain_ids(data.splits["train"][:1]))["inputs"]
    return ROWS if first.numel() < LARGE else 2


def _answers(experiment: Experiment, name: str, batch: Batch) -> Signals:
    """What a teacher, trained or not, shows on a few rows; one that is still to be trained tries a step as well."""
    plan, whose = experiment.teachers[name], f"the teacher {name}".strip()
    if plan.make is None:
        answers = open_store(experiment, name, Path(str(plan.store))).use(experiment.taps(name))(batch)
    else:
        module = plan.make()
        with blaming(whose, batch, module):
            taps_are_known(experiment, name, module, plan.encode)
            answers = Live(module, experiment.taps(name), encode=plan.encode)(batch)
        if plan.training is not None:
            _learns(module, plan, plan.training, whose, batch)
    check_answers(answers["logits"], whose, len(batch["id"]), experiment.data.classes)
    return answers


def _learns(module: nn.Module, plan: TeacherPlan, settings: Training, whose: str, batch: Batch) -> None:
    """Try a step of a teacher that is to be trained; it is made anew when it is."""
    learner = Learner(module, ["labels"], encode=plan.encode, precision=settings.precision)
    try_step(learner, whose, batch, {}, settings)


def _targets(experiment: Experiment, arm: ArmPlan) -> None:
    """Without classes, see that what an arm learns from in their place is not of another task.

    Raises:
        DataError: it is.
    """
    data = experiment.data
    if data.classes is not None:
        return
    batch = data.batch(plain_ids(data.splits["train"][:TARGETS]))
    for objective in (one for part in (*arm.before, arm) for one in part.objectives()):
        for slot in objective.reads.sides("column"):
            if slot.name in batch and not slot.mask:
                check_targets(batch[slot.name], slot.name, objective.name)
        check_objective(objective.loss.__name__)


def _arm(arm: ArmPlan, experiment: Experiment, batch: Batch, shown: Signals, at_once: int) -> str:
    visible = arm.data(experiment.data)
    check_batch(arm.name, arm.settings(visible).rows, len(arm.rows(visible).labelled))
    for number, stage in enumerate(arm.before, 1):
        whose = f"the {'assistant' if stage.assistant else 'student'} of arm '{arm.name}', stage {number}"
        title = f"{arm.name}, {stage.name}"
        learner, _ = _part(stage, title, whose, batch, shown, (stage.settings(visible), at_once))
        _classes(learner, stage, whose, batch, shown, experiment)
        if stage.assistant:
            with blaming(whose, batch, learner.student):
                shown = Live(learner.student, arm.taps_after(number), encode=stage.encode)(batch)
    whose, settings, rows = f"the student of arm '{arm.name}'", arm.settings(visible), arm.rows(visible)
    learner, note = _part(arm, arm.name, whose, batch, shown, (settings, at_once))
    _classes(learner, arm, whose, batch, shown, experiment)
    transfer = "" if rows.transfer is None else f" + transfer set of {len(rows.transfer):,}"
    terms = " + ".join(f"{float(f'{weight:.4g}')} x {name}" for name, weight in learner.weights().items())
    kind = "synthetic examples" if arm.distilled is not None else "labelled rows" if arm.reads_labels else "rows"
    return (
        f"{count_parameters(learner.student):,} parameters; loss = {terms}; {settings.steps:,} steps, batch "
        f"{settings.rows}, {len(rows.labelled):,} {kind}{transfer}{note}"
    )


def _part(
    plan: ArmPlan, title: str, whose: str, batch: Batch, shown: Signals, training: tuple[Training, int]
) -> tuple[Learner, str]:
    """Size one part of an arm on a few rows and try a step of it; return its learner, and what derivatives keep.

    ``training``: its settings, and how many trainings of it go on at once.
    """
    settings, at_once = training
    with blaming(whose, batch):
        student = copied(plan.make_student(0)).eval()
    with blaming(whose, batch, student):
        learner = Learner(student, plan.objectives(), encode=plan.encode, precision=settings.precision)
        if learner.teacher_places and not shown:
            needs = [place.key for place in learner.teacher_places]
            raise TrainError(say(f"Objectives of arm '{title}' read a teacher", "none", needs, "Give one: teacher:."))
        extra = {f"{name}.bank": shown[name][:2] for name in learner.banks}
        extra |= {f"{name}.bank.mask": torch.ones(len(batch["id"]), 2, dtype=torch.bool) for name in learner.banks}
        seen = learner.reader(dict(batch), shown | extra)
    for objective in learner.objectives:
        told = {f"student's {key}": value for key, value in seen.items()} | {
            f"teacher's {key}": value for key, value in shown.items()
        }
        with blaming(f"the objective '{objective.name}' of arm '{title}'", told):
            objective.size(seen, shown | extra, dict(batch))  # type: ignore[operator]
    if any(isinstance(one, Segments) for one in learner.reader.taps):  # where a stretch starts is known only once sized
        with blaming(whose, batch, student), torch.no_grad():
            learner(dict(batch), shown | extra)
    note = ""
    if learner.reader.derives:
        with blaming(whose, batch, student):
            note = "; " + _room(title, learner, batch, shown | extra, settings, at_once)
    try_step(learner, whose, batch, shown | extra, settings)
    return learner, note


def copied(student: nn.Module) -> nn.Module:
    """Return a copy that a step may spoil; a fresh student that cannot be copied is taken itself."""
    if isinstance(student, torch.jit.ScriptModule):  # of a copy no parameter can be trained
        return student
    try:
        return copy_of(student, "The student")
    except ModelError:
        return student


def _classes(learner: Learner, plan: ArmPlan, whose: str, batch: Batch, shown: Signals, experiment: Experiment) -> None:
    """See that a student answers the data's classes or, without labels, as many as its teacher.

    Raises:
        ModelError: it does not.
    """
    with blaming(whose, batch, learner.student), torch.no_grad():
        logits = read(learner.student, ["logits"], plan.encode)(batch)["logits"]
    check_answers(logits, whose, len(batch["id"]), experiment.data.classes)
    theirs = shown.get("logits")
    if theirs is not None and theirs.shape[1] != logits.shape[1]:
        given = f"{logits.shape[1]} from {whose} and {theirs.shape[1]} from the teacher"
        raise ModelError(say("Student and teacher answer other numbers of classes", given, "as many of both"))


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
    check_recording(experiment)
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
