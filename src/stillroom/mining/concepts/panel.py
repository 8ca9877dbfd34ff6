"""Which concepts a model thinks in: directions of its features, with examples, their class and what they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Finding
from stillroom.errors import TapError
from stillroom.evaluate import plain_ids
from stillroom.mining.concepts.sparse import Sparse, by_chance, drawn, explained, fit, principal
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.taps import read
from stillroom.taps.places import submodule

UNITS, KEPT = 24, 8
SHOWN, EXAMPLES, RANDOM = 8, 6, 16
AHEAD = 0.02  # of the variance, before the autoencoder is said to beat principal components


def concepts(subject: Subject, budget: Budget) -> Panel:
    """Return directions of the features, what shows each, and what the answers lose without it.

    A TopK sparse autoencoder is fitted on training rows and measured on test rows. A concept is taken away by
    subtracting what its unit adds to the features of the examples that use it; the layer that makes the logits is then
    run on the rest. Controls: random directions of the same lengths, also such as are spread as the features are, each
    with the class it moves most; as many principal components as units are used; rows without parts.
    """
    if subject.module is None:
        return Panel("concepts", notes=["only the answers of this model are known, so it has no features to look at"])
    train, test = subject.examples("train"), subject.examples("test")
    try:
        layer = _last(subject, train)
        rows, others = subject.show("features", train), subject.show("features", test)
    except TapError as error:
        return Panel("concepts", notes=[f"no layer makes the logits, so there are no features: {error}"])
    if rows.dim() != 2 or len(rows) < 2 * UNITS or min(KEPT, rows.shape[1]) < 2:
        return Panel("concepts", notes=[f"features of shape {tuple(rows.shape)} are too few or no rows of numbers"])
    found = fit(rows, UNITS, min(KEPT, rows.shape[1]), seed=subject.seed)
    entries = _effects(found, layer, others, subject)
    numbers: dict[str, Any] = {
        "units": UNITS,
        "used": found.kept,
        "explained": explained(others, found.rebuilt(others), found.middle),
        "principal_components": principal(rows, others, found.kept),
        "by_chance": by_chance(rows, UNITS, found.kept, seed=subject.seed),
        "dead": float(((found.codes(rows) > 0).sum(0) == 0).double().mean()),
        "concepts": entries,
    }
    return Panel("concepts", [_held(numbers), _shown(entries, subject, test)] if entries else [], numbers)


def _last(subject: Subject, examples: Tensor) -> nn.Module:
    """The layer that makes the logits."""
    reader = read(subject.opened.eval(), ["features"], subject.encode)
    place = reader._find_features(subject.data.batch(plain_ids(examples[:2])))
    return submodule(subject.opened, place.path)


@torch.no_grad()
def _effects(found: Sparse, layer: nn.Module, rows: Tensor, subject: Subject) -> list[dict[str, Any]]:
    """What each unit does to the class it speaks for, most first; changes of logits, beside random directions."""
    codes, before = found.codes(rows), layer(rows)
    chance = {kind: drawn(rows, RANDOM, like=kind == "spread", seed=subject.seed) for kind in ("random", "spread")}
    entries = []
    for unit, direction in enumerate(found.directions):
        users = (codes[:, unit] > 0).nonzero()[:, 0]
        if not len(users):
            continue
        size = codes[users, unit, None]
        moved = (before[users] - layer(rows[users] - size * direction)).mean(0)
        label = int(moved.argmax())
        most = {
            kind: [float((before[users] - layer(rows[users] - size * one)).mean(0).abs().max()) for one in ways]
            for kind, ways in chance.items()
        }
        top = codes[:, unit].argsort(descending=True, stable=True)[: min(EXAMPLES, len(users))]
        entries.append(
            {
                "unit": unit,
                "class": subject.classes[label],
                "effect": float(moved[label]),
                **{kind: sum(others) / len(others) for kind, others in most.items()},
                "share": len(users) / len(rows),
                "rows": top.tolist(),
            }
        )
    return sorted(entries, key=lambda entry: -float(entry["effect"]))


def _held(numbers: dict[str, Any]) -> Finding:
    own, plain = 100 * numbers["explained"], 100 * numbers["principal_components"]
    sentence = f"{numbers['used']} of {numbers['units']} directions at a time hold {own:.1f} % of the variance of what "
    sentence += f"enters the last layer; {100 * numbers['dead']:.0f} % of them are never used."
    chance = 100 * numbers["by_chance"]
    if own - max(plain, chance) < 100 * AHEAD:
        sentence += (
            " Principal components, or rows without any parts, are held about as well: read the directions as a "
        )
        sentence += "way of looking, not as parts that are really there."
    control = (
        f"As many principal components as are used at a time ({numbers['used']}): {plain:.1f} %. The same method on "
    )
    control += f"random rows of equal mean and covariance, which have no parts: {chance:.1f} %."
    rows = [
        {"name": "concepts", "mean": own},
        {"name": "principal components", "mean": plain},
        {"name": "rows without parts", "mean": chance},
    ]
    figure = {"kind": "dots", "unit": "%", "x_label": "variance explained", "rows": rows}
    return Finding("How much its concepts explain", sentence, numbers["explained"], control, figure)


def _shown(entries: list[dict[str, Any]], subject: Subject, test: Tensor) -> Finding:
    top = entries[0]
    times = top["effect"] / max(1e-9, top["random"])
    sentence = f"The concept that matters most speaks for '{top['class']}': without it the logit falls by "
    sentence += f"{top['effect']:.2f} where it is used, {times:.1f} times what a random direction does; the middle one "
    sentence += f"of {len(entries)} does {_middle(entries):.1f} times that."
    if times < 3:
        sentence += " That is too little to call it a part of how the model answers."
    elif top["effect"] < 2 * top["spread"]:
        sentence += f" But a direction drawn as the features vary does {top['effect'] / max(top['spread'], 1e-9):.1f} "
        sentence += "times less: what matters is that the features vary there, not that it is a part."
    items = []
    for entry in entries[:SHOWN]:
        for row in entry["rows"][: 3 if subject.kind == "image" else 2]:
            shown = subject.data.show(int(test[row]))
            what = {"text": shown} if isinstance(shown, str) else {"pixels": shown.tolist()}
            effect = [["logit", f"{-entry['effect']:.2f}"], ["random", f"{entry['random']:.2f}"]]
            items.append({**what, "caption": f"concept {entry['unit']}: {entry['class']}", "rows": effect})
    control = f"{RANDOM} random directions of the same lengths change that logit by {top['random']:.2f} on average."
    return Finding("What its concepts are", sentence, times, control, {"kind": "pictures", "items": items})


def _middle(entries: list[dict[str, Any]]) -> float:
    """The median over concepts of what one does beside a random direction."""
    return float(torch.tensor([entry["effect"] / max(entry["random"], 1e-12) for entry in entries]).median())
