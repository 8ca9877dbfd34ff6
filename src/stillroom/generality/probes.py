"""Five ways to ask what features know, each from simple to read: numbers in, one number out, equal for equal seeds.

Features are (rows, dimensions), labels whole numbers from 0. Probes see training rows only; test rows are answered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stillroom.randomness import permutation

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of scikit-learn: one over the weight of the L2 penalty
FOLDS = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: the same numbers on every machine, and no quarrel between jobs."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        yield


def linear(
    train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, seed: int = 0
) -> tuple[NDArray[np.bool_], float]:
    """Return which test rows a logistic regression gets right, and its C, chosen by cross-validation on ``train``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=150, tol=1e-3))
    smallest = int(np.bincount(train_labels)[np.unique(train_labels)].min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if smallest < 2:
            found = probe.fit(train, train_labels)
            return found.predict(test) == test_labels, 1.0
        folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=seed)
        search = GridSearchCV(probe, {"logisticregression__C": list(STRENGTHS)}, cv=folds).fit(train, train_labels)
        return search.predict(test) == test_labels, float(search.best_params_["logisticregression__C"])


def nearest(
    train: Rows,
    train_labels: Labels,
    test: Rows,
    test_labels: Labels,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the accuracy of a vote of the nearest training rows by cosine, weighted by exp(cosine / temperature)."""
    close = _unit(test) @ _unit(train).T
    neighbours = min(neighbours, len(train))
    chosen = np.argpartition(-close, neighbours - 1, axis=1)[:, :neighbours]
    weights = np.exp((np.take_along_axis(close, chosen, 1) - 1) / temperature)
    votes = np.zeros((len(test), int(train_labels.max()) + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], train_labels[chosen]), weights)
    return float((votes.argmax(1) == test_labels).mean())


def few_shot(
    train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, shots: int, draws: int = 10, seed: int = 0
) -> list[float]:
    """Return the accuracy of the nearest class mean (cosine) from ``shots`` examples a class, for each draw of them.

    Features are centred and scaled by the drawn training rows' own mean and deviation over all training rows, which
    needs no labels. A class with fewer rows gives all it has.
    """
    middle, spread = train.mean(0), train.std(0) + 1e-6
    whole, asked = (train - middle) / spread, _unit((test - middle) / spread)
    classes = np.unique(train_labels)
    found = []
    for draw in range(draws):
        order = permutation(len(train), seed, "few-shot", shots, draw)
        means = [whole[order[train_labels[order] == one][:shots]].mean(0) for one in classes]
        answers = classes[(asked @ _unit(np.stack(means)).T).argmax(1)]
        found.append(float((answers == test_labels).mean()))
    return found


def clustering(test: Rows, test_labels: Labels, *, seed: int = 0) -> float:
    """Return the normalised mutual information of the labels with k-means on unit rows, a cluster a class."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    count = min(len(np.unique(test_labels)), len(test))
    found = KMeans(count, n_init=4, random_state=seed).fit_predict(_unit(test - test.mean(0)))
    return float(normalized_mutual_info_score(test_labels, found))


def retrieval(test: Rows, test_labels: Labels) -> dict[str, float]:
    """Return recall@1, recall@5 and mean average precision, each test row asking all others by cosine."""
    close = _unit(test) @ _unit(test).T
    np.fill_diagonal(close, -np.inf)
    order = np.argsort(-close, axis=1, kind="stable")[:, : len(test) - 1]
    same = test_labels[order] == test_labels[:, None]
    counts = same.sum(1)
    asked = counts > 0  # a class of one has nothing to find
    ranks = np.arange(1, same.shape[1] + 1)
    precision = np.cumsum(same, 1) / ranks
    average = (precision * same).sum(1)[asked] / counts[asked]
    return {
        "recall_at_1": float(same[asked, 0].mean()),
        "recall_at_5": float(same[asked, :5].any(1).mean()),
        "map": float(average.mean()),
    }


def _unit(rows: Rows) -> Rows:
    unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    return unit
