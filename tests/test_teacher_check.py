"""A teacher that is fed wrongly is named before its students are trained, and first of all in the verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.models.bundle import Deployed
from stillroom.objectives import match
from stillroom.pipeline.distill import distill
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, TeacherPlan
from stillroom.pipeline.reasons import why_not
from stillroom.pipeline.teacher_check import LOOK, TRAIN, add_teacher_check, checked, doubt, ready_made
from stillroom.settings import Training

NAMES = ["cat", "dog", "owl", "bee"]


def answers(guess: torch.Tensor, classes: int = 4) -> torch.Tensor:
    return 5 * nn.functional.one_hot(guess, classes).float()


LABELS = torch.arange(200) // 50  # sorted by class, as folders of pictures are


def noisy(guess: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
    """Return ``guess`` with a share of it replaced by any class."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(4, guess.shape, generator=generator)
    return torch.where(torch.rand(guess.shape, generator=generator) < share, other, guess)


def test_a_good_or_middling_teacher_is_not_doubted():
    for share in (0.0, 0.2, 0.5, 0.7):
        assert doubt(answers(noisy(LABELS, share)), LABELS, NAMES, True, "rows") is None


def test_permuted_classes_are_named_with_what_they_should_be():
    """Each class is answered as the next one: right never, and in all of 200 rows read that way."""
    said = doubt(answers((LABELS + 1) % 4), LABELS, NAMES, True, "validation examples")
    assert said.startswith("The teacher's classes look permuted: it is right on 0.0 % of the validation examples, and ")
    assert "would be on 100.0 % with its classes in another order" in said and said.endswith(LOOK)
    assert "'dog' for 'cat'" in said and "'owl' for 'dog'" in said
    swapped = torch.where(LABELS < 2, 1 - LABELS, LABELS)  # two of four: right on half of the rows
    said = doubt(answers(swapped), LABELS, NAMES, True, "rows")
    assert "right on 50.0 %" in said and "100.0 %" in said and "'bee'" not in said


def test_no_order_is_read_out_of_chance():
    """Twelve rows of each of 60 classes, guessed at random: the best order fits its own rows, and no others."""
    labels = torch.arange(720) % 60
    guess = torch.randint(60, (720,), generator=torch.Generator().manual_seed(1))
    said = doubt(answers(guess, 60), labels, [str(one) for one in range(60)], True, "rows")
    assert said.startswith("The teacher answers at chance") and "permuted" not in said
    said = doubt(answers(guess[:240], 60), labels[:240], [str(one) for one in range(60)], True, "rows that are few")
    assert "permuted" not in said


def test_chance_is_told_from_a_constant_answer_and_by_who_trained_it():
    constant = torch.zeros(200, dtype=torch.long)
    given, trained = (doubt(answers(constant), LABELS, NAMES, one, "rows") for one in (True, False))
    assert given == f"The teacher answers at chance: it is right on 25.0 % of the rows, always 'cat' on 25.0 %. {LOOK}"
    assert trained.endswith(TRAIN) and LOOK not in trained
    rare = torch.cat([torch.zeros(190, dtype=torch.long), torch.ones(10, dtype=torch.long)])
    found = rare.clone()
    found[185:190] = 1  # right on 97.5 %, which is hardly more than always 0, but it finds all of the rare class
    assert doubt(answers(found, 2), rare, ["no", "yes"], True, "rows") is None


def test_little_is_known_of_few_rows_and_nothing_of_rows_without_labels():
    constant = answers(torch.zeros(200, dtype=torch.long))
    few = torch.full((200,), UNLABELLED)
    few[:19] = LABELS[::11][:19]
    assert doubt(constant, few, NAMES, True, "rows") is None
    few[:20] = LABELS[::10]
    assert doubt(constant, few, NAMES, True, "rows") is not None


def test_the_teacher_is_judged_on_validation_rows_and_against_the_control():
    """It is right on the validation rows and never on the test rows; there the control leads it by 40 of 100 points."""
    splits = {"train": range(200), "validation": range(200, 400), "test": range(400, 500)}
    data = ArraySource(torch.zeros(500, 2), torch.cat([LABELS, LABELS, LABELS])[:500], classes=NAMES, splits=splits)
    order = torch.cat([LABELS, LABELS, (LABELS + 1) % 4])[:500]
    teacher = lambda batch: {"logits": answers(order[batch["id"][:, 0]])}  # noqa: E731
    arm = ArmPlan("kd", list, Training(steps=1), None, lambda _: student(), None, {}, {})
    plans = {"given": TeacherPlan({}), "made": TeacherPlan({}, training=Training(steps=5))}
    held = Experiment("x", data, plans, {"kd": arm}, [0])
    assert checked(held, teacher) is None
    assert ready_made(held, "given") and not ready_made(held, "made") and not ready_made(held)
    for theirs, ours, said in ((0.5, 0.9, True), (0.9, 0.5, False), (0.5, 0.52, False)):
        right = {"teacher": hits(theirs, 0)[None], ALONE: np.stack([hits(ours, 1), hits(ours, 2)])}
        metrics = {"verdict": "As it was."}
        add_teacher_check(held, metrics, teacher, right)
        assert ("teacher_check" in metrics) is said and metrics["verdict"].endswith("As it was.")
        if said:
            assert "worse than the same student trained alone: −40.0 points [−" in metrics["verdict"]


def hits(share: float, turned: int) -> np.ndarray:
    """A hundred answers, of which this share is right; which ones depends on ``turned``."""
    return np.roll((np.arange(100) < 100 * share).astype(float), 37 * turned)


# --- in a run -----------------------------------------------------------------------------------------------------


def pictures() -> ArraySource:
    """Four classes of uint8 pictures, 4 x 4: one quarter is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    pixels = torch.randint(0, 120, (400, 1, 4, 4), generator=generator)
    for quarter in range(4):
        row, column = 2 * (quarter // 2), 2 * (quarter % 2)
        pixels[labels == quarter, :, row : row + 2, column : column + 2] += 100
    return ArraySource(pixels.to(torch.uint8), labels, classes=NAMES)


class Quarters(nn.Module):
    """A teacher that is right on pixels from 0 to 255, and answers the first class to anything smaller."""

    def __init__(self, order=(0, 1, 2, 3)):
        super().__init__()
        self.order = list(order)
        self.scale = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        quarters = nn.functional.avg_pool2d(x.float(), 2).flatten(1)
        seen = (quarters > 100).float() * quarters
        bias = torch.tensor([1.0, 0.0, 0.0, 0.0])
        return self.scale * seen[:, self.order] + bias


class Raw(nn.Module):
    """Pixels as they are."""

    def forward(self, inputs):
        return inputs.float()


def student() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def run(teacher, tmp_path, **more):
    return distill(teacher, student, pictures(), ["labels", "kd"], steps=40, out=tmp_path / "run", **more)


def notes(folder):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    doubts = [(place, line) for place, line in enumerate(lines) if "The teacher" in line.get("note", "")]
    return doubts, lines


def test_a_teacher_that_normalises_what_is_normalised_already_is_named_first(tmp_path):
    result = run(Quarters(), tmp_path)
    said = result.verdict
    assert said.startswith("The teacher answers at chance: it is right on 25.0 %") and said.index(LOOK) < said.index(
        "alone"
    )
    assert result.metrics["teacher_check"] in said and result.metrics["models"]["teacher"]["score"]["mean"] < 0.3
    found, lines = notes(result.folder)
    assert len(found) == 1 and found[0][1]["note"] == result.metrics["teacher_check"]
    trained = [place for place, line in enumerate(lines) if line.get("task", "").startswith("trial main")]
    assert found[0][0] < min(trained), "told before a student learns from it"
    advice = " ".join(one.figure.get("text", "") for one in result.findings if one.title == "Why it did not help")
    assert "longer" not in advice and LOOK in advice


def test_with_its_own_preparation_it_is_not_doubted(tmp_path):
    result = run(Deployed(Quarters(), Raw()), tmp_path)
    assert result.metrics["models"]["teacher"]["score"]["mean"] == 1.0
    assert "teacher_check" not in result.metrics and not notes(result.folder)[0]


def test_permuted_classes_are_told_in_a_run(tmp_path):
    result = run(Deployed(Quarters(order=(1, 0, 3, 2)), Raw()), tmp_path)
    assert result.verdict.startswith("The teacher's classes look permuted: it is right on 0.0 %")


def test_a_recording_that_was_there_before_is_checked_before_its_students_in_each_run(tmp_path):
    first = run(Quarters(), tmp_path)
    again = distill(Quarters(), student, pictures(), ["labels", "kd"], steps=30, out=first.folder)
    found, lines = notes(again.folder)
    assert len(found) == 2 and "at chance" in found[1][1]["note"]
    later = [line.get("task", "") for line in lines[found[1][0] :]]
    assert any(task.startswith("trial main") for task in later)


@pytest.mark.parametrize(("training", "longer"), [(None, False), (Training(steps=5), True)])
def test_advice_to_train_longer_is_for_teachers_that_were_trained_here(training, longer):
    plan = TeacherPlan({}, student, training=training)
    arm = ArmPlan(
        "kd", lambda: [match("labels"), match("kd")], Training(steps=1), None, lambda _: student(), None, {}, {}
    )
    experiment = Experiment("x", pictures(), {"": plan}, {"kd": arm}, [0])
    assert ready_made(experiment) is not longer
    models = {
        name: {"score": {"mean": value}} for name, value in (("teacher", 0.81), ("alone", 0.8), ("distilled", 0.8))
    }
    held = {"score_gain": {"mean": 0.0, "low": -0.1, "high": 0.1}, "models": models}
    told = why_not(experiment, held, torch.randn(10, 4)).figure["text"]
    assert "+1.0 points only" in told and ("Train the teacher longer" in told) is longer
    models["teacher"]["score"]["mean"] = 0.2
    assert "not ahead of it (−60.0 points)" in why_not(experiment, held, torch.randn(10, 4)).figure["text"]
    held["teacher_check"] = "The teacher answers at chance."
    told = why_not(experiment, held, torch.randn(10, 4))
    assert told.sentence == "The teacher answers at chance." and "longer" not in told.figure["text"]


def test_few_validation_rows_are_joined_by_training_rows_for_a_teacher_given_as_it_is():
    splits = {"train": range(100), "validation": range(100, 110), "test": range(110, 200)}
    data = ArraySource(torch.zeros(200, 2), torch.arange(200) % 4, classes=NAMES, splits=splits)
    teacher = lambda batch: {"logits": answers(torch.zeros(len(batch["id"]), dtype=torch.long))}  # noqa: E731
    arm = ArmPlan("kd", list, Training(steps=1), None, lambda _: student(), None, {}, {})
    given = Experiment("x", data, {"": TeacherPlan({})}, {"kd": arm}, [0])
    trained = Experiment("x", data, {"": TeacherPlan({}, training=Training(steps=5))}, {"kd": arm}, [0])
    assert "25.5 % of the validation and training examples" in (checked(given, teacher) or "")  # 28 of 110
    assert checked(trained, teacher) is None, "ten rows say nothing"


def test_a_teacher_far_above_always_one_answer_is_not_at_chance():
    labels = torch.tensor([0] * 14 + [1] * 10 + [2] * 3)
    guess = torch.tensor([0] * 14 + [1] * 4 + [0] * 6 + [0] * 3)  # 18 of 27 right, against 14 for always 'cat'
    assert doubt(answers(guess, 3), labels, NAMES, True, "rows") is None
