"""What needs no student at all: always one answer, and of texts TF-IDF with logistic regression on the same labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.data.splits import labelled_rows, labels_of
from stillroom.pipeline.making import reads_texts
from stillroom.pipeline.plan import ALONE, Experiment
from stillroom.train import Rows

MOST_TEXTS = 10_000  # labelled texts from which TF-IDF is left out: it is to take seconds
MOST_WORDS, MOST_WEIGHTS = 50_000, 2 * 10**7
# Chinese and Japanese have no spaces: there each character is a word.
WORD = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"


def baselines_of(experiment: Experiment, labels: Tensor) -> dict[str, Any]:
    """Return what is right on the test split without a network, by ``constant`` and, of texts, ``tfidf``.

    Both learn from the labelled training rows that the control sees, and nothing of them is chosen. ``labels`` are
    those of the test split.
    """
    data, control = experiment.data, experiment.arms.get(ALONE)
    seen = data if control is None else control.seen(data)
    rows = labelled_rows(data) if control is None else Rows.of(seen).labelled
    known = labels != UNLABELLED
    taught = labels_of(seen)[rows]
    taught = taught[taught != UNLABELLED]
    most = int(torch.bincount(taught if len(taught) else labels[known]).argmax())
    names = data.classes or ()
    name = str(names[most]) if most < len(names) else str(most)
    share = float((labels[known] == most).double().mean())
    found = {"constant": {"name": f"always '{name}'", "accuracy": share, "labels": len(taught)}}
    if control is not None and reads_texts(data):
        texts = _tfidf(experiment, rows, taught, data.splits["test"][known], labels[known])
        found |= {} if texts is None else {"tfidf": texts}
    return found


def _tfidf(experiment: Experiment, rows: Tensor, taught: Tensor, test: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Return how often TF-IDF of words and their pairs with logistic regression is right; None where it is no use."""
    classes = len(taught.unique())
    if len(rows) > MOST_TEXTS or len(rows) != len(taught) or classes < 2:
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    show = experiment.data.show
    words = TfidfVectorizer(
        token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, max_features=min(MOST_WORDS, MOST_WEIGHTS // classes)
    )
    try:
        inputs = words.fit_transform([str(show(row)) for row in rows.tolist()])
    except ValueError:  # there is not one word in them
        return None
    model = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, taught.numpy())
    right = model.predict(words.transform([str(show(row)) for row in test.tolist()])) == labels.numpy()
    return {"name": "TF-IDF + logistic regression", "accuracy": float(right.mean()), "labels": len(taught)}


def baseline_notes(found: Mapping[str, Any] | None, score: float) -> list[str]:
    """Say which baseline does as well as a student whose accuracy is ``score``, or better."""
    notes = []
    for key, one in (found or {}).items():
        if one["accuracy"] >= score:
            share = f"{100 * one['accuracy']:.1f} %"
            how = f"{one['name']} on the same labels" if key == "tfidf" else f"To answer {one['name']}"
            notes.append(f"{how} is right in {share} of cases, no less than the student.")
    return notes
