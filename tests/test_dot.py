"""DOT: two momenta, equal to the update rule written out, and resumed with its buffers."""

from __future__ import annotations

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


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def run(settings, folder=None, stop=None):
    learner = Learner(network(1), [match("labels", weight=0.4), match("kd", temperature=2.0, weight=0.6)])
    for step in train(learner, DATA, Live(network(2)), settings, folder=folder):
        if step.number == stop:
            break
    return learner.student.state_dict()


def test_the_update_is_the_papers():
    """Three steps by hand: v_task with momentum 0.8, v_distil with 0.95, decay with the task's gradient."""
    settings = Training(
        steps=3, batch=40, optimizer="dot", lr=0.1, momentum=0.875, delta=0.075, weight_decay=0.01, schedule="constant"
    )
    found = run(settings)
    student, teacher = network(1), network(2)
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
        assert torch.allclose(found[name], value, atol=1e-6), name


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


def test_momenta_outside_their_range_are_refused():
    with pytest.raises(TrainError, match="between 0 and 1"):
        Dot(momentum=0.95, delta=0.1)
