"""Training: the same weights every time, however often it was interrupted, and words where it cannot go on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from stillroom import checkpoint
from stillroom.contracts import Parameters
from stillroom.data.arrays import ArraySource
from stillroom.data.views import Views
from stillroom.errors import LossError, TrainError
from stillroom.evaluate import evaluate
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.record import record
from stillroom.settings import Mixed, Training
from stillroom.teachers import Live, MovingAverage
from stillroom.tensors import pack, unpack
from stillroom.train import Rows, bank_rows, fit, learning_rate, optimizer_of, train

ROWS = 40
SPLITS = {"train": torch.arange(ROWS), "validation": torch.arange(0), "test": torch.arange(0)}


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def source(kind=ArraySource, **more) -> ArraySource:
    inputs = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))
    return kind(inputs, torch.arange(ROWS) % 3, splits=SPLITS, name="vectors", **more)


def images() -> ArraySource:
    pixels = torch.randint(0, 256, (ROWS, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ArraySource(pixels, torch.arange(ROWS) % 3, splits=SPLITS, views=Views(3, pad=1))


def small(hidden=8) -> nn.Sequential:
    parts = nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3)
    return nn.Sequential(*parts)


def convolutional() -> nn.Sequential:
    parts = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return nn.Sequential(*parts)


def lengthen(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def plain(**settings) -> Training:
    return Training(**{"steps": 6, "batch": 12, "lr": 1e-2, "schedule": "constant", **settings})


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def near(left: dict[str, Tensor], right: dict[str, Tensor], tolerance=1e-6) -> bool:
    return all(
        torch.allclose(left[name].double(), right[name].double(), rtol=tolerance, atol=tolerance) for name in left
    )


# --- rates ------------------------------------------------------------------------------------------------


def rates(steps=100, **settings) -> list[float]:
    return [learning_rate(Training(steps=steps, lr=2.0, **settings), step, steps) for step in range(steps)]


def test_a_constant_rate_with_a_warm_up():
    found = rates(schedule="constant", warmup=0.1)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)]) and set(found[10:]) == {2.0}


def test_a_half_cosine_falls_to_nothing():
    found = rates(schedule="cosine")
    assert found[0] == 2.0 and found[50] == pytest.approx(1.0) and found[99] < 1e-3
    assert found == sorted(found, reverse=True)
    warm = rates(schedule="cosine", warmup=0.2)
    assert max(warm) == warm[19] == warm[20] == 2.0 and warm[60] == pytest.approx(1.0)


def test_a_rate_in_steps():
    found = rates(schedule="step", milestones=(0.5, 0.75), decay=0.1)
    assert found[49] == 2.0 and found[50] == pytest.approx(0.2) and found[74] == pytest.approx(0.2)
    assert found[75] == pytest.approx(0.02) == found[99]


def test_the_rate_is_what_the_optimizer_uses():
    shown = [
        step.learning_rate
        for step in train(Learner(seeded(small), ["labels"]), source(), None, plain(schedule="cosine", warmup=0.4))
    ]
    assert shown == [learning_rate(plain(schedule="cosine", warmup=0.4), step, 6) for step in range(6)]
    frozen = Learner(seeded(lambda: nn.Linear(6, 3)), ["labels"])
    before = weights(frozen)
    steps = train(frozen, source(), None, plain(optimizer="sgd", lr=0.5, momentum=0.0))
    step = next(steps)
    batch = source().batch(Rows.of(source()).order(plain(), seed=0).ids(0))
    model = nn.Linear(6, 3)
    model.load_state_dict({name.removeprefix("student."): value for name, value in before.items()})
    nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"]).backward()
    assert torch.allclose(frozen.student.weight, before["student.weight"] - 0.5 * model.weight.grad, atol=1e-7)
    assert step.number == 1 and step.steps == 6


# --- the same weights, whatever happens in between -----------------------------------------------------------


def killed(make, data, make_teacher, settings, folder, *, at: int, **more):
    """Train to the end; stop one step after ``at`` and go on with fresh objects. Return both learners' weights."""
    whole = make()
    fit(whole, data, make_teacher(whole), settings, folder=folder / "whole", **more)
    part = make()
    for step in train(part, data, make_teacher(part), settings, folder=folder / "part", **more):
        if step.number == at:
            break
    again = make()
    numbers = [
        step.number for step in train(again, data, make_teacher(again), settings, folder=folder / "part", **more)
    ]
    return weights(whole), weights(again), numbers


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.3},
        {"optimizer": "adamw", "precision": "bf16"},
    ],
    ids=lambda given: "-".join(map(str, given.values())),
)
@pytest.mark.parametrize("at", [3, 5])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, settings, at):
    def make():
        objectives = [
            match("labels", weight=0.3),
            match("kd", temperature=2.0),
            match("hint", "0", "0", every=2),
            match("l2", weight=1e-3),
        ]
        return Learner(seeded(small), objectives)

    teacher = Live(seeded(lambda: small(10), 3), ["logits", "0"])
    left, right, numbers = killed(
        make, source(), lambda _: teacher, plain(checkpoint_every=2, **settings), tmp_path, at=at
    )
    assert same(left, right) and numbers == list(range(at, 7)), "it begins after the last checkpoint"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_so_does_one_on_images_in_another_memory_layout(tmp_path, precision):
    def make():
        return Learner(seeded(convolutional), ["labels", match("attention_transfer", "1", "1")], encode=lengthen)

    # not AdamW: it makes steps of full size out of the rounding of a gradient that is 0
    settings = plain(checkpoint_every=2, channels_last=True, precision=precision, optimizer="sgd")
    teacher = Live(seeded(convolutional, 2), ["1"], encode=lengthen)
    left, right, _ = killed(make, images(), lambda _: teacher, settings, tmp_path, at=5, views=3)
    assert same(left, right)
    narrow = make()
    fit(narrow, images(), teacher, settings.model_copy(update={"checkpoint_every": None}), views=3)
    assert narrow.student[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert same(left, weights(narrow)), "checkpoints change nothing"
    plainly = make()
    fit(plainly, images(), teacher, settings.model_copy(update={"channels_last": False}), views=3)
    assert near(left, weights(plainly), 1e-4 if precision == "float32" else 0.1)


def test_so_does_a_teacher_with_a_past(tmp_path):
    def make():
        return Learner(seeded(small), ["labels", "kd"])

    def teacher(of):
        return MovingAverage(of.student, ["logits"], decay=0.7)

    left, right, _ = killed(make, source(), teacher, plain(checkpoint_every=2), tmp_path, at=5)
    assert same(left, right)
    alone = make()
    fit(alone, source(), Live(seeded(small), ["logits"]), plain())
    assert not same(left, weights(alone)), "its past has changed what it taught"


def test_so_does_a_bank_from_a_store(tmp_path):
    data, live = source(), Live(seeded(lambda: small(10), 3), ["features"])
    prints = {"teacher": "t", "data": data.fingerprint}
    store = record(live, data, tmp_path / "store", taps=["features"], fingerprints=prints)

    def make():
        return Learner(seeded(small), ["labels", match("bank", temperature=0.5)])

    left, right, _ = killed(make, data, lambda _: store, plain(checkpoint_every=2), tmp_path, at=5)
    assert same(left, right) and bank_rows(ROWS) == 16


def test_what_the_caller_does_between_steps_changes_nothing(tmp_path):
    quiet, busy = Learner(seeded(small), ["labels"]), Learner(seeded(small), ["labels"])
    fit(quiet, source(), None, plain())
    data = source()
    data.splits = {**SPLITS, "test": torch.arange(9)}
    outer = torch.random.get_rng_state()
    for _ in train(busy, source(), None, plain()):
        torch.rand(7)
        evaluate(busy.student, data)
        busy.student.eval()
    assert same(weights(quiet), weights(busy))
    assert torch.equal(torch.random.get_rng_state(), outer) and not busy.training


def test_nothing_is_left_on_a_student_whose_training_was_dropped():
    learner = Learner(seeded(small), ["labels", match("hint", "0", {"student": "0"})])
    outer = torch.random.get_rng_state()
    steps = train(learner, source(), None, plain())
    assert not any(part._forward_hooks for part in learner.modules()), "nothing happens before the first step"
    next(steps)
    steps.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in learner.modules())
    assert torch.equal(torch.random.get_rng_state(), outer)


def test_seeds_and_orders_tell_trainings_apart():
    def trained(seed, view_count=1):
        learner = Learner(seeded(convolutional), ["labels"], encode=lengthen)
        fit(learner, images(), None, plain(), seed=seed, views=view_count)
        return weights(learner)

    assert same(trained(0), trained(0)) and not same(trained(0), trained(1)) and not same(trained(0), trained(0, 3))


# --- checkpoints of something else ----------------------------------------------------------------------------


def trained_into(folder, make=lambda: Learner(seeded(small), ["labels", "kd"]), data=None, **settings):
    learner = make()
    teacher = Live(seeded(lambda: small(10), 3), ["logits"])
    for step in train(learner, data or source(), teacher, plain(checkpoint_every=2, **settings), folder=folder):
        if step.number == 3:
            break
    return learner


OTHER = r"another training of the same network: got other settings.* \(\w{12}\)\. Allowed: .*Use another folder"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"make": lambda: Learner(seeded(lambda: small(9)), ["labels", "kd"])}, r"got \(8, 6\).*Allowed: \(9, 6\)"),
        ({"make": lambda: Learner(seeded(small), ["labels", match("kd", temperature=2)])}, OTHER),
        ({"make": lambda: Learner(seeded(small), ["labels", match("kd", weight=0.5)])}, OTHER),
        ({"make": lambda: Learner(seeded(small), ["labels", match("mse_logits", name="kd")])}, OTHER),
        ({"lr": 0.5}, OTHER),
        ({"optimizer": "sgd"}, OTHER),
        ({"data": ArraySource(torch.zeros(ROWS, 6), torch.arange(ROWS) % 3, splits=SPLITS, name="vectors")}, OTHER),
        ({"data": ArraySource(source().inputs, torch.arange(ROWS) % 2, splits=SPLITS, name="vectors")}, OTHER),
    ],
    ids=["architecture", "temperature", "weight", "loss", "rate", "optimizer", "data", "labels"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other, message):
    trained_into(tmp_path)
    content = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(TrainError, match=message):
        trained_into(tmp_path, **other)
    assert (tmp_path / checkpoint.NAME).read_bytes() == content
    trained_into(tmp_path)


def test_a_damaged_checkpoint_is_kept_and_the_training_begun_anew(tmp_path):
    trained_into(tmp_path)
    path = tmp_path / checkpoint.NAME
    content = path.read_bytes()
    harmed = (content[:-20], content[:4], b"", b"\x80\x04pickle", content[:-1] + bytes([content[-1] ^ 1]))
    for number, damaged in enumerate(harmed, 1):
        path.write_bytes(damaged)
        trained_into(tmp_path)
        assert (tmp_path / "old" / f"{checkpoint.NAME}-{number}").read_bytes() == damaged
        assert path.read_bytes() == content, "the same training, from its beginning"


def test_another_number_of_threads_is_noted_and_not_refused(tmp_path):
    trained_into(tmp_path)
    path = tmp_path / checkpoint.NAME
    held, meta = unpack(path)
    assert meta["moment"]["threads"] == torch.get_num_threads()
    meta["moment"]["threads"] = 63
    path.write_bytes(pack(held, meta))
    learner = Learner(seeded(small), ["labels", "kd"])
    teacher = Live(seeded(lambda: small(10), 3), ["logits"])
    first = next(train(learner, source(), teacher, plain(checkpoint_every=2), folder=tmp_path))
    assert first.number == 3 and "not bit for bit: threads 63 then" in first.notes[0]


def test_a_training_at_its_end_says_so(tmp_path):
    learner = Learner(seeded(small), ["labels"])
    fit(learner, source(), None, plain(), folder=tmp_path)
    again = Learner(seeded(small), ["labels"])
    assert list(train(again, source(), None, plain(), folder=tmp_path)) == [] and same(weights(learner), weights(again))
    with pytest.raises(TrainError, match="already at its end"):
        fit(Learner(seeded(small), ["labels"]), source(), None, plain(), folder=tmp_path)


# --- numbers that are lost --------------------------------------------------------------------------------------


class Broken(ArraySource):
    """Gives NaN for examples 5 and 7, as a failing disk or a bad transform might."""

    def batch(self, ids):
        batch = super().batch(ids)
        rows = torch.isin(ids[:, 0], torch.tensor([5, 7]))
        batch["inputs"] = batch["inputs"].masked_fill(rows[:, None], math.nan)
        return batch


def first_step_with(examples: set[int], settings: Training) -> int:
    order = Rows.of(source()).order(settings, seed=0)
    return next(step for step in range(100) if examples & set(order.ids(step)[:, 0].tolist()))


def test_nan_in_the_data_stops_with_the_examples_and_the_last_good_checkpoint(tmp_path):
    settings = plain(steps=40, batch=4, checkpoint_every=1)
    bad = first_step_with({5, 7}, settings)
    learner = Learner(seeded(small), ["labels"])
    done = []
    with pytest.raises(TrainError) as caught:
        for step in train(learner, source(Broken), None, settings, folder=tmp_path):
            done.append(step.number)
    assert len(done) == bad > 0, "it stops before the step is taken"
    message = str(caught.value)
    assert f"not finite at step {bad + 1}: got labels = nan, loss = nan; the column 'inputs'" in message
    named = set(json.loads(message.split("examples ")[1].split(".")[0]))
    assert named and named <= {5, 7} and f"The last good checkpoint is step {bad} in {tmp_path}" in message
    assert all(torch.isfinite(value).all() for value in learner.student.parameters()), "the weights are those before"


def test_nan_in_the_loss_stops_too():
    def bursts(student_logits: Tensor) -> Tensor:
        calls.append(1)
        return student_logits.sum() * (math.inf if len(calls) == 3 else 1)

    calls: list[int] = []
    learner = Learner(seeded(small), ["labels", match(bursts)])
    with pytest.raises(
        TrainError,
        match=r"not finite at step 3: got labels = 1.*bursts = -?(inf|nan).*There is no checkpoint yet.*train\.lr",
    ):
        fit(learner, source(), None, plain())


def test_weights_that_are_lost_never_become_a_checkpoint(tmp_path):
    def steep(student_logits: Tensor) -> Tensor:
        """Finite itself, with a gradient that is not."""
        calls.append(1)
        return (
            (student_logits - student_logits.detach()).abs().sum().sqrt()
            if len(calls) == 3
            else student_logits.square().mean()
        )

    calls: list[int] = []
    learner = Learner(seeded(small), [match(steep)])
    with pytest.raises(
        TrainError, match=r"Weights are not finite after step 3: got NaN or infinity in student.*checkpoint is step 2"
    ):
        fit(learner, source(), None, plain(checkpoint_every=1, gradient_norms_every=0), folder=tmp_path)
    calls.extend([1] * 10)
    again = Learner(seeded(small), [match(steep)])
    resumed = [
        step.number
        for step in train(again, source(), None, plain(checkpoint_every=1, gradient_norms_every=0), folder=tmp_path)
    ]
    assert resumed == [3, 4, 5, 6], "it goes on from what was good"
    assert all(torch.isfinite(value).all() for value in again.parameters())


def test_a_last_step_that_loses_the_weights_is_not_a_success():
    def steep(student_logits: Tensor) -> Tensor:
        return (student_logits - student_logits.detach()).abs().sum().sqrt()

    with pytest.raises(TrainError, match="Weights are not finite after step 1"):
        fit(Learner(seeded(small), [match(steep)]), source(), None, plain(steps=1))


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"precision": "bf16"}, {"clip": 0.1}])
def test_every_number_of_a_training_is_finite(settings):
    teacher = Live(seeded(lambda: small(10), 3), ["logits", "features", "0"])
    objectives = [
        "labels",
        "kd",
        match("mse_logits", weight=0.01),
        match("hint", "features", "features"),
        match("l1", weight=1e-4),
    ]
    learner = Learner(seeded(small), objectives)
    for step in train(learner, source(), teacher, plain(**settings)):
        assert set(step.losses) >= {"labels", "kd", "mse_logits", "hint", "l1", "loss"}
        assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in step.losses.values())
        assert not any(value.requires_grad for value in step.losses.values())
    assert all(torch.isfinite(value).all() for value in learner.state_dict().values())


# --- labels ---------------------------------------------------------------------------------------------------


class Relabelled(ArraySource):
    """Labels that are wrong behind the back of the source's own check."""

    wrong = 3

    def batch(self, ids):
        batch = super().batch(ids)
        batch["labels"] = batch["labels"].clone()
        batch["labels"][0] = self.wrong
        return batch


def test_labels_out_of_range_are_an_error_of_the_user():
    with pytest.raises(LossError, match=r"got \[3\] where the model answers 3 classes"):
        fit(Learner(seeded(small), ["labels"]), source(Relabelled), None, plain())
    below = source(Relabelled)
    below.wrong = -2
    with pytest.raises((LossError, TrainError), match="Labels are out of range: got .*-2"):
        fit(Learner(seeded(small), ["labels"]), below, None, plain())


# --- penalties ---------------------------------------------------------------------------------------------------


def squares(parameters: Parameters) -> Tensor:
    """What l2 is, under a name that no fast path knows."""
    return torch.stack([value.square().sum() for value in parameters.values()]).sum()


def penalised(settings: Training, penalty) -> tuple[dict[str, Tensor], list[float]]:
    learner = Learner(seeded(small), ["labels", match(penalty, weight=0.01), match("l1", weight=1e-3)])
    values = [float(step.losses["labels"]) for step in train(learner, source(), None, settings)]
    assert learner.objectives[1].folded is (penalty == "l2")
    return weights(learner), values


@pytest.mark.parametrize(
    "more", [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.02}]
)
def test_l2_under_sgd_is_weight_decay(more):
    settings = plain(optimizer="sgd", lr=0.1, steps=20, **more)
    fast, explicit = penalised(settings, "l2"), penalised(settings, squares)
    assert near(fast[0], explicit[0], 2e-6) and fast[1] == pytest.approx(explicit[1], rel=1e-5)
    none = Learner(seeded(small), ["labels", match("l1", weight=1e-3)])
    fit(none, source(), None, settings)
    assert not near(weights(none), fast[0], 1e-4), "the penalty counts"


@pytest.mark.parametrize(
    ("settings", "weight", "every", "folds"),
    [
        ({"optimizer": "sgd"}, 0.01, 1, True),
        ({"optimizer": "sgd", "clip": 1.0}, 0.01, 1, False),
        ({"optimizer": "adamw"}, 0.01, 1, False),
        ({"optimizer": "sgd"}, {"from": 1, "to": 0, "until": 0.5}, 1, False),
        ({"optimizer": "sgd"}, 0.01, 2, False),
    ],
)
def test_when_the_fast_path_is_taken(settings, weight, every, folds):
    learner = Learner(seeded(small), ["labels", match("l2", weight=weight, every=every)])
    optimizer = optimizer_of(learner, plain(weight_decay=0.001, **settings))
    assert learner.objectives[1].folded is folds
    decays = {
        group["weight_decay"]: sorted(value.dim() for value in group["params"]) for group in optimizer.param_groups
    }
    assert decays == ({0.021: [2, 2], 0.001: [1] * 4} if folds else {0.001: [1, 1, 1, 1, 2, 2]})
    shown = {name for step in train(learner, source(), None, plain(**settings)) for name in step.losses}
    assert "l2" in shown


def test_a_function_of_ones_own_that_is_called_l2_is_not_taken_for_a_penalty():
    def l2(student_logits: Tensor) -> Tensor:
        return student_logits.square().mean()

    learner = Learner(seeded(small), ["labels", match(l2)])
    steps = list(train(learner, source(), None, plain(optimizer="sgd")))
    assert not learner.objectives[1].folded and all("l2" in step.losses for step in steps)


# --- other ways to fill a step --------------------------------------------------------------------------------------


def test_prepare_changes_the_batch_by_looking_at_the_student(tmp_path):
    seen = []

    def brighten(student, batch):
        seen.append((student is learner.student, student.training))
        return {**batch, "inputs": batch["inputs"] + 1}

    learner = Learner(seeded(small), ["labels"])
    first = next(train(learner, source(), None, plain(), prepare=brighten))
    moved = ArraySource(source().columns["inputs"] + 1, torch.arange(ROWS) % 3, splits=SPLITS)
    other = next(train(Learner(seeded(small), ["labels"]), moved, None, plain()))
    assert seen == [(True, True)] * 2 and torch.equal(first.losses["labels"], other.losses["labels"])
    data, live = source(), Live(seeded(small, 3))
    store = record(live, data, tmp_path, taps=["logits"], fingerprints={"teacher": "t", "data": data.fingerprint})
    with pytest.raises(
        TrainError, match="prepare= changes the inputs.*Store has no answers for changed inputs.*live teacher"
    ):
        next(train(Learner(seeded(small), ["kd"]), data, store, plain(), prepare=brighten))
    next(train(Learner(seeded(small), ["kd"]), data, live, plain(), prepare=brighten))


def test_gradients_may_be_filled_by_hand():
    calls = []

    def only_the_task(learner, losses, weighted):
        calls.append((sorted(losses), dict(weighted)))
        losses["labels"].backward()

    teacher = Live(seeded(small, 3))
    by_hand = Learner(seeded(small), ["labels", match("kd", weight=5.0)])
    fit(by_hand, source(), teacher, plain(), gradients=only_the_task)
    task = Learner(seeded(small), ["labels"])
    fit(task, source(), None, plain())
    assert near(weights(by_hand), weights(task))
    assert len(calls) == 6 and calls[0] == (["kd", "labels", "loss"], {"labels": 1.0, "kd": 5.0})


def test_clipping_bounds_the_step():
    def moved(clip):
        learner = Learner(seeded(lambda: nn.Linear(6, 3)), [match("labels", weight=100.0)])
        before = weights(learner)
        next(train(learner, source(), None, plain(optimizer="sgd", lr=1.0, momentum=0.0, clip=clip)))
        return math.sqrt(sum(float((value - before[name]).square().sum()) for name, value in weights(learner).items()))

    assert moved(0.25) == pytest.approx(0.25, rel=1e-4) and moved(None) > 1


def test_connectors_take_part_in_clipping():
    """A hint through a connector: the norm that is bounded is that of the student and the connector together."""

    def moved(clip):
        learner = Learner(seeded(small), [match("hint", student="0", teacher="0", weight=100.0)])
        teacher = Live(seeded(lambda: small(12), 3), ["0"])
        ids = torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.int64)], 1)
        batch = source().batch(ids)
        learner.size(batch, teacher(batch))
        before = {name: value.detach().clone() for name, value in learner.named_parameters()}
        next(train(learner, source(), teacher, plain(optimizer="sgd", lr=1.0, momentum=0.0, clip=clip)))
        squares = {"student": 0.0, "objectives": 0.0}
        for name, value in learner.named_parameters():
            squares[name.split(".")[0]] += float((value.detach() - before[name]).square().sum())
        return squares

    free, clipped = moved(None), moved(0.25)
    assert all(math.sqrt(part) > 0.25 for part in free.values()), "or neither part needed clipping"
    assert math.sqrt(sum(clipped.values())) == pytest.approx(0.25, rel=1e-3)
    assert clipped["objectives"] / clipped["student"] == pytest.approx(free["objectives"] / free["student"], rel=1e-3)


# --- looking at the terms -----------------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_each_weighted_term():
    learner = Learner(
        seeded(lambda: nn.Linear(6, 3)), [match("labels", weight=0.5), match("l2", weight=0.1), match("kd", weight=0)]
    )
    before = {name.removeprefix("student."): value for name, value in weights(learner).items()}
    steps = list(
        train(
            learner, source(), Live(seeded(lambda: nn.Linear(6, 3), 4)), plain(optimizer="sgd", gradient_norms_every=3)
        )
    )
    assert [step.gradient_norms is not None for step in steps] == [True, False, False, True, False, False]
    model = nn.Linear(6, 3)
    model.load_state_dict(before)
    batch = source().batch(Rows.of(source()).order(plain(), seed=0).ids(0))
    (0.5 * nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])).backward()
    expected = math.sqrt(sum(float(value.grad.square().sum()) for value in model.parameters()))
    norms = steps[0].gradient_norms
    assert set(norms) == {"labels", "l2"} and norms["labels"] == pytest.approx(expected, rel=1e-5)
    assert norms["l2"] == pytest.approx(0.2 * float(before["weight"].norm()), rel=1e-5)


def test_norms_are_looked_at_once_when_they_are_not_asked_for():
    learner = Learner(seeded(small), ["labels"])
    shown = [step.gradient_norms is not None for step in train(learner, source(), None, plain(gradient_norms_every=0))]
    assert shown == [True] + [False] * 5


def test_looking_at_norms_changes_nothing():
    learners = [Learner(seeded(small), ["labels", "kd"]) for _ in range(2)]
    for learner, often in zip(learners, (1, 0), strict=True):
        fit(learner, source(), Live(seeded(small, 3)), plain(gradient_norms_every=often))
    assert same(weights(learners[0]), weights(learners[1]))


def test_a_term_that_hardly_takes_part_is_noted_once():
    learner = Learner(seeded(small), ["labels", match("kd", weight=1e-6)])
    steps = list(train(learner, source(), Live(seeded(small, 3)), plain(gradient_norms_every=1)))
    notes = [note for step in steps for note in step.notes]
    assert len(notes) == 1 and notes[0].startswith("step 1: the gradient of 'labels'")
    assert "times that of 'kd'" in notes[0] and "'kd' hardly takes part. Raise its weight" in notes[0]
    even = Learner(seeded(small), ["labels", "kd"])
    assert not [note for step in train(even, source(), Live(seeded(small, 3)), plain()) for note in step.notes]


# --- rows, views, epochs ------------------------------------------------------------------------------------------


def test_batches_of_labelled_and_transfer_rows():
    shown = []

    class Watched(ArraySource):
        def batch(self, ids):
            shown.append(ids.clone())
            return super().batch(ids)

    labels = torch.full((ROWS,), -1)
    labels[:6] = torch.arange(6) % 3
    data = Watched(source().columns["inputs"], labels, splits=SPLITS)
    data.labelled = torch.arange(6)
    learner = Learner(seeded(small), [match("labels", weight=0.1), "kd"])
    teacher = Live(seeded(small, 3))
    list(train(learner, data, teacher, plain(batch=Mixed(labelled=4, transfer=8))))
    assert all(ids.shape == (12, 2) and set(ids[:4, 0].tolist()) <= set(range(6)) for ids in shown)
    assert any((ids[4:, 0] >= 6).any() for ids in shown), "the transfer set holds all training rows"
    passed = torch.cat([ids[4:, 0] for ids in shown[1:6]])  # the first is the look at shapes
    assert len(set(passed.tolist())) == ROWS
    shown.clear()
    list(train(Learner(seeded(small), ["labels"]), data, None, plain()))
    assert all((ids[:, 0] < 6).all() for ids in shown), "a plain batch holds rows with a label"


def test_epochs_are_passings_of_the_labelled_rows():
    learner = Learner(seeded(small), ["labels"])
    settings = Training(epochs=2, batch=16, schedule="constant")
    last = fit(learner, source(), None, settings)
    assert last.number == last.steps == 2 * 3
    few = fit(Learner(seeded(small), ["labels"]), source(), None, settings, rows=Rows(torch.arange(10)))
    assert few.steps == 2


def test_settings_decide_the_precision():
    learner = Learner(seeded(small), ["labels"])
    fit(learner, source(), None, plain(precision="bf16"))
    assert learner.precision == "bf16" and learner.student[0].weight.dtype == torch.float32
    exact = Learner(seeded(small), ["labels"])
    fit(exact, source(), None, plain())
    assert exact.precision == "float32" and not same(weights(learner), weights(exact))
    assert near(weights(learner), weights(exact), 0.1)


# --- what cannot go together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objectives", "teacher", "message"),
    [
        (["kd"], None, "Objectives read a teacher: got no teacher. Allowed: logits. Give a Store or a live teacher"),
        (
            ["bank"],
            Live(small(), ["features"]),
            r"other rows of a store \(features\): got a live teacher. Record its signals first",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_before_the_first_step(objectives, teacher, message):
    with pytest.raises(TrainError, match=message):
        next(train(Learner(seeded(small), objectives), source(), teacher, plain()))


def test_a_teacher_that_does_not_show_what_is_read_is_named():
    with pytest.raises(LossError, match="'kd' reads a signal that was not shown: got 'logits'"):
        fit(Learner(seeded(small), ["kd"]), source(), Live(seeded(small), ["features"]), plain())


def test_a_teacher_of_other_classes_is_named():
    with pytest.raises(LossError, match=r"student's 'logits' \(12, 3\) and the teacher's 'logits' \(12, 5\)"):
        fit(Learner(seeded(small), ["kd"]), source(), Live(nn.Linear(6, 5)), plain())


def test_a_student_that_cannot_learn_is_refused():
    with pytest.raises(TrainError, match="nothing to train: got a student without trainable parameters"):
        fit(Learner(small().requires_grad_(False), ["labels"]), source(), None, plain())


def test_a_part_that_is_frozen_stays():
    student = seeded(small)
    student[0].requires_grad_(False)
    before = weights(student)
    fit(Learner(student, ["labels", match("l2", weight=0.1)]), source(), None, plain(optimizer="sgd"))
    assert torch.equal(student[0].weight, before["0.weight"]) and not torch.equal(student[4].weight, before["4.weight"])


def test_training_leaves_the_store_it_was_given_as_it_was(tmp_path):
    data = source()
    store = record(Live(seeded(small, 3)), data, tmp_path)
    fit(Learner(seeded(small), ["kd"]), data, store, plain(steps=1))
    assert store.signals == ("logits",)


def test_a_checkpoint_of_another_store_is_refused(tmp_path):
    data = ArraySource(torch.randn(20, 4), torch.arange(20) % 2, splits={"train": torch.arange(20)})
    stores = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        stores.append(record(Live(nn.Linear(4, 2)), data, tmp_path / f"store-{seed}", taps=["logits"]))
    settings = Training(steps=4, batch=10, checkpoint_every=2)

    def learner():
        torch.manual_seed(5)
        return Learner(nn.Linear(4, 2), ["kd"])

    for step in train(learner(), data, stores[0], settings, folder=tmp_path / "run"):
        if step.number == 3:
            break
    with pytest.raises(TrainError, match="another training"):
        next(train(learner(), data, stores[1], settings, folder=tmp_path / "run"))
