"""Tables: which columns an answer hangs on, and which way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.data.csv_files import csv_bytes
from stillroom.errors import UserError
from stillroom.mining.attribution.faithful import curves, faithfulness, randomisation, rank_correlation
from stillroom.mining.attribution.findings import (
    afford,
    agreeing,
    drawn,
    halves,
    shows_the_model,
    spread_out,
    top_shares,
    trust,
)
from stillroom.mining.attribution.gradients import Score, centred, error, integrated
from stillroom.mining.attribution.removal import Ask, occlusion, shapley
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.randomness import permutation

MOST, CHECKED = 200, 100  # rows that are explained; of them, whose columns are taken away
DRAWS, FILLED = 20, 5  # training rows that stand in for a column: in Shapley values, in curves
LISTED, NAMED = 15, 4  # columns in the figure; of a row that is shown
ORDER = ("most", "second", "third", "fourth")
SAMPLED = 1000  # training rows that the stand-ins are drawn from, and whose mean is a baseline
CLEAR = 0.3  # correlation of a column with its effect, from which on it has a direction


class Effects(NamedTuple):
    """Rows (N, columns) of a table that are explained: their answers, and what each column adds, with its halves."""

    inputs: Tensor
    classes: Tensor
    shares: Tensor
    values: Tensor
    halves: Tensor
    background: Tensor


def rows_of_a_table(subject: Subject, budget: Budget) -> Panel:
    """Return which columns a model of tables looks at; see stillroom.mining.attribution.panel.attribution."""
    found = _explained(subject, budget)
    names = names_of(subject, found.inputs.shape[1])
    share = _shares(found.values)
    numbers: dict[str, Any] = {
        "kind": "table",
        "examples": len(found.inputs),
        "draws": len(found.background),
        "method": "sampled Shapley values against training rows",
        "columns": [
            {"name": name, "share": float(share[place]), **_direction(subject, found, place, name)}
            for place, name in enumerate(names)
        ],
        "half": halves(share),
        "stable": rank_correlation(*(one.abs().mean(0)[None] for one in found.halves)),
    }
    notes: list[str] = []
    twin = None
    if subject.module is not None:
        twin = _twin(subject, found, budget)
        numbers["random_weights"] = _compared(subject, found, twin)
        if _numeric(subject):
            numbers["integrated_gradients"] = _gradients(subject, found, notes)
    numbers["faithfulness"], numbers["one_at_a_time"] = _checked(subject, found, budget)
    findings = [_overall(subject, numbers, twin, names), _six(subject, found, names)]
    findings.append(_trust(numbers))
    if twin is not None:
        why = "a value far from the mean has a large effect with any weights"
        findings.append(shows_the_model(numbers["random_weights"], "these effects", why))
    if len(found.inputs) < min(MOST, len(subject.examples("test"))):
        notes.append(f"{len(found.inputs)} rows were explained, to keep to the time")
    return Panel("attribution", findings, numbers, {"effects.csv": _csv(subject, found, names)}, notes)


def names_of(subject: Subject, count: int) -> list[str]:
    """Return the names of a table's columns."""
    names = getattr(subject.data, "names", None)
    return [str(one) for one in names] if names is not None else [f"column {place}" for place in range(count)]


# --- asking --------------------------------------------------------------------------------------------


def _score(subject: Subject, classes: Tensor, shape: Sequence[int]) -> Score:
    """The centred logarithm of each row's own class; ``shape`` is what a row of the source has."""

    def score(points: Tensor, rows: Tensor) -> Tensor:
        logits = subject.answer(points.to(_kind(subject)).unflatten(1, tuple(shape)))
        return centred(logits.double().log_softmax(1), classes[rows])

    return score


def _kind(subject: Subject) -> torch.dtype:
    return subject.inputs(subject.examples("train")[:1]).dtype


def _explained(subject: Subject, budget: Budget) -> Effects:
    inputs = subject.inputs(drawn(subject, MOST))
    classes, shares = top_shares(subject, inputs)
    rows, background = inputs.flatten(1), _background(subject)[:DRAWS]
    score = _score(subject, classes, inputs.shape[1:])
    count = afford(budget, len(rows), 0.4, lambda n: shapley(score, rows[:n], background, subject.seed))
    values, each = shapley(score, rows[:count], background, subject.seed)
    return Effects(inputs[:count], classes[:count], shares[:count], values, each, background)


def _background(subject: Subject) -> Tensor:
    """Training rows in random order, flat; their number is even."""
    train = subject.examples("train")
    order = torch.from_numpy(permutation(len(train), subject.seed, "background")[:SAMPLED].copy())
    if len(order) < DRAWS:
        order = order.repeat(-(-DRAWS // len(order)))
    return subject.inputs(train[order]).flatten(1)


def _twin(subject: Subject, found: Effects, budget: Budget) -> Tensor:
    other = subject.randomised(subject.seed)
    score, rows = _score(other, found.classes, found.inputs.shape[1:]), found.inputs.flatten(1)
    count = afford(budget, len(rows), 0.4, lambda n: shapley(score, rows[:n], found.background, subject.seed))
    return shapley(score, rows[:count], found.background, subject.seed)[0]


def _compared(subject: Subject, found: Effects, twin: Tensor) -> dict[str, Any]:
    """How alike effects are to those of random weights, row by row, and of all rows together."""
    own, contrast = found.values[: len(twin)], None
    if _numeric(subject):
        train = _background(subject).double()
        contrast = ((found.inputs[: len(twin)].flatten(1) - train.mean(0)) / train.std(0).clamp(min=1e-12)).abs()
    told = randomisation(own, twin, contrast=contrast)
    told["overall"] = rank_correlation(own.abs().mean(0)[None], twin.abs().mean(0)[None])
    return {**told, "shares": _shares(twin).tolist()}


def _numeric(subject: Subject) -> bool:
    return not getattr(subject.data, "categories", None) and _kind(subject).is_floating_point


def _gradients(subject: Subject, found: Effects, notes: list[str]) -> dict[str, Any] | None:
    """Integrated gradients from the mean of training rows: another way to the same, where all columns are numbers."""
    shape = found.inputs.shape[1:]
    mean = _background(subject).double().mean(0).to(found.inputs.dtype).unflatten(0, tuple(shape))

    def score(points: Tensor, rows: Tensor) -> Tensor:
        return centred(subject.forward(points), found.classes[rows])

    try:
        values, ends = integrated(score, found.inputs, mean)
    except (RuntimeError, UserError) as problem:
        notes.append(f"it gives no gradients with respect to its columns ({str(problem).splitlines()[0][:120]})")
        return None
    flat = values.flatten(1)
    return {
        "completeness": error(flat, ends),
        "overall": rank_correlation(flat.abs().mean(0)[None], found.values.abs().mean(0)[None]),
        "each": rank_correlation(flat, found.values),
    }


def _checked(subject: Subject, found: Effects, budget: Budget) -> tuple[dict[str, Any], float | None]:
    """Curves of what is taken away in order, and how alike the order is to what each column changes by itself."""
    rows, shape = found.inputs.flatten(1), tuple(found.inputs.shape[1:])
    fill = _background(subject)[-FILLED:]  # from the far end: others than those the values were measured on

    def one(which: Tensor, keep: Tensor) -> Tensor:
        mixed = torch.where(keep[:, None], rows[which][:, None], fill)
        shares = subject.answer(mixed.flatten(0, 1).unflatten(1, shape)).double().softmax(1)
        return shares.unflatten(0, (len(which), len(fill))).mean(1)

    ask: Ask = one
    counts = torch.full((len(rows),), rows.shape[1])

    def work(count: int) -> tuple[dict[str, Any], float | None]:
        given = found.values[:count], counts[:count], found.classes[:count]
        without = occlusion(ask, counts[:count], found.classes[:count])[0]
        return faithfulness(curves(ask, *given, subject.seed)), rank_correlation(found.values[:count], without)

    return work(afford(budget, min(CHECKED, len(rows)), 0.8, work))


# --- saying --------------------------------------------------------------------------------------------


def _shares(values: Tensor) -> Tensor:
    size = values.double().abs().mean(0)
    return size / size.sum().clamp(min=1e-12)


def _direction(subject: Subject, found: Effects, place: int, name: str) -> dict[str, Any]:
    """Which class more of a number, or which category most, speaks for; only where there are two classes."""
    if len(subject.classes) != 2:
        return {}
    toward = torch.where(found.classes == 1, 1.0, -1.0).double() * found.values[:, place]
    column = found.inputs.flatten(1)[:, place].double()
    texts = (getattr(subject.data, "categories", None) or {}).get(name)
    if texts is not None:
        means = {code: float(toward[column == code].mean()) for code in column.unique().long().tolist()}
        first = {
            side: max(means, key=lambda code: (1 if side else -1) * means[code])
            for side in (0, 1)
            if any((value > 0) == bool(side) and value != 0 for value in means.values())
        }
        return {"for": {subject.classes[side]: str(texts[code]) for side, code in first.items()}}
    alike = rank_correlation(column[None], toward[None])
    if alike is None or abs(alike) < CLEAR:
        return {"correlation": alike}
    return {"correlation": alike, "more_for": subject.classes[int(alike > 0)]}


def _told(column: dict[str, Any]) -> str:
    if "more_for" in column:
        return f"more speaks for '{column['more_for']}'"
    if column.get("for"):
        return ", ".join(f"'{text}' speaks for '{name}'" for name, text in column["for"].items())
    return ""


def _overall(subject: Subject, numbers: dict[str, Any], twin: Tensor | None, names: list[str]) -> Finding:
    columns = sorted(numbers["columns"], key=lambda column: -column["share"])
    top, even = columns[0], 1 / len(columns)
    sentence = f"Its answers depend most on '{top['name']}': {percent(top['share'])} of all effects"
    sentence += f" ({_told(top)})" if _told(top) else ""
    sentence += f". {numbers['half']} of {len(columns)} columns make up half of them"
    if len(columns) > 1:
        sentence += f"; next: {', '.join(repr(column['name']) for column in columns[1:NAMED])}"
    sentence += "."
    if top["share"] > 0.5 and len(columns) > 2:
        sentence += " One column decides more than all others together: check that it does not leak the answer."
    stable = numbers["stable"]
    if stable is not None and stable < 0.8:
        sentence += " The order of the columns is uncertain: the rank correlation of two halves of the draws is only "
        sentence += f"{stable:.2f}."
    shown = columns[:LISTED]
    series = [{"name": "the model", "values": [100 * column["share"] for column in shown]}]
    control = f"an even share: {percent(even)}"
    if twin is not None:
        other = dict(zip(names, numbers["random_weights"]["shares"], strict=True))
        series.append({"name": "random weights", "values": [100 * other[column["name"]] for column in shown]})
        control += f"; random weights: {percent(other[top['name']])} for '{top['name']}'"
    note = f"Mean size of sampled Shapley values of {numbers['examples']} test rows ({numbers['draws']} training rows "
    note += "stand in for what is taken away), as a share of all."
    note += f" {len(columns)} columns in all." if len(columns) > LISTED else ""
    figure = {
        "kind": "bars",
        "labels": [column["name"] for column in shown],
        "series": series,
        "unit": "%",
        "horizontal": True,
        "note": note,
    }
    return Finding("What it looks at", sentence, top["share"], control + ".", figure)


def _six(subject: Subject, found: Effects, names: list[str]) -> Finding:
    rows, count = [], min(NAMED, len(names))
    for row in spread_out(found.shares):
        values, flat = found.values[row], found.inputs[row].flatten()
        order = values.abs().argsort(descending=True, stable=True)[:count].tolist()
        place = int(found.classes[row])
        cells = [f"{_cell(subject, names[one], float(flat[one]))} ({float(values[one]):+.2f})" for one in order]
        rows.append([f"{subject.classes[place]} {100 * float(found.shares[row]):.0f} %", *cells])
    sentence = "In parentheses: what each column's value adds to the logit of the answer, compared with training rows. "
    sentence += "Positive values speak for the answer, negative ones against it; the strongest column comes first."
    note = "Not chosen by hand: the two surest answers, two in the middle, the two least sure."
    heads = [{"name": name} for name in ("answer", *ORDER[:count])]
    figure = {"kind": "table", "columns": heads, "rows": rows, "note": note}
    control = f"{len(found.background)} training rows, whose values stand in for those that are taken away."
    return Finding("Six answers, and what they depend on", sentence, None, control, figure)


def _cell(subject: Subject, name: str, value: float) -> str:
    texts = (getattr(subject.data, "categories", None) or {}).get(name)
    return f"{name} = {texts[int(value)] if texts is not None else f'{value:.4g}'}"


def _trust(numbers: dict[str, Any]) -> Finding:
    told = numbers.get("integrated_gradients")
    finding = trust(numbers["faithfulness"], "columns", "Integrated gradients", told and told["completeness"])
    finding = agreeing(finding, "integrated gradients", "columns", told and told["each"])
    return agreeing(finding, "taking away one column at a time", "columns", numbers["one_at_a_time"])


def _csv(subject: Subject, found: Effects, names: list[str]) -> bytes:
    rows = zip(found.classes.tolist(), found.values.tolist(), strict=True)
    return csv_bytes(
        ["answer", *names],
        ([subject.classes[place], *(f"{value:.6g}" for value in values)] for place, values in rows),
    )
