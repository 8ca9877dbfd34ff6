"""DOT: two momenta, equal to the update rule written out, to SGD where they do not differ, and resumed with both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import TrainError
from stillroom.gradients.dot import Dot
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


def network(seed, hidden=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


ASKED = (match("labels", weight=0.4), match("kd", temperature=2.0, weight=0.6))


def run(settings, folder=None, stop=None, asked=ASKED, steps=None):
    learner = Learner(network(1), [copy.deepcopy(one) for one in asked])
    teacher = Live(network(2, 7), [str(place.tap) for place in learner.teacher_places])
    for step in train(learner, DATA, teacher, settings, folder=folder):
        if steps is not None:
            steps.append(step)
        if step.number == stop:
            break
    return learner.state_dict()


def apart(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in other)


def test_the_update_is_the_papers():
    """Three steps by hand: v_task with momentum 0.8, v_distil with 0.95, decay with the task's gradient."""
    settings = Training(
        steps=3, batch=40, optimizer="dot", lr=0.1, momentum=0.875, delta=0.075, weight_decay=0.01, schedule="constant"
    )
    found = run(settings)
    student, teacher = network(1), network(2, 7)
    labels, kd = match("labels"), match("kd", temperature=2.0)
    kd.sized = True
    task: dict[str, torch.Tensor] = {}
    distil: dict[str, torch.Tensor] = {}
    for _ in range(3):
        shown, told = {"logits": student(DATA.inputs)}, {"logits": teacher(DATA.inputs).detach()}
        values = dict(student.named_parameters())
        for buffers, momentum, loss, decay in (
            (task, 0.8, 0.4 * labels(shown, {}, {"labels": DATA.labels}), 0.01),
            (distil, 0.95, 0.6 * kd(shown, told, {}), 0.0),
        ):
            gradients = torch.autograd.grad(loss, list(values.values()), retain_graph=True)
            for name, gradient in zip(values, gradients, strict=True):
                moved = gradient + decay * values[name].detach()
                buffers[name] = moved if name not in buffers else momentum * buffers[name] + moved
        with torch.no_grad():
            for name, value in values.items():
                value -= 0.1 * (task[name] + distil[name])
    for name, value in student.state_dict().items():
        assert torch.allclose(found[f"student.{name}"], value, atol=1e-6), name


def test_without_a_difference_it_is_sgd_with_momentum():
    common = {"steps": 5, "batch": 10, "lr": 0.05, "momentum": 0.9}
    found, plain = run(Training(optimizer="dot", delta=0.0, **common)), run(Training(optimizer="sgd", **common))
    assert all(torch.allclose(found[name], plain[name], atol=1e-6) for name in plain)


def test_it_resumes_with_its_buffers(tmp_path):
    settings = Training(steps=8, batch=10, optimizer="dot", lr=0.05, checkpoint_every=4)
    whole = run(settings, tmp_path / "whole")
    run(settings, tmp_path / "part", stop=6)
    again = run(settings, tmp_path / "part")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def hint(**more):
    """Return an objective of the teacher with a connector, which the task does not reach."""
    return match("hint", student="1", teacher="1", weight=2.0, **more)


COMMON = {"steps": 20, "batch": 10, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "gradient_norms_every": 5}


@pytest.mark.parametrize("clip", [0.02, 0.2])
def test_what_is_clipped_is_the_gradient_as_under_sgd(clip):
    """One factor for both sides, from the norm of their sum, connectors included; not the length of the step."""
    asked, steps, told = (*ASKED, hint()), [], []
    found = run(Training(optimizer="dot", delta=0.0, clip=clip, **COMMON), asked=asked, steps=steps)
    plain = run(Training(optimizer="sgd", clip=clip, **COMMON), asked=asked, steps=told)
    assert any("connector" in name for name in plain)
    assert apart(found, plain) < 1e-6
    assert apart(run(Training(optimizer="sgd", **COMMON), asked=asked), plain) > 0.05, "or the clip has no effect"
    looks = [(one, other) for one, other in zip(steps, told, strict=True) if other.gradient_norms is not None]
    assert len(looks) == 4
    for one, other in looks:
        assert one.gradient_norms == pytest.approx(other.gradient_norms, rel=1e-5)
        assert one.gradient_ratio == pytest.approx(other.gradient_ratio, rel=1e-5)
        assert one.gradient_cosine == pytest.approx(other.gradient_cosine, rel=1e-4)


def test_a_clip_that_is_never_reached_changes_nothing():
    ends = [run(Training(optimizer="dot", clip=clip, **COMMON)) for clip in (None, 1e6)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_dot_that_is_given_by_hand_clips_the_same():
    settings = {"steps": 5, "batch": 10, "lr": 0.1, "clip": 0.1}
    ends = []
    for given in (None, Dot()):
        learner = Learner(network(1), [copy.deepcopy(one) for one in ASKED])
        list(train(learner, DATA, Live(network(2, 7)), Training(optimizer="dot", **settings), gradients=given))
        ends.append(learner.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(
    "asked",
    [
        (match("labels", weight=0.4), match("kd", weight=0.6, every=4)),
        (match("labels", weight=0.4), match("kd", weight=0.6), hint(every=4)),
        (match("labels", weight=0.4, every=3), match("kd", weight=0.6, every=4), hint(every=2)),
        (match("labels", weight=0.4, every=4), match("l2", weight=0.01, every=2)),
    ],
    ids=["the teacher rests", "a connector rests", "at times all rest", "without a teacher"],
)
def test_a_side_that_rests_keeps_its_momentum(asked, clip):
    found = run(Training(optimizer="dot", delta=0.0, clip=clip, **COMMON), asked=asked)
    plain = run(Training(optimizer="sgd", clip=clip, **COMMON), asked=asked)
    assert apart(found, plain) < 1e-6


def test_at_rest_the_teachers_buffer_decays_and_moves():
    """Two steps by hand with the teacher at the first only: its buffer goes on with momentum + delta."""
    asked = (match("labels", weight=0.4), match("kd", weight=0.6, every=2))
    settings = {"batch": 40, "optimizer": "dot", "lr": 0.1, "momentum": 0.8, "delta": 0.15, "schedule": "constant"}
    found = run(Training(steps=2, **settings), asked=asked)
    student, teacher, buffers = network(1), network(2, 7), {}
    values = list(student.parameters())
    labels, kd = match("labels"), match("kd")
    for step in range(2):
        shown, told = {"logits": student(DATA.inputs)}, {"logits": teacher(DATA.inputs).detach()}
        losses = {0.65: 0.4 * labels(shown, {}, {"labels": DATA.labels})}
        losses |= {} if step else {0.95: 0.6 * kd(shown, told, {})}
        new = {m: torch.autograd.grad(loss, values, retain_graph=True) for m, loss in losses.items()}
        for momentum in (0.65, 0.95):
            now = new.get(momentum, [torch.zeros_like(value) for value in values])
            old = buffers.get(momentum, [torch.zeros_like(value) for value in values])
            buffers[momentum] = [momentum * before + one for before, one in zip(old, now, strict=True)]
        with torch.no_grad():
            for value, task, distil in zip(values, *buffers.values(), strict=True):
                value -= 0.1 * (task + distil)
    assert apart(found, {f"student.{name}": value for name, value in student.state_dict().items()}) < 1e-6


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_it_resumes_while_the_teacher_rests(tmp_path, stop):
    """The checkpoint lies between two of the teacher's steps: which buffers a parameter has must not be forgotten."""
    asked = (match("labels", weight=0.4), match("kd", weight=0.6, every=4), hint(every=4))
    settings = Training(optimizer="dot", clip=0.5, checkpoint_every=stop - 1, **{**COMMON, "steps": 12})
    whole = run(settings, tmp_path / "whole", asked=asked)
    run(settings, tmp_path / "part", stop=stop, asked=asked)
    steps = []
    again = run(settings, tmp_path / "part", asked=asked, steps=steps)
    assert steps[0].number == stop and all(torch.equal(whole[name], again[name]) for name in whole)


def test_momenta_outside_their_range_are_refused():
    with pytest.raises(TrainError, match="between 0 and 1"):
        Dot(momentum=0.95, delta=0.1)
