"""A soft tree of a model's pictures: what is said of it, its filters drawn, and the same tree on labels beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from stillroom.contracts import UNLABELLED, Finding
from stillroom.mining.panel import Budget
from stillroom.mining.rules.asking import Ground, Told
from stillroom.mining.rules.soft_tree import LEVELS, Grown, filters, level_for, train
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent

DRAWN = 3  # levels whose filters are drawn
NAMED = 4  # classes that a caption names
SHARE = 0.6  # of the time that is left, for both trees: what else runs on the machine may slow them down

Drawn = tuple[list[Finding], dict[str, Any], dict[str, bytes], list[str]]


def soft(subject: Subject, ground: Ground, budget: Budget) -> Drawn:
    """Return findings, numbers, files and notes of a soft tree on the model's answers."""
    both = ground.both
    assert both.pixels is not None and ground.rows.pixels is not None
    answers = torch.from_numpy(both.answers).float()
    known = ground.rows.labels != UNLABELLED
    trees = 2 if known.any() else 1
    level = level_for(both.pixels, answers, SHARE * budget.left / trees) if budget.left > 1 else None
    if level is None:
        return [], {}, {}, ["There was no time left for a soft tree."]
    steps, depth = level
    budget.progress(0, trees, "soft tree")
    tree = train(both.pixels, answers, steps=steps, depth=depth, seed=subject.seed)
    alike = None
    if known.any():
        budget.progress(1, trees, "soft tree")
        labels = torch.nn.functional.one_hot(torch.from_numpy(ground.rows.labels[known]), answers.shape[1]).float()
        pixels = ground.rows.pixels[torch.from_numpy(known)]
        alike = train(pixels, labels, steps=steps, depth=depth, seed=subject.seed)
    numbers = {
        "depth": depth,
        "steps": steps,
        "leaves_used": tree.leaves_used(_pixels(ground.held)),
        "fidelity": agreement(tree, ground.held),
        "fidelity_queries": agreement(tree, ground.held_queries),
        "labels_only": None if alike is None else agreement(alike, ground.held),
        "labels_only_queries": None if alike is None else agreement(alike, ground.held_queries),
    }
    said = []
    if steps < LEVELS[0][0]:
        said.append(
            f"The soft tree was trained for {steps:,} steps at depth {depth}, not {LEVELS[0][0]:,} at {LEVELS[0][1]}: "
            "more would not fit the time."
        )
    weights = {name: value.contiguous() for name, value in tree.tree.state_dict().items()}
    files = {"soft_tree.safetensors": save(weights | {"middle": tree.middle, "scale": torch.tensor(tree.scale)})}
    return [_finding(subject, ground, tree, numbers)], numbers, files, said


def agreement(tree: Grown, told: Told) -> float:
    """Return the share of ``told`` for which the likeliest leaf answers the model's class."""
    return float((tree.answer(_pixels(told)) == told.top).mean())


def _pixels(told: Told) -> torch.Tensor:
    assert told.pixels is not None
    return told.pixels


def _finding(subject: Subject, ground: Ground, tree: Grown, numbers: dict[str, Any]) -> Finding:
    own, held = numbers["fidelity"], ground.held
    sentence = (
        f"A soft decision tree of {2**tree.depth - 1} questions, each a filter over the picture, gives the model's "
        f"answer on {percent(own)} of {len(held):,} {ground.split} pictures (by its likeliest leaf), and on "
        f"{percent(numbers['fidelity_queries'])} of the noisy queries. Below are its first questions: brightness in "
        "the red part of a filter sends a picture one way, in the blue part the other."
    )
    control = "No labels are known, so there is no tree on labels to compare with."
    if (alike := numbers["labels_only"]) is not None:
        gap = 100 * (own - alike)
        rest = 196 / np.sqrt(len(held)) * np.sqrt(max(own * (1 - own), alike * (1 - alike)) * 2)
        word = "more than chance explains" if abs(gap) > rest else "no clear difference"
        control = (
            f"The same tree trained on labels alone agrees on {percent(alike)} ({gap:+.1f} points for the model's "
            f"answers: {word}), and on {percent(numbers['labels_only_queries'])} of the queries."
        )
    return Finding("A soft tree and what its questions look at", sentence, own, control, _drawn(subject, ground, tree))


def _drawn(subject: Subject, ground: Ground, tree: Grown) -> dict[str, Any]:
    """Return the filters of the first levels as pictures, with the classes that each sends either way."""
    drawn = filters(tree)
    with torch.no_grad():
        _, levels = tree.tree.paths(tree.prepared(_pixels(ground.held)))
    top = ground.held.top
    items = []
    for level, (reached, turned) in enumerate(levels[: min(DRAWN, tree.depth)]):
        for place in range(reached.shape[1]):
            node = 2**level - 1 + place
            here, right = reached[:, place].numpy(), turned[:, place].numpy()
            sides = []
            for share in (here * right, here * (1 - right)):
                weight = np.bincount(top, weights=share, minlength=len(subject.classes))
                chosen = [
                    one for one in np.argsort(-weight, kind="stable")[:NAMED] if weight[one] >= 0.1 * weight.sum()
                ]
                sides.append(", ".join(str(subject.classes[one]) for one in chosen if weight.sum() > 0) or "nobody")
            items.append(
                {
                    "pixels": drawn[node].tolist(),
                    "caption": f"question {node + 1}",
                    "rows": [["red", sides[0]], ["blue", sides[1]], ["reached by", percent(float(here.mean()))]],
                }
            )
    note = "Question 1 comes first; after question n come 2n (blue) and 2n + 1 (red)."
    return {"kind": "pictures", "items": items, "title": "Filters of a soft tree", "note": note}
