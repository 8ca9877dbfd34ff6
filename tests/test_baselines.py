"""What needs no student: always one answer, and TF-IDF with logistic regression on the control's labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.data.texts import TextSource
from stillroom.objectives import match
from stillroom.pipeline import baselines
from stillroom.pipeline.baselines import baseline_notes, baselines_of
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment
from stillroom.pipeline.verdict import test_labels as labels_of_test
from stillroom.settings import Training

GOOD, BAD = (
    ["fine warm lovely film", "lovely acting and warm music"],
    ["dull cold awful film", "awful acting, cold music"],
)


def texts(train, test, labels):
    rows = [*train, *test]
    splits = {"train": range(len(train)), "validation": [], "test": range(len(train), len(rows))}
    return TextSource(rows, labels, splits={name: torch.tensor(list(part)) for name, part in splits.items()},
                      classes=["bad", "good"])  # fmt: skip


def experiment(data, labels=None, control=True):
    def arm(name):
        return ArmPlan(
            name, lambda: [match("labels")], Training(steps=1), labels, lambda _: nn.Linear(2, 2), None, {}, {}
        )

    names = [ALONE, "kd"] if control else ["kd"]
    return Experiment("x", data, {}, {name: arm(name) for name in names}, [0])


def test_the_constant_answer_is_the_training_sets_most_frequent_class():
    data = ArraySource(torch.zeros(20, 2), torch.tensor([0] * 6 + [1] * 4 + [1] * 6 + [0] * 2 + [UNLABELLED] * 2),
                       splits={"train": torch.arange(10), "validation": torch.arange(0), "test": torch.arange(10, 20)},
                       classes=["x", "y"])  # fmt: skip
    found = baselines_of(experiment(data), labels_of_test(data))
    assert found == {"constant": {"name": "always 'x'", "accuracy": 2 / 8, "labels": 10}}


def test_texts_are_told_by_their_words():
    train, labels = [f"{text} {number}" for number in range(10) for text in (*GOOD, *BAD)], [1, 1, 0, 0] * 10
    test = ["a warm, lovely evening", "cold and awful", "lovely", "awful"]
    data = texts(train, [*test, "awful, of an unknown class"], [*labels, 1, 0, 1, 1, UNLABELLED])
    found = baselines_of(experiment(data), labels_of_test(data))
    assert found["tfidf"] == {"name": "TF-IDF + logistic regression", "accuracy": 3 / 4, "labels": 40}
    assert "tfidf" not in baselines_of(experiment(data, control=False), labels_of_test(data))


def test_words_of_test_texts_take_no_place_among_the_words(monkeypatch):
    """Room for two words: those of the training texts, however often others stand in the test split."""
    monkeypatch.setattr(baselines, "MOST_WORDS", 2)
    data = texts(["good", "bad"] * 10, ["good film film plot plot", "bad film film plot plot"] * 10, [1, 0] * 20)
    assert baselines_of(experiment(data), labels_of_test(data))["tfidf"]["accuracy"] == 1.0


def test_only_the_labels_of_the_control_are_read():
    """Words of the class 'good' change their meaning outside the few rows whose labels the student sees."""
    data = texts([f"{text} {number}" for number in range(10) for text in (*GOOD, *BAD)], ["warm lovely", "cold awful"],
                 [1, 1, 0, 0] * 10 + [1, 0])  # fmt: skip
    few = experiment(data, labels=6)
    seen = few.arms[ALONE].seen(data)
    hidden = data.labels.clone()
    hidden[:40] = 1 - hidden[:40]
    hidden[seen.labelled] = data.labels[seen.labelled]
    found = baselines_of(few, labels_of_test(data))
    assert found["tfidf"]["labels"] == 6 and found["tfidf"]["accuracy"] == 1.0
    turned = texts([data.show(row) for row in range(40)], ["warm lovely", "cold awful"], [*hidden[:40].tolist(), 1, 0])
    everything = baselines_of(experiment(turned), labels_of_test(turned))
    assert everything["tfidf"]["accuracy"] == 0.0, "with all labels the words mean the other"


def test_chinese_is_read_by_characters():
    words = baselines.WORD
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(token_pattern=words, ngram_range=(1, 2)).build_analyzer()("很好 fine2")
    assert found == ["很", "好", "fine2", "很 好", "好 fine2"]


@pytest.mark.parametrize(
    ("train", "labels"),
    [(["?!", "..."] * 2, [0, 1] * 2), (["one word", "two words"], [1, 1])],
    ids=["words", "classes"],
)
def test_where_it_cannot_be_learnt_it_is_left_out(train, labels):
    data = texts([f"{text} " * (1 + place) for place, text in enumerate(train)], ["..."], [*labels, 1])
    assert set(baselines_of(experiment(data), labels_of_test(data))) == {"constant"}


def test_many_texts_are_left_out(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_TEXTS", 3)
    data = texts(["a b", "c d", "e f", "g h"], ["a"], [0, 1, 0, 1, 0])
    assert set(baselines_of(experiment(data), labels_of_test(data))) == {"constant"}


def test_a_student_that_is_no_better_is_told_so():
    found = {"constant": {"name": "always 'no'", "accuracy": 0.9}, "tfidf": {"name": "TF-IDF", "accuracy": 0.95}}
    assert baseline_notes(found, 0.96) == [] == baseline_notes(None, 0.1)
    assert baseline_notes(found, 0.94) == [
        "TF-IDF on the same labels is right in 95.0 % of cases, no less than the student."
    ]
    assert "To answer always 'no' is right in 90.0 % of cases" in baseline_notes(found, 0.9)[0]
