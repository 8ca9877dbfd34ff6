"""Why it did not help: silent when it did, and each reason named when its numbers are there."""

from __future__ import annotations

import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.objectives import match
from stillroom.pipeline.plan import ArmPlan, Experiment
from stillroom.pipeline.reasons import why_not
from stillroom.settings import Training

SPLITS = {"train": torch.arange(80), "validation": torch.arange(80, 90), "test": torch.arange(90, 100)}
DATA = ArraySource(torch.randn(100, 3), torch.arange(100) % 4, splits=SPLITS)


def experiment(labels=None, temperature=4.0):
    arm = ArmPlan(
        "kd",
        lambda: [match("labels"), match("kd", temperature=temperature)],
        Training(steps=1),
        labels,
        lambda _: nn.Linear(3, 4),
        None,
        {},
        {},
    )
    return Experiment("x", DATA, {}, {"kd": arm}, [0])


def metrics(low, teacher=0.9, alone=0.8, agreement=0.95):
    score = {"teacher": teacher, "alone": alone, "distilled": alone}
    models = {name: {"score": {"mean": value}, "agreement": {"mean": agreement}} for name, value in score.items()}
    return {"score_gain": {"mean": low + 0.01, "low": low, "high": low + 0.02}, "models": models}


LOGITS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)) * 4


def reasons(*arguments, **more):
    finding = why_not(
        experiment(**more), metrics(*arguments[:1], **(arguments[1] if len(arguments) > 1 else {})), LOGITS
    )
    return finding.figure["text"] if finding else None


def test_nothing_is_said_when_it_helped_or_was_not_compared():
    assert why_not(experiment(), metrics(0.01), LOGITS) is None
    assert why_not(experiment(), {"models": {}}, LOGITS) is None
    assert why_not(experiment(), metrics(-0.01), None) is None


def test_a_gain_that_may_be_chance_is_explained():
    """The mean is above nought, and its interval is not: that is not the help which needs no reason."""
    assert metrics(-0.005)["score_gain"]["mean"] > 0 and "all 80 labels" in reasons(-0.005)
    assert reasons(-0.005, {"teacher": 0.8, "alone": 0.9}, labels=10).startswith("1. The teacher is weak")
    assert "not ahead of it (−10.0 points)" in reasons(-0.005, {"teacher": 0.8, "alone": 0.9})


def test_each_reason_is_named_by_its_numbers():
    assert "teacher is weak" in reasons(-0.01, {"teacher": 0.81})
    assert "all 80 labels" in reasons(-0.01) and "all 80 labels" not in (reasons(-0.01, labels=10) or "")
    assert "almost flat" in reasons(-0.01, labels=10, temperature=500.0)
    assert "almost always sure" in reasons(-0.01, labels=10, temperature=0.01)
    assert "more capacity" in reasons(-0.01, {"agreement": 0.6}, labels=10)
    assert "Nothing in this run explains it" in reasons(-0.01, labels=10)
