"""Looking at gradients: the cosine and the ratio that a step tells are those of the two sides, and change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.gradients.looking import Looking
from stillroom.gradients.sides import pull_of, sides_of
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.settings import Training
from stillroom.teachers import Live
from stillroom.train import train

DATA = ArraySource(
    torch.randn(40, 5, generator=torch.Generator().manual_seed(0)),
    torch.arange(40) % 3,
    splits={"train": torch.arange(40)},
)
BATCH = DATA.batch(torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.int64)], 1))


def network(seed, hidden=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def learner(*objectives):
    made = Learner(network(1), list(objectives))
    teacher = Live(network(2, 7), [str(place.tap) for place in made.teacher_places])
    if made.teacher_places:
        made.size(BATCH, teacher(BATCH))
    return made, teacher


def steps_of(settings, *objectives):
    made, teacher = learner(*objectives)
    return list(train(made, DATA, teacher if made.teacher_places else None, settings))


def asked():
    return "labels", match("l2", weight=0.01), match("kd", weight=2.0), match("hint", student="1", teacher="1")


def test_a_look_finds_what_the_two_sides_say():
    """Several terms a side, a connector among them: looked at term by term, or side by side."""
    made, teacher = learner(*asked())
    told = teacher(BATCH)
    looked = Looking(made)(0, made(BATCH, told), made.weights())
    found = pull_of(sides_of(made, made(BATCH, told), made.weights()))
    assert looked.pull.cosine == pytest.approx(found.cosine, rel=1e-4)
    assert looked.pull.ratio == pytest.approx(found.ratio, rel=1e-4)
    assert set(looked.norms) == {"labels", "l2", "kd", "hint"} and looked.notes == ()


@pytest.mark.parametrize(("often", "at"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (0, [0])])
def test_cosine_and_ratio_are_told_when_looked_at(often, at):
    steps = steps_of(Training(steps=5, batch=10, gradient_norms_every=often), "labels", "kd")
    for step in steps:
        shown = step.number - 1 in at
        assert (step.gradient_cosine is not None) == (step.gradient_ratio is not None) == shown
        if shown:
            assert -1 <= step.gradient_cosine <= 1
            assert step.gradient_ratio == pytest.approx(step.gradient_norms["kd"] / step.gradient_norms["labels"])


def test_dot_tells_at_every_step_what_a_look_would_find():
    quiet, often = (Training(steps=4, batch=10, optimizer="dot", gradient_norms_every=every) for every in (0, 1))
    for one, other in zip(steps_of(quiet, *asked()), steps_of(often, *asked()), strict=True):
        assert one.gradient_cosine == other.gradient_cosine and one.gradient_ratio == other.gradient_ratio
        assert one.gradient_cosine is not None
    assert one.gradient_norms is None and other.gradient_norms is not None
    plain = next(iter(steps_of(Training(steps=1, batch=10, optimizer="sgd"), *asked())))
    dot = next(iter(steps_of(quiet.model_copy(update={"steps": 1}), *asked())))
    assert dot.gradient_cosine == pytest.approx(plain.gradient_cosine, rel=1e-4)


def test_without_a_teacher_there_is_nothing_to_compare():
    steps = steps_of(Training(steps=2, batch=10, gradient_norms_every=1), "labels")
    assert [(step.gradient_cosine, step.gradient_ratio) for step in steps] == [(None, 0.0)] * 2


def test_looking_costs_no_more_backward_passes_than_there_are_terms(monkeypatch):
    """Cosine and ratio come from the gradients that the norms are of."""
    asked_for = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *one, **more: asked_for.append(1) or real(*one, **more))
    made, teacher = learner("labels", "kd", match("hint", student="1", teacher="1"))
    Looking(made)(0, made(BATCH, teacher(BATCH)), made.weights())
    assert len(asked_for) == 3
    asked_for.clear()
    sides_of(made, made(BATCH, teacher(BATCH)), made.weights())
    assert len(asked_for) == 2, "one a side"
