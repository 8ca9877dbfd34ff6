"""One contract over every loss: inputs are made from its signature, so a new line in the table is tested at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import LossError
from stillroom.losses import LOSSES, PREPARED
from stillroom.losses.memory import _prefixes
from stillroom.objectives import match, signature
from stillroom.objectives.signature import Slot
from stillroom.taps import read
from stillroom.teachers import Live

ROWS, OTHERS = 6, 9
SIZES = {"class": 5, "feature": 4, "channel": 3, "height": 6, "width": 6, "time": 7, "...": 4}
SIZES |= {"layer": 2, "direction": 2, "way": 4, "token": 7}
SMALLER = {**SIZES, "channel": 5, "height": 3, "width": 3, "feature": 6}  # a teacher whose shapes are free to differ

# Losses that are not least where the student shows what the teacher shows: others of the bank push away (crd), and
# a surer student is always asked for (nkd).
NOT_LEAST_AT_EQUALITY = {"crd", "nkd"}

# Losses with a number made from the batch that counts as a constant, so the gradient leaves it out (crd's Z).
CONSTANT_OF_THE_BATCH = {"crd"}

# Losses of the batch as a whole: the same rows twice are another batch.
RELATE_ROWS = {"pkt", "rkd", "sp"}

NAMES = list(LOSSES)
TAUGHT = [name for name in NAMES if signature(LOSSES[name]).sides("teacher")]
WITH_ROWS = [name for name in NAMES if not signature(LOSSES[name]).sides("parameters")]


def slots(name: str) -> tuple[Slot, ...]:
    return signature(LOSSES[name]).slots


def offered(name: str) -> list[Slot]:
    """What a student shows and may learn; embeddings only say at which point both gradients were taken."""
    ours = signature(LOSSES[name]).sides("student")
    return [slot for slot in ours if slot.kind is None or slot.kind.name != "embeddings"]


def value_of(slot: Slot, generator: torch.Generator, rows: int, sizes=SIZES):
    """A tensor such as this slot takes."""
    if slot.side == "parameters":
        return {"first": torch.randn(4, 3, generator=generator), "second": torch.randn(2, 4, generator=generator)}
    if slot.mask:
        width = OTHERS if slot.side == "bank" else sizes["time"]
        mask = torch.rand(rows, width, generator=generator) < 0.7
        mask[:, 0] = True
        return mask
    if slot.side == "column":
        labels = torch.arange(rows) % sizes["class"]
        labels[rows // 2 : rows // 2 + (rows > 1)] = -1
        return labels
    count = OTHERS if slot.side == "bank" else rows
    axes = slot.kind.axes[1:] if slot.kind else ("feature",)
    return torch.randn(count, *(sizes[axis] for axis in axes), generator=generator)


def inputs(name: str, rows: int = ROWS, *, seed: int = 0, apart: bool = False) -> dict:
    """Everything a loss takes, by parameter; ``apart``: the teacher's shapes differ where the loss does not mind."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for slot in slots(name):
        free = apart and slot.side == "teacher" and slot.kind is not None and slot.kind.fit == "free"
        made[slot.name] = value_of(slot, generator, rows, SMALLER if free else SIZES)
    for slot in signature(LOSSES[name]).sides("student"):
        if slot not in offered(name):
            made[slot.name] = made[slot.name.replace("student", "teacher")].clone()
    return made


def each(made: dict, change) -> dict:
    """The same inputs with every floating tensor changed."""

    def one(value):
        if isinstance(value, dict):
            return {key: one(part) for key, part in value.items()}
        return change(value) if value.is_floating_point() else value

    return {name: one(value) for name, value in made.items()}


def learning(name: str, made: dict) -> list[Tensor]:
    """What the student shows, made ready for a gradient."""
    found = [made[slot.name].requires_grad_() for slot in offered(name)]
    for slot in signature(LOSSES[name]).sides("parameters"):
        found += [part.requires_grad_() for part in made[slot.name].values()]
    return found


def call(name: str, made: dict, **options) -> Tensor:
    return LOSSES[name](*made.values(), **options)


def equal(name: str, made: dict) -> dict:
    """The student shows what the teacher shows, or what the loss makes of it."""
    if name == "memory_prefix":
        states = _prefixes(made["teacher_tokens"], made["teacher_mask"], directions=SIZES["direction"])
        return {**made, "student_states": states}
    ours, theirs = signature(LOSSES[name]).sides("student"), signature(LOSSES[name]).sides("teacher")
    same = dict(made)
    for mine, teachers in zip(ours, theirs, strict=True):
        same[mine.name] = made[teachers.name].clone()
    return same


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("apart", [False, True], ids=["alike", "apart"])
def test_a_loss_is_one_finite_number(name, apart):
    value = call(name, inputs(name, apart=apart))
    assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)
    assert value >= -1e-6


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_but_the_loss_of_what_was_given(name):
    made = inputs(name)
    before = each(made, torch.clone)
    assert torch.equal(call(name, made), call(name, made)), "a loss is a pure function"
    for slot, value in made.items():
        for left, right in zip(
            *(part.values() if isinstance(part, dict) else [part] for part in (value, before[slot])), strict=True
        ):
            assert torch.equal(left, right), f"{slot} was changed in place"


@pytest.mark.parametrize("name", NAMES)
def test_all_masked_is_finite_and_pulls_nowhere_it_should_not(name):
    made = inputs(name)
    masked = False
    for slot in slots(name):
        if slot.mask:
            made[slot.name], masked = torch.zeros_like(made[slot.name]), True
        elif slot.side == "column":
            made[slot.name], masked = torch.full_like(made[slot.name], -1), True
    students = learning(name, made)
    value = call(name, made)
    gradients = torch.autograd.grad(value, students)
    assert torch.isfinite(value) and all(torch.isfinite(gradient).all() for gradient in gradients)
    if masked:
        assert value.abs() < 1e-6 and all(gradient.abs().max() < 1e-6 for gradient in gradients)


@pytest.mark.parametrize("name", WITH_ROWS)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_extreme_signals_give_finite_values_and_gradients(name, size):
    made = each(inputs(name), lambda value: value * size)
    students = learning(name, made)
    value = call(name, made)
    gradients = torch.autograd.grad(value, students)
    assert torch.isfinite(value) and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", sorted(set(TAUGHT) - NOT_LEAST_AT_EQUALITY))
def test_a_loss_is_least_where_the_student_shows_what_the_teacher_shows(name):
    same = equal(name, inputs(name))
    students = learning(name, same)
    least = call(name, same)
    for gradient in torch.autograd.grad(least, students):
        assert gradient.abs().max() < 1e-5
    assert least.abs() < 1e-5
    for seed in range(1, 6):
        other = {**same, **{slot.name: inputs(name, seed=seed)[slot.name] for slot in offered(name)}}
        assert call(name, other) > least + 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_all_that_the_student_shows(name):
    made = inputs(name)
    students = learning(name, made)
    gradients = torch.autograd.grad(call(name, made), students)
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near(name):
    made = inputs(name)
    narrow = each(made, lambda value: value.bfloat16())
    rounded = each(narrow, lambda value: value.float())
    students = learning(name, narrow)
    value, exact = call(name, narrow), call(name, rounded)
    assert torch.isfinite(value) and torch.allclose(value.float(), exact, rtol=0.1, atol=0.05)
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(value, students))


@pytest.mark.parametrize("name", WITH_ROWS)
def test_memory_layout_does_not_matter(name):
    made = inputs(name)

    def turned(value):
        if value.dim() == 4:
            return value.to(memory_format=torch.channels_last)
        return value.transpose(0, -1).contiguous().transpose(0, -1)

    other = each(made, turned)
    assert torch.allclose(call(name, made), call(name, other), rtol=1e-6)


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_batch_of_one(name):
    made = inputs(name, rows=1)
    students = learning(name, made)
    value = call(name, made)
    assert value.shape == () and torch.isfinite(value)
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(value, students))


@pytest.mark.parametrize("name", WITH_ROWS)
def test_the_order_of_examples_does_not_matter(name):
    made = inputs(name)
    turn, swap = torch.tensor([3, 0, 5, 1, 4, 2]), torch.randperm(OTHERS, generator=torch.Generator().manual_seed(1))
    turned = {}
    for slot in slots(name):
        value = made[slot.name]
        if slot.side == "bank":
            turned[slot.name] = value[turn][:, swap] if slot.mask else value[swap]
        else:
            turned[slot.name] = value[turn]
    assert torch.allclose(call(name, made), call(name, turned), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(WITH_ROWS) - RELATE_ROWS))
def test_twice_the_batch_is_the_same_mean(name):
    made = inputs(name)
    doubled = {
        slot.name: made[slot.name] if slot.side == "bank" and not slot.mask else torch.cat([made[slot.name]] * 2)
        for slot in slots(name)
    }
    assert torch.allclose(call(name, made), call(name, doubled), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64_and_says_the_same(name):
    made = inputs(name)
    exact = call(name, each(made, lambda value: value.double()))
    assert exact.dtype == torch.float64
    assert torch.allclose(call(name, made).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - CONSTANT_OF_THE_BATCH))
def test_the_gradient_is_the_slope_of_the_value(name):
    made = each(inputs(name, rows=3), lambda value: value.double())
    students = learning(name, made)
    assert torch.autograd.gradcheck(lambda *_: call(name, made), students)


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_student_that_shows_the_same_for_all_pulls_with_ordinary_strength(name):
    """A dead student, whose last layer gives zeros or one constant, must neither stop the training nor burst it."""
    for constant in (0.0, 1.0):
        made = inputs(name)
        for slot in offered(name):
            made[slot.name] = torch.full_like(made[slot.name], constant)
        students = learning(name, made)
        for gradient in torch.autograd.grad(call(name, made), students):
            assert torch.isfinite(gradient).all() and gradient.abs().max() < 1e6


# --- through match(), with real models on both sides ---------------------------------------------------------


class Small(nn.Module):
    """Rows of the image as word vectors, maps, tokens (one a channel; also as a memory's), features, logits."""

    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.maps, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, SIZES["class"])
            self.words, self.curved = nn.Flatten(1, 2), nn.Tanh()
            self.tokens, self.states = nn.Flatten(2), nn.Unflatten(2, (2, 2, 4))

    def forward(self, inputs):
        maps = self.maps(self.words(inputs)[:, None])
        tokens = self.curved(self.tokens(maps))
        return self.head(self.states(tokens).flatten(2).mean(2))


def bound(name: str):
    """The loss as an objective, with a place for each slot that has none by itself."""
    places = {}
    for side in ("student", "teacher"):
        kinds = [slot.kind for slot in signature(LOSSES[name]).sides(side)]
        if kinds and kinds[0] is not None and kinds[0].default is None:
            where = {"states": "states", "tokens": "tokens", "explanations": "maps@gradcam"}
            where["token gradients"] = "logits@gradient(wrt=words)"
            places[side] = where.get(kinds[0].name, "maps")
    return match(name, **places)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_student_and_never_the_teacher(name, autocast):
    student, teacher = Small(1), Small(2)
    objective = bound(name)
    objective.bind(student)
    generator = torch.Generator().manual_seed(3)
    batch = {
        "id": torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)], 1),
        "inputs": torch.randn(ROWS, 1, 6, 6, generator=generator),
        "labels": torch.arange(ROWS) % 5,
    }
    live = Live(teacher, [place.tap for place in objective.places("teacher")])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        told = live(batch)
        for key in objective.banks:
            told[f"{key}.bank"] = torch.randn(OTHERS, *told[key].shape[1:], generator=generator)
        shown = read(student, [place.tap for place in objective.places("student")])(batch)
        objective.size(shown, told, batch)
        value = objective(shown, told, batch)
    assert value.dtype == torch.float32, "objectives are computed in float32"
    value.backward()
    reached = [
        parameter.grad is not None and bool(parameter.grad.abs().max() > 0) for parameter in student.parameters()
    ]
    assert any(reached)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(signal.requires_grad for signal in told.values())


@pytest.mark.parametrize("name", [name for name in NAMES if any(slot.name == "student_mask" for slot in slots(name))])
def test_masks_stand_beside_the_place_they_belong_to(name):
    """A mask comes with the signal of its side, whatever the loss calls it (student_logits, student_tokens)."""
    objective = bound(name)
    made = inputs(name)
    plain = {
        side: {
            place.key: made[slot.name]
            for slot, place in zip(signature(LOSSES[name]).sides(side), objective.places(side), strict=False)
        }
        for side in ("student", "teacher")
    }
    objective.size(plain["student"], plain["teacher"], {})
    assert not torch.allclose(objective(*plain.values(), {}), call(name, made))
    for which in range(len(plain["student"])):  # beside any of the places that one mask may belong to
        masked = [{**plain[side], f"{list(plain[side])[which]}.mask": made[f"{side}_mask"]} for side in plain]
        assert torch.allclose(objective(*masked, {}), call(name, made), rtol=1e-6)


# --- bad options and bad labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [5, 17, -2])
def test_a_label_out_of_range_is_named(wrong):
    made = inputs("labels")
    made["labels"][0] = wrong
    with pytest.raises(LossError, match=rf"got \[{wrong}\] where the model answers 5 classes.*0 to 4"):
        call("labels", made)


@pytest.mark.parametrize("loss", list(PREPARED), ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_targets_made_beforehand_give_the_same_loss(loss, temperature):
    made = inputs(loss.__name__)
    prepared = PREPARED[loss]
    student, teacher = made.values()
    whole = loss(student, teacher, temperature=temperature)
    parts = prepared.loss(student, prepared.targets(teacher, temperature=temperature), temperature=temperature)
    assert torch.equal(whole, parts)
