"""What a job keeps: the moment and the rate that validation prefers, for control and arm alike; who starts where."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.evaluate import evaluate
from stillroom.files import read_json, write_json
from stillroom.fingerprints import fingerprint_of
from stillroom.models.bundle import load
from stillroom.objectives import match
from stillroom.pipeline import jobs, teaching
from stillroom.pipeline.jobs import choose, job_inputs
from stillroom.pipeline.making import input_of
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, TeacherPlan, control_of
from stillroom.pipeline.run import perform
from stillroom.pipeline.teaching import prepare_teacher, teacher_inputs
from stillroom.randomness import forked
from stillroom.settings import Training

ROWS = {"train": torch.arange(0, 60), "validation": torch.arange(60, 90), "test": torch.arange(90, 120)}
STEPS, LR = 24, 0.02
RATES = ("x1", "x0.01")


def source(rows=ROWS, shift=0) -> ArraySource:
    """Two clouds; in the validation split the labels are the other way round, so that training makes it worse."""
    labels = torch.arange(120) % 2
    inputs = torch.randn(120, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([0.3, 1.0])
    inputs[:, 0] += 2 * labels - 1  # the second column says nothing
    seen = labels.clone()
    seen[60:90] = 1 - seen[60:90]
    seen[:shift] = 1 - seen[:shift]
    return ArraySource(inputs, seen, splits=rows, classes=["left", "right"])


def small(seed: int) -> nn.Module:
    """A network that begins by being right on the validation split, whatever the seed."""
    with forked(seed, "weights"):
        model = nn.Linear(2, 2)
        with torch.no_grad():
            model.weight.mul_(0.05).add_(torch.tensor([[0.1, 0.05], [-0.1, -0.05]]))
            model.bias.zero_()
    return model


def experiment(trials=(0.01, 1.0), seeds=(0, 1), **more) -> Experiment:
    def objectives():
        return [match("labels"), match("kd")]

    training = Training(steps=STEPS, lr=LR, batch=16, evaluate_at=(0.25, 0.5, 1.0), optimizer="sgd", momentum=0)
    data = more.pop("data", None) or source()
    config = {"model": {"class": "torch.nn.Linear"}, "shape": [2], "input": input_of(data)}
    main = ArmPlan("kd", objectives, training, None, small, None, config, {"lr": LR})
    taught = Training(steps=40, lr=0.5, batch=16, optimizer="sgd")
    teacher = TeacherPlan({"net": 1}, lambda: small(9), training=taught, config=config)
    arms = {ALONE: control_of(main, lambda: match("labels")), "kd": main}
    return Experiment("made", data, {"": teacher}, arms, list(seeds), trials, **more)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run; every training in it noted what it began with and which rows it drew."""
    root, began = tmp_path_factory.mktemp("selection"), []
    ours = jobs.train

    def watched(learner, data, teacher, settings, **options):
        one = {"start": fingerprint_of(learner.student), "lr": settings.lr, "ids": [], "seed": options["seed"],
               "teacher": teacher is not None}  # fmt: skip
        began.append(one)
        whole = data.batch

        class Watched:
            def __getattr__(self, name):
                return getattr(data, name)

            def batch(self, ids):
                one["ids"] += ids[:, 0].tolist()
                return whole(ids)

        return ours(learner, Watched(), teacher, settings, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache"))
        patch.setattr(jobs, "train", watched)
        outcome = perform(experiment(), root / "run")
    return root / "run", outcome.metrics, began


@pytest.mark.parametrize("folder", [f"{name}{job}" for name in (ALONE, "kd") for job in ("-0", "-1", "-0-x1")])
def test_the_moment_is_chosen_on_validation_and_is_the_one_that_is_kept(ran, folder):
    run, metrics, _ = ran
    name, seed, *trial = folder.split("-")
    place = run / "arms" / ("trials" if trial else "") / folder
    scores = read_json(place / "scores.json")
    marks = {int(step): value for step, value in scores["validation_by_step"].items()}
    assert sorted(marks) == [6, 12, 24] and scores["validation"] == max(marks.values())
    assert scores["chosen_step"] == min(step for step, value in marks.items() if value == max(marks.values()))
    kept = load(place, model=small(int(seed)))
    assert evaluate(kept, source(), split="validation")["accuracy"] == pytest.approx(scores["validation"])
    assert evaluate(kept, source())["accuracy"] == pytest.approx(scores["test"])
    if not trial:
        assert metrics["models"][name]["accuracy"]["per_seed"][int(seed)] == pytest.approx(scores["test"])


def test_the_full_rate_would_have_chosen_otherwise_by_its_last_step_or_by_the_test_split(ran):
    """Else the tests here could not fail: training makes validation worse and the test split better."""
    for name in (ALONE, "kd"):
        fast, slow = (read_json(ran[0] / "arms" / "trials" / f"{name}-0-{rate}" / "scores.json") for rate in RATES)
        marks = fast["validation_by_step"]
        assert marks["6"] > marks["24"] and fast["chosen_step"] == 6
        assert slow["validation"] > fast["validation"] and slow["test"] < fast["test"]


@pytest.mark.parametrize("name", [ALONE, "kd"])
def test_the_rate_is_chosen_on_validation_for_control_and_arm_and_holds_for_all_seeds(ran, name):
    run, metrics, _ = ran
    for seed in (0, 1):
        scores = read_json(run / "arms" / f"{name}-{seed}" / "scores.json")
        assert scores["factor"] == 0.01 and scores["learning_rate"] == pytest.approx(0.01 * LR)
    assert metrics["models"][name]["learning_rate"] == pytest.approx(0.01 * LR)
    assert read_json(run / "arms" / "trials" / f"{name}-0-x1" / "scores.json")["learning_rate"] == LR


@pytest.mark.parametrize("name", [ALONE, "kd"])
def test_a_planted_score_decides_by_validation_and_a_tie_goes_to_the_rate_nearest_to_one(tmp_path, name):
    plan = experiment(trials=(0.3, 1.0, 3.0), seeds=(7, 0))

    def planted(*validation):
        for factor, value in zip(plan.trials, validation, strict=True):
            scores = {"validation": value, "test": 1 - value}
            write_json(tmp_path / f"{name}-7-x{factor:g}" / "scores.json", scores, sealed=True)
        return choose(plan, plan.arms[name], tmp_path)

    assert [planted(0.9, 0.5, 0.5), planted(0.5, 0.9, 0.5), planted(0.5, 0.5, 0.9)] == [0.3, 1.0, 3.0]
    assert planted(0.9, 0.9, 0.9) == 1.0 and planted(0.9, 0.5, 0.9) == 0.3
    assert choose(dataclasses.replace(plan, trials=(2.0,)), plan.arms[name], tmp_path / "none") == 2.0


def test_control_and_arm_begin_alike_and_draw_the_same_rows_in_the_same_order(ran):
    trained = {(one["teacher"], one["seed"], one["lr"]): one for one in ran[2]}
    assert len(trained) == len(ran[2]) == 2 * (2 + 1), "two trials with the first seed, one training with the second"
    for seed, rate in ((0, LR), (0, 0.01 * LR), (1, 0.01 * LR)):
        control, arm = trained[False, seed, rate], trained[True, seed, rate]
        assert control["start"] == arm["start"] == fingerprint_of(small(seed))
        assert control["ids"][: 16 * STEPS] == arm["ids"][: 16 * STEPS] and len(control["ids"]) >= 16 * STEPS
    starts = {one["seed"]: one["start"] for one in ran[2]}
    assert starts[0] != starts[1]
    assert trained[True, 0, 0.01 * LR]["ids"][:64] != trained[True, 1, 0.01 * LR]["ids"][:64]


def test_a_teacher_learns_from_training_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    drawn, ours = [], teaching.train

    def watched(learner, data, teacher, settings, *, rows, **options):
        drawn.append(rows.labelled)
        assert rows.transfer is None
        return ours(learner, data, teacher, settings, rows=rows, **options)

    monkeypatch.setattr(teaching, "train", watched)
    prepare_teacher(experiment(), "", tmp_path / "run", lambda *_: None)
    assert len(drawn) == 1 and torch.equal(drawn[0].sort().values, ROWS["train"])
    kept = read_json(tmp_path / "run" / "teacher" / "scores.json")
    assert kept["validation"]["accuracy"] < 0.2, "its labels are the other way round there"


def test_another_split_label_seed_rate_or_view_is_another_job():
    """What a job's result depends on is in its key, so that the cache never gives another's."""
    plan = experiment()
    other_test = {**ROWS, "test": torch.arange(90, 119)}
    other_train = {**ROWS, "train": torch.arange(1, 60)}
    other_validation = {**ROWS, "validation": torch.arange(61, 90)}
    others = [experiment(data=source(rows)) for rows in (other_test, other_train, other_validation)]
    others += [experiment(data=source(shift=2)), experiment(views=2)]
    for name in (ALONE, "kd"):
        keys = {job_inputs(one, one.arms[name], 0, 1.0, "told") for one in (plan, *others)}
        keys |= {job_inputs(plan, plan.arms[name], seed, rate, "told") for seed, rate in ((1, 1.0), (0, 0.3))}
        assert len(keys) == 1 + len(others) + 2
        again = experiment()
        assert job_inputs(again, again.arms[name], 0, 1.0, "told") in keys
    assert job_inputs(plan, plan.arms["kd"], 0, 1.0, "other") != job_inputs(plan, plan.arms["kd"], 0, 1.0, "told")
    alone = plan.arms[ALONE]
    assert job_inputs(plan, alone, 0, 1.0, "other") == job_inputs(plan, alone, 0, 1.0, "told"), "it reads no teacher"
    few = dataclasses.replace(alone, labels=8)
    assert job_inputs(plan, few, 0, 1.0, "") != job_inputs(plan, alone, 0, 1.0, "")
    teacher = plan.teachers[""]
    assert len({teacher_inputs(one, teacher) for one in (plan, others[1], others[3])}) == 3


def test_metrics_say_which_moment_each_seed_chose(ran):
    run, metrics, _ = ran
    kept = json.loads((run / "metrics.json").read_text())
    for name in (ALONE, "kd"):
        steps = [read_json(run / "arms" / f"{name}-{seed}" / "scores.json")["chosen_step"] for seed in (0, 1)]
        assert kept["models"][name]["chosen_step"] == {"per_seed": steps} == metrics["models"][name]["chosen_step"]
