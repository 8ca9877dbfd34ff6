"""Which teacher suits a student: scores from the student's gradients against what distilling from each one gave.

Everything about the scores (dimensions, damping, temperature, what is held out, how GRACE takes its answers) was
chosen on the pool of digits. A first pool of Fashion-MNIST was then looked at with a warm-up of 40 steps: its cnn had
learnt too little by then (0.69 against 0.79 for the teacher's accuracy; the mlp 0.94 against 0.85), so that 200 steps
were chosen on both. The pool "measuring" has other teachers, other students and mostly other training images, and was
looked at once.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import stillroom
from stillroom.contracts import UNLABELLED, Batch, Signals
from stillroom.evaluate import answer
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.randomness import forked, integers, permutation, uniform
from stillroom.suitability import suitability

Tell = Callable[[str], None]
TEMPERATURE, BATCH, RATE = 4.0, 64, 3e-3
RESAMPLES, SHORT, STUDENT_SEEDS = 2000, 40, 3
SCORES = {
    "foreseen": "foreseen (Gauss-Newton step, labels)",
    "foreseen without labels": "foreseen (no labels)",
    "grace": "GRACE",
    "gradient norm": "gradient norm",
    "accuracy": "teacher's accuracy",
    "agreement": "agreement with all teachers",
    "entropy": "entropy of its answers",
    "short": f"{SHORT} steps of distillation from each",
}
FALLING = ("grace", "gradient norm")  # less is better


@dataclass(frozen=True)
class Kind:
    """A teacher to be: its model, how many labels it sees, for how long, how many of them are wrong, how smoothed."""

    name: str
    model: str
    labels: int
    steps: int
    wrong: float = 0.0
    smoothing: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """A source, its students, how long they learn, and from whom."""

    data: str
    options: Mapping[str, Any]
    steps: int
    students: Mapping[str, tuple[str, dict[str, Any]]]
    teachers: tuple[Kind, ...]


SMALL, WIDE, TINY = {"width": 16}, {"width": 32}, {"width": 8, "stem": 2}
FIRST = {"mlp": ("mlp", {"hidden": [32]}), "cnn": ("cnn", {"width": 8})}
OTHERS = {"mlp": ("mlp", {"hidden": [48, 24]}), "cnn": ("cnn", {"width": 12})}
POOLS = {
    "choosing": Pool(
        "digits",
        {},
        300,
        FIRST,
        (
            Kind("cnn", "cnn", 970, 400, options=SMALL),
            Kind("cnn, 200 labels", "cnn", 200, 400, options=SMALL),
            Kind("cnn, 60 labels", "cnn", 60, 300, options=SMALL),
            Kind("cnn, smoothed", "cnn", 970, 400, smoothing=0.3, options=SMALL),
            Kind("cnn, 25 % wrong, long", "cnn", 970, 700, 0.25, options=WIDE),
            Kind("cnn, 25 % wrong, short", "cnn", 970, 60, 0.25, options=SMALL),
            Kind("cnn, 50 % wrong", "cnn", 970, 300, 0.5, options=SMALL),
            Kind("resnet", "resnet", 970, 300, options=TINY),
            Kind("mlp", "mlp", 970, 400, options={"hidden": [128]}),
            Kind("mlp, 100 labels", "mlp", 100, 300, options={"hidden": [128]}),
            Kind("mlp, overtrained", "mlp", 970, 2500, options={"hidden": [256, 128]}),
            Kind("mlp, 25 % wrong, long", "mlp", 970, 1200, 0.25, options={"hidden": [256]}),
            Kind("linear", "mlp", 970, 400, options={"hidden": []}),
        ),
    ),
    "choosing too": Pool(
        "fashion-mnist-sample",
        {"train": 2000},
        400,
        FIRST,
        (
            Kind("cnn", "cnn", 2000, 500, options=SMALL),
            Kind("cnn, wide", "cnn", 2000, 400, options=WIDE),
            Kind("cnn, stopped early", "cnn", 2000, 80, options=SMALL),
            Kind("cnn, 300 labels", "cnn", 300, 300, options=SMALL),
            Kind("cnn, 100 labels", "cnn", 100, 200, options=SMALL),
            Kind("cnn, smoothed", "cnn", 2000, 500, smoothing=0.2, options=SMALL),
            Kind("cnn, 20 % wrong, by heart", "cnn", 2000, 800, 0.2, options=WIDE),
            Kind("cnn, 40 % wrong, short", "cnn", 2000, 150, 0.4, options=SMALL),
            Kind("cnn, 40 % wrong, long", "cnn", 2000, 600, 0.4, options=WIDE),
            Kind("resnet", "resnet", 2000, 400, options=TINY),
            Kind("mlp", "mlp", 2000, 500, options={"hidden": [128]}),
            Kind("mlp, 200 labels", "mlp", 200, 300, options={"hidden": [128]}),
            Kind("mlp, overtrained", "mlp", 2000, 3000, options={"hidden": [256, 128]}),
            Kind("mlp, 30 % wrong, by heart", "mlp", 2000, 2000, 0.3, options={"hidden": [256]}),
            Kind("linear", "mlp", 2000, 500, options={"hidden": []}),
        ),
    ),
    "measuring": Pool(
        "fashion-mnist-sample",
        {"train": 1500, "seed": 7},
        400,
        OTHERS,
        (
            Kind("cnn", "cnn", 1500, 400, options={"width": 12}),
            Kind("cnn, wide", "cnn", 1500, 300, options={"width": 24}),
            Kind("cnn, 500 labels", "cnn", 500, 300, options=SMALL),
            Kind("cnn, 150 labels", "cnn", 150, 200, options=SMALL),
            Kind("cnn, stopped early", "cnn", 1500, 60, options=SMALL),
            Kind("cnn, smoothed", "cnn", 1500, 300, smoothing=0.1, options=SMALL),
            Kind("cnn, 15 % wrong, by heart", "cnn", 1500, 600, 0.15, options=SMALL),
            Kind("cnn, 35 % wrong", "cnn", 1500, 250, 0.35, options=SMALL),
            Kind("resnet, smoothed", "resnet", 1500, 250, smoothing=0.3, options={"width": 6, "stem": 2}),
            Kind("mlp", "mlp", 1500, 400, options={"hidden": [64]}),
            Kind("mlp, 400 labels", "mlp", 400, 600, options={"hidden": [512]}),
            Kind("mlp, 25 % wrong, by heart", "mlp", 1500, 1500, 0.25, options={"hidden": [256, 256]}),
            Kind("linear, 300 labels", "mlp", 300, 300, options={"hidden": []}),
        ),
    ),
}


# --- teachers and students -----------------------------------------------------------------------------------


class Told:
    """A teacher whose answers to all examples are known: logits (examples, classes)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, batch: Batch) -> Signals:
        """Return the answers to the batch."""
        return {"logits": self.logits[batch["id"][:, 0]]}


def made(source: Any, model: str, options: Mapping[str, Any], seed: int, what: str) -> nn.Module:
    """Build a model of the zoo for this source, its weights belonging to (seed, what)."""
    with forked(seed, "weights", what):
        return build(model, shape=tuple(source.inputs.shape[1:]), classes=10, **options)


def taught(source: Any, kind: Kind, shorter: int) -> Told:
    """Train one teacher and ask it about every example."""
    train = source.splits["train"]
    chosen = permutation(len(train), 0, "labels", kind.name)[: kind.labels]
    mine, labels = train[torch.from_numpy(chosen.copy())], source.labels.clone()
    wrong = mine[torch.from_numpy(uniform(0, "wrong", mine.numpy()) < kind.wrong)]
    labels[wrong] = torch.from_numpy(integers(10, 0, "instead", wrong.numpy()))
    splits = {**source.splits, "train": mine}
    data = stillroom.ArraySource(source.inputs, labels, splits=splits, classes=source.classes)
    module, encode = made(source, kind.model, kind.options, 0, kind.name), encode_for(source)
    settings = stillroom.Training(steps=max(2, kind.steps // shorter), batch=min(BATCH, len(mine)), lr=RATE)
    learner = stillroom.Learner(module, [stillroom.match("labels", smoothing=kind.smoothing)], encode=encode)
    stillroom.fit(learner, data, None, settings)
    asked = torch.cat(list(source.splits.values()))
    logits = torch.zeros(len(source), 10)
    logits[asked] = answer(module, source, asked, encode=encode)[0]
    return Told(logits)


def distilled(
    source: Any, teacher: Told, student: tuple[str, Mapping[str, Any]], seed: int, steps: int, split: str
) -> float:
    """Distil a student from one teacher, without labels, and return its accuracy on a split."""
    module, encode = made(source, *student, seed, "student"), encode_for(source)
    learner = stillroom.Learner(module, [stillroom.match("kd", temperature=TEMPERATURE)], encode=encode)
    settings = stillroom.Training(steps=steps, batch=BATCH, lr=RATE)
    stillroom.fit(learner, source, teacher, settings, seed=seed)
    return float(stillroom.evaluate(module, source, split=split, encode=encode)["accuracy"])


def without_labels(source: Any) -> Any:
    """Return the same source, its labels unknown."""
    bare = copy.copy(source)
    bare.labels = torch.full_like(source.labels, UNLABELLED)
    bare.columns = {**source.columns, "labels": bare.labels}
    return bare


# --- the run -------------------------------------------------------------------------------------------------


def run(seeds: Sequence[int], quick: bool, tell: Tell) -> dict[str, Any]:
    """Train the teachers of every pool, score them for two students, and distil each student from each of them."""
    shorter, seeds = 20 if quick else 1, list(seeds)[:STUDENT_SEEDS]
    pools = {
        name: pool_run(pool, list(seeds), shorter, lambda text, name=name: tell(f"{name}: {text}"))
        for name, pool in POOLS.items()
    }
    settings = {
        "temperature": TEMPERATURE,
        "batch": BATCH,
        "rate": RATE,
        "short": SHORT,
        "quick": quick,
        "student seeds": list(seeds),
    }
    return {"settings": settings, "pools": pools}


def pool_run(pool: Pool, seeds: list[int], shorter: int, tell: Tell) -> dict[str, Any]:
    """Return scores and results of one pool, by student and teacher."""
    source: Any = stillroom.open_source(pool.data, **pool.options)
    teachers = {}
    for kind in pool.teachers:
        tell(f"teacher {kind.name}")
        teachers[kind.name] = taught(source, kind, shorter)
    found: dict[str, Any] = {
        "data": pool.data,
        "options": dict(pool.options),
        "steps": pool.steps,
        "models": {name: list(one) for name, one in pool.students.items()},
        "students": {},
    }
    for student, (model, options) in pool.students.items():
        tell(f"scores for {student}")

        def maker(model: str = model, options: Mapping[str, Any] = options) -> nn.Module:
            return build(model, shape=tuple(source.inputs.shape[1:]), classes=10, **options)

        asked = {"rows": 64 if shorter > 1 else 512, "seed": 100}
        told = {one.teacher: one for one in suitability(maker, teachers, source, **asked)}
        bare = {one.teacher: one for one in suitability(maker, teachers, without_labels(source), **asked)}
        rows = {}
        for name, teacher in teachers.items():
            tell(f"{student} from {name}")
            one, steps = told[name], max(2, pool.steps // shorter)
            rows[name] = {
                "foreseen": one.foreseen,
                "each start": list(one.each),
                "foreseen without labels": bare[name].foreseen,
                "grace": one.grace,
                "gradient norm": one.gradient_norm,
                "accuracy": one.accuracy,
                "agreement": one.agreement,
                "entropy": one.entropy,
                "short": distilled(source, teacher, (model, options), 100, max(2, SHORT // shorter), "validation"),
                "student": [distilled(source, teacher, (model, options), seed, steps, "test") for seed in seeds],
            }
        found["students"][student] = rows
    found["correlation"] = correlations(found["students"])
    return found


# --- what comes of it ----------------------------------------------------------------------------------------


def columns(students: Mapping[str, Any], score: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (score, final accuracy) over the teachers, for each student; more is better in both."""
    sign = -1.0 if score in FALLING else 1.0
    return [
        (
            np.array([sign * row[score] for row in rows.values()]),
            np.array([float(np.mean(row["student"])) for row in rows.values()]),
        )
        for rows in students.values()
    ]


def rank(pairs: Sequence[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray | None = None) -> float:
    """Return Spearman's correlation, mean over the students."""
    values = []
    for first, second in pairs:
        picked = np.arange(len(first)) if chosen is None else chosen
        if len(set(first[picked])) > 1 and len(set(second[picked])) > 1:
            values.append(float(spearmanr(first[picked], second[picked])[0]))
    return float(np.mean(values)) if values else 0.0


def correlations(students: Mapping[str, Any]) -> dict[str, Any]:
    """Return each score's Spearman correlation with a bootstrap interval over teachers, its lead, and its regret."""
    count = len(next(iter(students.values())))
    draws = [integers(count, 0, "teachers", index, np.arange(count)) for index in range(RESAMPLES)]
    found: dict[str, Any] = {}
    base = columns(students, "accuracy")
    for score in SCORES:
        pairs = columns(students, score)
        spread = [rank(pairs, chosen) for chosen in draws]
        lead = [rank(pairs, chosen) - rank(base, chosen) for chosen in draws]
        found[score] = {
            "spearman": rank(pairs),
            "interval": [float(value) for value in np.percentile(spread, [2.5, 97.5])],
            "by student": [rank([one]) for one in pairs],
            "over accuracy": rank(pairs) - rank(base),
            "over accuracy, interval": [float(value) for value in np.percentile(lead, [2.5, 97.5])],
            "regret": float(np.mean([final.max() - final[np.argmax(value)] for value, final in pairs])),
        }
    return found


def page(result: dict[str, Any]) -> list[str]:
    """Return the table and what it says, as Markdown."""
    lines: list[str] = []
    for name, pool in result["pools"].items():
        students = pool["students"]
        count = len(next(iter(students.values())))
        lines += [
            f"{count} teachers on {pool['data']} ({name} pool), students {', '.join(students)}, "
            f"{len(result['settings']['student seeds'])} seeds each.",
            "",
            "| score | Spearman with the student's accuracy | each student | over the teacher's accuracy | lost |",
            "| --- | --- | --- | --- | --- |",
        ]
        ordered = sorted(pool["correlation"].items(), key=lambda one: -one[1]["spearman"])
        for score, one in ordered:
            low, high = one["interval"]
            first, last = one["over accuracy, interval"]
            lines.append(
                f"| {SCORES[score]} | {one['spearman']:+.2f} [{low:+.2f}, {high:+.2f}] | "
                f"{', '.join(f'{value:+.2f}' for value in one['by student'])} | "
                f"{one['over accuracy']:+.2f} [{first:+.2f}, {last:+.2f}] | {100 * one['regret']:.1f} points |"
            )
        lines.append("")
    lines += [
        "Intervals: bootstrap over teachers, 95 %. Lost: how far the student of the teacher that the score puts first "
        "stays behind the best student. Everything was chosen on the first two pools; the last was looked at once.",
        "",
    ]
    return lines + teachers_table(result["pools"]["measuring"])


def teachers_table(pool: Mapping[str, Any]) -> list[str]:
    """Return one line for each teacher of a pool: its accuracy, and what was foreseen and came of each student."""
    students = pool["students"]
    heads = [f"{what} {name}" for name in students for what in ("foreseen", "distilled")]
    lines = [f"| teacher | accuracy | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    first = next(iter(students.values()))
    for teacher in sorted(first, key=lambda one: -float(np.mean(first[one]["student"]))):
        cells = [
            f"{100 * value:.1f}"
            for rows in students.values()
            for value in (rows[teacher]["foreseen"], float(np.mean(rows[teacher]["student"])))
        ]
        lines.append(f"| {teacher} | {100 * first[teacher]['accuracy']:.1f} | {' | '.join(cells)} |")
    return lines


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was asked for and whether it was reached."""
    found = result["pools"]["measuring"]["correlation"]
    mine, theirs = found["foreseen"]["spearman"], found["accuracy"]["spearman"]
    return [
        {
            "name": "teacher choice: rank correlation of the score with the student's accuracy",
            "target": "at least 0.6",
            "measured": f"{mine:+.2f}",
            "met": mine >= 0.6,
        },
        {
            "name": "teacher choice: above the teacher accuracy's own",
            "target": f"above {theirs:+.2f}",
            "measured": f"{mine:+.2f}",
            "met": mine > theirs,
        },
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome = run((0, 1, 2), "--quick" in sys.argv, lambda text: print(text, file=sys.stderr, flush=True))
    print("\n".join([*page(outcome), "", json.dumps(marks(outcome), indent=1)]))
    if "--json" in sys.argv:
        with open(sys.argv[sys.argv.index("--json") + 1], "w", encoding="utf-8") as file:
            json.dump(outcome, file)
