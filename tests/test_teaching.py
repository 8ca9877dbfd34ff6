"""Whose answers are learnt from: the trained teacher's, on this data, in this precision, of every teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import StoreError
from stillroom.objectives import match
from stillroom.pipeline.making import input_of
from stillroom.pipeline.plan import ArmPlan, Experiment, TeacherPlan
from stillroom.pipeline.teaching import (
    _fingerprints,
    _knowledge_place,
    knowledge_print,
    open_store,
    prepare_teacher,
    record_teacher,
    rows_recorded,
    teacher_inputs,
    trained,
)
from stillroom.settings import Training

SPLITS = {"train": torch.arange(8), "validation": torch.arange(8, 12), "test": torch.arange(12, 16)}


def source(shift=0.0, labels=None) -> ArraySource:
    given = torch.arange(16) % 2 if labels is None else labels
    inputs = (given.float() * 4 - 2 + shift)[:, None]
    return ArraySource(inputs, given, splits=SPLITS, classes=["a", "b"])


def net() -> nn.Module:
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # wrong on every row before it is trained
        model.bias.zero_()
    return model


def experiment(data=None, **more) -> Experiment:
    arm = ArmPlan("kd", lambda: [match("kd")], Training(steps=1), None, lambda _: net(), None, {}, {})
    data = data or source()
    config = {"model": {"class": "torch.nn.Linear"}, "shape": [1], "input": input_of(data)}
    taught = Training(steps=20, lr=0.5, batch=8, optimizer="sgd")
    plan = TeacherPlan({"net": 1}, net, training=taught, config=config)
    return Experiment("x", data, {"": plan}, {"kd": arm}, [0], **more)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    prepare_teacher(experiment(), "", folder, lambda *_: None)
    return folder


def test_the_teacher_that_was_trained_is_the_one_that_is_recorded(run):
    module, _ = trained(experiment(), "", run)
    test = source().batch(torch.stack([SPLITS["test"], torch.zeros_like(SPLITS["test"])], 1))
    assert module(test["inputs"]).argmax(1).tolist() == [0, 1, 0, 1] != net()(test["inputs"]).argmax(1).tolist()
    record_teacher(experiment(), "", run, lambda *_: None)
    store = open_store(experiment(), "", run / "knowledge")
    with torch.no_grad():
        assert torch.allclose(store(test)["logits"].float(), module(test["inputs"]), atol=1e-2)
    with pytest.raises(StoreError, match="recorded from other"):
        open_store(experiment(source(shift=0.25)), "", run / "knowledge")
    with pytest.raises(StoreError, match="holds 1 views"):
        open_store(experiment(views=2), "", run / "knowledge")
    assert rows_recorded(experiment()) == 16 and rows_recorded(experiment(views=3)) == 3 * 8 + 4 + 4


def test_other_data_precision_or_views_are_another_recording(run):
    def place(of):
        prints = _fingerprints(of, net(), None)
        return _knowledge_place(of, "", run, prints, lambda batch: {"logits": net()(batch["inputs"])})

    others = [experiment(source(shift=0.25)), experiment(precision="bfloat16"), experiment(views=2)]
    few = experiment()
    few.arms["kd"] = dataclasses.replace(few.arms["kd"], labels=4, unlabelled=False)
    assert len(few.rows_asked()) == 4 + 4 + 4, "four labelled rows, validation and test"
    assert len({place(one) for one in (experiment(), *others, few)}) == 5 and place(experiment()) == place(experiment())


def test_a_teacher_of_other_labels_or_rows_is_another_teacher():
    plan = experiment().teachers[""]
    data, labels = source(), torch.arange(16) % 2
    labels[0] = 1
    other = ArraySource(data.batch(torch.stack([torch.arange(16), torch.zeros(16).long()], 1))["inputs"], labels,
                        splits=SPLITS, classes=["a", "b"])  # fmt: skip
    fewer = source()
    fewer.splits = {**SPLITS, "train": torch.arange(1, 8)}
    assert len({teacher_inputs(experiment(one), plan) for one in (data, other, fewer)}) == 3
    assert teacher_inputs(experiment(), dataclasses.replace(plan)) == teacher_inputs(experiment(data), plan)


def test_what_any_teacher_showed_is_in_the_key_of_a_job():
    def told(*prints):
        return knowledge_print({name: SimpleNamespace(fingerprint=one) for name, one in zip("ab", prints, strict=True)})

    assert len({told("1", "2"), told("1", "3"), told("4", "2"), told("2", "1")}) == 4
