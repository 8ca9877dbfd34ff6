"""The losses on memory against their formulas, derived once more in float64, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, drawn
from torch import Tensor

from stillroom.errors import LossError
from stillroom.losses import memory, memory_cells, memory_prefix, memory_updates

ROWS, TIME, LAYERS, DIRECTIONS, WIDTH = 3, 4, 2, 2, 3
SHAPE = (ROWS, TIME, LAYERS, DIRECTIONS, WIDTH)
SHORT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
ALL = torch.ones_like(SHORT)
MASKS = [(None, None), (SHORT, None), (None, SHORT), (SHORT, ALL)]


def used(masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
    return ALL if masks == (None, None) else SHORT


def normal(vector: np.ndarray) -> np.ndarray:
    return (vector - vector.mean()) / math.sqrt(((vector - vector.mean()) ** 2).mean() + 1e-5)


def normal_formula(student: np.ndarray, teacher: np.ndarray, mask: Tensor) -> float:
    """Mean over steps, layers, directions and width of (LN(student) - LN(teacher))^2."""
    squares = []
    for row, step in mask.nonzero().tolist():
        for layer in range(student.shape[2]):
            for side in range(student.shape[3]):
                place = (row, step, layer, side)
                squares += [*(normal(student[place]) - normal(teacher[place])) ** 2]
    return float(np.mean(squares)) if squares else 0.0


def variance_formula(student: np.ndarray, teacher: np.ndarray, mask: Tensor) -> float:
    """Mean of (student - teacher)^2 over the teacher's variance, which has a floor."""
    places = [tuple(place) for place in mask.nonzero().tolist()]
    cells, squares = np.stack([teacher[place] for place in places]), []
    floor = 1e-3 * (cells**2).mean() + 1e-6
    for layer, side, feature in np.ndindex(teacher.shape[2:]):
        values = cells[:, layer, side, feature]
        variance = max(((values - values.mean()) ** 2).mean(), floor)
        squares += [
            (student[(*place, layer, side, feature)] - teacher[(*place, layer, side, feature)]) ** 2 / variance
            for place in places
        ]
    return float(np.mean(squares))


def changes(cells: np.ndarray) -> np.ndarray:
    return np.stack([cells[:, j] - (cells[:, j - 1] if j else 0) for j in range(cells.shape[1])], 1)


@pytest.mark.parametrize("masks", MASKS)
def test_states_are_compared_after_layer_norm(masks):
    student, teacher = drawn(1, *SHAPE), drawn(2, *SHAPE)
    check(memory, lambda given: normal_formula(given, teacher.numpy(), used(masks)), student, teacher, *masks)


@pytest.mark.parametrize("masks", MASKS)
def test_cells_are_measured_by_the_teachers_variance(masks):
    student, teacher = drawn(1, *SHAPE), drawn(2, *SHAPE, scale=5.0)
    teacher[..., 0] = 0.25  # a cell that always holds the same: the floor
    check(memory_cells, lambda given: variance_formula(given, teacher.numpy(), used(masks)), student, teacher, *masks)


@pytest.mark.parametrize("masks", MASKS)
def test_updates_are_the_changes_from_border_to_border(masks):
    student, teacher = drawn(1, *SHAPE), drawn(2, *SHAPE)
    check(
        memory_updates,
        lambda given: variance_formula(changes(given), changes(teacher.numpy()), used(masks)),
        student,
        teacher,
        *masks,
    )


def test_a_change_counts_where_both_of_its_borders_do():
    student, teacher = drawn(1, *SHAPE), drawn(2, *SHAPE)
    holes = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    both = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    expected = variance_formula(changes(student.numpy()), changes(teacher.numpy()), both)
    assert float(memory_updates(student, teacher, holes)) == pytest.approx(expected, rel=1e-9)


def test_by_hand():
    # Teacher's cells 0 and 2: mean 1, variance 1. The student is off by 1 at one of two borders.
    teacher = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1, 1)
    student = torch.tensor([0.0, 3.0]).view(1, 2, 1, 1, 1)
    assert float(memory_cells(student, teacher)) == pytest.approx(0.5)
    # Changes 0, 2 against 0, 3: the same. A student that wrote 3 at once has changes 3, 0: (9 + 4) / 2.
    assert float(memory_updates(student, teacher)) == pytest.approx(0.5)
    assert float(memory_updates(torch.full_like(teacher, 3.0), teacher)) == pytest.approx(6.5)
    # (1, -1) and (-1, 1) are opposite after layer norm, whatever their size: difference 2 each.
    up, down = torch.tensor([100.0, -100.0]).view(1, 1, 1, 1, 2), torch.tensor([-3.0, 3.0]).view(1, 1, 1, 1, 2)
    assert float(memory(up, down)) == pytest.approx(4.0, rel=1e-4)


def test_a_student_that_answers_with_the_mean_has_lost_one():
    teacher = drawn(2, 50, 6, 1, 1, 4, scale=7.0)
    mean = teacher.mean((0, 1), keepdim=True).expand_as(teacher)
    assert float(memory_cells(mean, teacher)) == pytest.approx(1.0, rel=1e-6)


# --- a transformer's prefixes ----------------------------------------------------------------------------------------


def prefix_formula(tokens: np.ndarray, mask: Tensor, temperature: float) -> np.ndarray:
    """Softmax-weighted means of what was read so far, for both directions of reading."""
    rows, time, width = tokens.shape
    targets = np.zeros((rows, time, 1, 2, width))
    for row in range(rows):
        real = [step for step in range(time) if mask[row, step]]
        query = tokens[row, real].mean(0)
        scores = {step: float(tokens[row, step] @ query) / math.sqrt(width) / temperature for step in real}
        for step in real:
            for side, read in ((0, [t for t in real if t <= step]), (1, [t for t in real if t >= step])):
                weights = np.exp([scores[t] for t in read])
                targets[row, step, 0, side] = weights @ tokens[row, read] / weights.sum()
    return targets


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("masks", [(None, None), (None, SHORT), (SHORT, SHORT), (SHORT, None)])
def test_prefixes_are_pooled_by_attention(masks, temperature):
    student, tokens = drawn(1, ROWS, TIME, 1, DIRECTIONS, WIDTH), drawn(2, ROWS, TIME, WIDTH)
    targets = prefix_formula(tokens.numpy(), used(masks), temperature)
    check(
        memory_prefix,
        lambda given: normal_formula(given, targets, used(masks)),
        student,
        tokens,
        *masks,
        temperature=temperature,
    )


def test_prefixes_at_the_ends():
    """The first prefix is the first token, the last is the whole; a hot temperature gives running means."""
    tokens = drawn(3, 1, TIME, WIDTH)
    running = torch.stack([tokens[:, : t + 1].mean(1) for t in range(TIME)], 1)[:, :, None, None]
    assert float(memory_prefix(running, tokens, temperature=1e9)) == pytest.approx(0, abs=1e-12)
    assert float(memory_prefix(tokens[:, :1, None, None], tokens[:, :1])) == pytest.approx(0, abs=1e-12)


def test_scores_far_apart_stay_numbers_and_follow_the_formula_where_they_can():
    tokens = 30 * drawn(3, 2, 6, WIDTH).float()
    student = drawn(1, 2, 6, 1, 1, WIDTH).float().requires_grad_()
    value = memory_prefix(student, tokens)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


def test_what_padding_holds_does_not_matter():
    student, tokens = drawn(1, *SHAPE), drawn(2, ROWS, TIME, WIDTH)
    spoiled = tokens.masked_fill(~SHORT[..., None], 1e6)
    for masks in ((SHORT, SHORT), (None, SHORT)):
        assert torch.equal(memory_prefix(student, tokens, *masks), memory_prefix(student, spoiled, *masks))


# --- sides that differ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [memory, memory_cells, memory_updates])
@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (3, 2)), ((3, 2), (2, 1)), ((2, 1), (2, 2))])
def test_the_last_layers_and_the_first_directions_are_compared(loss, ours, theirs):
    student, teacher = drawn(1, ROWS, TIME, *ours, WIDTH), drawn(2, ROWS, TIME, *theirs, WIDTH)
    layers, directions = min(ours[0], theirs[0]), min(ours[1], theirs[1])
    parts = [side[:, :, side.shape[2] - layers :, :directions] for side in (student, teacher)]
    assert torch.equal(loss(student, teacher), loss(*parts))


def test_a_transformer_teaches_the_last_layer():
    student, tokens = drawn(1, *SHAPE), drawn(2, ROWS, TIME, WIDTH)
    assert torch.equal(memory_prefix(student, tokens), memory_prefix(student[:, :, -1:], tokens))


def test_nothing_flows_back_to_the_teacher():
    for loss in (memory, memory_cells, memory_updates):
        student, teacher = drawn(1, *SHAPE).requires_grad_(), drawn(2, *SHAPE).requires_grad_()
        loss(student, teacher).backward()
        assert student.grad is not None and teacher.grad is None
    student, tokens = drawn(1, *SHAPE).requires_grad_(), drawn(2, ROWS, TIME, WIDTH).requires_grad_()
    memory_prefix(student, tokens).backward()
    assert student.grad is not None and tokens.grad is None


@pytest.mark.parametrize(
    ("loss", "ours", "theirs"),
    [
        (memory, SHAPE, (ROWS, TIME + 1, *SHAPE[2:])),
        (memory_cells, SHAPE, (*SHAPE[:4], WIDTH + 1)),
        (memory_updates, SHAPE, SHAPE[:4]),
        (memory_prefix, SHAPE, (ROWS, TIME + 1, WIDTH)),
        (memory_prefix, SHAPE, SHAPE),
    ],
)
def test_what_cannot_be_compared_is_said(loss, ours, theirs):
    with pytest.raises(LossError, match=r"step by step: got the student's \(3, 4, 2, 2, 3\) and the teacher's") as told:
        loss(torch.zeros(ours), torch.zeros(theirs))
    assert "memory@h" in str(told.value)
