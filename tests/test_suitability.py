"""suitability(): a teacher that talks noise comes last, and the sums are what their formulas say."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional

import stillroom
from stillroom import suitability as public
from stillroom.cli import screen
from stillroom.cli.teachers import _short, _show, evaluate_teachers
from stillroom.errors import DataError, ModelError, StoreError, UserError
from stillroom.models.zoo import build
from stillroom.randomness import forked
from stillroom.suitability import _gradients, _moved, _residuals, _signs, _Sketch, _steps, grace, suitability
from stillroom.taps import read

CLASSES = 4


class Told:
    """A teacher by its answers to all examples."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, batch):
        return {"logits": self.logits[batch["id"][:, 0]]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A small net has learnt enough after a few steps."""
    monkeypatch.setattr(import_module("stillroom.suitability"), "WARMUP", 30)


@pytest.fixture(scope="module")
def data():
    with forked(0, "data"):
        centres = 1.2 * torch.randn(CLASSES, 6)
        labels = torch.arange(400) % CLASSES
        inputs = centres[labels] + torch.randn(400, 6)
    rows = torch.arange(400)
    splits = {"train": rows[:240], "validation": rows[240:], "test": rows[:0]}
    return stillroom.ArraySource(inputs, labels, splits=splits, classes=list("abcd"))


@pytest.fixture(scope="module")
def teachers(data):
    """One that knows, one whose training answers are half wrong, one that says anything at all."""
    with forked(1, "teachers"):
        good = 4.0 * functional.one_hot(data.labels, CLASSES) + 0.5 * torch.randn(400, CLASSES)
        other = (data.labels + torch.randint(1, CLASSES, (400,))) % CLASSES
        wrong = torch.where(torch.rand(400) < 0.7, other, data.labels)
        half = 4.0 * functional.one_hot(wrong, CLASSES) + 0.5 * torch.randn(400, CLASSES)
        noise = 4.0 * torch.randn(400, CLASSES)
    return {"noise": Told(noise), "half": Told(half), "good": Told(good)}


make = partial(build, "net", shape=(6,), classes=CLASSES, hidden=12)


def ask(data, teachers, student=make, **options):
    return suitability(student, teachers, data, **{"rows": 80, "starts": 2, **options})


def test_a_teacher_that_fits_comes_before_noise(data, teachers):
    found = ask(data, teachers)
    assert [one.teacher for one in found] == ["good", "half", "noise"]
    good, half, noise = found
    assert good.foreseen > 0.75 and good.foreseen - noise.foreseen > 0.25
    assert min(good.each) > max(noise.each) and len(good.each) == 2
    assert good.grace < noise.grace and good.agreement > noise.agreement
    assert good.accuracy > 0.95 > 0.6 > half.accuracy
    assert good.plain()["each"] == list(good.each)


def test_a_teacher_that_fits_comes_first_without_labels_too(data, teachers):
    bare = stillroom.ArraySource(data.inputs, torch.full((400,), -1), splits=data.splits, classes=list("abcd"))
    found = ask(bare, teachers)
    assert found[0].teacher == "good" and all(one.accuracy is None for one in found)


def test_the_same_question_has_the_same_answer(data, teachers):
    state = torch.random.get_rng_state()
    first, again = ask(data, teachers), ask(data, teachers)
    assert first == again
    assert torch.equal(state, torch.random.get_rng_state())
    assert ask(data, teachers, seed=5) != first


def test_neither_the_order_of_rows_nor_of_teachers_matters(data, teachers):
    turned = {name: rows.flip(0) for name, rows in data.splits.items()}
    shuffled = stillroom.ArraySource(data.inputs, data.labels, splits=turned, classes=list("abcd"))
    assert ask(shuffled, teachers) == ask(data, teachers)
    backwards = ask(data, dict(reversed(teachers.items())))
    assert [one.teacher for one in backwards] == ["good", "half", "noise"]


def test_a_module_keeps_its_weights_and_is_asked_once(data, teachers):
    with forked(3, "weights"):
        student = make()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = ask(data, teachers, student)
    assert len(found[0].each) == 1 and found[0].teacher == "good" and student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_modules_and_stores_teach_as_well(data, tmp_path):
    with forked(4, "weights"):
        teacher, dull = make(), make()
    stillroom.fit(stillroom.Learner(teacher, ["labels"]), data, None, stillroom.Training(steps=150, batch=32, lr=1e-2))
    store = stillroom.record(stillroom.Live(teacher), data, tmp_path / "store")
    live, kept = ask(data, {"told": teacher, "dull": dull}), ask(data, {"told": store, "dull": dull})
    assert [one.teacher for one in live] == ["told", "dull"]
    assert [one.foreseen for one in kept] == pytest.approx([one.foreseen for one in live], abs=0.02)
    few = stillroom.record(stillroom.Live(teacher), data, tmp_path / "few", splits=["train"])
    with pytest.raises(StoreError):
        ask(data, {"told": few, "dull": dull})


@pytest.mark.parametrize("model", ["lstm", "gru", "cnn"])
def test_recurrent_and_convolutional_students_are_asked(model):
    with forked(0, "pictures"):
        images = torch.randint(0, 256, (60, 1, 9, 9), dtype=torch.uint8)
        answers = torch.randn(60, 3)
    data = stillroom.ArraySource(images, torch.arange(60) % 3, splits={"train": range(40), "validation": range(40, 60)})
    found = suitability(
        partial(build, model, shape=(1, 9, 9), classes=3),
        {"one": Told(answers), "two": Told(-answers)},
        data,
        rows=20,
        starts=1,
    )
    assert {one.teacher for one in found} == {"one", "two"}


def test_students_of_many_classes_are_asked_along_random_directions():
    with forked(0, "many"):
        labels = torch.arange(600) % 20
        inputs = 2.0 * torch.randn(20, 10)[labels] + torch.randn(600, 10)
        good = 4.0 * functional.one_hot(labels, 20) + torch.randn(600, 20)
        noise = 4.0 * torch.randn(600, 20)
    splits = {"train": range(400), "validation": range(400, 600)}
    data = stillroom.ArraySource(inputs, labels, splits=splits)
    student = partial(build, "net", shape=(10,), classes=20, hidden=16)
    found = suitability(student, {"noise": Told(noise), "good": Told(good)}, data, rows=60, starts=1)
    assert found[0].teacher == "good" and found[0].foreseen > found[1].foreseen + 0.3


def test_the_random_directions_stand_for_all_classes():
    ways = torch.stack([torch.stack(_signs(3, 20, seed), 1) for seed in range(200)])
    mean = torch.einsum("srwk,srwl->rkl", ways, ways) / len(ways)
    assert (mean - (torch.eye(20) - 1 / 20)).abs().max() < 0.1


def test_a_student_of_texts_brings_its_own_words():
    texts = [f"{kind} film {number}" for number in range(40) for kind in ("a lovely", "a dreadful", "a middling")]
    data = stillroom.as_source((texts, ["good", "bad", "fair"] * 40))
    words = stillroom.words_for(data, size=100)
    truth = torch.as_tensor(data.labels)
    good = 4.0 * functional.one_hot(truth, 3).float()
    noise = 4.0 * torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    student = stillroom.Deployed(build("bigru", shape=(words.size,), classes=3, hidden=4), words)
    found = suitability(student, {"noise": Told(noise), "good": Told(good)}, data, rows=40)
    assert found[0].teacher == "good"


# --- the sums ------------------------------------------------------------------------------------------------


def whole(module, batch, ways):
    """The gradients without any sketch: (rows, ways, parameters)."""
    logits = module(batch["inputs"])
    return torch.stack(
        [
            torch.stack(
                [
                    torch.cat(
                        [
                            one.flatten()
                            for one in torch.autograd.grad(logits[row], module.parameters(), way, retain_graph=True)
                        ]
                    )
                    for way in ways[row]
                ]
            )
            for row in range(len(ways))
        ]
    )


@pytest.fixture
def small(data):
    with forked(0, "weights"):
        module = make().eval()
    batch = data.batch(torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.int64)], 1))
    return module, read(module, ["logits"]), batch


def test_the_sketch_keeps_products_and_a_step_goes_back_the_same_way(small):
    module, reader, batch = small
    ways = torch.eye(CLASSES).expand(12, CLASSES, CLASSES)
    exact = whole(module, batch, ways).flatten(0, 1)
    products = []
    for seed in range(40):
        sketch = _Sketch(module, seed)
        seen = _gradients(reader, batch, ways, sketch, lambda *_: None).flatten(0, 1)
        products.append(seen @ seen.T)
        step = torch.linspace(-1, 1, seen.shape[1])
        moved = torch.cat([part.flatten() for part in sketch.spread(step)])
        assert torch.allclose(exact @ moved, seen @ step, atol=1e-4)
    mean = torch.stack(products).mean(0)
    assert (mean - exact @ exact.T).norm() / (exact @ exact.T).norm() < 0.02


def test_the_residual_is_the_gradient_of_kd(small):
    module, _, batch = small
    theirs = torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(0))
    mine = module(batch["inputs"]).detach().requires_grad_()
    loss = stillroom.losses.kd(mine, theirs, temperature=3.0) * len(mine)
    (gradient,) = torch.autograd.grad(loss, mine)
    assert torch.allclose(_residuals(mine.detach(), theirs, 3.0), -CLASSES * gradient, atol=1e-5)


def test_the_step_is_damped_gauss_newton(small):
    module, reader, batch = small
    sketch = _Sketch(module, 0)
    ways = torch.eye(CLASSES).expand(12, CLASSES, CLASSES)
    seen = _gradients(reader, batch, ways, sketch, lambda *_: None)
    rows, gradient = seen - seen.mean(1, keepdim=True), seen.sum((0, 1))
    step = _steps(rows, {"one": gradient})["one"]
    flat = rows.flatten(0, 1).double()
    gram = flat.T @ flat
    damped = gram + 0.1 * gram.trace() / len(gram) * torch.eye(len(gram))
    assert torch.allclose(damped @ step, gradient.double(), atol=1e-4 * float(gradient.abs().max()))
    before = [value.clone() for value in module.parameters()]
    moved = _moved(reader, batch, sketch.spread(step), sketch.parameters)
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    exact = torch.einsum("nkd,d->nk", seen, step.float())
    assert (moved - exact).norm() / exact.norm() < 1e-2


def test_grace_is_its_formula_and_prefers_gradients_that_agree():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 8, generator=generator)
    agreeing = directions[torch.arange(120) % 3] + 0.1 * torch.randn(120, 8, generator=generator)
    scattered = torch.randn(120, 8, generator=generator)
    scattered *= (agreeing.norm(dim=1) / scattered.norm(dim=1))[:, None]
    moved = torch.cat([agreeing[:60], scattered[60:]])
    assert grace(agreeing) < grace(moved)
    assert grace(3 * agreeing) == pytest.approx(9 * grace(agreeing), rel=1e-6)
    assert grace(agreeing) == grace(agreeing)
    lined = torch.eye(4).repeat(50, 1)  # S is a quarter of the identity but for which rows are held back
    assert grace(lined) == pytest.approx(4.0, rel=0.05)


# --- what is refused -----------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_in_words(data, teachers):
    with pytest.raises(UserError, match="two or more"):
        ask(data, {"good": teachers["good"]})
    with pytest.raises(UserError, match="rows"):
        ask(data, teachers, rows=3)
    with pytest.raises(UserError, match="temperature"):
        ask(data, teachers, temperature=0)
    with pytest.raises(ModelError, match="4 classes. Allowed: 5"):
        ask(data, teachers, partial(build, "net", shape=(6,), classes=5))
    with pytest.raises(ModelError, match="than each other"):
        ask(data, {**teachers, "wide": Told(torch.zeros(400, 7))})
    with pytest.raises(ModelError, match="nothing to train"):
        ask(data, teachers, make().requires_grad_(False))
    with pytest.raises(ModelError, match="cannot be a student"):
        ask(data, teachers, lambda: "cnn")
    with pytest.raises(ModelError, match="no logits"):
        ask(data, {**teachers, "mute": lambda batch: {"features": batch["inputs"]}})
    bare = stillroom.ArraySource(data.inputs, data.labels, splits={"train": range(400)})
    with pytest.raises(DataError, match="validation"):
        ask(bare, teachers)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"teachers": [make(), make()]}, UserError, "a list. Allowed: a dictionary of teachers by name"),
        ({"teachers": {1: make(), 2: make()}}, UserError, r"names \[1, 2\]"),
        ({"teachers": {"a": "cnn", "b": make()}}, ModelError, "'a' cannot be a teacher: got 'cnn'"),
        ({"teachers": {"a": lambda batch: 3, "b": make()}}, ModelError, "got a int.*signals with logits"),
        ({"teachers": {"a": Told(torch.zeros(400)), "b": make()}}, ModelError, r"shape \(80,\).*\(80, classes\)"),
        ({"teachers": {"a": nn.Linear(7, 4), "b": make()}}, ModelError, "the teacher 'a' failed.*80x6 and 7x4"),
        ({"student": "cnn"}, ModelError, "'cnn'.*a function without arguments"),
        ({"student": lambda width: make()}, ModelError, "width.*a function without arguments"),
        ({"student": lambda: nn.Linear(7, 4)}, ModelError, "the student failed.*1x6 and 7x4"),
        ({"rows": "x"}, UserError, "'rows'.*'x'.*20 or more"),
        ({"rows": 20.5}, UserError, "'rows'.*20.5"),
        ({"starts": None}, UserError, "'starts'.*None.*1 or more"),
        ({"seed": "x"}, UserError, "'seed'.*'x'.*whole number"),
        ({"temperature": "x"}, UserError, "temperature.*'x'"),
        ({"encode": "x"}, UserError, "encode.*'x'"),
        ({"source": "digits"}, DataError, "no source of data.*'digits'"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_words(data, teachers, change, kind, said):
    given = {"student": make, "teachers": teachers, "source": data, "rows": 80, **change}
    with pytest.raises(kind, match=said):
        suitability(**given)


# --- what the command prints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b"), ("runs/with/a/long/name/teacher", "runs/with/a/long/name/knowledge")])
@pytest.mark.parametrize("size", [1.0, 1e-7, 123456.0])
def test_no_figure_of_the_table_is_cut_at_80_columns(monkeypatch, capsys, names, size):
    monkeypatch.setenv("COLUMNS", "80")
    each = (1.0, 0.9996)
    found = [stillroom.Suitability(name, 0.9998, each, 591.0 * size, 2.345 * size, 1.0, 2.3, 1.0) for name in names]
    monkeypatch.setattr(screen, "out", screen.Screen(soft_wrap=True, highlight=False))
    _show(found)
    printed = capsys.readouterr().out
    assert "…" not in printed and max(len(line) for line in printed.splitlines()) <= 80
    assert printed.count("100.0-100.0") == 2 and printed.count("2.30") == 2
    for number, name in enumerate(names, 1):
        assert name in printed and (len(name) < 5 or f"{number}: {name}" in printed)


def test_figures_are_short():
    assert [_short(value) for value in (591.2, 5.93, 99999.0, 1234567.0, 0.00123, 1.2e-9)] == [
        *("591", "5.9", "99999", "1.2e+06", "0.0012", "1.2e-09")
    ]


def test_a_split_beside_teachers_is_refused():
    with pytest.raises(UserError, match="--split train.*Leave --split out"):
        evaluate_teachers(*("net", ["a", "b"], "digits", False), load=print, open_data=print, fits=print, split="train")


def test_it_is_a_public_name():
    assert public is suitability and nn.Module not in stillroom.Suitability.__mro__
