"""The two sides of a gradient: each is that of its terms, together they are the whole, and their cosine is checked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.gradients.sides import Pull, Sides, norm, pull_of, sides_of, trained
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.teachers import Live

DATA = ArraySource(
    torch.randn(24, 5, generator=torch.Generator().manual_seed(0)),
    torch.arange(24) % 3,
    splits={"train": torch.arange(24)},
)
BATCH = DATA.batch(torch.stack([torch.arange(24), torch.zeros(24, dtype=torch.int64)], 1))


def network(seed, hidden=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def learner(*objectives):
    made = Learner(network(1), list(objectives))
    told = Live(network(2, 7), [str(place.tap) for place in made.teacher_places])(BATCH)
    made.size(BATCH, told)
    return made, told


def test_the_two_sides_are_the_whole_gradient():
    """Labels, a penalty, answers, and hidden states through a connector that the task does not reach."""
    made, told = learner(
        match("labels", weight=0.4),
        match("l2", weight=0.01),
        match("kd", temperature=2.0, weight=0.6),
        match("hint", student="1", teacher="1", weight=0.5),
    )
    sides = sides_of(made, made(BATCH, told), made.weights())
    made(BATCH, told)["loss"].backward()
    whole = {name: value.grad for name, value in trained(made).items()}
    assert set(sides.distil) == set(whole) and any("connector" in name for name in whole)
    assert {name for name in whole if name.startswith("student.")} == set(sides.task)
    for name, value in whole.items():
        total = sides.distil[name] + sides.task.get(name, 0)
        assert torch.allclose(total, value, atol=1e-6), name


def test_a_side_is_the_gradient_of_its_own_terms():
    made, told = learner(match("labels", weight=0.4), match("kd", weight=0.6))
    sides = sides_of(made, made(BATCH, told), made.weights())
    losses = made(BATCH, told)
    values = list(trained(made).values())
    task = torch.autograd.grad(0.4 * losses["labels"], values, retain_graph=True)
    distil = torch.autograd.grad(0.6 * losses["kd"], values)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(sides.task.values(), task, strict=True))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(sides.distil.values(), distil, strict=True))


def test_a_side_without_terms_is_empty():
    made, told = learner("labels")
    sides = sides_of(made, made(BATCH, told), made.weights())
    assert sides.distil == {} and sides.task and pull_of(sides) == Pull(None, 0.0)


def test_cosine_and_ratio_are_over_the_student_only():
    task = {"student.a": torch.tensor([3.0, 0.0]), "student.b": torch.tensor([[4.0]])}
    distil = {"student.a": torch.tensor([0.0, 2.0]), "student.b": torch.tensor([[-1.5]])}
    found = pull_of(Sides(task, {**distil, "objectives.0.connector": torch.tensor([100.0])}))
    assert found.ratio == pytest.approx(2.5 / 5) and found.cosine == pytest.approx(-6 / (5 * 2.5))
    assert norm(task.values()) == pytest.approx(5) and norm([]) == 0


@pytest.mark.parametrize(("sign", "cosine"), [(1, 1.0), (-1, -1.0)])
def test_the_same_gradient_twice_lies_at_one(sign, cosine):
    task = {"student.a": torch.randn(1000, generator=torch.Generator().manual_seed(1))}
    found = pull_of(Sides(task, {"student.a": sign * 3 * task["student.a"]}))
    assert found.cosine == pytest.approx(cosine, abs=1e-6) and abs(found.cosine) <= 1
    assert found.ratio == pytest.approx(3, rel=1e-5)


def test_what_has_no_length_has_no_direction():
    some, nought = {"student.a": torch.ones(2)}, {"student.a": torch.zeros(2)}
    assert pull_of(Sides(some, nought)) == Pull(None, 0.0)
    assert pull_of(Sides(nought, some)) == Pull(None, None)
    assert pull_of(Sides({}, some)) == Pull(None, None)
