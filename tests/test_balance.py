"""Balanced gradients: the rule written out, connectors in the norms, resumed bit for bit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import TrainError
from stillroom.gradients.balance import Balance
from stillroom.gradients.sides import norm, sides_of, trained
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
ASKED = (match("labels", weight=0.4), match("kd", weight=0.6), match("hint", student="1", teacher="1", weight=3.0))


def network(seed, hidden=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def learner(*objectives):
    made = Learner(network(1), list(objectives))
    teacher = Live(network(2, 7), [str(place.tap) for place in made.teacher_places])
    made.size(BATCH, teacher(BATCH))
    return made, teacher


def fresh():
    return learner("labels", match("hint", student="1", teacher="1", weight=3.0))


def run(settings, folder=None, stop=None):
    made, teacher = fresh()
    steps = []
    for step in train(made, DATA, teacher, settings, folder=folder):
        steps.append(step)
        if step.number == stop:
            break
    return made.state_dict(), steps


def test_the_teachers_norm_is_the_asked_multiple_of_the_tasks_connectors_included():
    made, teacher = fresh()
    before = sides_of(made, made(BATCH, teacher(BATCH)), made.weights())
    balance = Balance(2.0)
    balance(made, made(BATCH, teacher(BATCH)), made.weights())
    scaled = {
        name: value.grad - before.task[name] if name in before.task else value.grad
        for name, value in trained(made).items()
    }
    assert any("connector" in name for name in scaled)
    assert norm(scaled.values()) == pytest.approx(2.0 * norm(before.task.values()), rel=1e-4)
    for name, value in scaled.items():
        assert torch.allclose(value, balance.scale * before.distil.get(name, torch.zeros(())), atol=1e-6), name
    student_only = norm(value for name, value in before.distil.items() if name.startswith("student."))
    assert norm(before.distil.values()) > 1.01 * student_only, "or the test says nothing of connectors"


def test_norms_are_smoothed_and_the_weight_of_the_teacher_does_not_matter():
    balance, (made, teacher) = Balance(0.5, smoothing=0.75), fresh()
    kept = None
    for step in range(3):
        sides = sides_of(made, made(BATCH, teacher(BATCH)), made.weights())
        norms = (norm(sides.task.values()), norm(sides.distil.values()))
        kept = norms if kept is None else tuple(0.75 * a + 0.25 * b for a, b in zip(kept, norms, strict=True))
        balance(made, made(BATCH, teacher(BATCH)), made.weights())
        assert balance.scale == pytest.approx(0.5 * kept[0] / kept[1], rel=1e-6), step
        with torch.no_grad():
            for value in made.parameters():
                value -= 0.5 * value.grad
    settings = Training(steps=3, batch=40, optimizer="sgd", lr=0.1, balance=1.0)
    moved = []
    for weight in (0.01, 10.0):
        other, live = learner("labels", match("kd", weight=weight))
        list(train(other, DATA, live, settings))
        moved.append(other.student.state_dict())
    assert all(torch.allclose(moved[0][name], moved[1][name], atol=1e-5) for name in moved[0])


def test_balancing_to_the_ratio_that_is_there_changes_nothing():
    made, teacher = learner("labels", match("kd", weight=0.7))
    sides = sides_of(made, made(BATCH, teacher(BATCH)), made.weights())
    balance = Balance(norm(sides.distil.values()) / norm(sides.task.values()))
    balance(made, made(BATCH, teacher(BATCH)), made.weights())
    found = {name: value.grad.clone() for name, value in trained(made).items()}
    made.zero_grad()
    made(BATCH, teacher(BATCH))["loss"].backward()
    assert all(torch.allclose(found[name], value.grad, atol=1e-6) for name, value in trained(made).items())


def test_a_step_without_one_side_leaves_the_scale_as_it_was():
    balance = Balance(1.0)
    made, teacher = learner("labels", match("kd", every=2))
    assert balance.scale == 1.0 and balance.state_dict() == {}
    balance(made, made(BATCH, teacher(BATCH), step=1), made.weights(1))
    assert balance.scale == 1.0 and balance.pull.cosine is None, "the teacher's term rests at this step"
    balance(made, made(BATCH, teacher(BATCH)), made.weights())
    seen = balance.scale
    balance(made, made(BATCH, teacher(BATCH), step=1), made.weights(1))
    assert seen != 1.0 and balance.scale == seen


def test_a_resumed_run_is_bit_identical(tmp_path):
    settings = Training(steps=8, batch=10, lr=0.05, checkpoint_every=3, balance=1.0)
    whole, _ = run(settings, tmp_path / "whole")
    run(settings, tmp_path / "part", stop=5)
    again, steps = run(settings, tmp_path / "part")
    assert steps[0].number == 4 and all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("clip", [0.05, 0.5])
def test_what_is_clipped_is_the_balanced_gradient_before_momentum(clip):
    """Twenty steps written out: averages of norms that are not clipped, the sum clipped, then SGD's momentum."""
    settings = Training(steps=20, batch=40, optimizer="sgd", lr=0.1, schedule="constant", clip=clip, balance=2.0)
    found, _ = run(settings)
    free, _ = run(settings.model_copy(update={"clip": None}))
    made, teacher = fresh()
    buffers, kept = {}, None
    for _ in range(20):
        sides = sides_of(made, made(BATCH, teacher(BATCH)), made.weights())
        norms = (norm(sides.task.values()), norm(sides.distil.values()))
        kept = norms if kept is None else tuple(0.9 * a + 0.1 * b for a, b in zip(kept, norms, strict=True))
        scale = 2.0 * kept[0] / kept[1]
        whole = {name: sides.task.get(name, 0) + scale * sides.distil.get(name, 0) for name in trained(made)}
        factor = min(1.0, clip / norm(whole.values()))
        with torch.no_grad():
            for name, value in trained(made).items():
                buffers[name] = 0.9 * buffers.get(name, 0) + factor * whole[name]
                value -= 0.1 * buffers[name]
    ends = made.state_dict()
    assert all(torch.allclose(found[name], ends[name], atol=1e-5) for name in ends)
    assert any(not torch.allclose(free[name], ends[name], atol=0.05) for name in ends), "or the clip has no effect"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("balance", [None, 1.0])
def test_a_connector_at_rest_is_still_moved_by_what_the_optimizer_kept(balance, optimizer):
    """The plain loss holds it times zero; a gradient that is missing instead would have the optimizer pass it by."""
    made, teacher = learner("labels", match("hint", student="1", teacher="1", every=4))
    connector = next(value for name, value in trained(made).items() if "connector" in name)
    settings, seen = Training(steps=4, batch=40, optimizer=optimizer, lr=0.1, balance=balance), connector.clone()
    for step in train(made, DATA, teacher, settings):
        assert not torch.equal(connector, seen), step.number
        seen = connector.detach().clone()


def test_the_average_is_what_makes_it_so(tmp_path):
    """Without its state the same continuation ends elsewhere: the test above would notice."""
    settings = Training(steps=8, batch=10, lr=0.05, checkpoint_every=3, balance=1.0)
    whole, _ = run(settings, tmp_path / "whole")
    run(settings, tmp_path / "part", stop=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Balance, "load_state_dict", lambda self, state: None)
        again, _ = run(settings, tmp_path / "part")
    assert any(not torch.equal(whole[name], again[name]) for name in whole)


def test_both_gradients_are_told_at_every_step():
    _, steps = run(Training(steps=4, batch=40, balance=1.0, gradient_norms_every=0))
    assert all(step.gradient_cosine is not None and step.gradient_ratio is not None for step in steps)
    assert [step.gradient_norms is not None for step in steps] == [True, False, False, False]


def test_a_control_without_a_teacher_is_trained_as_ever():
    ends = []
    for balance in (None, 1.0):
        made = Learner(network(1), ["labels"])
        steps = list(train(made, DATA, None, Training(steps=5, batch=10, balance=balance)))
        assert not [note for step in steps for note in step.notes]
        ends.append(made.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_teacher_with_nothing_to_balance_against_is_noted():
    made, teacher = learner("kd")
    first = next(train(made, DATA, teacher, Training(steps=2, batch=10, balance=1.0)))
    assert len(first.notes) == 1 and "no objective is of the task" in first.notes[0]


def test_a_penalty_is_a_term_of_the_task_not_decay():
    made, teacher = learner("labels", match("l2", weight=0.1), "kd")
    first = next(train(made, DATA, teacher, Training(steps=2, batch=10, optimizer="sgd", balance=1.0)))
    assert "l2" in first.losses and not any(getattr(one, "folded", False) for one in made.objectives)


def test_what_cannot_go_together_is_refused():
    with pytest.raises(ValidationError, match="balance and optimizer: dot both fill the gradients"):
        Training(optimizer="dot", balance=1.0)
    with pytest.raises(ValidationError):
        Training(balance=0.0)
    made, teacher = learner("labels", "kd")
    with pytest.raises(TrainError, match="Only one can fill .grad"):
        next(train(made, DATA, teacher, Training(balance=1.0), gradients=Balance()))


@pytest.mark.parametrize("given", [{"ratio": 0.0}, {"ratio": float("nan")}, {"smoothing": 1.0}])
def test_impossible_ratios_are_refused(given):
    with pytest.raises(TrainError, match="cannot be balanced like this"):
        Balance(**given)
