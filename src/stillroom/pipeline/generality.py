"""What a run's features are worth on other tasks: its student, its teacher and its controls, asked alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.contracts import Source
from stillroom.data.table import open_source, options_of
from stillroom.errors import DataError, UserError, say
from stillroom.files import begin, commit, committed, fingerprint
from stillroom.generality.compare import ALONE as LABELS_ONLY
from stillroom.generality.compare import RANDOM, RAW, STUDENT, TEACHER, Read, Task, compare, curve, raw_input, task_of
from stillroom.generality.findings import headline
from stillroom.generality.probes import nearest
from stillroom.models.bundle import Deployed, load
from stillroom.paths import is_file
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.teaching import trained
from stillroom.randomness import forked
from stillroom.recipe import read_recipe

if TYPE_CHECKING:
    from stillroom.features import FeatureExtractor

Told = Callable[[int, int, str], None]
FITTED = 2000  # training images from which the order of the dimensions is learnt
VERSION = 1


def open_task(use: str, options: Mapping[str, Any], rows: int) -> Task:
    """Open a source as a task; images are taken as they are, without views."""
    known = options_of(use)
    given = {key: value for key, value in options.items() if key in known}
    return task_of(open_source(use, **given), rows=rows)


def open_tasks(wanted: Sequence[tuple[str, Mapping[str, Any]]], rows: int) -> list[Task]:
    """Open every task.

    Raises:
        DataError: a source cannot be opened, is no task, or is named twice.
    """
    tasks = [open_task(use, options, rows) for use, options in wanted]
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(say("A task is named twice", f"'{sorted(twice)[0]}'", "each once"))
    return tasks


def generality_of(experiment: Experiment, run: Path, told: Told) -> dict[str, Any] | None:
    """Ask the features of a finished run about the experiment's other tasks; None when it has none.

    What was found is kept in ``generality/`` and not asked again.
    """
    if not experiment.on:
        return None
    main = experiment.main
    notes = [(_arm_folder(run, main, seed) / "done.json").read_text(encoding="utf-8") for seed in experiment.seeds]
    tasks = open_tasks(experiment.on, experiment.on_rows)
    about = [
        (task.name, str(getattr(task.source, "fingerprint", "")), len(task.train), len(task.test)) for task in tasks
    ]
    inputs = fingerprint({"version": VERSION, "students": notes, "tasks": about, "arms": list(experiment.arms)})
    folder = run / "generality"
    if (found := committed(folder, inputs)) is not None:
        return dict(found["result"])
    begin(folder, inputs)
    student = [_student(run, main, seed) for seed in experiment.seeds]
    result = measured(student, tasks, experiment.data, others=_others(experiment, run), told=told)
    commit(folder, inputs, result=result)
    return result


def measured(
    student: Sequence[Deployed],
    tasks: Sequence[Task],
    data: Source | None,
    *,
    others: Mapping[str, Sequence[Deployed]],
    told: Told,
) -> dict[str, Any]:
    """Compare students (one a seed) with the ``others``, and draw the first one's curve of size and quality."""
    readers = {name: [_reads(one) for one in models] for name, models in {STUDENT: student, **others}.items()}
    readers[RAW] = [raw_input]
    result = compare(readers, tasks, progress=told)
    if data is not None:
        result["curve"] = _curve(student[0], tasks, data, told)
    return result


def _curve(student: Deployed, tasks: Sequence[Task], data: Source, told: Told) -> list[dict[str, Any]]:
    """The head is learnt from the student's own training images, which need no labels, not from the tasks'."""
    from stillroom.features import FeatureExtractor

    rows = data.splits["train"][:FITTED]
    ordered = FeatureExtractor(student, head="pca").fit((data, rows))

    def read(source: Source, examples: Tensor, dimensions: int | None, dtype: str) -> NDArray[np.float32]:
        stored = ordered.transform((source, examples), dimensions, dtype)  # type: ignore[arg-type]
        return ordered.decode(stored, dtype, dimensions=dimensions)  # type: ignore[arg-type]

    return curve(read, tasks, ordered.width_, progress=told)


def _reads(model: Deployed) -> Read:
    from stillroom.features import FeatureExtractor

    extractor: FeatureExtractor = FeatureExtractor(model)

    def read(source: Source, examples: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = extractor.transform((source, examples))
        return found

    return read


def _arm_folder(run: Path, arm: ArmPlan, seed: int) -> Path:
    return run / "arms" / f"{arm.name}-{seed}"


def _student(run: Path, arm: ArmPlan, seed: int) -> Deployed:
    folder = _arm_folder(run, arm, seed)
    foreign = "use" not in arm.config.get("model", {})
    return load(folder, model=arm.make_student(seed), encode=arm.encode) if foreign else load(folder)


def labels_arm(experiment: Experiment) -> ArmPlan | None:
    """Return the arm that learns from labels alone: the control, or another arm that reads nothing else."""
    if ALONE in experiment.arms:
        return experiment.arms[ALONE]
    arms = [arm for arm in experiment.arms.values() if arm is not experiment.main]
    return next((arm for arm in arms if arm.reads_labels and not arm.reads_teacher), None)


def _others(experiment: Experiment, run: Path) -> dict[str, list[Deployed]]:
    main, found = experiment.main, dict[str, list[Deployed]]()
    plan = experiment.teachers.get("")
    if plan is not None and plan.make is not None:
        module, encode = trained(experiment, "", run)
        found[TEACHER] = [
            Deployed(module, encode, config={"input": plan.config.get("input", main.config["input"])}).eval()
        ]
    if (arm := labels_arm(experiment)) is not None:
        found[LABELS_ONLY] = [_student(run, arm, seed) for seed in experiment.seeds]
    start = main.make_student(experiment.seeds[0])
    found[RANDOM] = [Deployed(start, main.encode, config={"input": main.config["input"]}).eval()]
    return found


def generality_of_run(run: Path, tasks: Sequence[Task], told: Told) -> dict[str, Any]:
    """Ask the students of a finished run folder, its teacher and its controls about other tasks than its recipe names.

    Raises:
        UserError: the run is not finished.
    """
    experiment = experiment_of(read_recipe(run / "recipe.yaml"))
    missing = [seed for seed in experiment.seeds if not is_file(_arm_folder(run, experiment.main, seed) / "done.json")]
    if missing:
        raise UserError(f"{run} is not finished: got no student of seed {missing[0]}. Run its recipe to the end first.")
    student = [_student(run, experiment.main, seed) for seed in experiment.seeds]
    return measured(student, tasks, experiment.data, others=_others(experiment, run), told=told)


def generality_of_model(model: Deployed, tasks: Sequence[Task], told: Told) -> dict[str, Any]:
    """Ask a bundle that belongs to no run: beside it stand random weights, where possible, and the raw input."""
    from stillroom.models.zoo import build

    others: dict[str, list[Deployed]] = {}
    described = model.config.get("model", {})
    if "use" in described:
        outputs = model.config.get("outputs") or len(model.classes or ())
        with forked(0, "weights"):
            start: nn.Module = build(
                described["use"], shape=model.config["shape"], classes=outputs, **described["options"]
            )
        others[RANDOM] = [Deployed(start, model.encode, config={"input": model.config["input"]}).eval()]
    return measured([model], tasks, None, others=others, told=told)


def add_generality(
    experiment: Experiment, run: Path, metrics: dict[str, Any], result: Mapping[str, Any] | None
) -> None:
    """Put what was found on other tasks into metrics and verdict.

    Where nobody trained the student's logits, every model's score is what its features are worth on the run's own data.
    """
    if not experiment.main.answers:
        _score_by_features(experiment, run, metrics)
    if result is not None:
        metrics["generality"] = dict(result)
        metrics["verdict"] = f"{metrics['verdict']} {headline(result)}".strip()


def _score_by_features(experiment: Experiment, run: Path, metrics: dict[str, Any]) -> None:
    models = {name: [_student(run, arm, seed) for seed in experiment.seeds] for name, arm in experiment.arms.items()}
    models |= {"teacher": found} if (found := _others(experiment, run).get(TEACHER)) else {}
    task = task_of(experiment.data, rows=FITTED) if experiment.data.classes else None
    for name, members in models.items():
        entry = metrics["models"].get(name)
        if entry is None:
            continue
        arm = experiment.arms.get(name)
        if arm is not None and not arm.answers:
            for key in ("accuracy", "agreement", "kl", "ece"):
                entry.pop(key, None)
        values = [_knn(member, task) for member in members] if task is not None else []
        entry["score_name"] = "kNN accuracy"
        entry["score"] = {"mean": float(np.mean(values)), "per_seed": values} if values else None
    main = metrics["models"][experiment.main.name]
    metrics["models"]["distilled"] = main
    share = (
        ""
        if main["score"] is None
        else (
            f": a vote of the nearest images by its features is right in {100 * main['score']['mean']:.1f} % of "
            "cases on the run's own data"
        )
    )
    metrics["verdict"] = (
        f"'{experiment.main.name}' was trained without labels{share}. It has no control, so no gap is named."
    )


def _knn(model: Deployed, task: Task) -> float:
    read = _reads(model)
    train, test = read(task.source, task.train), read(task.source, task.test)
    return nearest(train, task.train_labels, test, task.test_labels)


def check_tasks(experiment: Experiment, run: Path) -> None:
    """Open the other tasks before anything is trained, so that a missing file is told in seconds.

    Raises:
        UserError: a task cannot be opened.
    """
    if experiment.on and not is_file(run / "generality" / "done.json"):
        try:
            open_tasks(experiment.on, experiment.on_rows)
        except UserError as error:
            raise type(error)(f"evaluate.on: {error}") from error


__all__ = [
    "add_generality",
    "check_tasks",
    "generality_of",
    "generality_of_model",
    "generality_of_run",
    "labels_arm",
    "measured",
    "open_task",
    "open_tasks",
]
