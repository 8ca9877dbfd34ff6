"""Precision: auto looks at the processor, and what was resolved stands in recipes, fingerprints and models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom import settings
from stillroom.errors import TrainError
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.pipeline import costing
from stillroom.recipe import read_recipe
from stillroom.settings import Training, resolved_precision
from stillroom.teachers import Live
from stillroom.train import train

RECIPE = {
    "data": {"use": "digits"},
    "teacher": {"model": "mlp", "train": {"steps": 1, "precision": "auto"}},
    "student": {"model": "mlp"},
    "objectives": [{"use": "labels"}, {"use": "kd"}],
    "record": {"precision": "auto"},
    "train": {"steps": 1, "precision": "auto"},
}


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def instructions(request, monkeypatch) -> bool:
    monkeypatch.setattr(settings, "has_bf16", lambda: request.param)
    return bool(request.param)


def test_auto_is_what_the_processor_multiplies_fast(instructions):
    expected = "bf16" if instructions else "float32"
    assert resolved_precision("auto") == Training(precision="auto").precision == expected
    assert Learner(nn.Linear(2, 2), ["labels"], precision="auto").precision == expected
    assert Live(nn.Linear(2, 2), precision="auto").precision == expected
    for named in ("float32", "bf16"):  # asked for by name it is taken as it is
        assert resolved_precision(named) == Training(precision=named).precision == named
    assert Training().precision == "float32"


def test_the_resolved_recipe_and_its_parts_hold_what_was_computed_in(instructions):
    read = read_recipe(RECIPE)
    expected = "bf16" if instructions else "float32"
    named = read_recipe(RECIPE, set=[f"{key}={expected}" for key in PLACES])
    assert [read.record.precision, read.train.precision, read.teacher.train.precision] == [expected] * 3
    assert "auto" not in read.to_yaml().replace("jobs: auto", "").replace("device: auto", "").replace(
        "connector: auto", ""
    ).replace("unit: auto", "")
    assert read.parts() == named.parts(), "so auto finds the same entry of the cache"


PLACES = ("train.precision", "teacher.train.precision", "record.precision")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu sse avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: bf16 in name only\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
    ],
)
def test_the_flags_of_the_processor_are_read(monkeypatch, text, expected):
    monkeypatch.setattr(settings.Path, "read_text", lambda *_, **__: text)
    assert settings.has_bf16.__wrapped__() is expected


@pytest.mark.parametrize("make", [lambda p: Learner(nn.Linear(2, 2), ["labels"], precision=p), resolved_precision])
def test_an_unknown_precision_is_refused_and_not_taken_for_bf16(make):
    with pytest.raises(TrainError, match="got 'fp16'.*auto, float32, bf16"):
        make("fp16")


def test_auto_without_instructions_trains_to_the_very_weights_of_float32(monkeypatch):
    monkeypatch.setattr(settings, "has_bf16", lambda: False)
    from stillroom.data.arrays import as_source

    rows = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    data = as_source((rows, (rows[:, 0] > 0.5).long()))
    ended = []
    for precision in ("auto", "float32"):
        torch.manual_seed(0)
        learner = Learner(nn.Linear(3, 2), [match("labels")])
        for _ in train(learner, data, None, Training(steps=3, batch=8, precision=precision)):
            pass
        ended.append([value.clone() for value in learner.student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))


class Planned:
    """As much of an experiment as a warning looks at."""

    def __init__(self, precision: str = "float32", training: Training | None = None) -> None:
        self.precision, self.arms = precision, {}
        self.teachers = {"": type("Plan", (), {"training": training})()}


def test_bf16_by_name_is_warned_of_with_a_measured_factor(monkeypatch, instructions):
    monkeypatch.setattr(costing, "has_bf16", lambda: instructions)
    monkeypatch.setattr(costing, "bf16_factor", lambda: 7.94)
    for asked in (Planned("bf16"), Planned(training=Training(precision="bf16"))):
        told = costing.slow_precision(asked)
        assert (told is None) if instructions else ("7.9 times slower than float32" in told and "auto" in told)
    assert costing.slow_precision(Planned()) is None


def test_the_factor_is_measured():
    assert 0.02 < costing.bf16_factor() < 200
