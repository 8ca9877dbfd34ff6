"""What stands at the head of a report, and what a run without a recipe keeps of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stillroom.errors import UserError
from stillroom.files import parse_json, write_json
from stillroom.objectives import Objective
from stillroom.paths import reading
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment

SETTINGS = "settings.json"
LINE = 1 << 16  # characters of the first event, which is far shorter


def title_of(experiment: Experiment) -> str:
    """Return the name of a recipe; of a run from Python which model learns on which data."""
    if experiment.recipe:
        return experiment.name
    teachers = [named(plan.config) for plan in experiment.teachers.values() if plan.config]
    taught = f" from {', '.join(teachers)}" if teachers else ""
    return f"{named(experiment.main.config)}{taught} on {_data(experiment)}"


def subtitle_of(experiment: Experiment, metrics: Mapping[str, Any], folder: Path) -> str:
    """Return data with its rows and labels, teacher and student in words, seeds and the day, as one line."""
    models = metrics["models"]
    parts = [f"Data: {_data(experiment)}, {_rows(experiment)}"]
    for owner, plan in experiment.teachers.items():
        size = _size(models.get("teacher")) if not owner else ""
        parts.append(f"Teacher{f' {owner}' if owner else ''}: {_teacher(plan.config, plan.store)}{size}")
    parts.append(f"Student: {named(experiment.main.config)}{_size(models.get('distilled'))}")
    seeds = ", ".join(map(str, experiment.seeds))
    parts.append(f"{'Seed' if len(experiment.seeds) == 1 else 'Seeds'}: {seeds}")
    day = _day(folder)
    return " · ".join([*parts, day] if day else parts)


def named(config: Mapping[str, Any]) -> str:
    """Return what a model's configuration calls it: a network of Stillroom's, or the class of another."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return "a model"
    known = model.get("use") or model.get("name") or model.get("hf")
    return str(known or str(model.get("class", "a model")).rpartition(".")[2])


def _teacher(config: Mapping[str, Any], store: str | None) -> str:
    return f"the store {Path(store).name}" if store is not None else named(config)


def _data(experiment: Experiment) -> str:
    return str(getattr(experiment.data, "name", "data"))


def _rows(experiment: Experiment) -> str:
    """How many rows each split has, and of how many training rows the student sees the label."""
    counts = {name: len(rows) for name, rows in experiment.data.splits.items()}
    labels = experiment.main.labels
    told = [f"{count:,} {name}" for name, count in counts.items() if count]
    if labels is not None and experiment.data.classes and told and counts.get("train"):
        place = list(name for name, count in counts.items() if count).index("train")
        told[place] += f" ({labels:,} with a label)"
    return ", ".join(told)


def _size(model: Mapping[str, Any] | None) -> str:
    held = (model or {}).get("parameters")
    return f" ({int(held['mean']):,} parameters)" if held else ""


def _day(folder: Path) -> str:
    """The day (UTC) on which a run began; empty where nothing noted it."""
    file = folder / "events.jsonl"
    try:
        with reading(file), open(file, encoding="utf-8") as stream:
            began = float(parse_json(stream.readline(LINE))["time"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return ""
    return datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d")


# --- a run without a recipe ---------------------------------------------------------------------------


def keep_settings(experiment: Experiment, folder: Path) -> None:
    """Write the settings of a run from Python beside what it gives; a run of a recipe keeps that instead."""
    if not experiment.recipe:
        write_json(folder / SETTINGS, settings_of(experiment))


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return all that was set in a run, as plain JSON values; the models themselves are a person's own code."""
    data = experiment.data
    return {
        "data": {
            "name": _data(experiment),
            "fingerprint": data.fingerprint,
            "rows": {name: len(rows) for name, rows in data.splits.items()},
        },
        "teachers": {name: dict(plan.config) or dict(plan.described) for name, plan in experiment.teachers.items()},
        "arms": {name: _arm(arm) for name, arm in experiment.arms.items()},
        "seeds": list(experiment.seeds),
        "learning rates tried, times lr": list(experiment.trials),
        "views": experiment.views,
        "versions": {"stillroom": version_of("stillroom"), "torch": version_of("torch")},
    }


def _arm(arm: ArmPlan) -> dict[str, Any]:
    return {
        "student": dict(arm.config.get("model", {})),
        "labels": "all" if arm.labels is None else arm.labels,
        "objectives": [_objective(one) for one in arm.objectives()],
        "train": arm.training.model_dump(mode="json", exclude_none=True),
    }


def _objective(one: Objective) -> dict[str, Any]:
    found = one.described()
    loss = f"{one.loss.__module__}.{one.loss.__qualname__}"
    return {key: value for key, value in {**found, "loss": loss}.items() if value not in (None, "", {}, [])}


def settings_told(experiment: Experiment) -> str:
    """Return the settings of a run from Python as a few lines for its report."""
    lines = []
    for name, arm in experiment.arms.items():
        training = arm.training
        labels = "all labels" if arm.labels is None else f"{arm.labels:,} labels"
        terms = " + ".join(_term(one) for one in arm.objectives())
        batch = training.batch if isinstance(training.batch, int) else training.batch.model_dump(mode="json")
        lines.append(f"{'alone (the control)' if name == ALONE else name}: {terms}")
        lines.append(f"  {_length(arm)}, batch {batch}, {training.optimizer}, lr {training.lr:g}, {labels}")
    if len(experiment.trials) > 1:
        tried = ", ".join(f"x{one:g}" for one in experiment.trials)
        lines.append(f"learning rates tried with the first seed: {tried}")
    lines.append(f"All of them are in {SETTINGS}.")
    return "\n".join(lines)


def _length(arm: ArmPlan) -> str:
    training = arm.training
    return f"{training.steps:,} steps" if training.steps is not None else f"{training.epochs:g} epochs"


def _term(one: Objective) -> str:
    weight = f"{one.weight:g}" if isinstance(one.weight, int | float) else str(one.weight)
    options = ", ".join(f"{key}={value}" for key, value in sorted(one.options.items()))
    return f"{weight} x {one.name}{f'({options})' if options else ''}"


def version_of(package: str) -> str:
    """Return the version of an installed package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


__all__ = ["keep_settings", "settings_of", "settings_told", "subtitle_of", "title_of", "version_of"]
