"""The losses on derivatives against their formulas, derived once more in float64, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from derive import check, drawn, rotation
from torch import Tensor

from stillroom.errors import LossError
from stillroom.losses import (
    directional_derivative,
    embedding_gradient,
    explanation,
    input_gradient,
    input_gradient_cosine,
)
from stillroom.objectives import match

ROWS, TIME, WIDTH = 3, 4, 5
SHORT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def relative_formula(student: np.ndarray, teacher: np.ndarray, share: float) -> float:
    """Sum of squared differences of a row by its own sum of squares, mixed with the mean of all rows' sums."""
    rows = [(s.ravel(), t.ravel()) for s, t in zip(student, teacher, strict=True) if np.any(t)]
    sizes = [sum(one * one for one in t) for _, t in rows]
    mean = sum(sizes) / len(sizes)
    errors = [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) for s, t in rows]
    return float(
        np.mean([error / ((1 - share) * size + share * mean) for error, size in zip(errors, sizes, strict=True)])
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.ravel(), other.ravel()
    return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(ROWS, 2), (ROWS, 1, 2, 3)])
def test_gradients_are_measured_by_the_teachers(share, shape):
    student, teacher = drawn(1, *shape), drawn(2, *shape)
    teacher = teacher * torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    formula = lambda given: relative_formula(given, teacher.numpy(), share)  # noqa: E731
    check(input_gradient, formula, student, teacher, batch_share=share)


def test_directions_and_classes_are_one_row():
    student, teacher = drawn(1, ROWS, 4, 5), drawn(2, ROWS, 4, 5, scale=0.2)
    check(directional_derivative, lambda given: relative_formula(given, teacher.numpy(), 0.01), student, teacher)


def test_without_a_share_it_is_the_mean_of_ratios_and_with_all_the_papers_up_to_a_factor():
    student, teacher = drawn(1, 8, 6), drawn(2, 8, 6) * torch.arange(1, 9)[:, None]
    squares, sizes = (student - teacher).square().sum(1), teacher.square().sum(1)
    assert torch.allclose(input_gradient(student, teacher, batch_share=0), (squares / sizes).mean())
    assert torch.allclose(input_gradient(student, teacher, batch_share=1) * sizes.mean(), squares.mean())


def test_a_row_without_a_label_counts_for_nothing():
    student, teacher = drawn(1, 4, 6), drawn(2, 4, 6)
    teacher[2] = 0
    kept = [0, 1, 3]
    for loss in (input_gradient, input_gradient_cosine):
        assert torch.allclose(loss(student, teacher), loss(student[kept], teacher[kept]))
        given = student.clone().requires_grad_()
        loss(given, teacher).backward()
        assert not given.grad[2].any() and given.grad[kept].abs().amax(1).gt(0).all()
    derivatives = [one.view(4, 2, 3) for one in (student, teacher)]
    assert torch.allclose(directional_derivative(*derivatives), input_gradient(student, teacher))


@pytest.mark.parametrize("small", [1e-5, 1e-9, 1e-11, 1e-15])
def test_a_row_where_the_teacher_is_flat_does_not_rule_the_batch(small):
    student, teacher = drawn(1, 50, 6).float(), drawn(2, 50, 6).float()
    whole = input_gradient(student, teacher)
    teacher[0] *= small
    assert input_gradient(student, teacher) < 2 * whole + 4  # its error is at most 100 / 50 of the batch's mean
    given = student.requires_grad_()
    for share in (0.0, 0.01):
        (slope,) = torch.autograd.grad(input_gradient(given, teacher, batch_share=share), given)
        assert torch.isfinite(slope).all()
    assert slope.abs().max() < 20


def test_a_student_without_a_gradient_has_lost_about_one():
    teacher = drawn(2, 200, 12, scale=1e-3)
    assert float(input_gradient(torch.zeros_like(teacher), teacher)) == pytest.approx(1, abs=0.02)


def test_half_the_squared_distance_of_directions():
    student, teacher = drawn(1, ROWS, 1, 2, 3), drawn(2, ROWS, 1, 2, 3, scale=30.0)

    def formula(given: np.ndarray) -> float:
        return float(np.mean([1 - cosine(s, t) for s, t in zip(given, teacher.numpy(), strict=True)]))

    value = check(input_gradient_cosine, formula, student, teacher)
    apart = F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)
    assert value == pytest.approx(float(apart.square().sum(1).mean()) / 2, rel=1e-9)
    assert float(input_gradient_cosine(-3 * teacher, teacher)) == pytest.approx(2)
    turned = [one.flatten(1) @ rotation(6) for one in (student, teacher)]
    assert float(input_gradient_cosine(*turned)) == pytest.approx(value, rel=1e-9)


def test_what_a_noised_match_of_answers_does_in_expectation():
    """Of two linear models: E ||(fS - fT)(x + noise)||^2 - ||(fS - fT)(x)||^2 = sigma^2 ||JS - JT||^2 (Srinivas)."""
    student, teacher, sigma = drawn(1, 3, 6), drawn(2, 3, 6), 0.1
    x = drawn(3, 6)
    noise = sigma * drawn(4, 200_000, 6)
    apart = ((x + noise) @ (student - teacher).T).square().sum(1).mean() - ((student - teacher) @ x).square().sum()
    jacobians = [one.flatten()[None] for one in (student, teacher)]  # a row's derivatives along all directions
    matched = input_gradient(*jacobians, batch_share=0) * jacobians[1].square().sum()
    assert float(apart) == pytest.approx(sigma**2 * float(matched), rel=0.02)


# --- word embeddings -----------------------------------------------------------------------------------------


def tokens_formula(student: np.ndarray, teacher: np.ndarray, used: Tensor) -> float:
    """As in the authors' code: directions of the tokens, sum of squares, by the number of real tokens."""
    total, real = 0.0, 0
    for row, token in used.nonzero().tolist():
        s, t = student[row, token], teacher[row, token]
        if np.any(t):
            total += sum((a / math.sqrt(s @ s) - b / math.sqrt(t @ t)) ** 2 for a, b in zip(s, t, strict=True))
            real += 1
    return total / real


@pytest.mark.parametrize("masks", [(None, None), (SHORT, None), (None, SHORT), (SHORT, torch.ones_like(SHORT))])
def test_tokens_are_compared_by_their_directions(masks):
    student, teacher, point = (
        drawn(1, ROWS, TIME, WIDTH),
        drawn(2, ROWS, TIME, WIDTH, scale=9.0),
        drawn(3, ROWS, TIME, WIDTH),
    )
    teacher[0, 3] = 0  # padding of a text whose mask nobody told
    used = torch.ones_like(SHORT) if masks == (None, None) else SHORT
    formula = lambda given: tokens_formula(given, teacher.numpy(), used)  # noqa: E731
    value = check(embedding_gradient, formula, student, teacher, point, point, *masks)
    used = used & (teacher != 0).any(2)
    twice = [2 - 2 * cosine(student[at].numpy(), teacher[at].numpy()) for at in map(tuple, used.nonzero().tolist())]
    assert value == pytest.approx(np.mean(twice))


def test_embeddings_may_differ_by_what_storing_loses_and_by_no_more():
    tokens, point = drawn(1, ROWS, TIME, WIDTH), drawn(3, ROWS, TIME, WIDTH, scale=0.02)
    stored = point.half().double()
    assert not torch.equal(stored, point)
    assert embedding_gradient(tokens, tokens, point, stored) < 1e-12
    padded = torch.where(SHORT[..., None], stored, torch.full_like(stored, 5.0))
    assert embedding_gradient(tokens, tokens, point, padded, SHORT, None) < 1e-12  # padding is no token
    for other in (padded, point * 1.02, drawn(4, ROWS, TIME, WIDTH), torch.full_like(point, math.nan)):
        with pytest.raises(LossError, match=r"one and the same point.*apart.*at most 1%.*one tokenizer.*freeze them"):
            embedding_gradient(tokens, tokens, point, other)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_another_tokenizer_or_width_is_refused_with_the_reason(which):
    same = [drawn(1, ROWS, TIME, WIDTH)] * 4
    for shape in ((ROWS, TIME + 1, WIDTH), (ROWS, TIME, WIDTH + 1), (ROWS, TIME)):
        given = [drawn(1, *shape) if place == which else one for place, one in enumerate(same)]
        with pytest.raises(LossError, match=r"at one and the same point: got gradients .* four times the same"):
            embedding_gradient(*given)


def test_a_place_that_is_a_gradient_stands_for_the_embeddings_too():
    where = "logits@gradient(label,wrt=body.embeddings)"
    short = match("embedding_gradient", where, f"big/{where}")
    assert [one.key for one in short.places("student")] == [where, "body.embeddings"]
    assert [one.key for one in short.places("teacher")] == [f"big/{where}", "big/body.embeddings"]
    named = match(
        "embedding_gradient",
        {"student_tokens": where, "student_embeddings": "body.embeddings"},
        {"teacher_tokens": f"big/{where}", "teacher_embeddings": "big/body.embeddings"},
    )
    assert named.pairs == short.pairs
    pairs = match("embedding_gradient", [where, "logits@gradient(wrt=embed)"], [where, "logits@gradient(wrt=embed)"])
    assert [one.key for one in pairs.places("teacher")] == [
        where,
        "body.embeddings",
        "logits@gradient(wrt=embed)",
        "embed",
        "logits",
    ], "and behind them what says which class the second is of"
    for wrong in ("logits@gradient", "body.embeddings", "logits@gradient(random=2)"):
        with pytest.raises(
            LossError, match=r"reads the student's gradient: got .* such as 'logits@gradient\(wrt=embed\)'"
        ):
            match("embedding_gradient", wrong, where)


@pytest.mark.parametrize("name", ["input_gradient", "input_gradient_cosine", "directional_derivative"])
def test_unequal_derivatives_name_what_must_be_the_same(name):
    objective = match(name)
    shown, told = (
        {place.key: torch.ones(2, 3, width)} for place, width in zip(_places(objective), (4, 5), strict=True)
    )
    with pytest.raises(
        LossError, match=r"equal shapes: got the student's 'logits@gradient.*same 'wrt' and as many dir"
    ):
        objective.size(shown, told, {})


def _places(objective) -> list:
    return list(objective.pairs[0].values())


# --- explanations --------------------------------------------------------------------------------------------


def pooled(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean of each cell, its borders rounded outward."""
    rows, columns = maps.shape[1:]
    small = np.zeros((len(maps), height, width))
    for i, j in np.ndindex(height, width):
        top, left = i * rows // height, j * columns // width
        bottom, right = -(-(i + 1) * rows // height), -(-(j + 1) * columns // width)
        small[:, i, j] = maps[:, top:bottom, left:right].mean((1, 2))
    return small


@pytest.mark.parametrize(("ours", "theirs"), [((4, 4), (4, 4)), ((4, 5), (2, 3)), ((2, 2), (5, 4)), ((3, 4), (4, 3))])
def test_maps_are_compared_at_the_smaller_size(ours, theirs):
    student, teacher = drawn(1, ROWS, *ours).abs(), drawn(2, ROWS, *theirs, scale=20.0).abs()
    size = min(ours[0], theirs[0]), min(ours[1], theirs[1])

    def formula(given: np.ndarray) -> float:
        pairs = zip(pooled(given, *size), pooled(teacher.numpy(), *size), strict=True)
        return float(np.mean([1 - cosine(s, t) for s, t in pairs]))

    check(explanation, formula, student, teacher)


def test_a_row_without_a_map_counts_for_nothing():
    student, teacher = drawn(1, 5, 4, 4).abs(), drawn(2, 5, 4, 4).abs()
    student[1], teacher[3] = 0, 0
    kept = [0, 2, 4]
    given = student.clone().requires_grad_()
    value = explanation(given, teacher)
    assert torch.allclose(value, explanation(student[kept], teacher[kept]))
    value.backward()
    assert not given.grad[[1, 3]].any() and given.grad[kept].abs().amax((1, 2)).gt(0).all()


def test_nothing_flows_back_to_the_teacher():
    maps, tokens = drawn(1, 2, 3, 3).requires_grad_(), drawn(2, 2, 3, 3).requires_grad_()
    for loss in (input_gradient, input_gradient_cosine, directional_derivative, explanation):
        assert torch.autograd.grad(loss(maps, tokens), [maps, tokens], allow_unused=True)[1] is None
    point = drawn(3, 2, 3, 3).requires_grad_()
    value = embedding_gradient(maps, tokens, point, point)
    assert torch.autograd.grad(value, [tokens, point], allow_unused=True) == (None, None)
