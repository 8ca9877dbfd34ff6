"""What a run found, as Findings in the order in which a person asks: did it help, at what price, what was lost."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.data.leaving_out import rows_told
from stillroom.files import read_sealed
from stillroom.pipeline.head import settings_told, version_of
from stillroom.pipeline.plan import ALONE, Experiment
from stillroom.pipeline.reasons import why_not
from stillroom.pipeline.verdict import Answers, test_labels
from stillroom.report import run_classes, run_costs, run_findings
from stillroom.report.readings import share_of_gap, shown
from stillroom.report.run_pull import pull
from stillroom.tasks import class_counts, confusions, recall_by_class, reliability, share_of, top_share

SHOWN = 12  # disagreements that the report shows


def findings_of(
    experiment: Experiment,
    run: Path,
    metrics: Mapping[str, Any],
    answers: Answers,
    told: Tensor | None,
    facts: Mapping[str, Any],
) -> list[Finding]:
    """Return the findings of a run."""
    labels = test_labels(experiment.data)
    main = experiment.main.name
    found = [run_findings.verdict_dots(metrics)]
    reasons = why_not(experiment, metrics, told)
    found += [reasons] if reasons is not None else []
    found.append(run_findings.arms_table(metrics))
    found.append(run_findings.training_curves(_curves(experiment, run), "accuracy"))
    curve = read_sealed(run / "arms" / f"{main}-{experiment.seeds[0]}" / "curve.json")
    if (pulled := pull(shown(main), curve["pull"])) is not None:
        found.append(pulled)
    if not experiment.main.answers:  # nobody trained its logits
        return [*found, *_weights(experiment, run), run_costs.sizes(metrics), *_parity(facts)]
    if labels is not None:
        judged = ({"teacher": told} if told is not None else {}) | {
            shown(name): answers[name][0] for name in (ALONE, main) if name in answers
        }
        found.append(
            run_findings.reliability({name: reliability(part, labels).plain() for name, part in judged.items()})
        )
    if told is not None and labels is not None and experiment.data.classes:
        found.append(_by_class(experiment, answers, told, labels))
    if labels is not None and experiment.data.classes:
        found.append(_confused(experiment, answers[main], labels))
    if told is not None:
        found.append(_disagreements(experiment, answers[main][0], told, labels))
    if labels is not None and ALONE in answers and told is not None:
        found.append(_changed(experiment, answers, told, labels))
    found += _weights(experiment, run)
    return [*found, run_costs.sizes(metrics), *_parity(facts)]


def _curves(experiment: Experiment, run: Path) -> dict[str, Any]:
    curves = {}
    for name in experiment.arms:
        folder = run / "arms" / f"{name}-{experiment.seeds[0]}"
        curve, scores = read_sealed(folder / "curve.json"), read_sealed(folder / "scores.json")
        marks = sorted(map(int, scores["validation_by_step"]))
        curves[shown(name)] = {"step": curve["step"], **curve["terms"]}
        if experiment.arms[name].answers and "test" in scores:  # else it was chosen by a loss
            values = [scores["validation_by_step"][str(mark)] for mark in marks]
            curves[shown(name)]["validation"] = {"step": marks, "score": values}
    return curves


def _mean_recall(parts: list[Tensor], labels: Tensor, classes: int) -> list[float | None]:
    by_seed = [recall_by_class(part, labels, classes) for part in parts]
    columns = [[value for value in column if value is not None] for column in zip(*by_seed, strict=True)]
    return [sum(column) / len(column) if column else None for column in columns]


def _by_class(experiment: Experiment, answers: Answers, told: Tensor, labels: Tensor) -> Finding:
    names = [str(name) for name in experiment.data.classes or ()]
    count = len(names)
    return run_findings.lost_by_class(
        names,
        recall_by_class(told, labels, count),
        _mean_recall(answers[ALONE], labels, count) if ALONE in answers else None,
        _mean_recall(answers[experiment.main.name], labels, count),
        shown(experiment.main.name),
    )


def _confused(experiment: Experiment, parts: list[Tensor], labels: Tensor) -> Finding:
    """Which classes the main arm takes for which, as means over its seeds."""
    names = [str(name) for name in experiment.data.classes or ()]
    counts = [class_counts(part, labels, len(names)) for part in parts]
    names += [str(place) for place in range(len(names), len(counts[0].rows))]
    right = torch.stack([one.right for one in counts]).double().mean(0).tolist()
    pairs = [(true, other, count / len(parts)) for true, other, count in confusions(parts, labels)]
    return run_classes.confused(names, counts[0].rows.tolist(), right, pairs)


def _disagreements(experiment: Experiment, student: Tensor, told: Tensor, labels: Tensor | None) -> Finding:
    """The examples of the test split on which teacher and student differ most surely."""
    apart = (student.argmax(1) != told.argmax(1)).nonzero()[:, 0]
    sure = top_share(student)[apart] * top_share(told)[apart]
    surest = apart[sure.argsort(descending=True, stable=True)][:SHOWN]
    names = experiment.data.classes or [str(number) for number in range(told.shape[1])]
    rows, items = experiment.data.splits["test"], []
    for row in surest.tolist():
        ours, theirs = student[row].double().softmax(0), told[row].double().softmax(0)
        item = _shown(experiment, int(rows[row])) | {
            "true": names[int(labels[row])] if labels is not None and int(labels[row]) >= 0 else None,
            "teacher": names[int(theirs.argmax())],
            "student": names[int(ours.argmax())],
            "teacher_share": float(theirs.max()),
            "student_share": float(ours.max()),
        }
        items.append(item)
    return run_findings.disagreements(items, len(apart), len(told))


def _shown(experiment: Experiment, example: int) -> dict[str, Any]:
    """An example as a figure takes it: a text, or pixels."""
    picture = experiment.data.show(example)
    return {"text": picture} if isinstance(picture, str) else {"pixels": picture.tolist()}


def _changed(experiment: Experiment, answers: Answers, told: Tensor, labels: Tensor) -> Finding:
    """The examples whose true class gained or lost most probability from ``alone`` to the main arm."""
    known = (labels >= 0).nonzero()[:, 0]
    truth = labels[known]
    alone, distilled, teacher = (
        torch.stack([share_of(part, labels.clamp(min=0))[known] for part in parts]).mean(0)
        for parts in (answers[ALONE], answers[experiment.main.name], [told])
    )
    moved = distilled - alone
    order = moved.argsort(descending=True)
    half = SHOWN // 2
    picked = [*order[:half][moved[order[:half]] > 0], *order[-half:].flip(0)[moved[order[-half:].flip(0)] < 0]]
    rows, names = experiment.data.splits["test"], experiment.data.classes or ()
    items = [
        _shown(experiment, int(rows[known[place]]))
        | {
            "true": names[int(truth[place])],
            "alone": float(alone[place]),
            "distilled": float(distilled[place]),
            "teacher": float(teacher[place]),
        }
        for place in map(int, picked)
    ]
    return run_findings.changed(items, int((moved > 0.1).sum()), int((moved < -0.1).sum()), len(known))


def _weights(experiment: Experiment, run: Path) -> list[Finding]:
    scores = {
        name: read_sealed(run / "arms" / f"{name}-{experiment.seeds[0]}" / "scores.json") for name in experiment.arms
    }
    if not all("weights" in score for score in scores.values()):
        return []
    return [
        run_costs.weights(
            {shown(name): score["weights"] for name, score in scores.items()},
            {shown(name): score.get("test") for name, score in scores.items()},
            {shown(name): score.get("pruned") for name, score in scores.items()},
        )
    ]


def _parity(facts: Mapping[str, Any]) -> list[Finding]:
    exported = _exported(facts)
    return [run_costs.parity(exported)] if exported else []


def _exported(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    student = facts.get("student", {})
    return [
        {
            "name": name,
            "bytes": graph["bytes"],
            "rows": student["rows"],
            "agreement": graph["agreement"],
            "largest_difference": graph["max_abs_difference"],
            "score": graph.get("accuracy"),
        }
        for name, graph in student.get("files", {}).items()
        if "agreement" in graph
    ]


def summary_of(metrics: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return the few numbers at the head of the report."""
    models = metrics["models"]
    head: list[tuple[str, object]] = []
    if metrics.get("gap_closed"):
        head.append(("gap closed", share_of_gap(metrics)[0]))
    for name, label in (("teacher", "teacher"), (ALONE, ALONE), ("distilled", shown(str(metrics["main"])))):
        if models.get(name, {}).get("score"):  # a teacher has none where there are no labels
            head.append((label, f"{100 * models[name]['score']['mean']:.1f} %"))
    agreement = models["distilled"].get("agreement")
    if agreement:
        head.append(("agrees with the teacher", f"{100 * agreement['mean']:.1f} %"))
    teacher, student = (models.get(name, {}).get("bytes") for name in ("teacher", "distilled"))
    if teacher and student:
        times = teacher["mean"] / student["mean"]
        head.append(("smaller than the teacher", f"{times:.1f}x") if times >= 1 else ("larger", f"{1 / times:.1f}x"))
    return head


def facts_of(experiment: Experiment) -> dict[str, object]:
    """Return what the run stood on: data, recipe or settings, versions, machine."""
    versions: dict[str, object] = {"Python": platform.python_version()}
    packages = ("stillroom", "torch", "numpy", "pyarrow", "onnxruntime")
    versions |= {package: version_of(package) for package in packages}
    data = experiment.data
    machine = {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "threads a job": 1,
    }
    return {
        "data": f"{getattr(data, 'name', 'data')}: {rows_told(data)}",
        "versions": versions,
        "machine": machine,
        **({"recipe": experiment.recipe} if experiment.recipe else {"settings": settings_told(experiment)}),
    }


__all__ = ["facts_of", "findings_of", "summary_of"]
