"""From what every arm answered to metrics: the contract that scripts read, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Source
from stillroom.data.splits import labels_known
from stillroom.errors import Damaged, say
from stillroom.evaluate import BATCH, plain_ids
from stillroom.files import read_sealed
from stillroom.pipeline.baselines import baseline_notes, baselines_of
from stillroom.pipeline.classes import class_notes, classes_of
from stillroom.pipeline.plan import ALONE, Experiment, without_control
from stillroom.report.readings import share_of_gap, shown
from stillroom.statistics import Interval, gap_closed, in_seeds, paired, points
from stillroom.tasks import measure
from stillroom.tensors import count_parameters, unpack

Answers = dict[str, list[Tensor]]
"""What each arm answered on the test split: one (rows, classes) tensor a seed."""


def read_answers(experiment: Experiment, run: Path) -> Answers:
    """Read every arm's test answers from the run folder.

    Raises:
        StoreError: a file is damaged, or holds numbers that are not finite.
    """
    return {name: [_read(run / "arms" / f"{name}-{seed}") for seed in experiment.seeds] for name in experiment.arms}


def _read(folder: Path) -> Tensor:
    file = folder / "answers.safetensors"
    answers = unpack(file, error=Damaged)[0].get("test")
    if answers is None or not bool(torch.isfinite(answers).all()):
        given = "no answers on the test split" if answers is None else "NaN or infinite logits"
        raise Damaged(say(f"{file} holds no answers", given, "finite logits", f"Remove {folder} and run again."))
    return answers


def teacher_answers(experiment: Experiment, teacher: Any) -> Tensor | None:
    """Return the teacher's logits on the plain test examples, from what was stored."""
    if teacher is None:
        return None
    rows = experiment.data.splits["test"]
    return torch.cat([teacher({"id": plain_ids(part)})["logits"].float() for part in rows.split(BATCH)])


def test_labels(data: Source) -> Tensor | None:
    """Return the true labels of the test split, or None when no example has one."""
    labels = labels_known(data) if data.classes else None
    labels = None if labels is None else labels[data.splits["test"]]
    return None if labels is None or bool((labels == UNLABELLED).all()) else labels


def metrics_of(experiment: Experiment, run: Path, answers: Answers, told: Tensor | None) -> dict[str, Any]:
    """Return metrics.json without sizes and times, which the export adds."""
    labels = test_labels(experiment.data)
    models: dict[str, Any] = {}
    notes: list[str] = []
    if told is not None:
        models["teacher"] = _entry([measure(told, labels, None)])
    for name, seeds in answers.items():
        models[name] = _entry([measure(part, labels, told) for part in seeds])
        models[name]["parameters"] = _one(count_parameters(experiment.arms[name].make_student(0)))
        scores = [read_sealed(run / "arms" / f"{name}-{seed}" / "scores.json") for seed in experiment.seeds]
        notes += [f"{name}: {note}" for note in dict.fromkeys(note for score in scores for note in score["notes"])]
        models[name]["learning_rate"] = scores[0]["learning_rate"]
        models[name]["chosen_step"] = {"per_seed": [score["chosen_step"] for score in scores]}
    main = experiment.main.name
    models["distilled"] = models[main]
    arms = [name for name in experiment.arms if name != ALONE]
    found: dict[str, Any] = {
        "seeds": list(experiment.seeds),
        "models": models,
        "main": main,
        "arms": arms,
        "data": {"fingerprint": experiment.data.fingerprint, "test": len(experiment.data.splits["test"])},
        "name": experiment.name,
        "notes": notes,
    }
    found |= _compared(answers, told, labels, main, _comparable(experiment))
    if told is not None and ALONE not in answers:
        found["reason"] = without_control(experiment)
    if labels is not None and experiment.main.answers:
        named = [str(name) for name in experiment.data.classes or ()]
        found["classes"] = classes_of(named, answers[main], told, labels)
        found["baseline"] = baselines_of(experiment, labels)
    found["verdict"] = verdict(found)
    return found


def _gap(ours: np.ndarray, alone: np.ndarray, teacher: np.ndarray) -> dict[str, Any] | None:
    gap, _ = gap_closed(ours, alone, teacher)
    return None if gap is None else gap.plain()


def _entry(measures: list[dict[str, float]]) -> dict[str, Any]:
    name = "accuracy" if "accuracy" in measures[0] else "agreement"
    entry: dict[str, Any] = {key: _values([part[key] for part in measures]) for key in measures[0]}
    return {"score": entry[name], "score_name": name, **entry} if name in entry else {"score_name": name, **entry}


def _values(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "per_seed": values}


def _one(value: float) -> dict[str, Any]:
    return {"mean": value, "per_seed": [value]}


def _differences(hits: Mapping[str, np.ndarray], main: str) -> dict[str, Any]:
    """Return every arm's score minus the control's (``gains``), the best other arm's minus the first's (``leads``).

    Each is an interval. Where the test examples have no labels the score is agreement with the teacher.
    """
    found: dict[str, Any] = {}
    others = [name for name in hits if name not in (ALONE, main)]
    if ALONE in hits:
        found["gains"] = {name: paired(hits[name], hits[ALONE]).plain() for name in hits if name != ALONE}
    if others:
        best = max(others, key=lambda name: hits[name].mean())
        found["leads"] = {best: paired(hits[best], hits[main]).plain()}
    return found


def right_of(answers: Mapping[str, list[Tensor]], labels: Tensor | None) -> dict[str, np.ndarray]:
    """Return which labelled test rows each model answers rightly: 1 or 0, (seeds x rows)."""
    return {} if labels is None else {name: _correct(parts, labels) for name, parts in answers.items()}


def _correct(logits: list[Tensor], labels: Tensor) -> np.ndarray:
    known = labels >= 0
    return np.stack([(part.argmax(1)[known] == labels[known]).double().numpy() for part in logits])


def _agrees(logits: list[Tensor], told: Tensor) -> np.ndarray:
    first = told.argmax(1)
    return np.stack([(part.argmax(1) == first).double().numpy() for part in logits])


def _comparable(experiment: Experiment) -> list[str]:
    """The arms that the control is a control of: the first arm's student, seeing as many labels."""
    main = experiment.main
    return [
        name
        for name, arm in experiment.arms.items()
        if name != ALONE and arm.config == main.config and arm.learns_from == main.learns_from
    ]


def _compared(
    answers: Answers, told: Tensor | None, labels: Tensor | None, main: str, comparable: list[str]
) -> dict[str, Any]:
    """The two headline numbers, or why there are none; every arm's share of the gap where the control is its own."""
    reason = ""
    score = right_of(answers, labels)
    if labels is None and told is not None:
        score = {name: _agrees(one, told) for name, one in answers.items()}
    found = _differences(score, main)
    if told is None:
        reason = "there is no teacher in this recipe, so there is no gap to close"
    elif ALONE not in answers:
        reason = "there is no control in this run"
    if reason:
        return found | {"gap_closed": None, "agreement_gain": None, "reason": reason}
    assert told is not None
    gain = paired(_agrees(answers[main], told), _agrees(answers[ALONE], told))
    found |= {"agreement_gain": gain.plain(), "gap_closed": None}
    if labels is None:
        return found | {"reason": "the test examples have no labels, so the gap is not known"}
    ours, alone = score[main], score[ALONE]
    teacher = _correct([told], labels)[0]
    gap, why = gap_closed(ours, alone, teacher)
    found["score_gain"] = found["gains"][main]
    found["gaps"] = {name: _gap(score[name], alone, teacher) for name in comparable}
    if gap is None:
        return found | {"reason": why}
    return found | {"gap_closed": gap.plain()}


def verdict(metrics: Mapping[str, Any]) -> str:
    """Say whether distilling helped, whichever way it went, and which classes the student must not be trusted with."""
    models, main = metrics["models"], metrics["main"]
    score = _percent(models["distilled"]["score"]["mean"])
    said = [*class_notes(metrics.get("classes"))]
    said += baseline_notes(metrics.get("baseline"), models["distilled"]["score"]["mean"])
    notes = "".join(f" {note}" for note in said)
    if metrics.get("score_gain") is None:
        reason = metrics.get("reason", "it was not compared")
        return f"'{shown(main)}' reaches {models['distilled']['score_name']} {score}; {reason}.{notes}"
    gain = Interval(**metrics["score_gain"])
    alone, teacher = _percent(models[ALONE]["score"]["mean"]), _percent(models["teacher"]["score"]["mean"])
    numbers = f"alone {alone}, {shown(main)} {score}, teacher {teacher}: {points(gain.mean, gain.low, gain.high)}"
    sure = "Whether distilling helped cannot be told from chance"
    if gain.low is not None and gain.low > 0:
        sure = f"Distilling helped{in_seeds(len(metrics['seeds']))}"
    elif gain.high is not None and gain.high < 0:
        sure = f"Distilling made the student worse{in_seeds(len(metrics['seeds']))}"
    return f"{sure}: {numbers}. {share_of_gap(metrics)[1]}{notes}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
