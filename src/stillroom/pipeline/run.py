"""run(): a recipe end to end in its folder; every step is kept, and done only once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.contracts import Finding
from stillroom.errors import UserError
from stillroom.files import faultpoint, note, notes_of_a_run, refused, sweep, take_notes, write_bytes, write_json
from stillroom.generality.findings import findings as generality_findings
from stillroom.memory import findings as memory_findings
from stillroom.memory import headline as memory_headline
from stillroom.pipeline.checking import check_shapes
from stillroom.pipeline.exporting import add_costs, export_run
from stillroom.pipeline.generality import add_generality, check_tasks, generality_of
from stillroom.pipeline.head import keep_settings, subtitle_of, title_of
from stillroom.pipeline.notes import notes_of
from stillroom.pipeline.plan import Experiment
from stillroom.pipeline.remembering import memory_of_run
from stillroom.pipeline.sensitivity import sensitivity_findings, sensitivity_metrics, sensitivity_of_run
from stillroom.pipeline.space import check_place
from stillroom.pipeline.story import facts_of, findings_of, summary_of
from stillroom.pipeline.synthesis import examples_findings, measured_examples
from stillroom.pipeline.tasks import Task, Workshop, tasks_of, unfinished
from stillroom.pipeline.teacher_check import add_teacher_check, checked
from stillroom.pipeline.teaching import identity_notes
from stillroom.pipeline.verdict import metrics_of, read_answers, right_of, teacher_answers, test_labels
from stillroom.pipeline.workers import Told, perform_apart, perform_here
from stillroom.progress import aside
from stillroom.report import write_report

ViewsOf = Callable[[str, int, int, str], None]
LAST = {"export": "export", "report": "measure and report"}  # what a run does after its tasks, by name, with titles


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, its metrics and its findings."""

    folder: Path
    metrics: dict[str, Any] = field(repr=False)
    findings: list[Finding] = field(repr=False)


def silent(name: str, done: int, of: int, what: str) -> None:
    """Tell nobody."""


def titles_of(experiment: Experiment) -> dict[str, str]:
    """Return what a run does from beginning to end, by name, in words: its tasks, the export and the report."""
    return {task.name: task.title for task in tasks_of(experiment)} | LAST


def processes_for(jobs: int | str, tasks: int) -> int:
    """Return how many processes to use: ``auto`` is one a core that this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(tasks, cores if jobs == "auto" else int(jobs)))


def perform(experiment: Experiment, folder: Path, *, processes: int = 1, told: Told = silent) -> Outcome:
    """Do all of an experiment in ``folder`` and write ``metrics.json`` and ``report.html``.

    More than one process needs the resolved recipe in the folder, since each builds the experiment from it.
    """
    tasks, workshop = tasks_of(experiment), Workshop(experiment, folder)
    with aside(told, "looking for what is done already"):
        left = unfinished(workshop, tasks)
    if left:
        with aside(told, "checking taps and shapes"):  # before anything is written, or a teacher trained
            check_shapes(experiment, processes)
            check_place(experiment, folder, left)
    with notes_of_a_run(), locked(folder):
        if experiment.recipe:
            write_bytes(folder / "recipe.yaml", experiment.recipe.encode())
        keep_settings(experiment, folder)
        events = _Events(folder / "events.jsonl", told)
        left = unfinished(workshop, tasks)
        check_tasks(experiment, folder)
        for task in tasks:
            if task not in left:
                told(task.name, 1, 1, "done before")
        _tell_of_teachers(workshop, left)
        if left and processes > 1:
            perform_apart(folder, left, processes, events)
        else:
            perform_here(workshop, left, events)
        return conclude(experiment, workshop, folder, events)


def _tell_of_teachers(workshop: Workshop, left: Sequence[Task]) -> None:
    """Tell what is suspicious in a teacher that was recorded before, ahead of the students that are left to train."""
    experiment = workshop.experiment
    if any(task.kind in ("teacher", "record") for task in left) or not any(
        task.kind in ("trial", "arm") and experiment.arms[task.owner].reads_teacher for task in left
    ):
        return
    teacher = workshop.knowledge()[0]
    if teacher is not None and (found := checked(experiment, teacher)) is not None:
        note(found)


def conclude(experiment: Experiment, workshop: Workshop, folder: Path, told: Told) -> Outcome:
    """Measure, export and tell: everything after the last student is trained."""
    told("export", 0, 0, "")
    facts = export_run(experiment, folder, lambda done, of, what: told("export", done, of, what))
    told("export", 1, 1, "")
    told("report", 0, 0, "")
    teacher = workshop.knowledge()[0] if experiment.teachers else None
    answers, answered = read_answers(experiment, folder), teacher_answers(experiment, teacher)
    metrics = metrics_of(experiment, folder, answers, answered)
    if made := measured_examples(experiment, folder):
        metrics["distilled_data"] = made
    _teacher_parameters(experiment, metrics)
    add_costs(experiment, metrics, facts)
    elsewhere = generality_of(experiment, folder, lambda done, of, what: told("report", done, of, what))
    add_generality(experiment, folder, metrics, elsewhere)
    if teacher is not None and answered is not None:
        add_teacher_check(
            experiment, metrics, teacher, right_of({**answers, "teacher": [answered]}, test_labels(experiment.data))
        )
    metrics["notes"] += [*notes_of(experiment, teacher), *identity_notes(experiment, folder)]
    remembered = memory_of_run(experiment, folder, lambda done, of, what: told("report", done, of, what))
    if remembered is not None:
        metrics["memory"] = remembered | {"sentence": memory_headline(remembered, experiment.main.name)}
    why = sensitivity_of_run(experiment, folder, lambda done, of, what: told("report", done, of, what))
    if why is not None:
        metrics["gradients"] = sensitivity_metrics(why, experiment.main.name)
    findings = findings_of(experiment, folder, metrics, answers, answered, facts)
    if remembered is not None:
        findings[2:2] = memory_findings(remembered, experiment.main.name)
    findings[2:2] = generality_findings(elsewhere) if elsewhere else []
    findings[2:2] = sensitivity_findings(experiment, folder, why)
    findings[2:2] = examples_findings(experiment, folder, metrics)
    faultpoint("run:metrics")
    write_json(folder / "metrics.json", metrics)
    write_report(
        folder / "report.html",
        title=title_of(experiment),
        subtitle=subtitle_of(experiment, metrics, folder),
        verdict=metrics["verdict"],
        summary=summary_of(metrics),
        findings=findings,
        facts=facts_of(experiment),
    )
    told("report", 1, 1, "")
    return Outcome(folder, metrics, findings)


def _teacher_parameters(experiment: Experiment, metrics: dict[str, Any]) -> None:
    from stillroom.tensors import count_parameters

    plan = experiment.teachers.get("")
    if plan is not None and plan.make is not None and "teacher" in metrics["models"]:
        count = count_parameters(plan.make())
        metrics["models"]["teacher"]["parameters"] = {"mean": count, "per_seed": [count]}


def pending(experiment: Experiment, folder: Path) -> list[tuple[Task, bool]]:
    """Return every task and whether it is done already: what ``--plan`` prints."""
    tasks = tasks_of(experiment)
    left = unfinished(Workshop(experiment, folder), tasks)
    return [(task, task not in left) for task in tasks]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process alone.

    Raises:
        UserError: another run is working there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise refused(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another run is at work in {folder}: got a locked folder. Wait for it, or choose another with --out."
            ) from None
        sweep(folder)  # nobody else writes here now
        yield
    finally:
        os.close(handle)


class _Events:
    """Passes on what happens, and keeps beginnings and ends as JSON lines."""

    def __init__(self, path: Path, told: Told) -> None:
        self.path: Path | None = path
        self.told = told

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        lines: list[dict[str, Any]] = [{"note": text} for text in take_notes()]
        if of in (0, 1):
            lines.append({"task": name, "event": "end" if of else "begin"})
        if lines and self.path is not None:
            now = {"time": round(time.time(), 3)}
            self._write("".join(json.dumps({**now, **line}) + "\n" for line in lines))
        self.told(name, done, of, what)

    def _write(self, lines: str) -> None:
        """Append ``lines``; a file that cannot take them, or lies elsewhere, is told of and then left alone."""
        assert self.path is not None
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                os.write(handle, lines.encode())
            finally:
                os.close(handle)
        except OSError as error:
            reason = "it is a link, which is not followed" if self.path.is_symlink() else error.strerror
            note(f"{self.path} cannot be written ({reason}): the run goes on without its list of events")
            self.path = None
