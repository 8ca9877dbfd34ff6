"""The curve of a job: thinned, counted whole, and the same after an interruption."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from stillroom.contracts import Step
from stillroom.data.arrays import ArraySource
from stillroom.evaluate import plain_ids
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.pipeline.jobs import _Log, _own_value, _pruned, _weights
from stillroom.pipeline.plan import ArmPlan
from stillroom.settings import Training


def step(number, cosine=None, ratio=None, norms=None):
    return Step(number, 1000, {"loss": torch.tensor(1.0)}, 0.1, norms, (), cosine, ratio)


def test_the_pull_is_thinned_but_every_look_is_counted(tmp_path):
    log = _Log(tmp_path / "curve.json", 10)
    for number in range(1, 101):
        log.add(step(number, 0.5 if number % 4 else -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    log.save()
    kept = json.loads((tmp_path / "curve.json").read_text())
    assert kept["pull"]["looked"] == 100 and kept["pull"]["against"] == 25
    assert kept["pull"]["step"] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91] == [one["step"] for one in kept["norms"]]
    assert len(kept["pull"]["cosine"]) == len(kept["pull"]["ratio"]) == 10 and set(kept["pull"]["ratio"]) == {2.0}


def test_rare_looks_are_all_kept_and_steps_without_one_are_none(tmp_path):
    log = _Log(tmp_path / "curve.json", 8)
    for number in range(1, 302):
        log.add(step(number, *((0.1, 1.0) if number % 100 == 1 else (None, 0.0))))
    assert log.kept["pull"]["step"] == [1, 101, 201, 301] and log.kept["pull"]["looked"] == 4


def test_steps_that_come_again_after_an_interruption_count_once(tmp_path):
    """Killed after the curve was saved and before the checkpoint was."""
    log = _Log(tmp_path / "curve.json", 10)
    for number in range(1, 58):
        log.add(step(number, -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    log.save()
    again = _Log(tmp_path / "curve.json", 10)
    for number in range(31, 101):
        again.add(step(number, -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    assert again.kept["pull"]["looked"] == again.kept["pull"]["against"] == 100
    assert again.kept["pull"]["step"] == [one["step"] for one in again.kept["norms"]] == [*range(1, 100, 10)]


# --- what is noted of a student ---------------------------------------------------------------------------------------


def source():
    labels = torch.tensor([0, 1] * 3 + [0] * 600 + [1, 1, 1, 0])
    splits = {"train": torch.arange(6), "validation": torch.arange(6, 606), "test": torch.arange(606, 610)}
    return ArraySource(torch.tensor([[1.0]] * 6 + [[0.0]] * 599 + [[2.0]] + [[1.0]] * 4), labels, splits=splits)


class Steady(nn.Module):
    """Answers minus three times its input for class 0; in training mode nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-3.0, 0.001], [0.002, 0.0]]))

    def forward(self, inputs):
        return nn.functional.pad(inputs * self.weight[0, 0] * (not self.training), (0, 1))


def test_without_labels_a_student_is_chosen_by_minus_its_losses_on_validation_rows():
    """599 rows with the logits 0, 0 and one with -6, 0; the teacher answers 1, 0: the mean of squares is by row."""

    def squares(student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().sum(1).mean()

    learner = Learner(Steady(), [match(squares, "logits", "logits", weight=0.1), match("l2")])
    teacher = lambda batch: {"logits": torch.tensor([[1.0, 0.0]]).expand(len(batch["id"]), -1)}  # noqa: E731
    batch = source().batch(plain_ids(torch.arange(2)))
    learner.size(batch, teacher(batch))
    learner.train()
    assert _own_value(learner, source(), teacher, 0) == pytest.approx(-(599 * 1 + 49) / 600)


def test_weights_near_nought_are_counted_and_cut_on_test_rows_and_come_back():
    """Of four weights three are below a thousandth of the largest, 3; afterwards the student is as it was."""
    student = Steady()
    found = _weights(student)[0]
    assert found["size"] == 4 and found["l1"] == pytest.approx(3.003) and found["share_near_zero"] == 0.75
    assert found["l2"] == pytest.approx((9 + 1e-6 + 4e-6) ** 0.5)
    arm = ArmPlan("kd", list, Training(steps=1), None, lambda _: Steady(), None, {}, {})
    assert _pruned(student, source(), arm) == 0.75, "always class 1, which three test rows of four have"
    assert torch.equal(student.weight, Steady().weight)
