"""Is memory passed on? LSTM-128 -> LSTM-16 on three tasks that need one, five seeds, the same start for each arm.

    python benchmarks/memory.py                    # all, about a quarter of an hour on one core
    python benchmarks/memory.py --quick            # a look: two seeds, few steps
    python benchmarks/memory.py --record           # and keep it in benchmarks/records/<date>-memory/

The teacher is trained with every label and recorded once: its answers, its states h at every step, its cells c at every
few. Students read the store. Every arm gets the same search on validation, with the first seed: four learning rates;
then five seeds, each from the same start, in the same order, for as many steps. Nothing is chosen on test. Seeds are
others than those with which weights, rates and numbers of steps were tried out beforehand.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from memory_record import keep, summary, targets
from memory_tasks import (
    DELAY,
    ENOUGH,
    KINDS,
    LONGEST,
    SYMBOLS,
    Reader,
    Task,
    adding,
    copying,
    lengthened,
    rows,
    sequences,
    teach,
)

from stillroom import Learner, Live, Store, Training, fit, match, read, record
from stillroom.memory import Remembers, memory_of, recalled
from stillroom.objectives import Objective
from stillroom.randomness import permutation
from stillroom.statistics import over_seeds

TEACHER, STUDENT = 128, 16
SEEDS: tuple[int, ...] = (10, 11, 12, 13, 14)
RATES: tuple[float, ...] = (3.0e-3, 5.0e-3, 1.0e-2, 2.0e-2)
CORE = ("alone", "logits", "memory")
ARMS = ("alone", "logits", "memory-h", "memory", "memory+segments")
STATES, CELLS, SEGMENTS = 3.0, 1.5, 1.0  # weights beside 1 for the task and 1 for the answers


class Case(NamedTuple):
    """A task at a number of steps, its teacher's store and the arms to compare."""

    name: str
    title: str
    task: Task
    teacher: Reader
    store: Store
    steps: int
    arms: tuple[str, ...]


def objectives(task: Task, arm: str) -> list[Objective]:
    """Return what a student of ``arm`` is asked."""
    cells = f"memory@c/{task.border}"
    asked = [task.answering()]
    if arm != "alone":
        asked.append(task.imitating())
    if arm.startswith("memory"):
        asked.append(match("memory", student="memory@h", teacher="memory@h", weight=STATES, name="states"))
    if arm in ("memory", "memory+segments"):
        asked.append(match("memory_cells", student=cells, teacher=cells, weight=CELLS, name="cells"))
    if arm == "memory+segments":
        ends = [f"memory@segments.{part}/{task.border}" for part in "hc"]
        asked.append(match("memory_cells", student=ends, teacher=["memory@h", cells], weight=SEGMENTS, name="segments"))
    return asked


def student(case: Case, arm: str, rate: float, seed: int) -> Reader:
    """Return a trained student."""
    task, alone = case.task, arm == "alone"
    module = task.reader(STUDENT, seed)
    settings = Training(
        steps=case.steps, batch=task.alone if alone else task.distilled, lr=rate, warmup=0.05, clip=1.0,
        gradient_norms_every=0,
    )  # fmt: skip
    learner = Learner(module, objectives(task, arm))
    fit(learner, task.source, None if alone else case.store, settings, rows=task.rows, seed=seed)
    return module


def trained(case: Case, seeds: Sequence[int], rates: Sequence[float]) -> tuple[dict[str, Any], dict[str, list[Reader]]]:
    """Return what was found of each arm, and its students, one a seed."""
    found: dict[str, Any] = {}
    students: dict[str, list[Reader]] = {}
    for arm in case.arms:
        began = time.monotonic()
        tried = {rate: student(case, arm, rate, seeds[0]) for rate in rates}
        search = {rate: case.task.scored(module, "validation") for rate, module in tried.items()}
        best = max(search, key=lambda rate: search[rate])
        students[arm] = [tried[best], *(student(case, arm, best, seed) for seed in seeds[1:])]
        scores = [case.task.scored(module, "test") for module in students[arm]]
        found[arm] = {
            "rate": best,
            "search": {f"{rate:g}": score for rate, score in search.items()},
            "scores": scores,
            "score": over_seeds(scores).plain(),
            "seconds a student": (time.monotonic() - began) / (len(rates) + len(seeds) - 1),
        }
        shown = " ".join(f"{score:.4f}" for score in scores)
        print(f"  {case.name} {arm}: lr {best:g}, {shown} ({found[arm]['seconds a student']:.1f} s)", flush=True)
    return found, students


def remembered(case: Case, students: dict[str, list[Reader]], seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """Return memory capacity on independent inputs and the state's r2, of all; and of copy on its own sequences."""
    task = case.task
    models = {"teacher": [case.teacher], **students}
    models["random weights"] = [task.reader(STUDENT, seed) for seed in seeds]
    inputs = task.source.inputs[task.source.splits["test"]]
    asked = {name: [Remembers(one, path="memory") for one in listed] for name, listed in models.items()}
    found = memory_of(asked, inputs, rows=64 if quick else 256)
    assert found is not None
    if task.name.startswith("copy"):
        delay = LONGEST if task.name != "copy" else DELAY
        found["before the cue"] = {name: [before_cue(one, delay) for one in listed] for name, listed in models.items()}
    return found


def before_cue(module: Reader, delay: int) -> float:
    """Return how many of 9 numbers (3 symbols, 3 contrasts each) can be read from h after the last blank.

    The probe is fitted on the 32 sequences of the 64 whose symbols sum to an even number, in which every two symbols
    stand together equally often, and asked about the others.
    """
    every = torch.cartesian_prod(*[torch.arange(KINDS)] * SYMBOLS)
    halves = [every[every.sum(1) % 2 == odd] for odd in (0, 1)]
    symbols = torch.cat(
        [half[torch.from_numpy(permutation(len(half), 0, "cue", odd))] for odd, half in enumerate(halves)]
    )
    fed = sequences(symbols, delay)[:, : SYMBOLS + delay]
    with torch.no_grad():
        batch = {"id": torch.zeros(len(fed), 2, dtype=torch.int64), "inputs": fed}
        states = read(module, ["memory@state"])(batch)["memory@h"].flatten(2)
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    targets = torch.zeros(*fed.shape[:2], 3)
    targets[:, :SYMBOLS] = signs[symbols].float()
    return recalled(states.double().numpy(), targets.double().numpy(), fed.shape[1] - 1).total


def cases(names: Sequence[str], folder: str, quick: bool, taught: dict[str, Any]) -> Iterator[Case]:
    """Yield the cases, teaching and recording each teacher as it comes up; those beside the three tasks last."""
    makers = {"adding": adding, "copy": copying, "rows": rows}
    first = []
    for name in names:
        task = makers[name](quick)
        began = time.monotonic()
        teacher, log = teach(task, TEACHER, quick)
        store = recorded(task, teacher, f"{folder}/{task.name}")
        taught[task.name] = {"log": log, "test": task.scored(teacher, "test"), "seconds": time.monotonic() - began}
        print(f"{task.title}: teacher {taught[task.name]['test']:.4f} on test", flush=True)
        steps = 40 if quick else task.steps
        arms = ARMS if name == "rows" else ARMS[:-1]
        first.append(Case(task.name, f"{task.title}, {steps:,} steps", task, teacher, store, steps, arms))
        yield first[-1]
    for case in first:
        if case.name == "copy":
            yield from longer(case, folder, quick, taught)
        else:
            title = f"{case.task.title}, {3 * case.steps:,} steps"
            yield case._replace(name=f"{case.name}-long", title=title, steps=3 * case.steps, arms=CORE)


def longer(case: Case, folder: str, quick: bool, taught: dict[str, Any]) -> Iterator[Case]:
    """Yield the copy task at twice the delay, where the teacher followed there."""
    began = time.monotonic()
    task = copying(quick, LONGEST)
    older, log = lengthened(case.teacher, quick)
    taught[task.name] = {"log": log, "test": task.scored(older, "test")}
    print(f"{task.title}: teacher {taught[task.name]['test']:.4f} on test", flush=True)
    if quick or log[-1]["validation"] >= ENOUGH:
        store = recorded(task, older, f"{folder}/{task.name}")
        taught[task.name]["seconds"] = time.monotonic() - began
        yield Case(task.name, f"{task.title}, {case.steps:,} steps", task, older, store, case.steps, CORE)


def recorded(task: Task, teacher: Reader, folder: str) -> Store:
    """Return the teacher's answers and memory on the training rows, asked once."""
    taps = ["logits", f"memory@state/{task.border}"]
    return record(Live(teacher, taps), task.source, folder, splits=["train"], taps=taps)


def main() -> None:
    """Run the cases, print their tables, and keep them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, two rates, few steps")
    parser.add_argument("--record", action="store_true", help="keep the result under benchmarks/records/")
    parser.add_argument("--task", choices=["adding", "copy", "rows"], action="append", help="one task only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, seeds, rates = time.monotonic(), SEEDS, RATES
    if options.quick:
        seeds, rates = SEEDS[:2], RATES[1:3]
    told = " ".join(str(__doc__).split("\n\n")[2].split())
    command = " ".join(["python", "benchmarks/memory.py", *sys.argv[1:]])
    taught: dict[str, Any] = {}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.task or ["copy", "rows", "adding"], folder, options.quick, taught):
            arms, students = trained(case, seeds, rates)
            memory = remembered(case, students, seeds, options.quick)
            results[case.name] = {
                "title": case.title, "measure": case.task.measure, "steps": case.steps, "border": case.task.border,
                "teacher": taught[case.task.name], "arms": arms, "memory": memory,
            }  # fmt: skip
            print("\n".join(summary(results[case.name])), flush=True)
            if options.record:  # after every case: a run cut short leaves what it had
                keep(results, command, list(seeds), time.monotonic() - began, told)
    for row in targets(results):
        print(" | ".join(row))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
