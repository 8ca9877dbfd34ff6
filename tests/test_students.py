"""What students kept and lost: planted losses are named, and where nothing is lost nothing is claimed."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.students import panel as asking
from stillroom.mining.students import students
from stillroom.mining.students.classes import lost_by_class
from stillroom.mining.subgroups import subgroups
from stillroom.report.figures import draw, names
from stillroom.report.svg import slots

ROWS, CLASSES = 4000, ["ant", "bee", "cat", "dog"]


def data() -> ArraySource:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 4, ROWS)
    pixels = chance.normal(0, 12, (ROWS, 1, 4, 4)) + 60
    pixels[np.arange(ROWS), 0, labels, labels] += 90
    pixels += chance.choice([0, 60], ROWS)[:, None, None, None]  # half of them are bright
    return ArraySource(pixels.clip(0, 255).astype(np.uint8), labels=labels, classes=CLASSES)


class Corners(nn.Module):
    """Answers by the four pixels that matter; ``blind`` to one class, or answering bright pictures at random."""

    def __init__(self, blind: int | None = None, dazzled: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 4)
        weights = torch.zeros(12, 16)
        for place in range(4):
            weights[place, 5 * place] = 1.0
        with torch.no_grad():
            self.first.weight.copy_(weights)
            self.first.bias.zero_()
            self.last.weight.copy_(torch.eye(4, 12))
            self.last.bias.zero_()
        self.blind, self.dazzled = blind, dazzled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = inputs.float().flatten(1) / 20
        logits = self.last(self.first(pixels))
        if self.blind is not None:
            logits = logits - 9 * torch.nn.functional.one_hot(torch.tensor(self.blind), 4)
        if self.dazzled:
            bright = pixels.mean(1, keepdim=True) > 5
            logits = torch.where(bright, logits.roll(1, 1), logits)
        return logits


def shown(panel) -> None:
    """It can be written and drawn."""
    json.dumps(dict(panel.numbers), allow_nan=False)
    for finding in panel.findings:
        assert finding.sentence.endswith(".") and "nan" not in finding.sentence and finding.control
        assert draw(finding.figure, slots(names(finding.figure))) or not finding.figure


def mined(student: nn.Module):
    source = data()
    return students(Subject(source, Corners()), Budget(), {"alone": [Subject(source, Corners(blind=1))],
                    "kd": [Subject(source, student), Subject(source, copy.deepcopy(student))]})  # fmt: skip


def test_a_copy_keeps_everything():
    panel = mined(Corners())
    kept = panel.numbers["arms"]["kd"]
    assert kept["agreement"]["mean"] == 1.0 and kept["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert kept["gradient_cosine"]["mean"] == pytest.approx(1.0)
    assert kept["chance"]["mean"] == pytest.approx(0.25, abs=0.02)
    assert panel.numbers["cka"]["values"][-1][-1] == pytest.approx(1.0)
    texts = {one.title: one.sentence for one in panel.findings}
    assert texts["Which classes it cost"].startswith("No class lost more than chance explains (4 were compared).")
    assert all(row["low"] < 0 < row["high"] < 0.05 for row in panel.numbers["classes"]), "few examples are never sure"
    assert "No subgroup is followed clearly less" in texts["Which subgroups it cost"]
    assert "differs from the model on 0 of" in texts["Where they disagree"] and not panel.findings[-1].figure


def test_the_class_that_was_lost_is_named():
    panel = mined(Corners(blind=2))
    assert panel.numbers["classes"][0]["class"] == "cat" and panel.numbers["classes"][0]["student"] < 0.1
    worst, *others = panel.numbers["classes"]
    assert worst["verdict"] == "lost" and 0.9 < worst["low"] < worst["high"] <= 1 and worst["examples"] > 60
    assert {row["verdict"] for row in others} == {"not clear"}
    sentence = panel.findings[1].sentence
    assert sentence.startswith("'kd' clearly loses on 1 of 4 classes, on 'cat': the model recognises 100.0 % of its ")
    assert "Look at its examples" in sentence and "transfer set" in sentence and "weight" not in sentence
    assert "cannot be ruled out among the others." in sentence
    assert "class 'cat'" in panel.findings[2].sentence
    assert {item["teacher"] for item in panel.numbers["disagreements"]} == {"cat"}


def test_the_subgroup_that_was_lost_is_named_and_is_more_than_chance():
    panel = mined(Corners(dazzled=True))
    finding = panel.findings[2]
    assert "the highest quarter of brightness" in finding.sentence and finding.number < 0.1
    assert finding.sentence.endswith("groups are below nearly all groups of their size drawn at random.")
    assert panel.numbers["subgroups"][0]["agreement"] < 0.1


def test_texts_and_tables_have_subgroups_of_their_own():
    from stillroom.data.texts import TextSource

    texts = TextSource(["a " * (1 + row % 40) for row in range(400)], [row % 2 for row in range(400)])
    words = Subject(texts, answer=lambda inputs: torch.rand(len(inputs), 2))
    words.examples = lambda split: torch.arange(400)  # type: ignore[method-assign]
    assert "the highest quarter of length" in [group.name for group in subgroups(words)]
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    values[:, 1] = values[:, 1] > 0
    table = ArraySource(values, labels=np.arange(400) % 2, splits={"test": np.arange(400), "train": np.arange(0)})
    table.names, table.kinds, table.categories = (
        ("age", "smokes"),
        ("numeric", "categorical"),
        {"smokes": ["no", "yes"]},
    )
    rows = Subject(table, answer=lambda inputs: inputs)
    rows.kind = "table"  # type: ignore[misc]
    found = {group.name: len(group.rows) for group in subgroups(rows)}
    assert found["smokes = yes"] == int(values[:, 1].sum()) and "the lowest quarter of age" in found
    assert all(count >= 20 for count in found.values())


def test_a_closed_model_is_compared_by_its_answers_alone():
    source = data()
    net = Corners()
    closed = Subject(source, answer=lambda inputs: net(inputs))
    panel = students(closed, Budget(), {"kd": [Subject(source, Corners(blind=2))]})
    assert "cka" not in panel.numbers and "only the answers" in panel.notes[0]
    assert "gradient_cosine" not in panel.numbers["arms"]["kd"]


# --- students that show nothing ------------------------------------------------------------------------


class Bare(nn.Module):
    """The same answers without a layer that can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16)[:, [0, 5, 10, 15]].clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float().flatten(1) / 20 @ self.weight


def filled(value: float) -> Corners:
    net = Corners()
    with torch.no_grad():
        for weights in net.parameters():
            weights.fill_(value)
    return net


def test_a_collapsed_student_is_told_of_and_stops_nothing():
    panel = mined(filled(0.0))
    shown(panel)
    assert [one.title for one in panel.findings] == [
        "What the students kept",
        "Which classes it cost",
        "Which subgroups it cost",
        "Where they disagree",
    ]
    assert "cka" not in panel.numbers and panel.numbers["gain"]["verdict"] == "less"
    assert panel.notes == [
        "2 of 2 students of 'kd' give the same answer to every example: train them anew, for example with a lower "
        "learning rate",
        "layers are not compared: no layer of the first student of 'kd' can be read, or none varies from example to "
        "example",
    ]
    broken = mined(filled(float("nan")))
    shown(broken)
    assert any("2 of 2 students of 'kd' give answers that are no numbers" in note for note in broken.notes)
    assert "kl" not in broken.numbers["arms"]["kd"] and "gradient_cosine" not in broken.numbers["arms"]["kd"]


@pytest.mark.parametrize("bare", ["student", "model"])
def test_a_network_without_a_readable_layer_is_compared_by_all_else(bare):
    source = data()
    model, student = (Bare(), Corners()) if bare == "model" else (Corners(), Bare())
    panel = students(Subject(source, model), Budget(), {"kd": [Subject(source, student)]})
    shown(panel)
    whose = "the model" if bare == "model" else "the first student of 'kd'"
    assert panel.notes == [
        f"layers are not compared: no layer of {whose} can be read, or none varies from example to example"
    ]
    assert panel.numbers["arms"]["kd"]["agreement"]["mean"] == 1.0 and len(panel.findings) == 4
    assert panel.numbers["arms"]["kd"]["gradient_cosine"]["mean"] == pytest.approx(1.0)


def test_layers_that_vary_on_training_examples_alone_are_a_note_too():
    pixels = np.random.default_rng(0).integers(0, 255, (300, 1, 4, 4)).astype(np.uint8)
    pixels[200:] = pixels[200]
    splits = {"train": np.arange(200), "validation": np.arange(0), "test": np.arange(200, 300)}
    same = ArraySource(pixels, labels=np.arange(300) % 4, classes=CLASSES, splits=splits)
    panel = students(Subject(same, Corners()), Budget(), {"kd": [Subject(same, Corners())]})
    shown(panel)
    assert "on 100 examples no layer of the model and none of the first student of 'kd' both vary" in panel.notes[-1]


def test_a_layer_that_is_dead_leaves_the_others_compared():
    source, student = data(), Corners()
    with torch.no_grad():
        student.last.weight.zero_()
    panel = students(Subject(source, Corners()), Budget(), {"kd": [Subject(source, student)]})
    shown(panel)
    assert panel.numbers["cka"]["student"] == ["first"] and panel.numbers["cka"]["best"]["first"] > 0.9


# --- what chance does ----------------------------------------------------------------------------------

MANY, TESTED = 10, 1000


def of_ten() -> ArraySource:
    """A thousand test examples of ten classes; what they look like does not matter."""
    pixels = np.random.default_rng(0).integers(0, 255, (TESTED + 20, 1, 2, 2)).astype(np.uint8)
    splits = {"train": np.arange(20), "validation": np.arange(0), "test": np.arange(20, TESTED + 20)}
    labels = np.arange(TESTED + 20) % MANY
    return ArraySource(pixels, labels=labels, classes=[f"c{place}" for place in range(MANY)], splits=splits)


def answering(source: ArraySource, answers: np.ndarray) -> Subject:
    """A closed model of which the answers to the test examples are known."""
    found = Subject(source, answer=lambda inputs: torch.zeros(len(inputs), MANY))
    found.keep({"test": {"logits": 3 * torch.nn.functional.one_hot(torch.from_numpy(answers), MANY).float()}})
    return found


def erring(truth: np.ndarray, right: float, seed: int) -> np.ndarray:
    """Answers that are right on a share of the examples, drawn for themselves, and else another class."""
    chance = np.random.default_rng(seed)
    other = (truth + chance.integers(1, MANY, len(truth))) % MANY
    return np.where(chance.random(len(truth)) < right, truth, other)


def test_of_equal_students_with_errors_of_their_own_no_class_is_named():
    source, named, apparent = of_ten(), 0, 0
    truth = np.arange(20, TESTED + 20) % MANY
    for draw_ in range(10):
        model = answering(source, erring(truth, 0.85, 100 * draw_))
        pupils = [answering(source, erring(truth, 0.85, 100 * draw_ + seed)) for seed in (1, 2, 3)]
        panel = students(model, Budget(), {"kd": pupils})
        named += any(row["verdict"] == "lost" for row in panel.numbers["classes"])
        apparent += panel.numbers["classes"][0]["lost"] > 0.03
        said = panel.findings[1].sentence
        assert ("No class lost more than chance explains" in said) == (panel.numbers["classes"][0]["low"] <= 0)
        assert "cannot be ruled out" in said
    assert named <= 1 and apparent == 10, "each of them has a class that seems to have lost"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_class_that_every_student_loses_is_named_among_their_errors(seeds):
    source = of_ten()
    truth = np.arange(20, TESTED + 20) % MANY
    told = []
    for seed in range(1, seeds + 1):
        answers = erring(truth, 0.85, seed)
        answers[(truth == 8) & (np.random.default_rng(seed + 50).random(TESTED) < 0.5)] = 3
        told.append(answering(source, answers))
    panel = students(answering(source, erring(truth, 0.85, 0)), Budget(), {"kd": told})
    assert [row["class"] for row in panel.numbers["classes"] if row["verdict"] == "lost"] == ["c8"]
    assert "on 'c8'" in panel.findings[1].sentence
    assert ("One student: another seed may lose" in panel.findings[1].control) == (seeds == 1)


def test_a_class_of_few_examples_or_of_one_unsteady_seed_is_not_named():
    labels = torch.tensor([0] * 200 + [1] * 2)
    right = torch.nn.functional.one_hot(labels, 2).float()
    rows = lost_by_class(right, [1 - right * (labels == 1)[:, None].float()] * 5, labels, ["many", "few", "none"])
    assert [(row["class"], row["lost"], row["verdict"]) for row in rows] == [
        ("few", 1.0, "not clear"),
        ("many", 0.0, "not clear"),
    ]
    labels = torch.arange(2000) % 4
    right = torch.nn.functional.one_hot(labels, 4).float()
    unsteady = right.clone()
    unsteady[(labels == 2).nonzero()[:150, 0]] = torch.tensor([9.0, 0, 0, 0])
    one, three = (lost_by_class(right, told, labels, CLASSES)[0] for told in ([unsteady], [unsteady, right, right]))
    assert one["class"] == three["class"] == "cat" and one["verdict"] == "lost" and three["verdict"] == "not clear"


@pytest.mark.parametrize(
    ("alone", "kd", "verdict", "said"),
    [
        (0.70, 0.85, "more", "points more than the same student alone ("),
        (0.85, 0.70, "less", "points less than the same student alone ("),
    ],
)
def test_the_gain_is_the_teachers_doing_only_where_it_is_clear(alone, kd, verdict, said):
    source = of_ten()
    model = np.arange(20, TESTED + 20) % MANY
    arms = {"kd": (kd, 0), "alone": (alone, 50)}
    for seeds in (5, 3, 1):
        pupils = {
            name: [answering(source, erring(model, share, first + seed)) for seed in range(seeds)]
            for name, (share, first) in arms.items()
        }
        panel = students(answering(source, model), Budget(), pupils)
        shown(panel)
        gain, sentence = panel.numbers["gain"], panel.findings[0].sentence
        assert gain["verdict"] == verdict and gain["n"] == seeds and said in sentence
        assert gain["mean"] == pytest.approx(kd - alone, abs=0.05) and gain["low"] < gain["mean"] < gain["high"]
        assert ("distilling helped" in sentence) == (verdict == "more")
        limits = {5: "in these", 3: "in these 3 seeds", 1: "with this one seed"}
        assert (limits[seeds] in sentence) == (seeds < 5)


def test_between_equal_arms_there_is_no_clear_gain():
    source, clear = of_ten(), 0
    model = np.arange(20, TESTED + 20) % MANY
    for draw_ in range(10):
        kd, alone = (
            [answering(source, erring(model, 0.8, 10 * draw_ + 5 * arm + seed)) for seed in range(3)] for arm in (0, 1)
        )
        panel = students(answering(source, model), Budget(), {"kd": kd, "alone": alone})
        clear += panel.numbers["gain"]["verdict"] != "not clear"
        said = "That is no clear gain over the same student alone: " in panel.findings[0].sentence
        assert said == (panel.numbers["gain"]["verdict"] == "not clear")
    assert clear <= 1


# --- what it takes -------------------------------------------------------------------------------------


class Counted(Corners):
    asked = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked += torch.is_grad_enabled()
        return super().forward(inputs)


def test_the_models_gradients_are_taken_once_for_all_students():
    source, asked = data(), []
    for count in (1, 4):
        model = Counted()
        pupils = {name: [Subject(source, Corners()) for _ in range(count)] for name in ("kd", "hint", "alone")}
        panel = students(Subject(source, model), Budget(), pupils)
        assert panel.numbers["arms"]["hint"]["gradient_cosine"]["n"] == count
        asked.append(model.asked)
    assert asked == [1, 1]


def test_the_more_students_the_fewer_examples_fit_into_the_time(monkeypatch):
    source = data()
    model = Subject(source, Corners())
    monkeypatch.setattr(asking, "pace", lambda one: 0.002)

    def few(arms: int, seeds: int, seconds: float = 20.0, **closed) -> int:
        pupil = Subject(source, **(closed or {"module": Corners()}))
        return asking.afforded(model, Budget(seconds), {f"arm {place}": [pupil] * seeds for place in range(arms)})

    passes = 4 + 1 + 3 * 5 * 4 + 2  # the model's gradients and layers, the students' gradients, two for layers
    assert few(3, 5) == pytest.approx(0.7 * 20 / (0.002 * passes), abs=1)
    assert few(1, 1) == 400 > few(3, 5) > few(4, 10) == 60, "no fewer than sixty"
    assert few(4, 10, answer=lambda inputs: inputs) == 400, "of closed students nothing is asked"
    panel = students(model, Budget(10.0), {name: [Subject(source, Corners())] * 5 for name in ("kd", "b", "alone")})
    assert "layers and reasons were compared on" in panel.notes[0]
