"""Features beside features on other tasks: the student's, the teacher's, and the controls that keep them honest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED, Progress, Source
from stillroom.data.splits import labels_of, trim
from stillroom.errors import DataError, say
from stillroom.generality import probes
from stillroom.statistics import over_seeds, paired

Read = Callable[[Source, Tensor], NDArray[np.float32]]
"""(source, examples) -> features (rows, dimensions)."""

STUDENT, TEACHER, ALONE, RANDOM, RAW = "student", "teacher", "labels only", "random weights", "raw input"
SHOTS = (1, 5, 10)
DRAWS = 10
ANSWERED = 2000  # test rows of a task; five times the training rows where those are few


@dataclass(frozen=True)
class Task:
    """A question with an answer for every row: a source, and which of its rows are used."""

    name: str
    source: Source
    train: Tensor
    test: Tensor
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]


def task_of(source: Source, *, rows: int = 2000, seed: int = 0, name: str = "") -> Task:
    """Return the task of a source: at most ``rows`` labelled training rows and 2,000 test rows, chosen by hash.

    Raises:
        DataError: there are no labels, fewer than two classes, or too few rows.
    """
    labels = labels_of(source)
    name = name or str(getattr(source, "name", "task"))
    known = {part: source.splits[part][labels[source.splits[part]] != UNLABELLED] for part in ("train", "test")}
    if any(len(part) < 2 for part in known.values()) or len(torch.unique(labels[known["train"]])) < 2:
        given = f"{len(known['train'])} labelled training rows, {len(known['test'])} test rows"
        raise DataError(
            say(f"'{name}' is no task to judge features by", given, "two classes or more, with rows of both")
        )
    fewer = trim(known, labels.numpy(), {"train": rows, "test": min(ANSWERED, 5 * rows)}, seed)
    train, test = fewer["train"], fewer["test"]
    return Task(name, source, train, test, labels[train].numpy(), labels[test].numpy())


def raw_input(source: Source, examples: Tensor) -> NDArray[np.float32]:
    """Return the inputs themselves as features: pixels from 0 to 1, or numbers as they are."""
    parts = [source.batch(torch.stack([part, torch.zeros_like(part)], 1))["inputs"] for part in examples.split(1024)]
    values = torch.cat(parts).flatten(1)
    scaled: NDArray[np.float32] = (values.float() / 255 if values.dtype == torch.uint8 else values.float()).numpy()
    return scaled


def compare(
    readers: Mapping[str, Sequence[Read]],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every reader about every task; return JSON values.

    ``readers``: by name (``student``, ``teacher``, ``labels only``, ``random weights``, ``raw input``, or others), one
    function for each seed of training. The linear probe is asked of every seed, the rest of the first. ``tasks`` holds,
    by task and reader, ``linear`` ({mean, per_seed}), ``knn``, ``few_shot``, ``nmi``, ``recall_at_1``, ``recall_at_5``,
    ``map`` and ``dimensions``; ``mean`` the linear probe over the tasks; ``kept`` the share of the teacher's that the
    student keeps; ``lead`` of the student over each other with its interval, paired by example and seed.
    """
    found: dict[str, Any] = {}
    right: dict[str, dict[str, NDArray[np.float64]]] = {}
    asked = 0
    with probes.one_thread():
        for task in tasks:
            found[task.name] = {
                "train": len(task.train),
                "test": len(task.test),
                "classes": len(np.unique(task.train_labels)),
                "readers": {},
            }
            for name, seeds in readers.items():
                entry, correct = _ask(task, seeds, seed, shots, draws)
                found[task.name]["readers"][name] = entry
                right.setdefault(name, {})[task.name] = correct
                asked += 1
                if progress is not None:
                    progress(asked, len(tasks) * len(readers), f"{task.name}: {name}")
    result: dict[str, Any] = {"tasks": found, "mean": _means(found, readers), "seed": seed}
    if STUDENT in readers:
        result["lead"] = {name: _lead(right[STUDENT], right[name]) for name in readers if name != STUDENT}
        if TEACHER in readers:
            result["kept"] = result["mean"][STUDENT] / max(result["mean"][TEACHER], 1e-12)
    return result


def _ask(
    task: Task, seeds: Sequence[Read], seed: int, shots: Sequence[int], draws: int
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Return what one reader is worth on one task, and (seeds x test rows) of which rows the linear probe got right."""
    correct, strengths = [], []
    first: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    for read in seeds:
        train, test = read(task.source, task.train), read(task.source, task.test)
        first = first or (train, test)
        answers, strength = probes.linear(train, task.train_labels, test, task.test_labels, seed=seed)
        correct.append(answers.astype(np.float64))
        strengths.append(strength)
    assert first is not None
    train, test = first
    known = (train, task.train_labels, test, task.test_labels)
    rates = [float(part.mean()) for part in correct]
    entry: dict[str, Any] = {
        "dimensions": int(train.shape[1]),
        "linear": {"mean": float(np.mean(rates)), "per_seed": rates, "C": strengths},
        "knn": probes.nearest(*known),
        "nmi": probes.clustering(test, task.test_labels, seed=seed),
        **probes.retrieval(test, task.test_labels),
        "few_shot": {
            str(count): over_seeds(probes.few_shot(*known, shots=count, draws=draws, seed=seed)).plain()
            for count in shots
        },
    }
    for held in entry["few_shot"].values():
        held["method"] = held["method"].replace("seeds", "draws")
    return entry, np.stack(correct)


def _means(found: Mapping[str, Any], readers: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(np.mean([task["readers"][name]["linear"]["mean"] for task in found.values()])) for name in readers
    }


def _lead(ours: Mapping[str, NDArray[np.float64]], theirs: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return how far the student is ahead over all tasks: tasks are independent, so squared half widths add up."""
    leads = []
    for name, mine in ours.items():
        other = theirs[name]
        seeds = min(len(mine), len(other)) if min(len(mine), len(other)) > 1 else max(len(mine), len(other))
        mine, other = (
            np.broadcast_to(part[:seeds] if len(part) > 1 else part, (seeds, part.shape[1])) for part in (mine, other)
        )
        leads.append(paired(mine, other))
    mean = float(np.mean([one.mean for one in leads]))
    half = math.sqrt(sum((one.width / 2) ** 2 for one in leads)) / len(leads)
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "n": leads[0].n,
        "method": f"mean over {len(leads)} tasks of: {leads[0].method}",
        "per_task": {name: one.plain() for name, one in zip(ours, leads, strict=True)},
    }


def curve(
    read: Callable[[Source, Tensor, int | None, str], NDArray[np.float32]],
    tasks: Sequence[Task],
    width: int,
    *,
    dimensions: Sequence[int] = (4, 8, 16, 32, 64, 128, 256, 512),
    dtypes: Sequence[str] = ("float32", "float16", "int8", "binary"),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return the linear probe and kNN, averaged over the tasks, for prefixes of the features and for each precision.

    ``read``: (source, examples, dimensions, dtype) -> numbers as they are after being stored so; ``width``: all
    dimensions. Each entry: ``dimensions``, ``dtype``, ``bytes`` a row, ``linear``, ``knn``.
    """
    widths = [*(one for one in dimensions if one < width), width]
    wanted = [(one, "float32") for one in widths] + [(width, dtype) for dtype in dtypes if dtype != "float32"]
    found = []
    with probes.one_thread():
        for count, dtype in wanted:
            linear, near = [], []
            for task in tasks:
                train, test = (read(task.source, rows, count, dtype) for rows in (task.train, task.test))
                known = (train, task.train_labels, test, task.test_labels)
                linear.append(float(probes.linear(*known, seed=seed)[0].mean()))
                near.append(probes.nearest(*known))
            size = {"float32": 4 * count, "float16": 2 * count, "int8": count, "binary": -(-count // 8)}[dtype]
            found.append(
                {
                    "dimensions": count,
                    "dtype": dtype,
                    "bytes": size,
                    "linear": float(np.mean(linear)),
                    "knn": float(np.mean(near)),
                }
            )
            if progress is not None:
                progress(len(found), len(wanted), f"{count} dimensions, {dtype}")
    return found
