"""Losses on answers against the papers' formulas, derived once more in float64, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, softmax
from derive import kl as divergence
from torch import Tensor

from stillroom.contracts import Recorded
from stillroom.data.arrays import ArraySource
from stillroom.errors import LossError
from stillroom.learner import Learner
from stillroom.losses import dist, kd, kd_multilabel, labels, lskd, mse_logits, regression
from stillroom.objectives import match
from stillroom.record import record
from stillroom.settings import Training
from stillroom.teachers import Live
from stillroom.train import train

ROWS, CLASSES = 7, 5


def drawn(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(loss, student: Tensor, *others: Tensor, **options) -> tuple[float, Tensor]:
    """Value and gradient in float32, the precision that training uses."""
    given = student.float().requires_grad_()
    value = loss(given, *(one.float() if one.is_floating_point() else one for one in others), **options)
    return float(value.detach()), torch.autograd.grad(value, given)[0].double()


def probabilities(row: list[float], temperature: float) -> list[float]:
    highest = max(row)
    powers = [math.exp((value - highest) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-6 * max(1.0, abs(expected))


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * max(1.0, float(expected.norm())))


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_labels_is_the_mixture_of_one_hot_and_uniform_over_the_labelled_rows(smoothing):
    logits = drawn(1)
    truth = torch.tensor([0, 4, -1, 2, -1, 1, 3])
    total, gradient, known = [], torch.zeros_like(logits), int((truth >= 0).sum())
    for row, label in enumerate(truth.tolist()):
        if label < 0:
            continue
        predicted = probabilities(logits[row].tolist(), 1.0)
        target = [smoothing / CLASSES + (1 - smoothing) * (k == label) for k in range(CLASSES)]
        total.append(-math.fsum(q * math.log(p) for p, q in zip(predicted, target, strict=True)))
        gradient[row] = torch.tensor([(p - q) / known for p, q in zip(predicted, target, strict=True)])
    value, found = ours(labels, logits, truth, smoothing=smoothing)
    assert near(value, math.fsum(total) / known) and close(found, gradient)
    assert not found[2].any() and not found[4].any(), "an unlabelled row pulls nothing"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_of_weighed_classes_is_the_weighted_mean_of_the_rows(smoothing):
    logits, truth, weights = drawn(1), torch.tensor([0, 4, -1, 2, -1, 1, 3]), (1.0, 2.0, 0.5, 3.0, 0.1)
    each, heavy = [], []
    for row, label in enumerate(truth.tolist()):
        predicted = probabilities(logits[row].tolist(), 1.0)
        target = [smoothing / CLASSES + (1 - smoothing) * (k == label) for k in range(CLASSES)]
        each.append(-math.fsum(q * math.log(p) for p, q in zip(predicted, target, strict=True)))
        heavy.append(weights[label] if label >= 0 else 0.0)
    mean = math.fsum(w * one for w, one in zip(heavy, each, strict=True)) / math.fsum(heavy)
    value, found = ours(labels, logits, truth, smoothing=smoothing, class_weights=weights)
    assert near(value, mean) and not found[2].any() and not found[4].any()
    if not smoothing:
        theirs = torch.nn.functional.cross_entropy(logits, truth, torch.tensor(weights).double(), ignore_index=-1)
        assert near(value, float(theirs))
    doubled, _ = ours(labels, logits, truth, smoothing=smoothing, class_weights=tuple(2 * one for one in weights))
    assert near(doubled, value), "only ratios count"
    even, gradient = ours(labels, logits, truth, smoothing=smoothing, class_weights=(3.0,) * CLASSES)
    plain, expected = ours(labels, logits, truth, smoothing=smoothing)
    assert near(even, plain) and close(gradient, expected)
    none, flat = ours(labels, logits, torch.full((ROWS,), -1), class_weights=weights)
    assert none == 0 and not flat.any()


def test_class_weights_that_do_not_fit_are_refused():
    with pytest.raises(LossError, match=r"got 2 weights\. Allowed: 5"):
        labels(drawn(1), torch.zeros(ROWS, dtype=torch.int64), class_weights=(1.0, 2.0))
    with pytest.raises(LossError, match="out of range: got"):
        labels(drawn(1), torch.full((ROWS,), 9), class_weights=(1.0,) * CLASSES)
    with pytest.raises(LossError, match="greater than 0"):
        match("labels", class_weights=[1, 0])


def test_labels_by_hand():
    assert float(labels(torch.zeros(3, 4), torch.tensor([0, 1, -1]))) == pytest.approx(math.log(4))
    sure = torch.tensor([[math.log(3.0), 0.0]])
    assert float(labels(sure, torch.tensor([0]))) == pytest.approx(math.log(4 / 3))
    assert float(labels(sure, torch.tensor([0]), smoothing=0.5)) == pytest.approx(
        0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    )


# --- kd ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_the_papers_formula(temperature):
    student, teacher = drawn(1), drawn(2)
    total, gradient = [], torch.zeros_like(student)
    for row in range(ROWS):
        p, q = probabilities(teacher[row].tolist(), temperature), probabilities(student[row].tolist(), temperature)
        total.append(temperature**2 * math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        gradient[row] = torch.tensor([temperature * (b - a) / ROWS for a, b in zip(p, q, strict=True)])
    value, found = ours(kd, student, teacher, temperature=temperature)
    # In float32 the divergence is a difference of numbers near 1, which T^2 enlarges.
    assert abs(value - math.fsum(total) / ROWS) <= 1e-6 * max(1.0, temperature**2 / 10)
    assert close(found, gradient)


def test_kd_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2) at T = 1: KL = 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(kd(student, teacher, temperature=1.0)) == pytest.approx(by_hand, rel=1e-6)
    # The same probabilities at T = 2 come from logits twice as large, and T^2 = 4.
    assert float(kd(student, 2 * teacher, temperature=2.0)) == pytest.approx(4 * by_hand, rel=1e-6)


def test_kd_minimises_the_papers_cross_entropy_too():
    student, teacher = drawn(1).requires_grad_(), drawn(2)
    targets = torch.softmax(teacher / 3, 1)
    cross_entropy = -(targets * torch.log_softmax(student / 3, 1)).sum(1).mean() * 9
    expected = torch.autograd.grad(cross_entropy, student)[0]
    assert close(ours(kd, student.detach(), teacher, temperature=3.0)[1], expected)


def test_kd_tends_to_half_the_squared_difference_of_centred_logits():
    student, teacher = drawn(1), drawn(2)
    centred = [part - part.mean(1, keepdim=True) for part in (student, teacher)]
    limit = float((centred[0] - centred[1]).square().mean()) / 2
    values = [float(kd(student, teacher.double(), temperature=high)) for high in (10.0, 100.0)]
    errors = [abs(value - limit) / limit for value in values]
    assert errors[0] < 0.1 and errors[1] < 0.02 and errors[1] < errors[0]
    gradient = ours(kd, centred[0], centred[1], temperature=500.0)[1]
    half = ours(mse_logits, centred[0], centred[1])[1] / 2
    assert (gradient - half).norm() < 0.01 * half.norm()


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    student, teacher = drawn(1), drawn(2)
    sizes = [float(ours(kd, student, teacher, temperature=high)[1].norm()) for high in (10.0, 40.0, 160.0)]
    assert max(sizes) / min(sizes) < 1.3


def test_a_constant_added_to_a_row_changes_nothing():
    student, teacher = drawn(1), drawn(2)
    moved = student + torch.arange(ROWS)[:, None]
    assert near(ours(kd, moved, teacher)[0], ours(kd, student, teacher)[0])
    assert abs(ours(kd, teacher + 3, teacher)[0]) < 1e-6


# --- mse_logits -----------------------------------------------------------------------------------------------------


def test_mse_logits():
    student, teacher = drawn(1), drawn(2)
    squares = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    value, gradient = ours(mse_logits, student, teacher)
    assert abs(value - math.fsum(squares) / len(squares)) <= 1e-6 * value
    assert close(gradient, 2 * (student - teacher) / student.numel())
    assert float(mse_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))) == 2.5


# --- targets that are prepared once, as a store does -----------------------------------------------------------------


def test_kd_from_a_store_is_kd(tmp_path):
    """Recorded, softened once and compared: the same numbers as the loss on live logits."""
    generator = torch.Generator().manual_seed(4)
    data = ArraySource(torch.randn(40, 6, generator=generator), torch.arange(40) % CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network, student = torch.nn.Linear(6, CLASSES), torch.nn.Linear(6, CLASSES)
    live = Live(network)
    store = record(live, data, tmp_path, taps=["logits"], fingerprints={"teacher": "t", "data": data.fingerprint})
    assert isinstance(store, Recorded)
    settings = Training(steps=3, batch=8, lr=0.1, optimizer="sgd", schedule="constant")
    values, weights = [], []
    for teacher in (live, store):
        learner = Learner(torch.nn.Linear(6, CLASSES), [match("kd", temperature=2.5)])
        learner.student.load_state_dict(student.state_dict())
        values.append([float(step.losses["kd"]) for step in train(learner, data, teacher, settings)])
        weights.append(learner.student.weight.detach().clone())
    asked = store.use([match("kd", temperature=2.5).prepared_name])
    shown = asked(data.batch(torch.tensor([[3, 0]])))
    assert list(shown) == [match("kd", temperature=2.5).prepared_name], "the store gives targets, and no logits"
    expected = torch.softmax(live(data.batch(torch.tensor([[3, 0]])))["logits"].double() / 2.5, 1)
    assert close(next(iter(shown.values())).double(), expected)
    assert values[0] == pytest.approx(values[1], rel=1e-6) and torch.allclose(weights[0], weights[1], rtol=1e-6)


# --- lskd ------------------------------------------------------------------------------------------------------------


def lskd_by_formula(student, teacher, temperature) -> float:
    def scores(row):
        return (row - np.mean(row)) / (np.std(row, ddof=1) + 1e-7) / temperature

    return temperature**2 * float(
        np.mean([divergence(softmax(scores(v)), softmax(scores(z))) for z, v in zip(student, teacher, strict=True)])
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_lskd_is_kd_of_z_scores(temperature):
    student, teacher = drawn(1), drawn(2)
    check(
        lskd,
        lambda given: lskd_by_formula(given, teacher.numpy(), temperature),
        student,
        teacher,
        temperature=temperature,
    )
    assert float(lskd(student, teacher)) == pytest.approx(
        lskd_by_formula(student.numpy(), teacher.numpy(), 2.0), rel=1e-9
    )


def test_lskd_by_hand():
    # Two logits have z-scores +-1/sqrt(2), whatever they are: opposite answers give T^2 a tanh(a / 2), a = sqrt(2) / T.
    student, teacher = torch.tensor([[3.0, -5.0]]), torch.tensor([[0.0, 0.1]])
    gap = math.sqrt(2) / 2
    expected = 4 * gap * math.tanh(gap / 2)
    assert float(lskd(student, teacher, temperature=2.0)) == pytest.approx(expected, rel=1e-5)


def test_lskd_does_not_see_scale_or_shift_of_a_row():
    student, teacher = drawn(1), drawn(2)
    sizes, shifts = torch.rand(ROWS, 1, dtype=torch.float64) + 0.5, torch.randn(ROWS, 1, dtype=torch.float64)
    value = float(lskd(student, teacher))
    assert float(lskd(sizes * student + shifts, teacher)) == pytest.approx(value, rel=1e-6)
    assert float(lskd(student, sizes * teacher + shifts)) == pytest.approx(value, rel=1e-6)
    assert float(lskd(sizes * teacher + shifts, teacher)) == pytest.approx(0, abs=1e-9)
    assert float(lskd(-teacher, teacher)) > 0.1


def test_lskd_of_a_flat_row_or_a_single_class_is_finite():
    for shape in ((3, 4), (3, 1)):
        student = torch.zeros(shape, requires_grad=True)
        value = lskd(student, torch.randn(shape))
        assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


# --- dist ------------------------------------------------------------------------------------------------------------


def dist_by_formula(student, teacher, temperature, beta, gamma) -> float:
    q, p = (np.stack([softmax(row / temperature) for row in logits]) for logits in (student, teacher))

    def lost(left, right):
        found = []
        for a, b in zip(left, right, strict=True):
            a, b = a - a.mean(), b - b.mean()
            found.append(1 - (a @ b) / (math.sqrt(a @ a) * math.sqrt(b @ b) + 1e-8))
        return np.mean(found)

    return float(temperature**2 * (beta * lost(q, p) + gamma * lost(q.T, p.T)))


@pytest.mark.parametrize("options", [(1.0, 1.0, 1.0), (4.0, 2.0, 0.5), (2.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
def test_dist_is_the_papers_formula(options):
    student, teacher = drawn(1), drawn(2)
    temperature, beta, gamma = options
    check(
        dist,
        lambda given: dist_by_formula(given, teacher.numpy(), *options),
        student,
        teacher,
        temperature=temperature,
        beta=beta,
        gamma=gamma,
    )
    assert float(dist(student, teacher)) == pytest.approx(dist_by_formula(student.numpy(), teacher.numpy(), 1, 1, 1))


def test_dist_is_one_minus_pearson():
    student, teacher = drawn(1), drawn(2)
    q, p = (torch.softmax(logits, 1).numpy() for logits in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert float(dist(student, teacher)) == pytest.approx(rows + columns, rel=1e-5)


def test_dist_does_not_see_shifts_of_logits_nor_affine_maps_of_probabilities():
    student, teacher = drawn(1), drawn(2)
    value = float(dist(student, teacher))
    assert float(dist(student + drawn(3)[:, :1], teacher - 4)) == pytest.approx(value, rel=1e-6)
    # Half way to the uniform answer is an affine map of the probabilities, one for all rows.
    blurred = (0.5 * torch.softmax(teacher, 1) + 0.5 / CLASSES).log()
    assert float(dist(blurred, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(dist(student, blurred)) == pytest.approx(value, rel=1e-5)
    assert float(dist(3 * teacher, teacher)) > 0.01, "of the logits themselves, scale is seen"


def test_dist_of_one_row_has_no_columns_to_compare():
    student, teacher = drawn(1)[:1].requires_grad_(), drawn(2)[:1]
    with_columns, without = dist(student, teacher, gamma=1.0), dist(student, teacher, gamma=0.0)
    assert float(with_columns) == pytest.approx(float(without) + 1)
    gradients = [torch.autograd.grad(value, student)[0] for value in (with_columns, without)]
    assert torch.allclose(*gradients, atol=1e-9)


# --- sigmoids and values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kd_of_independent_classes_is_the_sum_of_binary_kls(temperature):
    def formula(given):
        total = 0.0
        for z, v in zip(given.flat, teacher.numpy().flat, strict=True):
            q, p = (1 / (1 + math.exp(-value / temperature)) for value in (z, v))
            total += divergence([p, 1 - p], [q, 1 - q])
        return temperature**2 * total / ROWS

    teacher = drawn(2)
    check(kd_multilabel, formula, drawn(1), teacher, temperature=temperature)


def test_kd_of_one_yes_or_no_is_kd_of_two_classes():
    student, teacher = drawn(1)[:, :1], drawn(2)[:, :1]
    for temperature in (1.0, 4.0):
        two = kd(*(torch.cat([one, torch.zeros_like(one)], 1) for one in (student, teacher)), temperature=temperature)
        assert float(kd_multilabel(student, teacher, temperature=temperature)) == pytest.approx(float(two), rel=1e-9)


def test_kd_multilabel_by_hand_and_at_high_temperature():
    # Odds of 3 to 1 asked for, even odds given.
    value = kd_multilabel(torch.zeros(1, 1), torch.tensor([[math.log(3.0)]]))
    assert float(value) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    student, teacher = drawn(1), drawn(2)
    limit = CLASSES * float(mse_logits(student, teacher)) / 8
    assert float(kd_multilabel(student, teacher, temperature=1e3)) == pytest.approx(limit, rel=1e-4)
    sure = torch.tensor([[200.0, -300.0]])
    assert float(kd_multilabel(-sure, sure)) == pytest.approx(500, rel=1e-6)


@pytest.mark.parametrize("huber", [None, 0.5, 2.0])
def test_regression_is_the_square_and_beyond_huber_the_distance(huber):
    def formula(given):
        values = []
        for difference in np.abs(given - teacher.numpy()).flat:
            if huber is None:
                values.append(difference**2)
            else:
                values.append(difference**2 / 2 if difference <= huber else huber * (difference - huber / 2))
        return float(np.mean(values))

    teacher = drawn(2)
    check(regression, formula, drawn(1), teacher, huber=huber)


def test_regression_by_hand():
    student, teacher = torch.tensor([[1.0], [10.0]], requires_grad=True), torch.tensor([[0.0], [0.0]])
    assert float(regression(student, teacher)) == 50.5
    value = regression(student, teacher, huber=2.0)
    assert float(value) == (0.5 + 2 * 9) / 2
    assert torch.autograd.grad(value, student)[0].tolist() == [[0.5], [1.0]], (
        "a wild value pulls no harder than 2 / rows"
    )


def test_kd_keeps_float64():
    student, teacher = drawn(1), drawn(2)

    def formula(given):
        rows = zip(given, teacher.numpy(), strict=True)
        return 16 * float(np.mean([divergence(softmax(v / 4), softmax(z / 4)) for z, v in rows]))

    check(kd, formula, student, teacher)
