"""Two momenta or one? DOT, balanced gradients and plain SGD with momentum on three small tasks.

Each student has few labels and a recorded teacher for all training examples. Four ways to take its steps, from the same
weights and in the same order:

* sgd: one momentum of 0.9;
* dot: DOT, momentum 0.9 -+ delta;
* reweighted: one momentum, but the weights that DOT's two momenta come to in the long run: the task's times
  (1 - m) / (1 - m + delta), the teacher's times (1 - m) / (1 - m - delta). It says whether DOT is more than a weight;
* balance: the teacher's gradient at a multiple of the task's norm.

Every way has the same rates to choose from, and then values of its own (delta, delta, ratio), with the rates beside the
best again; sgd tries rates between. All is chosen by validation accuracy, the mean of two seeds that are not measured.

    python benchmarks/gradient.py --only optimiser [--record]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.contracts import Source
from stillroom.data.arrays import ArraySource
from stillroom.data.splits import LabelledSubset, few_labels
from stillroom.data.table import open_source
from stillroom.evaluate import answer
from stillroom.learner import Learner
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.objectives import match
from stillroom.randomness import permutation
from stillroom.record import record
from stillroom.settings import Mixed, Training
from stillroom.statistics import over_seeds, paired
from stillroom.store import Store
from stillroom.teachers import Live
from stillroom.train import Rows, train

MOMENTUM = 0.9
SEEDS = tuple(range(8))
DELTAS = (0.01, 0.025, 0.05, 0.075, 0.09)
RATIOS = (1.0, 3.0, 9.0, 27.0)
FIRST = {"dot": 0.05, "reweighted": 0.05, "balance": 3.0}  # a way's own value while its rate is looked for
WAYS = ("sgd", "dot", "reweighted", "balance")
SEARCH = (1000, 1001)
WORSE = 0.005  # half a point of accuracy is "no worse"
SCALE, BEYOND = 2.0, 2  # the factor between rates, and how often one more is tried where the best is at an end
BETWEEN = (SCALE**-0.5, SCALE**-0.25, SCALE**0.5)  # what sgd tries while the other ways try values of their own
LABELS, TEACHER = 0.1, 0.9  # the weights of the shipped recipes
TEACHERS_SEED = 7


@dataclass
class Task:
    """What a student learns, from whom, and the rates that are tried."""

    name: str
    title: str
    data: Source
    known: ArraySource
    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module]
    labels: int
    batch: Mixed
    steps: int
    rates: tuple[float, ...]
    views: int = 1
    clip: float | None = None
    teaching: Training = field(default_factory=Training)
    encode: nn.Module | None = None
    store: Store | None = None


@dataclass(frozen=True)
class Choice:
    """A way, its rate, and the value of its own where it has one."""

    way: str
    rate: float
    own: float | None = None


# --- tasks -------------------------------------------------------------------------------------------


def images(quick: bool) -> Task:
    """Fashion-MNIST, 1,000 labels of 8,000: a small CNN and a ResNet-8, four views of each image."""
    known: Any = open_source("fashion-mnist-sample", views=4)
    return _task(
        known, "images", "Fashion-MNIST, 1,000 labels, CNN", 1000, 40 if quick else 300, (0.05, 0.1, 0.2, 0.4),
        student=lambda: build("cnn", shape=(1, 28, 28), classes=10, width=8),
        teacher=lambda: build("resnet", shape=(1, 28, 28), classes=10, depth=8, width=32, stem=2),
        teaching=Training(epochs=0.2 if quick else 6, lr=3e-3, weight_decay=5e-2),
        views=4, rows=32,
    )  # fmt: skip


def digits(quick: bool) -> Task:
    """Digits, 100 labels of 700: an MLP with one small hidden layer and a CNN."""
    found: Any = open_source("digits")
    rest = torch.cat([found.splits["train"], found.splits["validation"]])
    rest = rest[torch.from_numpy(permutation(len(rest), 0, "digits"))]
    splits = {"train": rest[:700], "validation": rest[700:], "test": found.splits["test"]}
    known = ArraySource(found.inputs, found.labels, classes=found.classes, splits=splits, name="digits")
    return _task(
        known, "digits", "Digits, 100 labels, MLP", 100, 40 if quick else 400, (0.0125, 0.025, 0.05, 0.1),
        student=lambda: build("mlp", shape=(1, 28, 28), classes=10, hidden=(24,)),
        teacher=lambda: build("cnn", shape=(1, 28, 28), classes=10, width=16),
        teaching=Training(epochs=3 if quick else 30, batch=32, lr=3e-3), rows=32,
    )  # fmt: skip


def rows(quick: bool) -> Task:
    """Fashion-MNIST at half the size, row by row, 500 labels of 8,000: LSTMs of 24 and 128 units."""
    found: Any = open_source("fashion-mnist-sample")
    small = nn.functional.avg_pool2d(found.inputs[:, 0].float(), 2) / 255
    known = ArraySource(
        (small - 0.286) / 0.32, found.labels, classes=found.classes, splits=found.splits, name="half rows"
    )
    return _task(
        known, "rows", "Fashion-MNIST row by row, 500 labels, LSTM", 500, 40 if quick else 500, (0.1, 0.2, 0.4, 0.8),
        student=lambda: build("lstm", shape=(14, 14), classes=10, hidden=24),
        teacher=lambda: build("lstm", shape=(14, 14), classes=10, hidden=128),
        teaching=Training(epochs=0.5 if quick else 12, lr=3e-3, clip=1.0), clip=1.0, rows=64,
    )  # fmt: skip


def _task(
    known: ArraySource,
    name: str,
    title: str,
    labels: int,
    steps: int,
    rates: tuple[float, ...],
    *,
    rows: int,
    **more: Any,
) -> Task:
    assert known.labels is not None
    shown = LabelledSubset(known, few_labels(known.labels, known.splits["train"], labels))
    encode = encode_for(known) if known.inputs.dtype == torch.uint8 else None
    return Task(
        name, title, shown, known, labels=labels, batch=Mixed(labelled=rows, transfer=rows), steps=steps, rates=rates,
        encode=encode, **more,
    )  # fmt: skip


# --- training ----------------------------------------------------------------------------------------


def taught(task: Task, folder: str) -> float:
    """Train the teacher with every label, record it, and return its accuracy on test."""
    module = seeded(task.teacher, TEACHERS_SEED)
    learner = Learner(module, ["labels"], encode=task.encode)
    quiet = task.teaching.model_copy(update={"gradient_norms_every": 0})
    for _ in train(learner, task.known, None, quiet, views=task.views, seed=TEACHERS_SEED):
        pass
    module.eval()
    answers = Live(module, ["logits"], encode=task.encode)
    task.store = record(answers, task.known, folder, splits=["train"], taps=["logits"], views=task.views)
    return float(right(module, task, "test").mean())


def student(task: Task, choice: Choice, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """Return a trained student, and how the two gradients lay where both were at hand."""
    module = seeded(task.student, seed)
    delta = choice.own if choice.way in ("dot", "reweighted") else None
    less, more = 1.0, 1.0
    if choice.way == "reweighted" and delta is not None:
        rest = 1 - MOMENTUM
        less, more = rest / (rest + delta), rest / (rest - delta)
    asked = [match("labels", weight=LABELS * less), match("kd", temperature=2.0, weight=TEACHER * more)]
    settings = Training(
        steps=task.steps, batch=task.batch, lr=choice.rate, momentum=MOMENTUM, clip=task.clip, warmup=0.05,
        optimizer="dot" if choice.way == "dot" else "sgd", gradient_norms_every=0,
        balance=choice.own if choice.way == "balance" else None,
        delta=0.0 if delta is None else delta,
    )  # fmt: skip
    labelled = task.data.labelled  # type: ignore[attr-defined]
    learner = Learner(module, asked, encode=task.encode)
    kept = Rows(labelled, task.known.splits["train"])
    steps = list(train(learner, task.data, task.store, settings, rows=kept, views=task.views, seed=seed))
    return module, _pulled([step.gradient_cosine for step in steps], [step.gradient_ratio for step in steps])


def _pulled(cosines: list[float | None], ratios: list[float | None]) -> dict[str, float]:
    seen, sizes = [one for one in cosines if one is not None], [one for one in ratios if one is not None]
    if len(seen) < 2:  # looked at once only
        return {}
    return {"cosine": mean(seen), "against": mean(one < 0 for one in seen), "ratio": float(np.median(sizes))}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network that is the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def right(module: nn.Module, task: Task, split: str) -> Tensor:
    """Return which examples of a split are answered rightly, as 0 and 1."""
    logits, labels = answer(module, task.known, task.known.splits[split], encode=task.encode)
    assert labels is not None
    return (logits.argmax(1) == labels).double()


# --- choosing and measuring --------------------------------------------------------------------------


def chosen(task: Task, way: str, quick: bool) -> tuple[Choice, dict[str, float]]:
    """Return a way's choice on validation and all that was tried.

    First the rates, at one value of its own; then the other values at the best rate; then the rates beside it,
    with the best value and with those next to it, since a milder value may want a higher rate.
    """
    values = {"dot": DELTAS, "reweighted": DELTAS, "balance": RATIOS}.get(way)
    tried: dict[Choice, float] = {}

    def best() -> Choice:
        return max(tried, key=tried.__getitem__)

    def look(choice: Choice) -> None:
        if choice not in tried:
            tried[choice] = validated(task, choice, SEARCH[:1] if quick else SEARCH)

    first = FIRST.get(way)
    for rate in task.rates[1:3] if quick else task.rates:
        look(Choice(way, rate, first))
    for _ in range(0 if quick else BEYOND):
        rate, listed = best().rate, sorted(one.rate for one in tried)
        if rate in (listed[0], listed[-1]):
            look(Choice(way, rate / SCALE if rate == listed[0] else rate * SCALE, first))
    rate = best().rate
    for value in (values or BETWEEN)[: 2 if quick else None]:
        look(Choice(way, rate, value) if values else Choice(way, rate * value))
    if values and not quick:
        rate, place = best().rate, values.index(best().own or 0)
        for value in values[max(0, place - 1) : place + 2]:
            for beside in (rate / SCALE, rate * SCALE):
                look(Choice(way, beside, value))
    named = {f"{one.rate:.3g}" + ("" if one.own is None else f", {one.own:g}"): score for one, score in tried.items()}
    return best(), named


def validated(task: Task, choice: Choice, seeds: Sequence[int]) -> float:
    """Return the mean validation accuracy of a choice."""
    return mean(float(right(student(task, choice, one)[0], task, "validation").mean()) for one in seeds)


def run(seeds: Sequence[int], quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train all ways on all tasks; returns plain values: each way's choice, what was tried, scores by seed."""
    found: dict[str, Any] = {
        "seeds": list(seeds),
        "quick": quick,
        "momentum": MOMENTUM,
        "deltas": list(DELTAS),
        "tasks": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for make in (digits, rows, images):
            task = make(quick)
            held: dict[str, Any] = {
                "title": task.title, "steps": task.steps, "labels": task.labels, "clip": task.clip,
                "teacher": taught(task, f"{folder}/{task.name}"), "ways": {},
            }  # fmt: skip
            tell(f"{task.title}: teacher {held['teacher']:.4f} on test")
            answers: dict[str, list[Tensor]] = {}
            for way in WAYS:
                choice, tried = chosen(task, way, quick)
                students = [student(task, choice, seed) for seed in seeds]
                answers[way] = [right(module, task, "test") for module, _ in students]
                pulled = [pull for _, pull in students if pull]
                held["ways"][way] = {
                    "rate": choice.rate, "own": choice.own, "tried": tried,
                    "scores": [float(one.mean()) for one in answers[way]],
                    "pull": {key: mean(one[key] for one in pulled) for key in pulled[0]} if pulled else None,
                }  # fmt: skip
                own = "" if choice.own is None else f", {choice.own:g}"
                shown = " ".join(f"{score:.4f}" for score in held["ways"][way]["scores"])
                tell(f"  {way}: rate {choice.rate:.3g}{own}; {shown}")
            plain = torch.stack(answers["sgd"]).numpy()
            for way in WAYS[1:]:
                held["ways"][way]["gain"] = paired(torch.stack(answers[way]).numpy(), plain).plain()
            other = torch.stack(answers["reweighted"]).numpy()
            held["dot - reweighted"] = paired(torch.stack(answers["dot"]).numpy(), other).plain()
            found["tasks"][task.name] = held
    return found


# --- telling -----------------------------------------------------------------------------------------


def _points(gain: dict[str, Any]) -> str:
    if gain["low"] is None:
        return f"{100 * gain['mean']:+.2f}"
    return f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"


def page(result: dict[str, Any]) -> list[str]:
    """Return the tables and what they say, as lines of markdown."""
    lines = [
        "## Two momenta or one",
        "",
        f"SGD with momentum {result['momentum']:g} on `0.1 labels + 0.9 kd`, {len(result['seeds'])} paired seeds. Over "
        "sgd: points of test accuracy (the wider of Student's t over seeds and a bootstrap over test examples, "
        "95 %). `reweighted` is one momentum with the weights that DOT's two momenta come to in the long run.",
        "",
    ]
    for task in result["tasks"].values():
        head = ("way", "rate", "own value", "test accuracy", "over sgd", "cosine", "against", "teacher / task")
        lines += [f"**{task['title']}**, {task['steps']} steps, teacher {100 * task['teacher']:.1f} %", ""]
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
        for way, held in task["ways"].items():
            score, pull = over_seeds(held["scores"]), held["pull"]
            row = [
                way,
                f"{held['rate']:.3g}",
                "" if held["own"] is None else f"{held['own']:g}",
                f"{100 * score.mean:.2f}",
            ]
            row += [_points(held["gain"]) if "gain" in held else ""]
            row += (
                [f"{pull['cosine']:.2f}", f"{100 * pull['against']:.0f} %", f"{pull['ratio']:.1f}"]
                if pull
                else [""] * 3
            )
            lines.append("| " + " | ".join(row) + " |")
        lines += ["", f"DOT over reweighted, each at its own choice: {_points(task['dot - reweighted'])} points.", ""]
    return [*lines, *(f"* {sentence}" for sentence in _sentences(result))]


def _sentences(result: dict[str, Any]) -> list[str]:
    told = []
    for way, name in (("dot", "DOT"), ("balance", "Balancing"), ("reweighted", "One momentum, reweighted")):
        gains = {task["title"]: task["ways"][way]["gain"] for task in result["tasks"].values()}
        better = [title for title, gain in gains.items() if (gain["low"] or 0) > 0]
        worse = [title for title, gain in gains.items() if gain["high"] is not None and gain["high"] < 0]
        parts = [f"better than plain SGD on {len(better)}", f"worse on {len(worse)}"]
        told.append(f"{name}: {', '.join(parts)}, not told apart on {len(gains) - len(better) - len(worse)}.")
    ahead = [task["title"] for task in result["tasks"].values() if (task["dot - reweighted"]["low"] or 0) > 0]
    behind = [task["title"] for task in result["tasks"].values() if (task["dot - reweighted"]["high"] or 0) < 0]
    told.append(f"Against one momentum, reweighted, DOT is better on {len(ahead)} and worse on {len(behind)}.")
    told.append("DOT and balancing take two backward passes a step where plain SGD takes one.")
    least = min(result["deltas"])
    ended = [task["title"] for task in result["tasks"].values() if task["ways"]["dot"]["own"] == least]
    told.append(
        f"DOT's two momenta were chosen as near to each other as was offered (delta {least:g}) on {len(ended)} of "
        f"{len(result['tasks'])}; with delta 0 it is plain SGD."
    )
    return told


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the two halves of the mark, computed from the gains."""
    gains = {name: task["ways"]["dot"]["gain"] for name, task in result["tasks"].items()}
    shown = "; ".join(f"{name} {_points(gain)}" for name, gain in gains.items())
    fine = all(gain["mean"] >= -WORSE and not (gain["high"] or 0) < 0 for gain in gains.values())
    return [
        {
            "name": "DOT no worse than one momentum",
            "target": f"on all: mean at least {-100 * WORSE:g} points, no interval below 0",
            "measured": shown,
            "met": fine,
        },
        {
            "name": "DOT better than one momentum",
            "target": "on one: interval above 0",
            "measured": shown,
            "met": any((gain["low"] or 0) > 0 for gain in gains.values()),
        },
    ]
