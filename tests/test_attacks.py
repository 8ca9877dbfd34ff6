"""Attacks: the ball and the range are kept, the loss rises, nothing is left behind, and a linear model's answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from stillroom.attacks import PGD, robust_accuracy, under_attack
from stillroom.cli.attacking import _ends, attacked
from stillroom.data.arrays import ArraySource
from stillroom.data.tables import TableSource
from stillroom.data.texts import TextSource
from stillroom.errors import DataError, ModelError, TrainError, UserError
from stillroom.learner import Learner
from stillroom.models.bundle import Deployed
from stillroom.models.encode import ImageEncode
from stillroom.models.text_encode import WordEncode
from stillroom.models.zoo import build
from stillroom.objectives import match
from stillroom.settings import Training
from stillroom.teachers import Live, Together
from stillroom.train import train

ENCODE = ImageEncode([0.5], [0.25])
EPSILON = 8 / 255


def images(rows=24, labels=True, seed=0):
    made = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 1, 8, 8), generator=made, dtype=torch.uint8)
    everything = torch.arange(rows)
    return ArraySource(pixels, everything % 3 if labels else None, splits={"train": everything})


def cnn(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    model = build("cnn", shape=(1, 8, 8), classes=3, width=4, dropout=dropout)
    with torch.no_grad():  # statistics of its own, so that modes matter
        model.train()(ENCODE(torch.randint(0, 256, (64, 1, 8, 8))))
        model.head.weight *= 20  # an untrained network answers nearly the same everywhere
    return model


def batch_of(data):
    rows = data.splits["train"]
    return data.batch(torch.stack([rows, torch.zeros_like(rows)], 1))


def loss(model, inputs, labels, encode=ENCODE):
    with torch.no_grad():
        return float(functional.cross_entropy(model.eval()(encode(inputs)), labels))


BATCH = batch_of(images())


# --- the ball ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_ball_and_the_range_are_kept(steps, random_start):
    torch.manual_seed(1)
    attack = PGD(EPSILON, steps=steps, step_size=0.9, random_start=random_start, encode=ENCODE)
    moved = attack.find(cnn(), BATCH)
    assert moved.dtype == torch.float32 and moved.shape == BATCH["inputs"].shape
    assert float((moved - BATCH["inputs"]).abs().max()) <= 8 + 1e-4
    assert float(moved.min()) >= 0 and float(moved.max()) <= 255
    assert bool((moved != BATCH["inputs"]).any()) == (random_start or steps > 0)


def test_the_loss_rises_above_that_of_noise_and_of_one_step():
    model = cnn()
    found = {}
    for name, steps, start in (("noise", 0, True), ("one", 1, False), ("many", 20, True)):
        torch.manual_seed(2)
        attack = PGD(
            32 / 255, steps=steps, random_start=start, encode=ENCODE, step_size=None if steps != 1 else 32 / 255
        )
        found[name] = loss(model, attack.find(model, BATCH), BATCH["labels"])
    clean = loss(model, BATCH["inputs"], BATCH["labels"])
    assert found["many"] > found["one"] > max(found["noise"], clean) + 0.01


def test_disagreement_rises_and_needs_no_label():
    model, teacher = cnn(), cnn(5)
    asked = []

    def answers(batch):
        asked.append(batch["inputs"].dtype)
        return Live(teacher, ["logits"], encode=ENCODE)(batch)

    def apart(inputs):
        with torch.no_grad():
            told, said = teacher.eval()(ENCODE(BATCH["inputs"])), model.eval()(ENCODE(inputs))
        return float(functional.kl_div(said.log_softmax(1), told.softmax(1), reduction="batchmean"))

    unlabelled = {name: column for name, column in BATCH.items() if name != "labels"}
    attack = PGD(32 / 255, steps=10, encode=ENCODE, along="disagreement", teacher=answers, random_start=False)
    moved = attack.find(model, unlabelled)
    assert apart(moved) > apart(BATCH["inputs"]) + 0.01
    assert asked == [torch.uint8], "the teacher is asked once, about the inputs as they were"


def test_no_way_at_all_changes_nothing():
    assert torch.equal(PGD(0, steps=5, encode=ENCODE).find(cnn(), BATCH), BATCH["inputs"].float())


def test_one_step_of_epsilon_is_fgsm():
    model = cnn().eval()
    inputs = BATCH["inputs"].float().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model(ENCODE(inputs)), BATCH["labels"]), inputs)
    wanted = (inputs.detach() + 8 * slope.sign()).clamp(0, 255)
    found = PGD(EPSILON, steps=1, step_size=EPSILON, random_start=False, encode=ENCODE).find(model, BATCH)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_linear_models_worst_input_is_found_exactly(steps):
    """Of two classes: every input goes by epsilon against the difference of the two rows of weights."""
    torch.manual_seed(3)
    model = nn.Linear(6, 2)
    inputs, labels = torch.rand(10, 6), torch.arange(10) % 2
    batch = {"id": torch.zeros(10, 2, dtype=torch.int64), "inputs": inputs, "labels": labels}
    found = PGD(0.1, steps=steps, low=0, high=1).find(model, batch)
    way = (model.weight[1] - model.weight[0]).detach().sign() * (1 - 2 * labels[:, None])
    torch.testing.assert_close(found, (inputs + 0.1 * way).clamp(0, 1))


def test_floats_in_a_range_of_their_own():
    torch.manual_seed(4)
    batch = {
        "id": torch.zeros(5, 2, dtype=torch.int64),
        "inputs": torch.rand(5, 6) * 4 - 2,
        "labels": torch.zeros(5).long(),
    }
    found = PGD(0.1, steps=3, low=-2, high=2).find(nn.Linear(6, 2), batch)
    assert float((found - batch["inputs"]).abs().max()) == pytest.approx(0.4, abs=1e-5)
    with pytest.raises(DataError, match="outside the range.*low= and high="):
        PGD(0.1, low=0, high=1).find(nn.Linear(6, 2), batch)
    with pytest.raises(DataError, match="not known.*low= and high="):
        PGD(0.1).find(nn.Linear(6, 2), batch)


def rows_of_two_units(count=40):
    torch.manual_seed(5)
    inputs = torch.rand(count, 3) * torch.tensor([80.0, 300_000.0, 1.0])
    inputs[:, 2] = torch.arange(count) % 3  # a category
    return {
        "id": torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], 1),
        "inputs": inputs,
        "labels": torch.arange(count) % 2,
    }


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("kind", [torch.tensor, list, tuple])
def test_each_column_of_a_table_has_a_range_of_its_own(steps, seed, kind):
    batch = rows_of_two_units()
    low, high = kind([0.0, 0.0, 0.0]), kind([80.0, 300_000.0, 0.0])
    found = PGD(0.1, steps=steps, low=low, high=high, seed=seed).find(nn.Linear(3, 2), batch)
    far = (found - batch["inputs"]).abs().amax(0)
    assert far.tolist() == pytest.approx([8, 30_000, 0], rel=0.2 if steps == 0 else 1e-3)
    assert bool((far[:2] <= torch.tensor([8.001, 30_001])).all()) and torch.equal(found[:, 2], batch["inputs"][:, 2])
    assert bool((found[:, :2] >= 0).all() & (found[:, :2] <= torch.tensor([80.0, 300_000.0])).all())


def test_ranges_of_columns_are_one_range_where_all_are_alike():
    torch.manual_seed(6)
    batch, model = rows_of_two_units() | {"inputs": torch.rand(40, 3)}, nn.Linear(3, 2)
    one, each = (
        PGD(0.1, steps=4, low=low, high=high, seed=1) for low, high in ((0, 1), (torch.zeros(3), torch.ones(3)))
    )
    torch.testing.assert_close(one.find(model, batch), each.find(model, batch))
    assert each == PGD(0.1, steps=4, low=[0.0] * 3, high=[1.0] * 3, seed=1), "equal attacks are equal"


def test_columns_that_do_not_fit_their_ranges_are_named():
    batch = rows_of_two_units()
    with pytest.raises(DataError, match=r"of column 1 lie outside.*0 to 80.*low= and high="):
        PGD(0.1, low=[0.0] * 3, high=[80.0] * 3).find(nn.Linear(3, 2), batch)
    with pytest.raises(DataError, match=r"other columns.*shape \(3,\).*2 columns"):
        PGD(0.1, low=[0.0, 0.0], high=[1.0, 1.0]).find(nn.Linear(3, 2), batch)
    with pytest.raises(DataError, match=r"other columns.*shape \(1, 8, 8\)"):
        PGD(0.1, low=[0.0] * 8, high=[255.0] * 8).find(cnn(), BATCH)


def test_the_command_gives_each_column_its_range_and_leaves_categories():
    batch = rows_of_two_units()
    table = TableSource(
        batch["inputs"],
        batch["labels"],
        names=["age", "income", "kind"],
        categories={"kind": list("abc")},
        splits={"test": torch.arange(40)},
    )
    config = {"input": {"dtype": "float32", "shape": [3]}}
    torch.manual_seed(7)
    deployed = Deployed(nn.Linear(3, 2), table_like(), config=config)
    low, high, named = _ends(deployed, table, "test")
    assert low.tolist()[:2] == batch["inputs"].amin(0).tolist()[:2] and float(low[2]) == float(high[2])
    assert high.tolist()[:2] == batch["inputs"].amax(0).tolist()[:2] and "each column" in named
    said = attacked(deployed, table, "test", 0.1)
    assert "0.1 of each column's range in 'test', categories as they are" in said["attack"]
    still_there = TableSource(
        batch["inputs"][:, 2:],
        batch["labels"],
        names=["kind"],
        categories={"kind": list("abc")},
        splits={"test": torch.arange(40)},
    )
    with pytest.raises(DataError, match="1 columns, 1 of categories.*stillroom.PGD takes low= and high="):
        _ends(deployed, still_there, "test")
    pictures = ArraySource(torch.rand(9, 1, 4, 4), torch.arange(9) % 3, splits={"test": torch.arange(9)})
    low, high, named = _ends(deployed, pictures, "test")
    assert isinstance(low, float) and isinstance(high, float) and "the range" in named


def table_like():
    class Scaled(nn.Module):
        def forward(self, inputs):
            return inputs / torch.tensor([80.0, 300_000.0, 3.0])

    return Scaled()


# --- what is left behind -----------------------------------------------------------------------------------


def test_modes_gradients_and_statistics_stay():
    model = cnn().train()
    model.block2.eval()
    next(model.parameters()).requires_grad_(False)
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {name: value.clone() for name, value in BATCH.items()}
    PGD(EPSILON, steps=2, encode=ENCODE)(model, BATCH)
    assert [part.training for part in model.modules()] == modes
    assert all(value.grad is None for value in model.parameters())
    assert [value.requires_grad for value in model.parameters()].count(False) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert given.keys() == BATCH.keys() and all(torch.equal(given[name], BATCH[name]) for name in given)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_modes_come_back_when_the_model_raises():
    model = cnn().train()
    with pytest.raises(RuntimeError):
        PGD(EPSILON, steps=2).find(model, BATCH | {"inputs": torch.zeros(24, 5, 8, 8, dtype=torch.uint8)})
    assert all(part.training for part in model.modules())


def test_equal_seeds_equal_attacks():
    def found(seed=None, generator=0, order=None):
        torch.manual_seed(generator)
        chosen = BATCH if order is None else {name: column[order] for name, column in BATCH.items()}
        model = cnn()
        torch.manual_seed(generator)
        return PGD(EPSILON, steps=2, encode=ENCODE, seed=seed).find(model, chosen)

    assert torch.equal(found(), found())
    assert not torch.equal(found(), found(generator=1))
    assert torch.equal(found(seed=3), found(seed=3, generator=1))
    assert not torch.equal(found(seed=3), found(seed=4))
    order = torch.arange(23, -1, -1)
    start = PGD(EPSILON, steps=0, seed=3)
    backwards = start.find(cnn(), {name: column[order] for name, column in BATCH.items()})
    assert torch.equal(backwards, start.find(cnn(), BATCH)[order]), "noise belongs to the example"
    assert float((start.find(cnn(), BATCH) - BATCH["inputs"]).std()) == pytest.approx(8 / 3**0.5, rel=0.1)


def test_a_step_costs_two_passes_and_no_gradient_of_a_weight():
    """Forward and backward to the inputs; the share of rows that stay clean costs nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 3))
    batch = {"id": BATCH["id"], "inputs": torch.rand(24, 64), "labels": BATCH["labels"]}

    def cost(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    once = cost(lambda: model(batch["inputs"]))
    attack = PGD(0.1, steps=5, low=0, high=1)
    assert cost(lambda: attack(model, batch)) == 10 * once
    assert cost(lambda: replace(attack, share=0.25)(model, batch)) == 2.5 * once
    assert cost(lambda: replace(attack, steps=0)(model, batch)) == 0


# --- as a part of training -----------------------------------------------------------------------------------


def test_a_prepared_batch_says_what_was_done():
    given = PGD(EPSILON, steps=2, encode=ENCODE)(cnn(), BATCH)
    assert given["clean"] is not None and torch.equal(given["clean"], BATCH["inputs"])
    torch.testing.assert_close(given["inputs"] + given["direction"] / 2, BATCH["inputs"].float())
    assert torch.equal(given["labels"], BATCH["labels"]) and torch.equal(given["id"], BATCH["id"])


def test_a_share_of_the_rows_stays_clean():
    """The attacked ones are those that an objective of the same part reads."""
    given = PGD(EPSILON, steps=1, encode=ENCODE, share=0.25)(cnn(), BATCH)
    moved = (given["inputs"] != BATCH["inputs"]).flatten(1).any(1)
    assert moved.nonzero()[:, 0].tolist() == [0, 4, 8, 12, 16, 20]
    assert not given["direction"][~moved].any() and bool(given["direction"][moved].flatten(1).any(1).all())
    model = cnn(7)
    seen = []

    def attacked(student_logits, inputs, clean):
        seen.append((inputs != clean).flatten(1).any(1))
        return student_logits.square().mean()

    learner = Learner(model, [match(attacked, part=0.25)], encode=ENCODE)
    learner(given)
    assert len(seen) == 1 and len(seen[0]) == 6 and bool(seen[0].all())


def test_a_student_learns_on_attacked_inputs_from_a_teacher_that_is_asked_about_the_clean_ones():
    """Both at the attacked input (AdaAD), and the teacher's answer on the clean one for it (ARD)."""
    data, model, student = images(), cnn(7), cnn(dropout=0.0)
    both = {
        name: Live(model, ["logits"], encode=ENCODE, takes=(column,))
        for name, column in (("here", "inputs"), ("clean", "clean"))
    }
    objectives = [match("kd", teacher=f"{name}/logits", temperature=1.0, name=name) for name in both]
    attack = PGD(EPSILON, steps=2, encode=ENCODE)
    seen = []

    def prepare(module, batch):
        seen.append((attack(module, batch), {name: value.clone() for name, value in module.state_dict().items()}))
        return seen[-1][0]

    def losses(prepare):
        learner = Learner(cnn(dropout=0.0), objectives, encode=ENCODE)
        settings = Training(steps=3, batch=12)
        return [step.losses for step in train(learner, data, Together(both), settings, prepare=prepare)]

    first = losses(prepare)
    batch, weights = seen[-2]
    student.load_state_dict(weights)
    with torch.no_grad():
        said = student.train()(ENCODE(batch["inputs"])).log_softmax(1)
        for name, inputs in (("here", batch["inputs"]), ("clean", batch["clean"])):
            told = model.eval()(ENCODE(inputs)).softmax(1)
            assert float(first[1][name]) == pytest.approx(
                float(functional.kl_div(said, told, reduction="batchmean")), rel=1e-4
            )
    assert [float(step["loss"]) for step in losses(attack)] == [float(step["loss"]) for step in first], "reseeded"
    assert first[0]["here"] != first[0]["clean"]


def test_a_store_cannot_teach_about_inputs_it_never_saw(tmp_path):
    from stillroom.record import record

    data = images()
    store = record(Live(cnn(7), ["logits"], encode=ENCODE), data, tmp_path / "store")
    learner = Learner(cnn(), [match("kd")], encode=ENCODE)
    with pytest.raises(TrainError, match="Give the live teacher"):
        next(train(learner, data, store, Training(steps=1, batch=4), prepare=PGD(EPSILON, encode=ENCODE)))


# --- measuring ---------------------------------------------------------------------------------------------


def test_accuracy_under_attack():
    data, model = images(), cnn()
    told = []
    attack = PGD(16 / 255, steps=5, encode=ENCODE)
    found = robust_accuracy(model, data, attack, split="train", limit=20, progress=lambda *said: told.append(said))
    plain, attacked = under_attack(model, data, attack, split="train", limit=20)
    assert found == float(attacked.float().mean()) and told == [(20, 20, "attack")]
    assert len(plain) == 20 and bool((plain | ~attacked).all()), "wrong without an attack is not robust"
    with torch.no_grad():
        right = model.eval()(ENCODE(BATCH["inputs"][:20])).argmax(1) == BATCH["labels"][:20]
    assert torch.equal(plain, right)
    torch.manual_seed(99)
    assert torch.equal(under_attack(model, data, attack, split="train", limit=20)[1], attacked), (
        "no generator takes part"
    )
    assert torch.equal(under_attack(model, data, PGD(0, encode=ENCODE), split="train", limit=20)[1], plain)


def test_a_linear_models_robust_accuracy_is_its_margin():
    torch.manual_seed(8)
    model = nn.Linear(6, 2, bias=False)
    inputs, labels = torch.rand(200, 6) * 0.6 + 0.2, torch.arange(200) % 2
    data = ArraySource(inputs, labels, splits={"train": torch.arange(200)})
    way = (model.weight[1] - model.weight[0]).detach()
    margin = (inputs @ way) * (2 * labels - 1)
    wanted = float((margin > 0.05 * way.abs().sum()).float().mean())
    assert robust_accuracy(model, data, PGD(0.05, steps=10, low=0, high=1), split="train") == pytest.approx(wanted)
    assert 0 < wanted < float((margin > 0).float().mean())


# --- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 8}, "epsilon=8.*8/255"),
        ({"epsilon": -0.1}, "share of the range"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"epsilon": 0.1, "steps": -1}, "steps=-1"),
        ({"epsilon": 0.1, "steps": 2.5}, "steps=2.5"),
        ({"epsilon": 0.1, "step_size": 0}, "step_size=0"),
        ({"epsilon": 0.1, "share": 0}, "share=0"),
        ({"epsilon": 0.1, "along": "los"}, "Did you mean 'loss'"),
        ({"epsilon": 0.1, "along": "disagreement"}, "no teacher"),
        ({"epsilon": 0.1, "low": 0}, "low=0, high=None"),
        ({"epsilon": 0.1, "low": 1, "high": 1}, "low below high"),
        ({"epsilon": 0.1, "low": "a", "high": "b"}, "low=a, high=b.*low below high"),
        ({"epsilon": 0.1, "low": "a"}, "low=a, high=None"),
        ({"epsilon": 0.1, "low": float("nan"), "high": 1}, "low=nan"),
        ({"epsilon": 0.1, "low": 0, "high": float("inf")}, "high=inf"),
        ({"epsilon": 0.1, "low": [0, 0], "high": [1, 1, 1]}, "as many numbers each"),
        ({"epsilon": 0.1, "low": [0, 2], "high": [1, 1]}, "as many numbers each"),
        ({"epsilon": 0.1, "low": [1, 1], "high": [1, 1]}, "as many numbers each"),
        ({"epsilon": 0.1, "low": [], "high": []}, "as many numbers each"),
        ({"epsilon": 0.1, "low": [[0.0]], "high": [[1.0]]}, "as many numbers each"),
        ({"epsilon": 0.1, "seed": "x"}, "seed='x'.*whole number"),
        ({"epsilon": 0.1, "seed": 1.5}, "seed=1.5"),
        ({"epsilon": 0.1, "encode": "x"}, "encode='x'"),
        ({"epsilon": 0.1, "along": "disagreement", "teacher": "cnn"}, "teacher='cnn'.*Live"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PGD(**options)


def test_what_has_no_labels_is_refused_and_rows_without_one_are_not():
    unlabelled = batch_of(images(labels=False))
    with pytest.raises(DataError, match="needs labels.*disagreement"):
        PGD(EPSILON, encode=ENCODE).find(cnn(), unlabelled)
    model = cnn().eval()
    with torch.no_grad():
        own = model(ENCODE(BATCH["inputs"])).argmax(1)
    some = torch.where(torch.arange(24) < 12, BATCH["labels"], torch.full_like(own, -1))
    filled = torch.where(some < 0, own, some)
    attack = PGD(EPSILON, steps=2, encode=ENCODE, seed=1)
    found = attack.find(model, BATCH | {"labels": some})
    assert torch.equal(found, attack.find(model, BATCH | {"labels": filled}))
    with pytest.raises(DataError, match="Accuracy needs labels"):
        robust_accuracy(cnn(), images(labels=False), attack, split="train")
    with pytest.raises(DataError, match="'tset'.*Allowed: train"):
        robust_accuracy(cnn(), images(), attack, split="tset")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((24,), 7)}, "labels 7 to 7. Allowed: 0 to 2"),
        ({"labels": torch.full((24,), -5)}, "labels -5 to -5"),
        ({"labels": torch.zeros(5).long()}, "a class for each row"),
        ({"labels": torch.zeros(24).bool()}, "a class for each row"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        PGD(EPSILON, encode=ENCODE).find(cnn(), BATCH | change)


def test_labels_of_any_whole_type_are_taken():
    attack = PGD(EPSILON, steps=2, encode=ENCODE, seed=0)
    model = cnn()
    found = attack.find(model, BATCH)
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(attack.find(model, BATCH | {"labels": BATCH["labels"].to(kind)}), found)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Live(cnn(5), ["block1"], encode=ENCODE), "signals block1. Allowed: a Store"),
        (lambda batch: {"logits": torch.zeros(24, 5)}, "5 classes. Allowed: 3, as the model has"),
        (lambda batch: {"logits": torch.zeros(24)}, r"shape \(24,\).*logits \(24, classes\)"),
        (lambda batch: {"logits": torch.zeros(7, 3)}, r"shape \(7, 3\).*logits \(24, classes\)"),
        (lambda batch: 3, "got a int"),
        (nn.Linear(6, 3), "a bare Linear.*wrap it, teacher=Live"),
    ],
)
def test_a_teacher_that_is_none_is_refused(teacher, message):
    with pytest.raises(ModelError, match=message):
        PGD(EPSILON, encode=ENCODE, along="disagreement", teacher=teacher).find(cnn(), BATCH)


@pytest.mark.parametrize("limit", ["a", -1, 0, 1.5, True])
def test_a_number_of_rows_is_one(limit):
    with pytest.raises(UserError, match=f"limit={limit!r}.*1 or more, or None"):
        robust_accuracy(cnn(), images(), PGD(EPSILON, encode=ENCODE), split="train", limit=limit)


def test_what_is_no_attack_no_data_and_no_model_is_refused():
    attack = PGD(EPSILON, encode=ENCODE)
    with pytest.raises(UserError, match="no attack: got 0.1"):
        robust_accuracy(cnn(), images(), 0.1, split="train")
    with pytest.raises(DataError, match="no source of data: got 'digits'"):
        robust_accuracy(cnn(), "digits", attack)
    with pytest.raises(ModelError, match="got a str"):
        attack.find("cnn", BATCH)


def test_texts_and_whole_numbers_are_refused():
    texts = TextSource(["good film", "bad film"], [0, 1], splits={"train": torch.arange(2)})
    encode = WordEncode(["good", "bad", "film"])
    model = build("textcnn", shape=(5,), classes=2)
    batch = texts.batch(torch.tensor([[0, 0], [1, 0]]))
    with pytest.raises(ModelError, match="a model of texts"):
        PGD(0.1, encode=encode).find(model, batch)
    with pytest.raises(DataError, match="int64"):
        PGD(0.1).find(model, batch | {"inputs": torch.zeros(2, 3, dtype=torch.int64)})


class Rounded(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.head, self.way = nn.Linear(6, 2), way

    def forward(self, inputs):
        if self.way == "detach":
            return self.head(inputs.detach())
        if self.way == "no_grad":
            with torch.no_grad():
                return self.head(inputs)
        return nn.functional.one_hot(self.head(inputs).argmax(1), 2).float()


@pytest.mark.parametrize("way", ["detach", "no_grad", "argmax"])
def test_a_model_without_derivatives_says_so(way):
    batch = {"id": torch.zeros(4, 2, dtype=torch.int64), "inputs": torch.rand(4, 6), "labels": torch.zeros(4).long()}
    with pytest.raises(ModelError, match="Rounded cannot be attacked.*derivative"):
        PGD(0.1, low=0, high=1).find(Rounded(way), batch)


def test_a_column_of_another_name_is_refused():
    """The model must read the inputs that are moved."""
    with pytest.raises(ModelError, match="cannot be attacked"):
        PGD(EPSILON, encode=ENCODE, takes=("other",)).find(cnn(), BATCH | {"other": BATCH["inputs"].float()})
