"""From answers to metrics and to one sentence: every number against one worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.cli import screen
from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.files import write_json
from stillroom.objectives import match
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment
from stillroom.pipeline.story import summary_of
from stillroom.pipeline.verdict import _comparable, _differences, metrics_of, read_answers, teacher_answers, verdict
from stillroom.report.readings import share_of_gap
from stillroom.report.run_findings import arms_table, verdict_dots
from stillroom.settings import Training
from stillroom.tensors import pack

TIMES = 10  # the ten rows below, ten times over
LABELS = [0, 1, 2, 3, 0, 1, 2, 3, UNLABELLED, UNLABELLED]
TEACHER = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]  # right in 7 of 8
ANSWERS = {
    # right in 4 and 4 of the 8 rows with a label, as the teacher in 5 and 3 of all 10
    ALONE: [[0, 1, 2, 0, 1, 0, 2, 1, 1, 0], [0, 0, 1, 3, 0, 0, 1, 3, 0, 0]],
    # 6 and 7 of 8; 8 and 8 of 10
    "kd": [[0, 1, 2, 3, 0, 0, 2, 1, 1, 2], [0, 1, 2, 3, 0, 1, 2, 1, 1, 0]],
    # 3 and 1 of 8; 4 and 2 of 10
    "last": [[0, 1, 2, 0, 1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]],
}
HALF_OF_TWO = 12.7062047  # Student's t, 97.5 %, one degree of freedom


def logits(answers: list[int]) -> torch.Tensor:
    """Rows that are sure of ``answers``, all of them ten times over."""
    return 4 * nn.functional.one_hot(torch.tensor(answers * TIMES), 4).float()


def source(labels: list[int]) -> ArraySource:
    rows = len(labels) * TIMES
    known = torch.cat([torch.arange(20) % 4, torch.tensor(labels * TIMES)])
    splits = {"train": torch.arange(10), "validation": torch.arange(10, 20), "test": torch.arange(20, 20 + rows)}
    return ArraySource(torch.zeros(20 + rows, 3), known, splits=splits, classes=["a", "b", "c", "d"])


def arm(name: str, labels: int | None = None) -> ArmPlan:
    def objectives():
        return [match("labels")] if name == ALONE else [match("labels"), match("kd")]

    return ArmPlan(name, objectives, Training(steps=8), labels, lambda _: nn.Linear(3, 4), None, {}, {})


@pytest.fixture
def measured(tmp_path):
    return measure(tmp_path)


def measure(folder, answers=ANSWERS, told=TEACHER, labels=LABELS, seeds=(5, 2), **more):
    """Return metrics of hand-made answers; job ``s`` of arm ``a`` noted a rate and a step of its own."""
    arms = {name: more.get(name, arm(name)) for name in answers}
    experiment = Experiment("made", source(labels), {}, arms, list(seeds))
    for name in answers:
        for place, seed in enumerate(seeds):
            scores = {"notes": [], "learning_rate": 0.1 * (1 + place), "chosen_step": 4 + place}
            write_json(folder / "arms" / f"{name}-{seed}" / "scores.json", scores, sealed=True)
    held = {name: [logits(one) for one in rows] for name, rows in answers.items()}
    return metrics_of(experiment, folder, held, None if told is None else logits(told))


# --- metrics -------------------------------------------------------------------------------------------------


def test_every_model_has_its_own_numbers_a_seed_and_their_mean(measured):
    models = measured["models"]
    wanted = {
        ALONE: ([4 / 8, 4 / 8], [5 / 10, 3 / 10]),
        "kd": ([6 / 8, 7 / 8], [8 / 10, 8 / 10]),
        "last": ([3 / 8, 1 / 8], [4 / 10, 2 / 10]),
    }
    for name, (right, alike) in wanted.items():
        assert models[name]["accuracy"] == {"mean": pytest.approx(sum(right) / 2), "per_seed": pytest.approx(right)}
        assert models[name]["score"] == models[name]["accuracy"] and models[name]["score_name"] == "accuracy"
        assert models[name]["agreement"] == {"mean": pytest.approx(sum(alike) / 2), "per_seed": pytest.approx(alike)}
        assert models[name]["parameters"]["mean"] == 3 * 4 + 4
        assert models[name]["chosen_step"] == {"per_seed": [4, 5]} and models[name]["learning_rate"] == 0.1
    assert models["teacher"]["accuracy"] == {"mean": 7 / 8, "per_seed": [7 / 8]}
    assert "agreement" not in models["teacher"]
    assert models["distilled"] == models["kd"] and measured["main"] == "kd" and measured["arms"] == ["kd", "last"]
    assert measured["seeds"] == [5, 2] and measured["data"]["test"] == 100


def test_gains_are_those_of_the_first_arm_over_the_control_and_leave_unlabelled_rows_out(measured):
    gain = measured["score_gain"]
    assert gain["mean"] == pytest.approx(0.8125 - 0.5)  # seeds: +0.25 and +0.375, so their standard error is 0.0625
    assert gain["low"] == pytest.approx(0.3125 - HALF_OF_TWO * 0.0625)
    assert gain["high"] == pytest.approx(0.3125 + HALF_OF_TWO * 0.0625)
    assert gain["n"] == 2 and "Student's t over 2 seeds" in gain["method"], "the wider of the two is given"
    gain = measured["agreement_gain"]
    assert gain["mean"] == pytest.approx(0.8 - 0.4)  # seeds: +0.3 and +0.5
    assert gain["low"] == pytest.approx(0.4 - HALF_OF_TWO * 0.1)


def test_the_share_of_the_gap_is_that_of_each_arm(measured):
    gap = measured["gap_closed"]
    assert gap["mean"] == pytest.approx(0.3125 / 0.375)  # of (7/8 - 4/8)
    assert gap["low"] == pytest.approx((0.3125 - HALF_OF_TWO * 0.0625) / 0.375)
    assert set(measured["gaps"]) == {"kd", "last"} and measured["gaps"]["kd"] == gap
    assert measured["gaps"]["last"]["mean"] == pytest.approx(-0.25 / 0.375)


def test_an_arm_with_other_labels_has_another_control_and_so_no_share(tmp_path):
    found = measure(tmp_path, last=arm("last", labels=7))
    assert set(found["gaps"]) == {"kd"}


def test_only_arms_with_the_same_student_and_as_many_labels_share_the_control():
    other = dataclasses.replace(arm("other"), config={"model": {"use": "mlp"}})
    arms = {ALONE: arm(ALONE), "kd": arm("kd"), "other": other, "few": arm("few", 7), "same": arm("same")}
    assert _comparable(Experiment("made", source(LABELS), {}, arms, [0])) == ["kd", "same"]


def test_the_rival_is_the_best_of_the_other_arms():
    """Right in 6 of 10 rows; the others in 2, 9 and 4, so that the second leads the first arm by 30 points."""
    hits = {name: (np.arange(10) < right)[None].astype(float) for name, right in
            ((ALONE, 5), ("kd", 6), ("low", 2), ("high", 9), ("middle", 4))}  # fmt: skip
    found = _differences(hits, "kd")
    assert list(found["leads"]) == ["high"] and found["leads"]["high"]["mean"] == pytest.approx(0.3)
    gains = {name: round(gain["mean"], 6) for name, gain in found["gains"].items()}
    assert gains == {"kd": 0.1, "low": -0.3, "high": 0.4, "middle": -0.1}


def test_seeds_that_agree_leave_the_interval_to_the_examples(tmp_path):
    """Both seeds gain 0.25 by other rows: no spread over seeds, so the bootstrap over 80 rows is the wider."""
    answers = {ALONE: ANSWERS[ALONE], "kd": [ANSWERS["kd"][0]] * 2}
    gain = measure(tmp_path, answers)["score_gain"]
    assert gain["mean"] == pytest.approx(0.25) and gain["method"] == "bootstrap over 80 test examples, 95 %"
    # a row's gain, mean of both seeds: 0 0.5 0.5 0.5 0.5 0 0.5 -0.5; their variance is 0.125
    half = 1.96 * (0.125 / 80) ** 0.5
    assert (gain["low"], gain["high"]) == (pytest.approx(0.25 - half, abs=0.02), pytest.approx(0.25 + half, abs=0.02))


def test_numbers_are_written_as_they_are(tmp_path):
    """A third has no end: what is rounded before it is written is not it."""
    found = measure(tmp_path, labels=[0, 1, 2, *[UNLABELLED] * 7], told=[0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    write_json(tmp_path / "metrics.json", found)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["models"][ALONE]["accuracy"]["per_seed"] == [1.0, 1 / 3]
    assert kept["models"][ALONE]["accuracy"]["mean"] == (1.0 + 1 / 3) / 2
    assert kept["score_gain"]["mean"] == pytest.approx(1 - 2 / 3, abs=1e-15)


def test_without_labels_the_score_is_agreement_and_the_gap_unknown(tmp_path):
    found = measure(tmp_path, labels=[UNLABELLED] * 10)
    assert found["models"]["kd"]["score_name"] == "agreement" and found["models"]["kd"]["score"]["mean"] == 0.8
    assert found["gap_closed"] is None and "no labels" in found["reason"] and "score_gain" not in found
    assert found["agreement_gain"]["mean"] == pytest.approx(0.4) and "80.0 %" in found["verdict"]


def test_without_a_teacher_nothing_is_compared(tmp_path):
    found = measure(tmp_path, told=None)
    assert "teacher" not in found["models"] and found["gap_closed"] is None and "no teacher" in found["verdict"]


def test_answers_are_read_by_arm_and_seed_and_the_teachers_in_the_order_of_the_rows(tmp_path):
    experiment = Experiment("made", source(LABELS), {}, {name: arm(name) for name in ANSWERS}, [5, 2])
    for number, name in enumerate(ANSWERS):
        for seed in (5, 2):
            folder = tmp_path / "arms" / f"{name}-{seed}"
            folder.mkdir(parents=True)
            (folder / "answers.safetensors").write_bytes(pack({"test": torch.full((3, 4), 10.0 * number + seed)}))
    read = read_answers(experiment, tmp_path)
    assert {name: [float(part[0, 0]) for part in parts] for name, parts in read.items()} == {
        ALONE: [5.0, 2.0],
        "kd": [15.0, 12.0],
        "last": [25.0, 22.0],
    }
    rows = torch.arange(20, 120)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    experiment.data.splits["test"] = rows
    asked = teacher_answers(experiment, lambda batch: {"logits": batch["id"][:, :1].double()})
    assert asked is not None and torch.equal(asked[:, 0], rows.float())
    assert teacher_answers(experiment, None) is None


# --- the sentence ----------------------------------------------------------------------------------------------


def told(low, mean, high, seeds, gap=None, **more):
    """Return the verdict of a student that went from 80 % by ``mean``, under a teacher at 90 %."""
    models = {
        name: {"score": {"mean": value}, "score_name": "accuracy"}
        for name, value in ((ALONE, 0.8), ("teacher", 0.9), ("distilled", 0.8 + mean), ("kd", 0.8 + mean))
    }
    held = {
        "models": models, "main": "kd", "arms": ["kd"], "seeds": list(range(seeds)),
        "score_gain": {"mean": mean, "low": low, "high": high, "n": seeds, "method": "by hand"},
        "gap_closed": gap, "reason": "the gap is not known", **more,
    }  # fmt: skip
    return verdict(held)


@pytest.mark.parametrize(
    ("seeds", "helped", "worse"),
    [
        (1, "Distilling helped with this one seed: ", "Distilling made the student worse with this one seed: "),
        (2, "Distilling helped in these 2 seeds: ", "Distilling made the student worse in these 2 seeds: "),
        (4, "Distilling helped in these 4 seeds: ", "Distilling made the student worse in these 4 seeds: "),
        (5, "Distilling helped: ", "Distilling made the student worse: "),
    ],
)
def test_a_claim_needs_an_interval_off_nought_and_five_seeds(seeds, helped, worse):
    assert told(0.01, 0.05, 0.09, seeds).startswith(helped)
    assert told(-0.09, -0.05, -0.01, seeds).startswith(worse)
    unclear = "Whether distilling helped cannot be told from chance: "
    for low, mean, high in ((-0.01, 0.05, 0.11), (-0.11, -0.05, 0.01), (0.0, 0.05, 0.1), (-0.1, -0.05, 0.0)):
        assert told(low, mean, high, seeds).startswith(unclear)
    assert told(None, 0.05, None, seeds).startswith(unclear)


def test_the_verdict_names_every_number_with_its_sign():
    said = told(0.01, 0.05, 0.09, 5)
    assert "alone 80.0 %" in said and "85.0 %" in said and "teacher 90.0 %" in said
    assert "+5.0 points [+1.0, +9.0]" in said and said.endswith("The gap is not known.")
    assert "[" not in told(None, 0.05, None, 1)


def test_the_head_of_the_report_shows_the_first_arm(measured):
    head = dict(summary_of(measured))
    assert head["teacher"] == "87.5 %" and head[ALONE] == "50.0 %"
    assert [value for label, value in head.items() if label.startswith(("distilled", "kd"))] == ["81.2 %"]
    assert head["agrees with the teacher"] == "80.0 %"


@pytest.mark.parametrize(
    ("mean", "low", "high", "short", "sentence"),
    [
        (0.86, 0.71, 1.03, "86 % [71, 103]", "It closed 86 % [71, 103] of the gap to the teacher."),
        (0.2, -0.05, 0.5, "20 % [−5, 50]", "It closed 20 % [−5, 50] of the gap to the teacher."),
        (0.6, -0.4, 2.3, "not known", "What share of the gap to the teacher it closed cannot be told from this run."),
        (1.67, 1.05, 5.83, "above the teacher", "The student is above the teacher."),
        (1.2, 0.8, 1.6, "above the teacher", "The student is above the teacher, by no more than chance."),
        (-0.36, -1.1, 0.4, "wider", "The gap to the teacher widened, which may be chance."),
        (-0.36, -0.6, -0.1, "wider", "The gap to the teacher widened."),
    ],
)
def test_a_share_of_the_gap_is_a_number_only_where_that_makes_sense(mean, low, high, short, sentence):
    gap = {"mean": mean, "low": low, "high": high, "n": 3, "method": "by hand"}
    assert told(0.01, 0.05, 0.09, 5, gap).endswith(sentence)
    assert share_of_gap({"gap_closed": gap}) == (short, sentence)


def test_a_fall_has_one_minus_sign_everywhere():
    said = told(-0.104, -0.034, 0.035, 3)
    assert "−3.4 points [−10.4, +3.5]" in said and "-" not in said


# --- one difference, one interval -----------------------------------------------------------------------------------


def test_head_panel_and_table_print_the_same_interval(tmp_path, capsys):
    """Seeds that agree, so that the bootstrap is the wider: the panel once printed that over seeds, 11.0 to 11.9."""
    answers = {ALONE: ANSWERS[ALONE], "main": [ANSWERS["kd"][0]] * 2, "last": ANSWERS["last"]}
    found = measure(tmp_path, answers, main=arm("main"))
    gain = found["score_gain"]
    assert "bootstrap" in gain["method"] and found["gains"]["main"] == gain and set(found["gains"]) == {"main", "last"}
    low, high = (f"{100 * gain[end]:.1f}" for end in ("low", "high"))
    assert f"+25.0 points [+{low}, +{high}]" in found["verdict"]
    panel = verdict_dots(found)
    assert f"+25.0 points (95 % interval {low} to {high}, bootstrap over 80 test examples;" in panel.sentence
    assert panel.sentence.startswith("Yes, in these 2 seeds.") and "in these 2 seeds: " in found["verdict"]
    row = panel.figure["figures"][1]["rows"][0]
    assert (row["low"], row["high"]) == (pytest.approx(100 * gain["low"]), pytest.approx(100 * gain["high"]))
    others = panel.figure["figures"][1]["rows"][1]
    assert others["name"] == "last" and others["mean"] == pytest.approx(-25.0)
    assert others["low"] == pytest.approx(100 * found["gains"]["last"]["low"])


def test_the_best_other_arm_is_compared_with_the_first_by_the_same_rule(measured):
    lead = measured["leads"]["last"]
    assert lead["mean"] == pytest.approx(0.25 - 0.8125) and lead["n"] == 2  # seeds: -0.375 and -0.75
    assert lead["low"] == pytest.approx(-0.5625 - HALF_OF_TWO * 0.1875)
    assert "'last', is not told apart from it" in arms_table(measured).sentence


def test_a_model_has_one_name(tmp_path, capsys):
    """The plain arm of a Python run is called main inside and distilled wherever a person reads of it."""
    found = measure(tmp_path, {ALONE: ANSWERS[ALONE], "main": ANSWERS["kd"]}, main=arm("main"))
    assert "distilled 81.2 %" in found["verdict"] and "main" not in found["verdict"]
    assert "'distilled' differs" in verdict_dots(found).sentence
    assert [row[0] for row in arms_table(found).figure["rows"]][:3] == ["teacher", ALONE, "distilled"]
    assert dict(summary_of(found))["distilled"] == "81.2 %"
    screen.show_metrics(found)
    assert any(line.split()[:1] == ["distilled"] for line in capsys.readouterr().out.splitlines())
    other = measure(tmp_path, {ALONE: ANSWERS[ALONE], "kd": ANSWERS["kd"]})
    assert "kd 81.2 %" in other["verdict"] and "distilled " not in other["verdict"]


def test_the_terminal_prints_half_an_interval_and_says_so(measured, capsys):
    screen.show_metrics(measured)
    lines = capsys.readouterr().out.splitlines()
    cells = next(line for line in lines if line.split()[:1] == ["kd"]).split()
    half = 100 * HALF_OF_TWO * 0.0625  # 75.0 and 87.5 %
    assert cells[1:5] == ["81.2", "%", "±", f"{half:.1f}"]
    assert any(line.startswith("±: half the 95 % interval of the mean over seeds (Student's t)") for line in lines)
    row = next(row for row in arms_table(measured).figure["rows"] if row[0] == "kd")
    assert row[1]["high"] - row[1]["mean"] == pytest.approx(half)
    assert screen.share(measured["models"]["kd"]["score"], spread=True) == f"81.2 % ± {half:.1f}"
    assert screen.share(measured["models"]["teacher"]["score"], spread=True) == "87.5 %"


def test_a_narrow_terminal_cuts_no_number(measured, capsys, monkeypatch):
    monkeypatch.setattr(screen.out, "width", 40)
    screen.show_metrics(measured)
    assert "…" not in capsys.readouterr().out


def test_baselines_and_silent_classes_are_in_the_verdict_the_table_and_the_report(tmp_path, capsys):
    """The student answers three of the four classes, and is right no more often than always the first would be."""
    labels = [0, 0, 0, 0, 0, 1, 2, 3, UNLABELLED, UNLABELLED]
    student = [[0, 0, 1, 1, 0, 1, 2, 0, 0, 0]] * 2
    found = measure(tmp_path, {ALONE: ANSWERS[ALONE], "kd": student}, labels=labels)
    assert found["baseline"]["constant"] == {"name": "always 'a'", "accuracy": 5 / 8, "labels": 10}
    assert "The student never answers 'd' (recall 0 %" in found["verdict"]
    assert "To answer always 'a' is right in 62.5 % of cases, no less than the student." in found["verdict"]
    assert ["always 'a'", 62.5] in [row[:2] for row in arms_table(found).figure["rows"]]
    screen.show_metrics(found)
    said = capsys.readouterr().out
    assert "always 'a'" in said and "balanced: accuracy as the mean recall" in said
    assert found["models"]["kd"]["balanced_accuracy"]["mean"] == pytest.approx((3 / 5 + 1 + 1 + 0) / 4)


def test_every_key_is_told_in_the_docs(measured):
    text = (Path(__file__).parents[1] / "docs" / "runs.md").read_text()
    for key in [*measured, "teacher_check", *measured["models"]["kd"]]:
        assert f"`{key}`" in text, key
