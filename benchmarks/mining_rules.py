"""What are queries worth to rules? Trees of at most 16 leaves held against an MLP's answers, over repeated folds.

For each of 5 x 4 folds of scikit-learn's breast cancer a teacher (one hidden layer of 64, inputs brought to one scale)
learns from the fold's training rows. Three trees are grown alike, of at most 16 leaves each: on labels, on the
teacher's probabilities for the same rows, and on these and its answers to 4,000 queries made of them. Each is asked how
often it gives the teacher's answer to the held-out fold. The interval is Student's t over the repeats' means, since the
folds of one repeat share nearly all their rows.

    PYTHONPATH=src python benchmarks/mining_rules.py --out benchmarks/records/DATE-rules/result.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.rules.asking import ask
from stillroom.mining.rules.sizes import agreement, grow_all
from stillroom.randomness import permutation
from stillroom.statistics import over_seeds

LEAVES, FOLDS, REPEATS = 16, 5, 4
FIDELITY, LEAD = 0.95, 0.01  # the marks
SIZES = (4, 8, 16, 32, 64)


def teacher(rows: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """Train the network that rules are to answer for."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPClassifier((64,), alpha=1e-3, max_iter=200, random_state=seed)
        return make_pipeline(StandardScaler(), network).fit(rows, labels)


def fold(rows: np.ndarray, labels: np.ndarray, parts: tuple[np.ndarray, np.ndarray], seed: int) -> dict[str, Any]:
    """Return how far each tree agrees with the teacher on the held-out part."""
    train, held = parts
    model = teacher(rows[train], labels[train], seed)

    def answer(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.log(model.predict_proba(inputs.numpy()) + 1e-12)).float()

    order = train[permutation(len(train), seed, "kept for choosing")]
    splits = {"train": order[1:], "validation": order[:1], "test": held}  # no size is chosen here: one row is kept back
    data = ArraySource(rows, labels, classes=["malignant", "benign"], splits=splits)
    subject = Subject(data, answer=answer, seed=seed)
    ground = ask(subject, Budget(600))
    grown, _ = grow_all(ground, seed=seed)
    assert grown.labels is not None
    ways = {"labels": grown.labels, "rows": grown.rows, "queries": grown.both}
    return {
        "teacher": float((ground.held.top == labels[held]).mean()),
        "sizes": {
            str(size): {way: agreement(series.largest(size), ground.held) for way, series in ways.items()}
            for size in SIZES
        },
    }


def main() -> None:
    """Run all folds and print the marks, met or missed."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import RepeatedStratifiedKFold

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    values, labels = load_breast_cancer(return_X_y=True)
    rows, began, results = values.astype(np.float32), time.monotonic(), []
    folds = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=chosen.repeats, random_state=0)
    for number, parts in enumerate(folds.split(rows, labels)):
        results.append(fold(rows, labels, parts, number))
        at = results[-1]["sizes"][str(LEAVES)]
        print(number, {way: round(one, 3) for way, one in at.items()}, flush=True)

    def repeats(size: int, way: str, less: str = "") -> list[float]:
        found = [one["sizes"][str(size)] for one in results]
        apart = [one[way] - (one[less] if less else 0.0) for one in found]
        return [float(np.mean(part)) for part in np.split(np.array(apart), chosen.repeats)]

    summary: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "leaves": LEAVES, "folds": results}
    for size in SIZES:
        told = {way: over_seeds(repeats(size, way)).plain() for way in ("labels", "rows", "queries")}
        told |= {f"{way} - labels": over_seeds(repeats(size, way, "labels")).plain() for way in ("rows", "queries")}
        summary[str(size)] = told
        print(f"{size:3} leaves:", {name: round(100 * one["mean"], 2) for name, one in told.items()})
    at = summary[str(LEAVES)]
    for name, value, mark in (
        ("fidelity of the tree with queries", at["queries"]["mean"], FIDELITY),
        ("lead over the tree on labels", at["queries - labels"]["mean"], LEAD),
    ):
        print(f"{name}: {100 * value:.2f} (mark {100 * mark:.0f}): {'met' if value >= mark else 'MISSED'}")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(summary, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
