"""What a run consists of: small tasks with what each needs first, performed here or in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.contracts import Teacher
from stillroom.errors import TrainError, enough_memory
from stillroom.files import committed, note
from stillroom.pipeline.jobs import adopt, choose, job_inputs, train_job
from stillroom.pipeline.plan import Experiment, Told
from stillroom.pipeline.synthesis import (
    examples_are_ready,
    make_arm_examples,
    owner_of,
    with_examples,
)
from stillroom.pipeline.teacher_check import checked
from stillroom.pipeline.teaching import (
    knowledge_folder,
    knowledge_is_whole,
    knowledge_print,
    open_knowledge,
    prepare_teacher,
    record_teacher,
    teacher_is_ready,
    teacher_of,
)
from stillroom.store import Store

LESS = "Lower train.batch, do fewer at once (--set jobs=1), or make the model smaller; then run the same again."


@dataclass(frozen=True)
class Task:
    """One piece of work: its kind, whose it is, and the names of the tasks that come before."""

    kind: Literal["teacher", "record", "examples", "trial", "arm"]
    owner: str
    seed: int = 0
    factor: float = 1.0
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name that is this task's alone."""
        detail = {"trial": f"-{self.seed}-x{self.factor:g}", "arm": f"-{self.seed}"}.get(self.kind, "")
        return f"{self.kind} {self.owner}{detail}".strip()

    @property
    def title(self) -> str:
        """What a person reads of its progress."""
        if self.kind == "teacher":
            return f"train teacher {self.owner}".strip()
        if self.kind == "record":
            return f"record teacher {self.owner}".strip()
        if self.kind == "examples":
            return f"{self.owner}, make examples"
        if self.kind == "trial":
            return f"{self.owner}, rate x{self.factor:g}"
        return f"{self.owner}, seed {self.seed}"


def tasks_of(experiment: Experiment) -> list[Task]:
    """Return every task of an experiment, each after those it needs."""
    tasks: list[Task] = []
    for name in experiment.teachers:
        tasks.append(Task("teacher", name))
        tasks.append(Task("record", name, needs=(tasks[-1].name,)))
    recorded = tuple(task.name for task in tasks if task.kind == "record")
    made = {owner_of(experiment, arm): arm for arm in experiment.arms.values() if arm.distilled is not None}
    tasks += [Task("examples", name) for name in made]
    trials: list[Task] = []
    arms: list[Task] = []
    for name, arm in experiment.arms.items():
        first = recorded if arm.reads_teacher else ()
        first += () if arm.distilled is None else (Task("examples", owner_of(experiment, arm)).name,)
        mine: list[Task] = []
        if len(experiment.trials) > 1:
            mine = [Task("trial", name, experiment.seeds[0], factor, first) for factor in experiment.trials]
        trials += mine
        arms += [Task("arm", name, seed, needs=(*first, *(task.name for task in mine))) for seed in experiment.seeds]
    # What needs no teacher can be done while the teacher is trained.
    return sorted([*tasks, *trials, *arms], key=lambda task: len(task.needs) > 0 and task.kind != "record")


class Workshop:
    """An experiment in a run folder, with its stores opened once: what a process needs to perform tasks."""

    def __init__(self, experiment: Experiment, run: Path) -> None:
        self.experiment, self.run = experiment, run
        self._knowledge: tuple[Teacher | None, str] | None = None

    def knowledge(self) -> tuple[Teacher | None, str]:
        """Return the teacher that the arms read, and the fingerprint of what it showed."""
        if self._knowledge is None:
            stores = open_knowledge(self.experiment, self.run)
            self._knowledge = (teacher_of(stores), knowledge_print(stores))
        return self._knowledge

    def perform(self, task: Task, told: Told) -> None:
        """Do one task; what is done already is not done again.

        Raises:
            TrainError: memory runs out.
        """
        with enough_memory(f"for the task '{task.title}'", LESS, TrainError):
            self._perform(task, told)

    def _perform(self, task: Task, told: Told) -> None:
        if task.kind == "teacher":
            prepare_teacher(self.experiment, task.owner, self.run, told)
        elif task.kind == "record":
            record_teacher(self.experiment, task.owner, self.run, told)
            store = Store.open(knowledge_folder(self.run, task.owner))
            if (found := checked(self.experiment, store, task.owner)) is not None:
                note(found)  # at once, before a student learns from it
        elif task.kind == "examples":
            make_arm_examples(self.experiment, task.owner, self.run, told)
        else:
            self._student(task, told)

    def finished(self, task: Task) -> bool:
        """Whether a task is done already, with the inputs it would have now."""
        if task.kind == "teacher":
            return teacher_is_ready(self.experiment, task.owner, self.run)
        if task.kind == "record":
            return knowledge_is_whole(self.experiment, task.owner, self.run)
        if task.kind == "examples":
            return examples_are_ready(self.experiment, task.owner, self.run)
        folder, _, inputs = self._place(task)
        return committed(folder, inputs) is not None

    def _place(self, task: Task) -> tuple[Path, float, str]:
        """Return a student's folder, its learning-rate factor and the fingerprint of its inputs."""
        experiment, arm = self.experiment, self.experiment.arms[task.owner]
        known = self.knowledge()[1] if arm.reads_teacher else ""
        trials = self.run / "arms" / "trials"
        if task.kind == "trial":
            folder, factor = trials / f"{arm.name}-{task.seed}-x{task.factor:g}", task.factor
        else:
            folder, factor = self.run / "arms" / f"{arm.name}-{task.seed}", choose(experiment, arm, trials)
        return folder, factor, job_inputs(experiment, arm, task.seed, factor, known)

    def _student(self, task: Task, told: Told) -> None:
        experiment, arm = self.experiment, self.experiment.arms[task.owner]
        folder, factor, inputs = self._place(task)
        if task.kind == "arm" and len(experiment.trials) > 1 and task.seed == experiment.seeds[0]:
            adopt(self.run / "arms" / "trials" / f"{arm.name}-{task.seed}-x{factor:g}", folder, inputs)
            return
        teacher = self.knowledge()[0] if arm.reads_teacher else None
        arm = with_examples(experiment, arm, self.run)
        train_job(experiment, arm, task.seed, factor, folder, teacher, inputs, told)


def unfinished(workshop: Workshop, tasks: list[Task]) -> list[Task]:
    """Return the tasks that are left to do; one whose needs are not done is left to do as well."""
    left: list[Task] = []
    for task in tasks:
        waiting = {one.name for one in left}
        if waiting & set(task.needs) or not workshop.finished(task):
            left.append(task)
    return left
