"""The control and the settings of an arm: steps, rates, rows, labels and teachers, counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.files import fingerprint
from stillroom.fingerprints import fingerprint_of
from stillroom.objectives import match
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, SynthesisPlan, combined, control_of
from stillroom.randomness import forked
from stillroom.settings import Mixed, Synthesis, Training

TRAIN = 40  # rows; in the first 36 labels are known, four classes in turn


def source(known: int = 36) -> ArraySource:
    labels = torch.arange(60) % 4
    labels[known:TRAIN] = UNLABELLED
    splits = {"train": torch.arange(TRAIN), "validation": torch.arange(40, 50), "test": torch.arange(50, 60)}
    return ArraySource(torch.arange(60.0)[:, None], labels, splits=splits, classes=list("abcd"))


def student(seed: int) -> nn.Module:
    with forked(seed, "weights"):
        return nn.Linear(1, 4)


def arm(training: Training, objectives=("labels", "kd"), **more) -> ArmPlan:
    made = lambda: [match(one) for one in objectives]  # noqa: E731
    held = {"labels": None, "make_student": student, "encode": None, "config": {}, "described": {}} | more
    return ArmPlan("kd", made, training, held.pop("labels"), **held)


def control(of: ArmPlan) -> ArmPlan:
    return control_of(of, lambda: match("labels"))


MIXED = Training(steps=7, lr=0.3, batch=Mixed(labelled=4, transfer=12))
STAGED = {
    "before": (
        arm(Training(steps=100, lr=9.0), ["labels", "kd", "l2"], assistant=True),
        arm(Training(steps=5), ["hint"]),
    )
}


def test_the_control_has_the_steps_rate_rows_and_start_of_its_arm():
    plan = arm(MIXED, ["labels", "kd", "l1"], labels=8, **STAGED)
    alone, data = control(plan), source()
    assert [one.name for one in alone.objectives()] == ["labels", "l1"], "an assistant's penalty is not the student's"
    assert not alone.reads_teacher and alone.name == ALONE and alone.before == ()
    ours, theirs = (one.settings(one.data(data), 0.1) for one in (alone, plan))
    assert theirs.steps == 7 and ours.steps == 7 + 5, "the student's own parts, without the assistant's hundred"
    assert ours.lr == theirs.lr == pytest.approx(0.03)
    assert ours.rows == theirs.rows == 16 and ours.batch == 16
    seen = alone.data(data)
    assert torch.equal(seen.labelled, plan.data(data).labelled) and len(seen.labelled) == 8
    assert torch.equal(alone.rows(seen).labelled, seen.labelled) and alone.rows(seen).transfer is None
    assert torch.equal(plan.rows(plan.data(data)).transfer, torch.arange(TRAIN))
    for seed in (0, 3):
        assert fingerprint_of(alone.make_student(seed)) == fingerprint_of(plan.make_student(seed))


def test_a_control_with_another_penalty_or_more_steps_is_another_control():
    staged = [arm(MIXED, before=(arm(Training(steps=steps)),)) for steps in (5, 6)]
    plans = [arm(MIXED), arm(MIXED, ["labels", "kd", "l1"]), arm(MIXED, ["labels", "kd", "l2"]), *staged]
    keys = [fingerprint(dict(control(plan).described)) for plan in plans]
    assert len(set(keys)) == 5
    other = arm(MIXED, ["labels", "lskd"])
    assert fingerprint(dict(control(other).described)) == keys[0], "what the teacher's objectives are is nothing to it"


def test_an_epoch_is_as_long_as_the_labels_that_are_seen():
    plan = arm(Training(epochs=3, batch=4), labels=8)
    for one in (plan, control(plan)):
        assert one.settings(one.data(source())).steps == 3 * 8 // 4, "not 3 x 40 / 4"


def test_shown_labels_are_one_of_each_class_and_no_more_than_are_known():
    data = source()
    seen = arm(MIXED, labels=8).seen(data)
    labels = torch.tensor([int(seen.labels[row]) for row in range(TRAIN)])
    assert sorted(labels[labels >= 0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3] and int((labels < 0).sum()) == 32
    assert seen.labelled.tolist() != list(range(8)), "drawn by chance"
    everything = arm(MIXED).seen(data)
    assert everything.labelled.tolist() == list(range(36)), "four rows have no label at all"
    assert arm(MIXED).seen(source(known=TRAIN)).splits["train"].tolist() == list(range(TRAIN))
    nothing = arm(MIXED, labels=0).seen(data)
    assert len(nothing.labelled) == 0 and bool((nothing.batch(torch.tensor([[3, 0]]))["labels"] == UNLABELLED).all())


def test_without_parts_of_a_batch_an_arm_with_a_teacher_draws_all_rows_and_its_control_the_labelled():
    plan, data = arm(Training(steps=2, batch=4), labels=8), source()
    assert torch.equal(plan.rows(plan.data(data)).labelled, torch.arange(TRAIN))
    alone = control(plan)
    assert torch.equal(alone.rows(alone.data(data)).labelled, plan.data(data).labelled)


def test_the_control_of_made_examples_has_as_many_real_ones():
    made = SynthesisPlan(Synthesis(per_class=2), student, None, 8, {})
    plan, data = arm(Training(steps=2, batch=4), ["labels"], distilled=made), source()
    alone = control(plan)
    assert plan.learns_from == alone.learns_from == alone.labels == 8 and alone.distilled is None
    real = alone.data(data)
    assert len(real.labelled) == 8 and len(real.splits["train"]) == TRAIN
    assert len(plan.data(data).splits["train"]) == 8, "until they are made as many real ones stand there"


def test_the_first_arm_is_the_main_one():
    arms = {ALONE: control(arm(MIXED)), "kd": arm(MIXED), "last": dataclasses.replace(arm(MIXED), name="last")}
    assert Experiment("x", source(), {}, arms, [0]).main.name == "kd"


def test_several_teachers_are_the_mean_of_their_probabilities():
    def sure(*shares):
        return lambda batch: {"logits": torch.tensor([shares]).log().expand(len(batch["id"]), -1)}

    batch = {"id": torch.zeros(2, 2, dtype=torch.long)}
    both = combined({"one": sure(0.9, 0.1), "two": sure(0.2, 0.8)})
    assert torch.allclose(both(batch)["logits"].softmax(1), torch.tensor([[0.55, 0.45]] * 2))
    assert combined({"": sure(0.9, 0.1)})(batch)["logits"].softmax(1)[0, 0] == pytest.approx(0.9)
    assert combined({}) is None
