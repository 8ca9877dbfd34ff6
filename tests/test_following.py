"""Derivatives of two models: of one thing, along one class, at one point."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom import Learner, Live, Training, match, record, train
from stillroom.contracts import Derivatives, Explanations, Gradients
from stillroom.data.arrays import ArraySource
from stillroom.errors import LossError
from stillroom.taps import read
from stillroom.teachers import Average, Together

ROWS, CLASSES, WIDTH = 40, 10, 12
SPLITS = {"train": torch.arange(ROWS), "validation": torch.arange(0), "test": torch.arange(0)}
TAP = "logits@gradient"


def network(seed: int, hidden: int = 16, classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def source() -> ArraySource:
    inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    return ArraySource(inputs, torch.arange(ROWS) % CLASSES, splits=SPLITS, name="vectors")


BATCH = source().batch(torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)], 1))


def along(module: nn.Module, classes: Tensor) -> Tensor:
    """The gradient of the logits of ``classes``, by PyTorch alone."""
    inputs = BATCH["inputs"].clone().requires_grad_()
    return torch.autograd.grad(module(inputs).gather(1, classes[:, None]).sum(), inputs)[0]


def loss(module: nn.Module, teacher, *objectives) -> float:
    made = Learner(module, list(objectives))
    return float(made(BATCH, teacher(BATCH))["loss"].detach())


# --- whose class ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Together, Average])
def test_a_student_that_is_one_of_several_teachers_has_its_gradients(kind):
    big, other = network(1), network(2)
    teacher = kind({name: Live(one, ["logits", TAP]) for name, one in (("big", big), ("other", other))})
    tops = [one(BATCH["inputs"]).argmax(1) for one in (big, other)]
    assert not torch.equal(*tops), "else the test says nothing"
    assert loss(big, teacher, match("input_gradient", teacher=f"big/{TAP}")) < 1e-10
    assert loss(big, teacher, match("input_gradient", teacher=f"other/{TAP}")) > 0.1


def test_each_of_several_teachers_is_followed_along_its_own_class():
    models = {"big": network(1), "other": network(2)}
    teacher = Together({name: Live(one, ["logits", TAP]) for name, one in models.items()})
    student = network(3, hidden=5)
    learner = Learner(student, [match("input_gradient", teacher=f"{name}/{TAP}", name=name) for name in models])
    assert [one.key for one in learner.teacher_places if one.owner] == [
        "big/logits@gradient",
        "big/logits",
        "other/logits@gradient",
        "other/logits",
    ]
    found = learner(BATCH, teacher(BATCH))
    for name, model in models.items():
        top = model(BATCH["inputs"]).argmax(1)
        ours, theirs = along(student, top), along(model, top)
        expected = Learner(student, [match("input_gradient", "logits@gradient(label)", "logits@gradient(label)")])
        value = expected({**BATCH, "labels": top}, {"logits@gradient(label)": theirs})["loss"]
        torch.testing.assert_close(found[name], value)
        assert ours.shape == theirs.shape
    found["loss"].backward()
    assert student[0].weight.grad.any()


def test_maps_follow_the_class_of_their_own_teacher():
    def maps(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        parts = [nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*parts, nn.Linear(48, CLASSES))

    big, small = maps(1), maps(2)
    teacher = Together({"big": Live(big, ["logits", "2@gradcam"]), "small": Live(small, ["logits"])})
    assert loss(big, teacher, match("explanation", "2@gradcam", "big/2@gradcam")) < 1e-6


def test_a_teacher_without_logits_is_refused():
    learner = Learner(network(3), [match("input_gradient")])
    with pytest.raises(LossError, match=r"follows the top class.*without 'logits' \(shown: logits@gradient\).*record"):
        next(iter(train(learner, source(), Live(network(1), [TAP]), Training(steps=1, batch=20))))
    several = Together({"big": Live(network(1), [TAP])})
    with pytest.raises(LossError, match="'big/logits'"):
        loss(network(3), several, match("input_gradient", teacher=f"big/{TAP}"))
    assert loss(
        network(3), Live(network(1), ["logits@gradient(label)"]), match("input_gradient", "logits@gradient(label)")
    )


def test_a_store_that_prepares_kd_still_says_which_class_is_followed(tmp_path):
    """What kd reads is replaced by prepared targets; the logits must be there for the gradients all the same."""
    live, seen = Live(network(1), ["logits", TAP]), []

    def first(teacher) -> float:
        learner = Learner(network(3, hidden=5), ["kd", match("input_gradient")])
        step = next(iter(train(learner, source(), teacher, Training(steps=1, batch=ROWS))))
        return float(step.losses["input_gradient"].detach())

    seen = [first(one) for one in (live, record(live, source(), tmp_path, taps=["logits", TAP]))]
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)


def test_a_student_by_itself_keeps_its_own_class():
    student, told = network(3), network(1)(BATCH["inputs"]).detach()
    own = along(student, student(BATCH["inputs"]).argmax(1))
    torch.testing.assert_close(read(student, [TAP])(BATCH)[TAP].detach(), own)
    followed = read(student, [TAP])(BATCH, {"logits": told})[TAP].detach()
    torch.testing.assert_close(followed, along(student, told.argmax(1)))
    several = read(student, [TAP])(BATCH, {"a/logits": told, "b/logits": -told})
    assert list(several) == [f"a/{TAP}", f"b/{TAP}"], "each under its teacher's name, and none that follows nobody"
    torch.testing.assert_close(several[f"b/{TAP}"].detach(), along(student, told.argmin(1)))


def test_a_loss_on_the_student_alone_has_its_own_class_beside_a_teacher():
    def flat(student_gradients: Gradients) -> Tensor:
        return student_gradients.square().mean()

    student = network(3)
    teacher = Together({"big": Live(network(1), ["logits", TAP])})
    learner = Learner(student, [match(flat, TAP), match("input_gradient", teacher=f"big/{TAP}")])
    own = along(student, student(BATCH["inputs"]).argmax(1))
    torch.testing.assert_close(learner(BATCH, teacher(BATCH))["flat"].detach(), own.square().mean())
    assert Learner(student, [match(flat, TAP)])(BATCH)["flat"] > 0, "no teacher at all"


# --- of one thing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, theirs, told",
    [
        ("(random=2)", "(random=2,seed=1)", r"seed \(0 and 1\)"),
        ("(random=2)", "(random=3)", r"count \(2 and 3\)"),
        ("", "(loss)", r"along \(top and loss\)"),
        ("(label)", "(random=2)", r"along \(label and random\)"),
        ("(random=2)", "(random=2,step=0.5)", r"step \(the usual and 0.5\)"),
        ("(along=attack,step=1)", "(along=attack,step=0.5)", r"step \(1 and 0.5\)"),
        ("(along=attack,mode=jvp)", "(along=attack,step=2)", r"step \(the usual and 2\)"),
        ("", "(wrt=embed)", r"wrt \(inputs and embed\)"),
        ("(random=2,seed=4)", "(loss,wrt=pixels)", r"along .*, seed .*, wrt"),
    ],
)
def test_derivatives_of_different_things_are_refused(ours, theirs, told):
    for name in ("input_gradient", "directional_derivative", "hint"):
        with pytest.raises(LossError, match=rf"different things: got the student's '{TAP}.*differ in {told}.*mode may"):
            match(name, f"{TAP}{ours}", f"big/{TAP}{theirs}")


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("(random=2,mode=jvp)", "(random=2,mode=finite_difference)"),
        ("(random=2,mode=jvp)", "(random=2,mode=finite_difference,step=0.01)"),
        ("(loss)", "(loss,mode=finite_difference,step=0.05)"),
        ("(label,wrt=embed)", "(label,wrt=body.embeddings)"),
    ],
)
def test_they_may_be_read_in_different_ways(ours, theirs):
    assert match("input_gradient", f"{TAP}{ours}", f"{TAP}{theirs}").pairs


def test_maps_of_different_classes_and_what_ones_own_loss_may():
    with pytest.raises(LossError, match=r"differ in along \(top and label\)"):
        match("explanation", "2@gradcam", "3@gradcam(label)")
    assert match("explanation", "2@gradcam", "3@gradcam").pairs

    def mine(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean()

    assert match(mine, f"{TAP}(label)", f"{TAP}(loss)").pairs


def test_different_columns_are_refused_where_the_batch_is_known():
    objective = match("input_gradient", f"{TAP}(label,wrt=inputs2)", f"{TAP}(label,wrt=body)")
    shown = {f"{TAP}(label,wrt={name})": torch.ones(3, 2) for name in ("inputs2", "body")}
    objective.size(shown, shown, {"id": torch.zeros(3, 2)})
    with pytest.raises(LossError, match=r"different things: got wrt=inputs2 of the student and wrt=body"):
        objective(shown, shown, {"id": torch.zeros(3, 2), "inputs2": torch.ones(3, 2)})


def test_each_parameter_of_a_loss_is_compared_with_the_one_of_its_name():
    def both(
        student_maps: Explanations,
        student_ways: Derivatives,
        teacher_ways: Derivatives,
        teacher_maps: Explanations,
    ) -> Tensor:
        return (student_ways - teacher_ways).square().mean() + (student_maps - teacher_maps).square().mean()

    ours = {"student_maps": "2@gradcam", "student_ways": f"{TAP}(random=2)"}
    theirs = {"teacher_maps": "b/3@gradcam", "teacher_ways": f"a/{TAP}(random=2)"}
    objective = match(both, ours, theirs)
    assert [one.key for one in objective.places("student")] == ["b/2@gradcam", f"{TAP}(random=2)"]
    assert [one.key for one in objective.places("teacher")][-1] == "b/logits"
    with pytest.raises(LossError, match=r"count \(2 and 3\)"):
        match(both, ours, theirs | {"teacher_ways": f"a/{TAP}(random=3)"})


# --- at one point --------------------------------------------------------------------------------------


class Words(nn.Module):
    """Word embeddings, a layer behind them, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale, self.fc = nn.Embedding(9, 4), nn.Tanh(), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.scale(self.embed(tokens)).tanh().mean(1))


def words(where: str, student: nn.Module, teacher: nn.Module) -> list[float]:
    data = ArraySource(
        torch.randint(0, 9, (ROWS, 3), generator=torch.Generator().manual_seed(2)),
        torch.arange(ROWS) % CLASSES,
        splits=SPLITS,
    )
    learner = Learner(student, ["kd", match("embedding_gradient", where, where)])
    live = Live(teacher, list(dict.fromkeys(str(one.tap) for one in learner.teacher_places)))
    return [float(step.losses["loss"].detach()) for step in train(learner, data, live, Training(steps=3, batch=20))]


@pytest.mark.parametrize("where", [f"{TAP}(wrt=embed)", f"{TAP}(label,wrt=embed)", f"{TAP}(wrt=scale)"])
def test_embeddings_that_the_student_trains_are_refused_before_training(where):
    torch.manual_seed(0)
    teacher, student = Words(), Words()
    student.embed.load_state_dict(teacher.embed.state_dict())
    before = student.fc.weight.clone()
    with pytest.raises(LossError, match=r"one and the same point: got embeddings at .* trains.*freeze them"):
        words(where, student, teacher)
    assert torch.equal(student.fc.weight, before), "not one step"
    student.embed.requires_grad_(False)
    assert len(words(where, student, teacher)) == 3
