"""A mined recipe: only what a panel gives a reason for is changed, and it reads as it was chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Panel, Subject
from stillroom.mining.examples import examples
from stillroom.pipeline.mined_choices import (
    Choices,
    beside,
    choose,
    class_weights,
    labels_part,
    left_out,
    temperature,
    wilson,
)
from stillroom.pipeline.mined_layers import alike
from stillroom.pipeline.mined_recipe import MADE, as_yaml, changed, mined_recipe
from stillroom.recipe import read_recipe

TEXT = """
name: hand
data: {use: fashion-mnist-sample, labels: 1000}
teacher: {model: mlp, hidden: [32]}
student: {model: net, hidden: 6}
objectives: [{use: labels, weight: 0.1}, {use: kd, temperature: 2, weight: 0.9}]
arms:
  kd: {}
  other: {objectives: [{use: kd, temperature: 7}, {use: labels, smoothing: 0.1, weight: {from: 1, to: 0, until: 0.5}}]}
"""
LOGITS = torch.tensor([[6.0, 2.0, 1.0], [1.0, 7.0, 2.0]])
HELD = {"examples": 1000, "accuracy": 0.8, "temperature": [1.5, 1.7], "recall": {"ant": 0.8, "bee": 0.8, "cat": 0.8}}
HELD["rows"] = {"ant": 333, "bee": 333, "cat": 334}
ANSWERS = {"accuracy": 0.99, "temperature": 1.6, "validation": HELD}
FIRM = {"pairs_again": 0.0, "validation": {"pairs_again": 0.95}}
SUSPECT = {"label": "shirt", "suggested": "coat", "score": 0.9}


def panels(**more):
    return {name: Panel(name, numbers=one) for name, one in {"answers": ANSWERS, "similarity": FIRM, **more}.items()}


def teacher(rows: int = 200) -> Subject:
    splits = {"train": range(rows - 20), "validation": range(rows - 20, rows - 10), "test": range(rows - 10, rows)}
    names = ["ant", "bee", "cat"]
    data = ArraySource(LOGITS.repeat(rows // 2, 1).numpy(), labels=np.arange(rows) % 3, classes=names, splits=splits)
    return Subject(data, answer=lambda inputs: inputs)


def chosen(found, student=None, text=TEXT):
    recipe = read_recipe(text)
    return recipe.resolved(), choose(recipe, found, teacher(), student)


def test_nothing_found_changes_the_name_alone():
    resolved, choices = chosen({})
    assert choices.values == {("name",): "hand-mined"} and list(choices.reasons) == [("name",)]
    assert changed(resolved, choices.values) == {**resolved, "name": "hand-mined"}
    panel = mined_recipe(read_recipe(TEXT), {}, teacher(), None)
    assert panel.findings[0].number == 0 and "gives no reason to change" in panel.findings[0].sentence


def test_what_is_known_of_test_examples_chooses_nothing():
    of_test = {"answers": {**ANSWERS, "validation": None}, "similarity": {"pairs_again": 1.0, "validation": None}}
    of_test["students"] = {"classes": [{"class": "shirt", "lost": 0.5, "verdict": "lost"}]}
    _, choices = chosen({name: Panel(name, numbers=one) for name, one in of_test.items()})
    assert choices.values == {("name",): "hand-mined"}
    first, second = (
        chosen(panels(answers={**ANSWERS, "accuracy": one}, similarity={**FIRM, "pairs_again": one}))[1].values
        for one in (0.1, 1.0)
    )
    assert first == second and len(first) > 1


def test_answers_of_test_rows_warm_nothing():
    """How warm kd is to be is read off training rows: other answers to test rows change no choice."""
    recipe, plain = read_recipe(TEXT), teacher()
    values = LOGITS.repeat(100, 1)
    values[plain.data.splits["test"]] *= 10
    data = ArraySource(values.numpy(), np.arange(200) % 3, classes=["ant", "bee", "cat"], splits=plain.data.splits)
    other = Subject(data, answer=lambda inputs: inputs)
    found = [choose(recipe, panels(), one, None) for one in (plain, other)]
    assert found[0].values == found[1].values and found[0].reasons == found[1].reasons
    assert ("objectives", 1, "temperature") in found[0].values


def test_the_text_reads_as_the_choices_and_tells_why():
    suspects = [{"example": one, **SUSPECT} for one in range(30)]
    found = panels(
        students={
            "classes": [
                {"class": "shirt: grey", "lost": 0.05, "verdict": "lost"},
                {"class": "bag", "lost": 0.04, "verdict": "not clear"},
            ]
        },
        examples={"suspects": suspects},
    )
    resolved, choices = chosen(found)
    values = changed(resolved, choices.values)
    text = as_yaml(values, choices.reasons)
    assert read_recipe(text).resolved() == values
    weights = [one["weight"] for one in values["objectives"]]
    assert weights == pytest.approx([0.18, 0.82]) and values["student"] == resolved["student"]
    lines = text.splitlines()
    at = next(place for place, line in enumerate(lines) if "temperature:" in line)
    assert (
        lines[at - 1].strip().startswith("#") and "# The student clearly lost on shirt: grey (5.0 points) (test" in text
    )
    warm = [one[0]["temperature"] for one in (values["objectives"][1:], values["arms"]["other"]["objectives"])]
    assert warm[0] == warm[1] == temperature(ANSWERS, FIRM, LOGITS, 2.0)[0]
    assert values["arms"]["other"]["objectives"][1]["weight"]["from"] == 1
    assert max(map(len, lines)) < 119 and "validation examples" in text
    panel = mined_recipe(read_recipe(TEXT), found, teacher(), None)
    assert panel.files["recipe.yaml"].startswith(MADE.encode())
    assert "data.leave_out none -> 30 numbers" in panel.findings[0].sentence
    json.dumps(panel.numbers)


# --- answers -------------------------------------------------------------------------------------------


def test_warmth_rises_until_a_quarter_lies_beside_where_likeness_is_firm():
    warm, why = temperature(ANSWERS, FIRM, LOGITS, 2.0)
    assert beside(LOGITS, warm) >= 0.25 > beside(LOGITS, warm - 0.5) and "validation examples" in why
    assert temperature(ANSWERS, FIRM, LOGITS, warm) is None, "what it has already is no change"
    near = next(one / 10 for one in range(10, 80) if beside(LOGITS, one / 10) >= 0.21)
    assert near < warm and temperature(ANSWERS, FIRM, LOGITS, near) is None, "nearly as much is no change either"
    unsure = {**ANSWERS, "temperature": near + 1, "validation": {**HELD, "temperature": [near + 0.9, near + 1.1]}}
    assert temperature(unsure, FIRM, LOGITS, near)[0] > near, "but it must repair the calibration"
    loose, why = temperature(ANSWERS, {"validation": {"pairs_again": 0.3}}, LOGITS, 2.0)
    assert loose == 1.5 and "30 % stay" in why
    assert temperature(ANSWERS, {"pairs_again": 1.0}, LOGITS, 2.0)[0] == 1.5, "firm on test examples does not count"
    assert temperature({}, FIRM, LOGITS, 2.0) is None


def test_a_temperature_that_may_be_right_stays_where_likeness_is_not_known():
    few = {**ANSWERS, "validation": {**HELD, "temperature": [1.05, 4.9]}}
    assert temperature(few, {}, LOGITS, 2.0) is None
    assert temperature(few, {}, LOGITS, 6.0)[0] == 4.5
    assert temperature({**few, "validation": {**HELD, "temperature": [3.2, 4.9]}}, {}, LOGITS, 2.0)[0] == 3.5
    assert temperature({**few, "validation": {**HELD, "temperature": [0.2, 0.4]}}, {}, LOGITS, 2.0)[0] == 1.0


@pytest.mark.parametrize(
    ("right", "rows", "now", "part"),
    [
        (1.0, 1000, 0.3, 0.05),
        (0.8, 1000, 0.1, 0.18),
        (0.8, 1000, 0.19, None),
        (0.975, 40, 0.3, 0.12),
        (0.975, 40, 0.1, None),
        (0.2, 1000, 0.1, 0.5),
        (0.99, 1000, 0.02, None),
    ],
)
def test_labels_count_as_often_as_the_teacher_is_wrong_as_far_as_that_is_known(right, rows, now, part):
    found = labels_part({"accuracy": 0.5, "validation": {"accuracy": right, "examples": rows}}, now)
    assert (None if found is None else found[0]) == part


def drawn(recalls: list[float], rows: int, seed: int) -> dict:
    right = np.random.default_rng(seed).binomial(rows, recalls)
    names = [f"class {number}" for number in range(len(recalls))]
    held = {"examples": rows * len(recalls), "accuracy": float(right.sum()) / rows / len(recalls)}
    held["recall"] = {name: float(one) / rows for name, one in zip(names, right, strict=True)}
    return {"validation": {**held, "rows": dict.fromkeys(names, rows)}}


def test_classes_the_teacher_does_not_know_weigh_more():
    weights, why = class_weights(drawn([0.9] * 8 + [0.6, 0.995], 200, 0))
    assert weights[8] == 2.0 and weights[9] == 0.5 and max(weights[:8]) == 1.0
    assert "'class 8'" in why and "validation" in why


def test_where_all_classes_are_known_alike_none_weighs_more():
    found = [class_weights(drawn([0.9] * 10, 100, seed)) for seed in range(100)]
    assert sum(one is not None for one in found) <= 10, "one in twenty is expected"
    assert class_weights({"accuracy": 0.5}) is None
    assert class_weights({"validation": {"accuracy": 1.0, "recall": {"a": 1.0}, "rows": {"a": 5}}}) is None
    unseen = {"accuracy": 0.8, "recall": {"a": 0.8, "b": None}, "rows": {"a": 100, "b": 0}}
    assert class_weights({"validation": unseen}) is None


def test_class_weights_are_told_where_no_author_gave_any():
    found = panels(answers=drawn([0.9] * 9 + [0.5], 200, 0))
    place = ("objectives", 0, "class_weights")
    resolved, choices = chosen(found)
    assert place not in choices.values and "1, 2], in the order class 0, class 1" in choices.reasons[place]
    text = as_yaml(changed(resolved, choices.values), choices.reasons)
    told = " ".join(line.strip(" #") for line in text.splitlines())
    assert "None are set, since no benefit of class weights has been recorded" in told
    assert "shipped" not in told and "blind" not in told and "measured" not in told, "no record says more"
    own = TEXT.replace("{use: labels, weight: 0.1}", "{use: labels, weight: 0.1, class_weights: [1, 2, 3]}")
    assert place not in chosen(found, text=own)[1].reasons


def test_wilsons_interval_by_its_formula():
    low, high = wilson(0.025, 40, 0.95)
    assert (low, high) == pytest.approx((0.00443, 0.12881), abs=2e-5)  # statsmodels: proportion_confint(1, 40)
    assert wilson(0.0, 10, 0.95)[0] == pytest.approx(0.0, abs=1e-12) and wilson(0.3, 0, 0.95) == (0.0, 1.0)


# --- examples ------------------------------------------------------------------------------------------


def test_suspects_are_left_out_beside_those_that_are_already(tmp_path):
    (tmp_path / "gone.json").write_text("[7, 3]")
    found = panels(examples={"suspects": [{"example": one, **SUSPECT} for one in (9, 7)]})
    for given, expected in (("", [7, 9]), (", leave_out: [1]", [1, 7, 9])):
        text = TEXT.replace("labels: 1000}", f"labels: 1000{given}}}")
        _, choices = chosen(found, text=text)
        assert choices.values["data", "leave_out"] == expected
        assert "9 ('shirt', looks like 'coat')" in choices.reasons["data", "leave_out"]
    text = TEXT.replace("labels: 1000}", f"labels: 1000, leave_out: '{tmp_path / 'gone.json'}'}}")
    assert chosen(found, text=text)[1].values["data", "leave_out"] == [3, 7, 9]


@pytest.mark.parametrize(("count", "said"), [(0, None), (1, "looks wrong, too few"), (100, "look wrong, too many")])
def test_no_suspects_no_examples_left_out_and_too_few_or_many_are_told_only(count, said):
    suspects = [{"example": one, **SUSPECT} for one in range(count)]
    _, choices = chosen(panels(examples={"suspects": suspects}))
    assert ("data", "leave_out") not in choices.values
    assert said is None or (said in choices.reasons["data",] and "0 ('shirt'" in choices.reasons["data",])
    assert said is not None or ("data",) not in choices.reasons


@pytest.mark.parametrize(
    ("count", "searched", "rows", "gone"),
    [(250, 5000, 50_000, True), (250, 50_000, 50_000, False), (20, 1000, 50_000, True), (450, 1000, 50_000, False)],
)
def test_suspects_are_many_or_few_of_those_that_were_searched(count, searched, rows, gone):
    found = {"suspects": [{"example": one, **SUSPECT} for one in range(count)], "labels": {"examples": searched}}
    choices = Choices()
    left_out(choices, read_recipe(TEXT).resolved(), found, rows)
    assert (("data", "leave_out") in choices.values) == gone
    reason = choices.reasons["data", "leave_out"] if gone else choices.reasons["data",]
    assert f"{count} of {searched:,} training examples" in reason
    assert ("that were searched look wrong" in reason) == (searched < rows)
    assert (f"{rows - searched:,} others were not searched" in reason) == (searched < rows)


def test_what_the_panel_of_examples_says_of_its_search_is_read():
    """The number of rows that were searched comes from the panel itself: labelled ones, of those it looked at."""
    labels = np.arange(600) % 2
    values = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    values[:, 0] += 8 * labels
    given = np.where(np.arange(600) < 200, labels, -1)
    given[:400:20] = np.where(given[:400:20] >= 0, 1 - given[:400:20], -1)
    given[400:] = labels[400:]
    splits = {"train": range(400), "validation": range(400, 500), "test": range(500, 600)}
    data = ArraySource(values, labels=given, classes=["no", "yes"], splits=splits)
    subject = Subject(data, answer=lambda inputs: torch.stack([4 - inputs[:, 0], inputs[:, 0] - 4], 1))
    choices = Choices()
    left_out(choices, read_recipe(TEXT).resolved(), examples(subject, Budget(600.0)).numbers, 400)
    assert choices.values["data", "leave_out"] == list(range(0, 200, 20))
    assert "10 of 200 training examples that were searched" in choices.reasons["data", "leave_out"]


# --- layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "hidden"), [(9, 9), (4, None)])
def test_a_student_is_widened_and_never_narrowed(wanted, hidden):
    class Pupil:
        module = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))

    _, choices = chosen(panels(layers={"suggested_width": wanted}), student=Pupil())
    assert choices.values.get(("student", "hidden")) == hidden


class Deep(nn.Module):
    """Three layers of 12; the student's hidden layer is a rotated copy of the teacher's ``two``, or begins anew."""

    def __init__(self, seed: int, copied: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two, self.three = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.last, self.copied = nn.Linear(12, 3), copied

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        first = self.one(values).sign()
        second = self.two(first).sign()
        return self.last(self.three(second).sign())


class Copy(nn.Module):
    """A network whose ``hidden`` shows a rotation of what another's ``two`` shows."""

    def __init__(self, of: Deep) -> None:
        super().__init__()
        self.of = [of]
        self.hidden, self.last = nn.Linear(12, 12, bias=False), nn.Linear(12, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.linalg.qr(torch.randn(12, 12)).Q)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        of = self.of[0]
        with torch.no_grad():
            shown = of.two(of.one(values).sign())
        return self.last(self.hidden(shown))


def pair(copied: bool) -> tuple[Subject, Subject]:
    values = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32)
    data, deep = ArraySource(values, labels=np.arange(500) % 3), Deep(0)
    return Subject(data, deep), Subject(data, Copy(deep) if copied else Deep(1))


def test_the_layer_that_was_copied_is_the_one_to_match():
    told, own = pair(copied=True)
    layer, why = alike(told, own, ["one", "two", "three"], "hidden", "three")
    assert layer == "two" and "CKA 1.00" in why
    assert alike(told, own, ["one", "three"], "hidden", "two") is None, "the one it has is the best already"
    assert alike(told, own, ["one", "two"], "absent", "three") is None


def test_layers_that_are_no_more_alike_than_by_chance_are_not_told():
    told, own = pair(copied=False)
    assert alike(told, own, ["one", "two", "three"]) is None


def test_layers_of_texts_are_read_whatever_the_length_of_a_batch():
    from stillroom.pipeline.mined_layers import _read
    from stillroom.utf8 import pack

    class Steps(nn.Module):
        """A convolution over the bytes of a text, and what it leads to."""

        def __init__(self) -> None:
            super().__init__()
            self.windows, self.last = nn.Conv1d(1, 5, 3, padding=1), nn.Linear(5, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.last(self.windows(inputs[:, None].float() / 255).mean(2))

    texts = ["a" * (5 + number // 9) for number in range(600)]

    class Texts(ArraySource):
        """Texts that are as long in a batch as its longest."""

        def batch(self, ids: torch.Tensor) -> dict:
            return {**super().batch(ids), "inputs": pack([texts[number] for number in ids[:, 0].tolist()])}

    data = Texts(np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32), labels=np.arange(600) % 2)
    shown = _read(Subject(data, Steps()), "windows", torch.arange(600))
    assert shown is not None and shown.values.shape == (600, 5)
    assert _read(Subject(data, Steps()), "absent", torch.arange(600)) is None


LAYERED = """
name: hand
data: {use: digits}
teacher: {model: mlp, hidden: [16, 16]}
student: {model: mlp, hidden: [8, 8]}
objectives: [{use: labels}, {use: hint, student: layers.0, teacher: layers.1}]
"""


def test_a_term_between_layers_gets_the_better_one(monkeypatch):
    from stillroom.pipeline import mined_choices

    seen = []

    def better(subject, student, layers, at=None, now=None):
        seen.append((layers, at, now))
        return "layers.0", "for a reason"

    monkeypatch.setattr(mined_choices, "alike", better)
    told, own = pair(copied=True)
    numbers = {"layers": Panel("layers", numbers={"pairs": [{"layer": "layers.0"}, {"layer": "layers.1"}]})}
    choices = choose(read_recipe(LAYERED), numbers, told, own)
    assert seen == [(["layers.0", "layers.1"], "layers.0", "layers.1")]
    assert choices.values["objectives", 1, "teacher"] == "layers.0"
    assert choose(read_recipe(LAYERED), {}, told, own).values == {("name",): "hand-mined"}
    without = LAYERED.replace("{use: hint, student: layers.0, teacher: layers.1}", "{use: kd}")
    choices = choose(read_recipe(without), numbers, told, own)
    assert choices.reasons["objectives",] == "for a reason" and ("objectives",) not in choices.values


# --- rules ---------------------------------------------------------------------------------------------


def test_rules_are_offered_as_a_student_with_their_numbers():
    rules = Panel(
        "rules", numbers={"rules": 7, "fidelity": 0.957, "accuracy": {"tree": 0.912}}, files={"rules.py": b"x" * 2500}
    )
    kept = {"agreement": {"mean": 0.981}, "accuracy": {"mean": 0.934}}
    students = Panel("students", numbers={"main": "kd", "arms": {"kd": kept}})
    told = mined_recipe(read_recipe(TEXT), {"rules": rules, "students": students}, teacher(), None).findings[0].sentence
    assert "rules/rules.py: 7 rules, 2.5 kB, the model's answer on 95.7 % of examples it did not see" in told
    assert "right on 91.2 %; 'kd' gives the model's answer on 98.1 %, right on 93.4 %." in told
    alone = mined_recipe(read_recipe(TEXT), {"rules": rules}, teacher(), None).findings[0].sentence
    assert alone.endswith("right on 91.2 %.")
    unlabelled = Panel("rules", numbers={"rules": 7, "fidelity": 0.957, "accuracy": None}, files=rules.files)
    bare = mined_recipe(read_recipe(TEXT), {"rules": unlabelled}, teacher(), None).findings[0].sentence
    assert bare.endswith("of examples it did not see.")
    for none in ({}, {"rules": Panel("rules", numbers=rules.numbers)}):
        assert "rules.py" not in mined_recipe(read_recipe(TEXT), none, teacher(), None).findings[0].sentence
