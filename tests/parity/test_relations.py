"""Losses on relations between examples against their formulas, derived once more in float64, row by row."""

from __future__ import annotations

import math

import derive
import pytest
import torch
from derive import check, rotation
from torch import Tensor

from stillroom.losses import bank, crd, pkt, rkd, sp

ROWS, OTHERS, WIDTH = 4, 6, 3


def drawn(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)


def distribution(row: Tensor, rows: Tensor, mask: list[bool], temperature: float) -> list[float]:
    """A softmax over the similarities to those rows of the bank that count."""
    scores = [cosine(row.tolist(), other.tolist()) / temperature for other, use in zip(rows, mask, strict=True) if use]
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def by_formula(student, teacher, others, mask, temperature, teacher_temperature) -> float:
    rows = []
    for mine, theirs, use in zip(student, teacher, mask.tolist(), strict=True):
        p = distribution(theirs, others, use, teacher_temperature)
        q = distribution(mine, others, use, temperature)
        rows.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("temperatures", [(0.07, None), (0.5, None), (0.2, 0.1)])
def test_the_formula_with_and_without_the_rows_of_the_batch_itself(temperatures):
    student, teacher, others = drawn(1, ROWS), drawn(2, ROWS), drawn(3, OTHERS)
    some = torch.ones(ROWS, OTHERS, dtype=torch.bool)
    some[0, 2] = some[3, 5] = False
    temperature, teachers = temperatures
    options = {"temperature": temperature, "teacher_temperature": teachers}
    for mask in (torch.ones_like(some), some):
        expected = by_formula(student, teacher, others, mask, temperature, teachers or temperature)
        value = float(bank(student.float(), teacher.float(), others.float(), mask, **options))
        assert abs(value - expected) <= 2e-6 * expected
    everything = float(bank(student.float(), teacher.float(), others.float(), **options))
    assert everything == pytest.approx(
        by_formula(student, teacher, others, torch.ones_like(some), temperature, teachers or temperature), rel=2e-6
    )


def test_the_gradient_is_that_of_finite_differences():
    student, teacher, others = drawn(1, ROWS).requires_grad_(), drawn(2, ROWS), drawn(3, OTHERS)
    mask = torch.rand(ROWS, OTHERS, generator=torch.Generator().manual_seed(4)) < 0.7
    mask[1] = False
    assert torch.autograd.gradcheck(lambda rows: bank(rows, teacher, others, mask, temperature=0.3), (student,))
    found = torch.autograd.grad(bank(student, teacher, others, mask), student)[0]
    narrow = student.detach().float().requires_grad_()
    in_float32 = torch.autograd.grad(bank(narrow, teacher.float(), others.float(), mask), narrow)[0].double()
    assert (in_float32 - found).norm() <= 2e-6 * found.norm()
    assert not found[1].any(), "a row without partners pulls nothing"


def test_by_hand():
    # At 0 degrees to one row of the bank and 90 to the other: p = (e, 1) / (e + 1); the student the other way round.
    others = torch.eye(2)
    value = float(bank(torch.tensor([[0.0, 5.0]]), torch.tensor([[3.0, 0.0]]), others, temperature=1.0))
    assert value == pytest.approx((math.e - 1) / (math.e + 1), rel=1e-6)


def test_nothing_is_lost_at_equality_whatever_the_sizes_of_the_vectors():
    teacher, others = drawn(2, ROWS).float(), drawn(3, OTHERS).float()
    assert float(bank(teacher, teacher, others)) == pytest.approx(0, abs=1e-6)
    assert float(bank(5 * teacher, teacher, 0.1 * others)) == pytest.approx(0, abs=1e-6)
    assert float(bank(teacher, teacher, others, temperature=0.2, teacher_temperature=0.1)) > 0.01
    assert float(bank(-teacher, teacher, others)) > 1


# --- relations within the batch: sp, pkt, rkd ---------------------------------------------------------------------

BATCH = 5


def sp_by_formula(student, teacher) -> float:
    total = 0.0
    for i in range(len(student)):
        rows = []
        for features in (student, teacher):
            row = [float(features[i].ravel() @ other.ravel()) for other in features]
            rows.append([value / math.hypot(*row) for value in row])
        total += math.fsum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    return total / len(student) ** 2


def pkt_by_formula(student, teacher) -> float:
    total = 0.0
    for i in range(len(student)):
        rows = []
        for features in (student, teacher):
            lengths = [math.sqrt(one @ one) + 1e-7 for one in features]
            row = [
                (features[i] @ one / lengths[i] / length + 1) / 2 for one, length in zip(features, lengths, strict=True)
            ]
            rows.append([value / math.fsum(row) for value in row])
        total += math.fsum(p * math.log((p + 1e-7) / (q + 1e-7)) for q, p in zip(*rows, strict=True))
    return total / len(student) ** 2


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def rkd_by_formula(student, teacher, distance_weight, angle_weight) -> float:
    rows, potentials = range(len(student)), []
    for features in (student, teacher):
        distances = {(i, j): math.dist(features[i], features[j]) for i in rows for j in rows if i != j}
        mean = math.fsum(distances.values()) / len(distances)
        angles = {}
        for i in rows:
            towards = {j: (features[j] - features[i]) / distances[i, j] for j in rows if j != i}
            angles |= {(j, i, k): float(towards[j] @ towards[k]) for j in towards for k in towards}
        potentials.append(({pair: value / mean for pair, value in distances.items()}, angles))
    (ours, our_angles), (theirs, their_angles) = potentials
    distance = math.fsum(huber(ours[pair] - theirs[pair]) for pair in ours) / len(student) ** 2
    angle = math.fsum(huber(our_angles[three] - their_angles[three]) for three in our_angles) / len(student) ** 3
    return distance_weight * distance + angle_weight * angle


@pytest.mark.parametrize("shape", [(BATCH, 4), (BATCH, 2, 3, 2)])
def test_sp_is_the_papers_formula(shape):
    teacher = derive.drawn(2, *shape)
    check(sp, lambda given: sp_by_formula(given, teacher.numpy()), derive.drawn(1, *shape[:-1], 3), teacher)


def test_sp_by_hand():
    # Orthogonal rows against equal ones: (1, 0) against (1, 1) / sqrt(2), twice, over 4.
    student, teacher = torch.eye(2), torch.ones(2, 2)
    expected = 2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4
    assert float(sp(student, teacher)) == pytest.approx(expected, rel=1e-6)


def test_pkt_is_the_released_formula():
    teacher = derive.drawn(2, BATCH, 6)
    check(pkt, lambda given: pkt_by_formula(given, teacher.numpy()), derive.drawn(1, BATCH, 3), teacher)


def test_pkt_by_hand():
    # Orthogonal rows: (2/3, 1/3); equal rows: (1/2, 1/2). Mean over 4 entries of two equal rows.
    expected = (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 2
    assert float(pkt(torch.eye(2), torch.ones(2, 2))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_is_the_papers_formula(weights):
    teacher = derive.drawn(2, BATCH, 6)
    check(
        rkd,
        lambda given: rkd_by_formula(given, teacher.numpy(), *weights),
        derive.drawn(1, BATCH, 3),
        teacher,
        distance_weight=weights[0],
        angle_weight=weights[1],
    )


def test_the_defaults_of_rkd_are_the_authors():
    student, teacher = derive.drawn(1, BATCH, 3), derive.drawn(2, BATCH, 3)
    assert float(rkd(student, teacher)) == pytest.approx(
        rkd_by_formula(student.numpy(), teacher.numpy(), 25, 50), rel=1e-9
    )


def test_rkd_by_hand():
    # On a line at 0, 1, 3: distances 1, 2, 3 of mean 2. Even: 1, 1, 2 of mean 4/3. Angles are 1 or -1 in both.
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    expected = 2 * (huber(1 / 2 - 3 / 4) + huber(1 - 3 / 4) + huber(3 / 2 - 3 / 2)) / 9
    assert float(rkd(student, teacher, distance_weight=1, angle_weight=50)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [sp, pkt, rkd], ids=lambda loss: loss.__name__)
def test_rotation_and_scale_do_not_matter(loss):
    student, teacher = derive.drawn(1, BATCH, 4), derive.drawn(2, BATCH, 4)
    value, turned = float(loss(student, teacher)), 3 * student @ rotation(4)
    assert float(loss(turned, teacher)) == pytest.approx(value, rel=1e-5)
    assert float(loss(turned, student)) == pytest.approx(0, abs=1e-9)
    wider = torch.cat([student, torch.zeros(BATCH, 3, dtype=torch.float64)], 1)
    assert float(loss(wider, teacher)) == pytest.approx(value, rel=1e-9), "nor do widths"
    moved = float(loss(student + 5, teacher))
    assert (moved == pytest.approx(value, rel=1e-5)) == (loss is rkd), "only distances and angles forget the origin"


def test_pkt_forgets_the_size_of_each_row_and_the_others_do_not():
    student, teacher = derive.drawn(1, BATCH, 4), derive.drawn(2, BATCH, 4)
    sizes = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None]
    for loss in (sp, pkt, rkd):
        same = float(loss(sizes * student, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-5)
        assert same == (loss is pkt)


@pytest.mark.parametrize("loss", [sp, pkt, rkd], ids=lambda loss: loss.__name__)
def test_a_single_row_has_no_relations(loss):
    student = derive.drawn(1, 1, 4).requires_grad_()
    value = loss(student, derive.drawn(2, 1, 6))
    assert float(value) == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(value, student)[0].abs().max() < 1e-9


@pytest.mark.parametrize("loss", [sp, pkt, rkd], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("dead", ["zeros", "twins"])
def test_rows_that_are_zero_or_equal_pull_with_ordinary_strength(loss, dead):
    student, teacher = derive.drawn(1, BATCH, 4).float(), derive.drawn(2, BATCH, 4).float()
    student[1] = 0 if dead == "zeros" else student[0]
    student.requires_grad_()
    gradient = torch.autograd.grad(loss(student, teacher), student)[0]
    assert torch.isfinite(gradient).all() and gradient.abs().max() < 1e4


def test_rows_that_point_apart_have_a_finite_pkt():
    row = derive.drawn(1, 1, 64).float()
    student = torch.cat([row, -row, 3 * row, -7 * row]).requires_grad_()
    value = pkt(student, derive.drawn(2, 4, 8).float())
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


# --- crd -------------------------------------------------------------------------------------------------------------


def scores(student, teacher, others, mask, temperature):
    """exp(cosine / T) of each row with its own teacher, and with those of the others that count."""
    own = [math.exp(cosine(list(s), list(t)) / temperature) for s, t in zip(student, teacher, strict=True)]
    far = [
        [math.exp(cosine(list(s), list(o)) / temperature) for o, use in zip(others, uses, strict=True) if use]
        for s, uses in zip(student, mask.tolist(), strict=True)
    ]
    return own, far


def crd_by_formula(student, teacher, others, mask, temperature, mean) -> float:
    """Noise-contrastive: the own row is data, the m others noise of density 1 / n; e / (Z n) models the density."""
    own, far = scores(student, teacher, others, mask, temperature)
    rows = []
    for true, noise in zip(own, far, strict=True):
        m = len(noise)
        rows.append(-math.log(true / (true + m * mean)) - math.fsum(math.log(m * mean / (e + m * mean)) for e in noise))
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_crd_is_the_noise_contrastive_formula(temperature):
    student, teacher, others = drawn(1, ROWS), drawn(2, ROWS), drawn(3, OTHERS)
    mask = torch.ones(ROWS, OTHERS, dtype=torch.bool)
    mask[0, 2] = mask[3, 5] = mask[3, 1] = False
    for given_mask, used in ((mask, mask), (None, torch.ones_like(mask))):
        own, far = scores(student.numpy(), teacher.numpy(), others.numpy(), used, temperature)
        everything = [*own, *(e for row in far for e in row)]
        mean = math.fsum(everything) / len(everything)  # the constant of the batch: no gradient

        def formula(given, used=used, mean=mean):
            return crd_by_formula(given, teacher.numpy(), others.numpy(), used, temperature, mean)

        check(crd, formula, student, teacher, others, given_mask, temperature=temperature)
    assert float(crd(student, teacher, others)) == float(crd(student, teacher, others, temperature=0.07))


def test_crd_by_hand():
    # All alike: e is the same everywhere, Z = e, so -log 1/(1 + m) - m log m/(m + 1).
    rows, m = torch.ones(2, 3), 4
    expected = math.log(1 + m) - m * math.log(m / (m + 1))
    assert float(crd(rows, rows, torch.ones(m, 3))) == pytest.approx(expected, rel=1e-6)


def test_crd_pulls_to_the_own_row_and_pushes_from_the_others():
    own, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    between = torch.tensor([[1.0, 1.0]], requires_grad=True)
    gradient = torch.autograd.grad(crd(between, own, other, temperature=0.5), between)[0][0]
    assert gradient[0] < 0 < gradient[1]
    assert float(crd(own, own, other)) < float(crd(between, own, other)) < float(crd(other, own, other))


def test_crd_does_not_see_the_size_of_any_vector_and_survives_cold():
    student, teacher, others = drawn(1, ROWS), drawn(2, ROWS), drawn(3, OTHERS)
    value = float(crd(student, teacher, others))
    assert float(crd(7 * student, 0.1 * teacher, 3 * others)) == pytest.approx(value, rel=1e-9)
    cold = student.float().requires_grad_()
    value = crd(cold, teacher.float(), others.float(), temperature=1e-3)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, cold)[0]).all()
