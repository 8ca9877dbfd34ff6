"""Trainings in several parts: an assistant, a part before the last, the control's steps, and a stop in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import RecipeError
from stillroom.evaluate import plain_ids
from stillroom.files import checksum
from stillroom.fingerprints import fingerprint_of
from stillroom.objectives import match
from stillroom.pipeline import stages
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, TeacherPlan
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.randomness import forked
from stillroom.recipe import read_recipe
from stillroom.settings import Training
from stillroom.tensors import unpack

RECIPE = {
    "name": "stages",
    "data": {"use": "fashion-mnist-sample", "labels": 100, "train": 256},
    "teacher": {"model": "net", "hidden": 32, "train": {"steps": 10}},
    "student": {"model": "net", "hidden": 8},
    "objectives": [{"use": "labels", "weight": 0.1}, {"use": "kd", "temperature": 2}],
    "train": {"steps": 12, "batch": {"labelled": 16, "transfer": 16}},
    "stages": [
        {"student": {"model": "net", "hidden": 16}, "train": {"steps": 9, "batch": {"labelled": 16, "transfer": 16}}},
        {"objectives": [{"use": "hint"}], "train": {"steps": 6, "batch": {"labelled": 16, "transfer": 16}}},
        {},
    ],
    "trials": [1],
    "seeds": [0],
    "export": {"onnx": False},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def test_an_assistant_and_an_earlier_part(tmp_path):
    experiment = experiment_of(read_recipe(RECIPE))
    main = experiment.main
    assert [stage.assistant for stage in main.before] == [True, False]
    assert experiment.taps("") == ["logits", "features"], "the first stages read the teacher as well"
    visible = main.data(experiment.data)
    assert main.settings(visible).steps == 12
    assert experiment.arms[ALONE].settings(visible).steps == 18, "as many steps as the student's own two parts"
    outcome = perform(experiment, tmp_path / "run")
    assert outcome.metrics["models"]["main"]["parameters"]["mean"] == 784 * 8 + 8 + 8 * 10 + 10
    assert not list((tmp_path / "run" / "arms" / "main-0").glob("stage-*")), "what came before is cleared away"


def test_a_stop_between_two_parts_changes_nothing(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    perform(experiment_of(read_recipe(RECIPE)), whole)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "other cache"))
    part = tmp_path / "part"

    def stop(name, done, of, what):
        if name == "arm main-0" and what.startswith("steps of stage 2") and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(experiment_of(read_recipe(RECIPE)), part, told=stop)
    assert (part / "arms" / "main-0" / "stage-1" / "model.safetensors").is_file()
    perform(experiment_of(read_recipe(RECIPE)), part)
    for name in ("main-0", "alone-0"):
        assert checksum(whole / "arms" / name / "model.safetensors") == checksum(
            part / "arms" / name / "model.safetensors"
        )


def test_the_last_stage_is_the_students_own():
    wrong = {**RECIPE, "stages": RECIPE["stages"][:1]}
    with pytest.raises(RecipeError, match="last stage must train the recipe's own student"):
        experiment_of(read_recipe(wrong))


# --- who trains whom ------------------------------------------------------------------------------------------------


def line(seed: int) -> nn.Module:
    with forked(seed, "weights"):
        return nn.Linear(2, 2)


def part(steps, objectives, rate=0.1, **more) -> ArmPlan:
    training = Training(steps=steps, lr=rate, batch=4, optimizer="sgd", momentum=0, warmup=0)
    labels = more.pop("labels", None)
    return ArmPlan("kd", lambda: [match(one) for one in objectives], training, labels, line, None, {}, {}, **more)


def through(arm, folder, monkeypatch, seed=3):
    """Do the stages of ``arm``; return the student, the teacher of what follows, and what each training was given."""
    labels = torch.arange(20) % 2
    splits = {"train": torch.arange(12), "validation": torch.arange(12, 16), "test": torch.arange(16, 20)}
    inputs = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    data = ArraySource(inputs, labels, splits=splits, classes=["a", "b"])
    given, ours = [], stages.train

    def watched(learner, data, teacher, settings, **options):
        start = fingerprint_of(learner.student)
        given.append((start, len(getattr(data, "labelled", range(12))), teacher, settings.lr, options["seed"]))
        return ours(learner, data, teacher, settings, **options)

    monkeypatch.setattr(stages, "train", watched)
    student = line(seed)
    taught = lambda batch: {"logits": 9 * batch["inputs"]}  # noqa: E731
    experiment = Experiment("x", data, {"": TeacherPlan({})}, {"kd": arm}, [0])
    after = stages.pass_through(experiment, arm, seed, 0.5, folder, student, taught, lambda *_: None)
    return student, after, given, taught, data


def test_each_part_begins_where_the_one_before_ended(tmp_path, monkeypatch):
    arm = part(1, ["labels"], before=(part(4, ["labels"], labels=6), part(3, ["kd"], rate=0.2, labels=6)), labels=6)
    student, after, given, taught, _ = through(arm, tmp_path, monkeypatch)
    first, second = given
    assert first[0] == fingerprint_of(line(3)) != second[0] and fingerprint_of(student) not in (first[0], second[0])
    assert first[1:] == (6, None, 0.05, 3) and second[1:] == (6, taught, 0.1, 3), "half the rate, as in this trial"
    assert after is taught


def test_an_assistant_is_the_teacher_of_what_follows(tmp_path, monkeypatch):
    helper = part(4, ["kd"], assistant=True)
    student, after, given, taught, data = through(part(1, ["kd"], before=(helper,)), tmp_path, monkeypatch)
    assert given == [(fingerprint_of(line(3)), 12, taught, 0.1, 3)], "its own rate, whatever the trial's"
    assert fingerprint_of(student) == fingerprint_of(line(3)), "the student has not been trained yet"
    kept = line(0)
    kept.load_state_dict(unpack(tmp_path / "stage-1" / "model.safetensors")[0])
    assert fingerprint_of(kept) != fingerprint_of(line(3))
    batch = data.batch(plain_ids(torch.arange(16, 20)))
    with torch.no_grad():
        assert torch.allclose(after(batch)["logits"].float(), kept(batch["inputs"]), atol=1e-2)
    assert not torch.allclose(after(batch)["logits"].float(), taught(batch)["logits"], atol=0.5)
