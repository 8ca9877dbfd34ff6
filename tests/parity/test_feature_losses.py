"""HCL and NST against the papers' formulas, derived once more with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, drawn

from stillroom.losses import hcl, hint, nst


def test_a_hint_is_the_mean_square():
    teacher = drawn(2, 3, 4)
    pairs = lambda given: zip(given.flat, teacher.numpy().flat, strict=True)  # noqa: E731
    check(hint, lambda given: float(np.mean([(a - b) ** 2 for a, b in pairs(given)])), drawn(1, 3, 4), teacher)


# --- hcl -----------------------------------------------------------------------------------------------------------


def averaged(maps: np.ndarray, size: int) -> np.ndarray:
    """Means over size x size regions that cover the map, overlapping where it does not divide."""
    height, width = maps.shape[2:]
    found = np.zeros((*maps.shape[:2], size, size))
    for y in range(size):
        for x in range(size):
            rows = slice(y * height // size, -(-(y + 1) * height // size))
            columns = slice(x * width // size, -(-(x + 1) * width // size))
            found[:, :, y, x] = maps[:, :, rows, columns].mean((2, 3))
    return found


def hcl_by_formula(student, teacher) -> float:
    values, weights = [np.mean((student - teacher) ** 2)], [1.0]
    for size in (4, 2, 1):
        if size < student.shape[2]:
            values.append(np.mean((averaged(student, size) - averaged(teacher, size)) ** 2))
            weights.append(weights[-1] / 2)
    return float(np.average(values, weights=weights))


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 2, 4, 4), (2, 2, 5, 7), (2, 2, 2, 2), (2, 3, 1, 1)])
def test_hcl_is_the_weighted_mean_over_the_pyramid(shape):
    teacher = drawn(2, *shape)
    check(hcl, lambda given: hcl_by_formula(given, teacher.numpy()), drawn(1, *shape), teacher)


def test_hcl_by_hand():
    # 2 x 2 with one difference of 4: mean square 4, and of the average (1) 1: (4 + 1/2) / 1.5.
    student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    student[0, 0, 0, 0] = 4
    assert float(hcl(student, teacher)) == pytest.approx((4 + 0.5 * 1) / 1.5, rel=1e-6)


def test_hcl_of_a_constant_difference_is_its_square():
    maps = drawn(1, 2, 3, 8, 8)
    assert float(hcl(maps + 0.5, maps)) == pytest.approx(0.25, rel=1e-12)
    assert float(hcl(maps, maps)) == 0


def test_hcl_sees_a_moved_spot_less_than_another_amount():
    teacher, moved = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    teacher[0, 0, 0, 0], moved[0, 0, 1, 1] = 1, 1
    far = torch.zeros(1, 1, 8, 8)
    far[0, 0, 7, 7] = 1
    assert 0 < float(hcl(moved, teacher)) < float(hcl(far, teacher))
    assert float(hint(moved, teacher)) == float(hint(far, teacher))


# --- nst -----------------------------------------------------------------------------------------------------------


def nst_by_formula(student, teacher) -> float:
    """Squared MMD with the kernel (x . y)^2, one example after the other."""
    values = []
    for mine, theirs in zip(student, teacher, strict=True):
        x = [channel.ravel() / math.sqrt((channel**2).sum()) for channel in mine]
        y = [channel.ravel() / math.sqrt((channel**2).sum()) for channel in theirs]

        def mean(one, other):
            return sum(float(a @ b) ** 2 for a in one for b in other) / (len(one) * len(other))

        values.append(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [3, 5])
def test_nst_is_the_squared_mmd(channels):
    teacher = drawn(2, 2, channels, 3, 4)
    check(nst, lambda given: nst_by_formula(given, teacher.numpy()), drawn(1, 2, 3, 3, 4), teacher)


def test_nst_pools_the_larger_map():
    student, teacher = drawn(1, 2, 3, 6, 6), drawn(2, 2, 4, 3, 3)
    expected = nst_by_formula(averaged(student.numpy(), 3), teacher.numpy())
    assert float(nst(student, teacher)) == pytest.approx(expected, rel=1e-9)
    assert float(nst(teacher, student)) == pytest.approx(expected, rel=1e-9)


def test_nst_by_hand():
    # One channel each at 45 degrees: 1 + 1 - 2 * cos^2 = 1.
    student, teacher = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
    assert float(nst(student, teacher)) == pytest.approx(1, rel=1e-6)


def test_nst_compares_sets_of_channels_whatever_their_order_number_sign_and_size():
    maps, other = drawn(1, 2, 4, 3, 3), drawn(2, 2, 5, 3, 3)
    value = float(nst(maps, other))
    sizes = torch.tensor([0.1, -3.0, 7.0, -1.0], dtype=torch.float64)[:, None, None]
    for same in (maps[:, [2, 0, 3, 1]], maps * sizes, torch.cat([maps, maps], 1)):
        assert float(nst(same, other)) == pytest.approx(value, rel=1e-9)
        assert float(nst(same, maps)) == pytest.approx(0, abs=1e-12)


def test_a_dead_channel_pulls_nothing():
    student = drawn(1, 2, 3, 3, 3)
    student[:, 1] = 0
    student.requires_grad_()
    gradient = torch.autograd.grad(nst(student, drawn(2, 2, 3, 3, 3)), student)[0]
    assert torch.isfinite(gradient).all() and not gradient[:, 1].any() and gradient[:, 0].any()
