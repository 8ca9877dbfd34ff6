"""Which concepts a model thinks in: directions of its features, with examples, their class and what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import DataError, TapError
from stillroom.evaluate import plain_ids
from stillroom.mining.concepts.controls import axes, explained, found_again, principal, without_parts
from stillroom.mining.concepts.effects import effects
from stillroom.mining.concepts.findings import held, hung_on, shown
from stillroom.mining.concepts.parts import Parts, factored
from stillroom.mining.concepts.rows import Rows, read_all
from stillroom.mining.concepts.sparse import Sparse, fit
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.randomness import permutation
from stillroom.taps import read
from stillroom.taps.places import submodule

ENOUGH = 0.9  # of the variance of validation rows: the first sizes that hold it are taken
LESS = 0.7  # of what is unexplained, before the place where a sparse autoencoder begins is learnt too
SIZES = ((5, 2), (10, 2), (20, 2), (20, 4), (20, 8))  # directions, and how many of them a row uses
PARTS = (5, 10, 20)
STEPS, FEWEST, TIMED = 500, 100, 20  # of a fit
WIDE = 1024
PILOT = 1000  # rows that are taken apart for a trial
FITS, PARTINGS = 11, 5  # at most: fits of the sparse autoencoder, and NMF of all rows
ROWS, LEAST = 5000, 80  # that are fitted
PLAIN = 2500  # rows without parts that are fitted, and as many that are measured

Found = Sparse | Parts
Fit = Callable[..., Found]


def concepts(subject: Subject, budget: Budget, *, tap: str = "features") -> Panel:
    """Return directions of the features, what shows each, and what the answers lose without it.

    Two methods, side by side: a TopK sparse autoencoder, and a non-negative matrix factorisation where no feature is
    negative. Each is of the first sizes (5 to 20 directions) that hold 90 % of the variance of validation rows; fitted
    on training rows, measured on test rows. ``tap`` is where to look: vectors as they are, sequences averaged over
    their steps, maps of pictures place by place. What answers lose is asked at ``features`` alone, behind which only
    one layer comes (:func:`~stillroom.mining.concepts.effects.effects`).

    Controls: principal components; rows of equal mean and covariance, which have no parts; the other half of the rows,
    in which a direction should be found again; directions at random, anywhere and as the features vary.

    Raises:
        TapError: there is no such ``tap``; without features that can be read, a note says so.
    """
    if subject.module is None:
        return Panel("concepts", notes=["only the answers of this model are known, so it has no features to look at"])
    with _one_thread():
        return _looked_for(subject, budget, tap)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same numbers on every machine; on one that has other work, two threads that wait for each other take longer.

    Measured beside other work on two cores: 4 seconds on one thread, 141 on two.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _looked_for(subject: Subject, budget: Budget, tap: str) -> Panel:
    notes: list[str] = []
    try:
        layer = _last(subject) if tap == "features" else None
        train, validation, test = read_all(subject, tap, budget, notes)
    except (TapError, DataError) as error:
        if tap != "features":  # asked for by name
            raise
        return Panel("concepts", notes=[f"there are no features to look at: {error}"])
    rows, chosen_on = train.some(ROWS, subject.seed), validation.some(ROWS, subject.seed)
    if len(rows) < LEAST or rows.shape[1] < 3 or float(rows.var(0).sum()) <= 0:
        return Panel("concepts", notes=[f"features of shape {tuple(rows.shape)} are too few, or do not vary"])
    rows, steps = _afford(rows, budget, notes)
    methods = _methods(rows, chosen_on, test, steps, subject, budget, notes)
    numbers: dict[str, Any] = {"tap": tap, "rows": len(rows), "width": rows.shape[1], "methods": {}}
    for place, (name, (found, told)) in enumerate(methods.items()):
        budget.progress(len(methods) + place, 2 * len(methods), "what answers lose")
        if layer is not None:
            told["classes"] = effects(found, layer, rows, chosen_on, test.values, seed=subject.seed)
            for entry in told["classes"]:
                entry["class"] = subject.classes[entry["class"]]
        numbers["methods"][name] = told
    best = max(methods, key=lambda name: methods[name][1]["found_again"])
    numbers["shown"] = best
    numbers["concepts"] = _examples(
        methods[best][0], numbers["methods"][best], test, _answers(test, layer, subject), subject
    )
    findings = [held(numbers), shown(numbers, subject, test)]
    if numbers["methods"][best].get("classes"):
        findings.append(hung_on(numbers, subject))
    else:
        few = "no class is answered often enough for what it loses to be told"
        notes.append("what answers lose without a concept is asked of 'features' alone" if layer is None else few)
    return Panel("concepts", findings, numbers, notes=notes)


def _last(subject: Subject) -> nn.Module:
    """The layer that makes the logits."""
    batch = subject.data.batch(plain_ids(subject.examples("train")[:2]))
    place = read(subject.opened.eval(), ["features"], subject.encode).place_of_features(batch)
    return submodule(subject.opened, place.path)


def _methods(
    rows: Tensor, chosen_on: Tensor, test: Rows, steps: int, subject: Subject, budget: Budget, notes: list[str]
) -> dict[str, tuple[Found, dict[str, Any]]]:
    """Each method's fit, with what it is worth."""
    others = test.some(ROWS, subject.seed)
    plain = without_parts(rows, min(PLAIN, len(rows)) + min(PLAIN, len(others)), seed=subject.seed)
    components, width = axes(rows), rows.shape[1]
    tried: dict[str, list[Fit]] = {
        "sparse": [partial(fit, units=units, kept=kept, steps=steps) for units, kept in SIZES if kept < width]
    }
    if min(float(one.min()) for one in (rows, chosen_on, others)) >= 0:
        tried["parts"] = [partial(factored, units=units) for units in PARTS if units < width or units == PARTS[0]]
    else:
        notes.append("features are negative at times, so they are no sums of non-negative parts: no NMF")
    methods = {}
    for place, (name, ways) in enumerate(tried.items()):
        budget.progress(place, 2 * len(tried), "directions")
        found, way = _chosen(ways, rows, chosen_on, subject.seed)
        methods[name] = (found, _worth(found, way, rows, others, plain, components, subject.seed))
    return methods


def _chosen(ways: list[Fit], rows: Tensor, chosen_on: Tensor, seed: int) -> tuple[Found, Fit]:
    """The first way that holds enough of validation rows, else the last.

    Where a sparse autoencoder begins is learnt only if that leaves much less unexplained: it costs firmness.
    """

    def missed(found: Found) -> float:
        return 1 - explained(chosen_on, found.rebuilt(chosen_on), found.middle)

    for way in ways:
        found = way(rows, seed=seed)
        if missed(found) <= 1 - ENOUGH:
            break
    if isinstance(found, Sparse):
        freer = partial(way, moved=True)
        other = freer(rows, seed=seed)
        if missed(other) < LESS * missed(found):
            return other, freer
    return found, way


def _afford(rows: Tensor, budget: Budget, notes: list[str]) -> tuple[Tensor, int]:
    """As many rows as there is time to take apart, and how many steps each fit of an autoencoder may take."""
    timed = {}
    pilot, kept = rows[:PILOT], min(SIZES[-1][1], rows.shape[1])
    tries: dict[str, Callable[[], Found]] = {"sparse": lambda: fit(rows, SIZES[-1][0], kept, steps=TIMED)}
    if float(rows.min()) >= 0:
        tries["parts"] = lambda: factored(pilot, PARTS[1])
    for name, trial in tries.items():
        trial()  # the first time, what it needs is loaded
        began = time.perf_counter()
        trial()
        timed[name] = time.perf_counter() - began
    share = 0.45 * min(1.0, WIDE / rows.shape[1])  # what else wide features take grows with the cube of their width
    most = budget.rows(PARTINGS * len(rows), len(pilot), timed.get("parts", 0.0), share=share) // PARTINGS
    steps = budget.rows(FITS * STEPS, TIMED, timed["sparse"], share=share) // FITS
    if most < len(rows):
        most = max(PILOT, most)
        notes.append(f"to keep to the time, directions were looked for in {most:,} of {len(rows):,} rows")
    if steps < STEPS:
        notes.append(f"to keep to the time, the sparse autoencoder learnt for {max(FEWEST, steps)} steps, not {STEPS}")
    return rows[:most], max(FEWEST, min(STEPS, steps))


def _worth(
    found: Found, way: Fit, rows: Tensor, others: Tensor, plain: Tensor, components: Tensor, seed: int
) -> dict[str, Any]:
    """What a method's directions are worth, beside principal components and rows without parts."""
    codes = found.codes(rows) > 0
    at_a_time = found.kept if isinstance(found, Sparse) else len(found.directions)
    first, second = plain.split([min(PLAIN, len(rows)), len(plain) - min(PLAIN, len(rows))])
    chance = way(first, seed=seed)
    return {
        "directions": len(found.directions),
        "at_a_time": float(codes.sum(1).double().mean()),
        "explained": explained(others, found.rebuilt(others), found.middle),
        "principal_components": principal(others, rows.mean(0), components[-at_a_time:]),
        "compared_with": at_a_time,
        "by_chance": explained(second, chance.rebuilt(second), chance.middle),
        "dead": float((~codes.any(0)).double().mean()),
        "found_again": _again(way, rows, seed),
        "found_again_by_chance": _again(way, first, seed),
    }


def _again(way: Fit, rows: Tensor, seed: int) -> float:
    """The share of directions of one half of the rows that the other half, begun otherwise, has too."""
    order = torch.from_numpy(permutation(len(rows), seed, "concepts halves").copy())
    halves = order.split((len(rows) + 1) // 2)
    one, other = (way(rows[half], seed=seed + 1 + place) for place, half in enumerate(halves))
    return found_again(one.directions, other.directions)


def _examples(found: Found, told: dict[str, Any], test: Rows, given: Tensor, subject: Subject) -> list[dict[str, Any]]:
    """Each direction that is used: how much of what varies is its own, its classes, and the examples that show it."""
    codes = found.codes(test.values)
    whole = codes.square().sum().clamp(min=1e-12)
    entries = []
    for unit in range(codes.shape[1]):
        strength = codes[:, unit]
        if not bool((strength > 0).any()):
            continue
        sums = torch.zeros(len(subject.classes)).index_add_(0, given, strength)
        entries.append(
            {
                "unit": unit,
                "share": float((strength > 0).double().mean()),
                "weight": float(strength.square().sum() / whole),
                "mostly": subject.classes[int(sums.argmax())],
                "mostly_share": float(sums.max() / sums.sum()),
                "clear": bool(sums.max() >= max(0.5, 1.5 / len(sums)) * sums.sum()),  # the class's, not shared
                "classes": [one["class"] for one in told.get("classes", []) if one["unit"] == unit],
                "top": _top(strength, test),
            }
        )
    return sorted(entries, key=lambda entry: (-len(entry["classes"]), -float(entry["weight"])))


@torch.no_grad()
def _answers(test: Rows, layer: nn.Module | None, subject: Subject) -> Tensor:
    """The class that the model gives the example of each row."""
    if layer is not None:
        return torch.as_tensor(layer(test.values).argmax(1))
    own, place = test.examples.unique(return_inverse=True)
    return subject.answer(subject.inputs(own)).argmax(1)[place]


def _top(strength: Tensor, test: Rows, most: int = 6) -> list[int]:
    """The rows that use a unit most, one of each example."""
    found: dict[int, int] = {}
    for row in strength.argsort(descending=True, stable=True).tolist():
        if len(found) == most or float(strength[row]) <= 0:
            break
        found.setdefault(int(test.examples[row]), row)
    return list(found.values())
