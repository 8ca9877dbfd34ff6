"""What is said of attributions of any kind: whether their order matters, and whether they show the model at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.mining.attribution.faithful import MOST, helps
from stillroom.mining.panel import Budget
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.randomness import permutation

PILOT = 2  # examples that are timed first
PART = 64  # that are explained between two looks at the clock
SHOWN = 6
SURE = 20  # examples, below which a lead may be there and not be shown
ALIKE = 0.5  # rank correlation of two ways of asking, from which on they say much the same
LOOSE = 0.05  # of the difference that attributions should sum up to: more is an error to be told

Part = TypeVar("Part")


def drawn(subject: Subject, most: int) -> Tensor:
    """Return at most ``most`` of the test examples, at random."""
    examples = subject.examples("test")
    return examples[torch.from_numpy(permutation(len(examples), subject.seed, "attribution")[:most].copy())]


def afford(budget: Budget, most: int, share: float, work: Callable[[int], object]) -> int:
    """Return how many examples, at most ``most``, ``work`` can do in a share of what is left, from a few of them."""
    work(1)  # what is done once, such as finding memory, is not timed
    fit = first = min(PILOT, most)
    for pilot in (first, min(4 * PILOT, most)):  # more side by side take less each, so that a few say too much
        if fit < 4 * pilot and pilot > first:
            break
        began = time.perf_counter()
        work(pilot)
        fit = max(first, budget.rows(most, pilot, time.perf_counter() - began, share=share))
    return fit


def in_parts(budget: Budget, most: int, share: float, work: Callable[[int, int], Part]) -> list[Part]:
    """Return what ``work`` (start, end) gives for ``most`` examples, part by part, until a share of what is left is up.

    The first part is small, so that little is done where there is hardly any time; each later one is as large as the
    pace of the one before it lets hope.
    """
    began, allowed = time.perf_counter(), share * budget.left
    found: list[Part] = []
    done, size = 0, min(PILOT, most)
    while done < most:
        started = time.perf_counter()
        found.append(work(done, done + size))
        done += size
        now = time.perf_counter()
        fit = int((allowed - (now - began)) * size / max(1e-9, now - started))
        if fit < PILOT:
            break
        size = min(fit, 4 * size, PART, most - done)
    return found


def spread_out(shares: Tensor) -> list[int]:
    """Return which examples are shown, by no hand: the two surest answers, two in the middle, the two least sure."""
    order = shares.argsort(descending=True, stable=True).tolist()
    middle = len(order) // 2
    return list(dict.fromkeys([*order[:2], *order[max(0, middle - 1) : middle + 1], *order[-2:]]))[:SHOWN]


def trust(told: dict[str, Any], parts: str, method: str, completeness: float | None = None) -> Finding:
    """Say whether taking parts away in the order of attribution changes answers sooner than any order."""
    gone, back = told["deletion"], told["insertion"]
    good = {way: helps(told, way) for way in ("deletion", "insertion")}
    text = f"While {parts} are removed in the order of attribution, the answer keeps a probability of "
    text += f"{percent(gone['area'], 0)} on average, against {percent(gone['random'], 0)} in random order. While they "
    text += f"are put back in that order: {percent(back['area'], 0)} against {percent(back['random'], 0)}."
    if all(good.values()):
        text += f" So the answer depends on what is marked: removal works {1 / max(gone['ratio'], 1e-3):.1f} "
        text += "times as well as chance."
    elif any(good.values()):
        which = "removed" if good["deletion"] else "put back"
        text += f" The order is better than random only where {parts} are {which}: read what is marked with care."
    elif all(told[way]["gain"]["mean"] > 0 for way in good) and told["examples"] < SURE:
        text += f" With {told['examples']} examples this is not shown to be better than chance."
    else:
        text += " That is no better than random: do not rely on what is marked here."
    if completeness is not None and completeness > LOOSE:
        text += f" The attributions miss the difference they should sum to by {percent(completeness, 0)}."
    control = f"random orders of the same {parts}, at the same {told['examples']} examples."
    if completeness is not None:
        control += f" {method} should sum to the difference from the baseline: they miss it by "
        control += f"{100 * completeness:.2f} %."
    return Finding(
        "Whether these attributions can be trusted", text, gone["ratio"], control, _curves_figure(told, parts)
    )


def _curves_figure(told: dict[str, Any], parts: str) -> dict[str, Any]:
    across = [100 * share for share in told["shares"]]
    figures = []
    for way, title in (("deletion", f"{parts} removed"), ("insertion", f"{parts} put back")):
        series = [
            {"name": "by attribution", "x": across, "y": [100 * one for one in told[way]["curve"]]},
            {"name": "at random", "x": across, "y": [100 * one for one in told[way]["random_curve"]]},
        ]
        label = {"x_label": f"% of the {parts}", "y_label": "probability of the answer, %"}
        figures.append({"kind": "lines", "title": title.capitalize(), "series": series, **label})
    note = f"Mean probability of the first answer over {told['examples']} test examples."
    return {"kind": "panels", "figures": figures, "note": note}


def shows_the_model(found: dict[str, Any], what: str, of_input: str) -> Finding:
    """Say whether attributions would look the same if the weights were random."""
    size, signed, beyond = found["size"], found["signed"], found.get("beyond")
    title = f"Whether {what} show the model"
    control = "the same architecture with random weights, asked about the same examples and classes."
    if size is None or signed is None:
        return Finding(title, f"With so few parts it cannot be told whether {what} show the model.", None, control)
    text = f"The sizes of {what} have a rank correlation of {size:.2f} with those of random weights"
    if size <= MOST:
        text += f" (0.2 at most is asked): {what} change with the weights, so they show the model."
    else:
        text += f", more than the 0.2 that is asked: where {what} are strong shows the input as much as the model"
        text += f" ({of_input})."
        if beyond is not None:
            less = "little is left" if abs(beyond) <= MOST else "much is left even so"
            text += f" With that taken out {beyond:.2f} remains: {less}."
        if found.get("overall") is not None:
            text += f" Over all examples together the correlation is {found['overall']:.2f}."
        if abs(signed) <= MOST:
            text += f" With their signs they have nothing in common ({signed:.2f}): read the signs, not the outlines."
    rows = [{"name": "sizes", "mean": size}]
    rows += [{"name": "sizes, beyond the input", "mean": beyond}] if beyond is not None else []
    rows += [{"name": "sizes, all examples together", "mean": found["overall"]}] if found.get("overall") else []
    rows += [{"name": "with signs", "mean": signed}]
    return Finding(title, text, size, control, correlations(rows))


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figure of rank correlations with random weights, [{``name``, ``mean``}], beside the most allowed."""
    return {
        "kind": "dots",
        "x_label": "Spearman's rank correlation with random weights",
        "digits": 2,
        "zero": True,
        "rows": [{**row, "series": "the model"} for row in rows],
        "references": [{"name": "at most", "value": MOST}],
    }


def agreeing(finding: Finding, way: str, parts: str, alike: float | None) -> Finding:
    """Return the finding with how alike another ``way`` orders the ``parts`` of an example."""
    if alike is None:
        return finding
    word = "similarly" if alike >= ALIKE else "only loosely alike"
    told = f" Another method, {way}, orders the {parts} {word} (rank correlation {alike:.2f})."
    return replace(finding, sentence=finding.sentence + told)


def top_shares(subject: Subject, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first answers to inputs (B), and their shares (B), float64."""
    shares = subject.answer(inputs).double().softmax(1)
    best = shares.max(1)
    return best.indices, best.values


def halves(values: Sequence[float] | Tensor) -> int:
    """Return how many of the largest values make up half of their sum."""
    sizes = torch.as_tensor(values, dtype=torch.float64).flatten().sort(descending=True).values
    return int((sizes.cumsum(0) < 0.5 * sizes.sum()).sum()) + 1 if float(sizes.sum()) > 0 else 0
