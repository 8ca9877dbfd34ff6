"""What derivatives cost, counted in operations and not timed: beside distillation on logits, on the student's side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stillroom import Learner, Live, Store, match, record
from stillroom.contracts import Batch, Teacher
from stillroom.data.arrays import ArraySource

ROWS, CLASSES = 4, 10
WIDTHS = (8, 8, 16, 16, 32, 32, 32, 32)


def nine_layers(seed: int = 0) -> nn.Module:
    """Eight convolutions and a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        stride = 2 if number in (2, 4) else 1
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES))


def perceptron(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(3 * 32 * 32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return nn.Sequential(nn.Flatten(), *layers)


def source() -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (2 * ROWS, 3, 32, 32), dtype=np.uint8)
    return ArraySource(pixels, labels=np.arange(2 * ROWS) % CLASSES)


def batch() -> Batch:
    return source().batch(torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)], 1))


def pixels(values: torch.Tensor) -> torch.Tensor:
    return values.float() / 255


def operations(student: nn.Module, tap: str | None, steps: int = 1, **more) -> float:
    """Operations of the student's passes in ``steps`` steps of kd, with a loss on ``tap`` beside it."""
    asked = ["kd"] + ([] if tap is None else [match("input_gradient", tap, tap, **more)])
    learner = Learner(student, asked, encode=pixels)
    rows, taps = batch(), ["logits"] + ([] if tap is None else [tap])
    told = Live(nine_layers(1), taps, encode=pixels)(rows)
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            learner(rows, told, step=step)["loss"].backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "tap, least, most",
    [
        ("logits@gradient", 1.9, 2.1),
        ("logits@gradient(random=1,mode=jvp)", 2.5, 2.8),
        ("logits@gradient(random=1,mode=finite_difference)", 1.99, 2.01),
    ],
)
def test_one_derivative_beside_logits(tap, least, most):
    ratio = operations(nine_layers(), tap) / operations(nine_layers(), None)
    print(
        f"{tap}: {ratio:.2f} x, on a perceptron {operations(perceptron(), tap) / operations(perceptron(), None):.2f} x"
    )
    assert least <= ratio <= most


def test_every_fourth_step_costs_a_quarter_of_that():
    ratio = operations(nine_layers(), "logits@gradient", steps=4, every=4) / operations(nine_layers(), None, steps=4)
    assert 1.2 <= ratio <= 1.3


def test_a_quarter_of_the_batch_has_a_pass_of_its_own():
    ratio = operations(nine_layers(), "logits@gradient", part=0.25) / operations(nine_layers(), None)
    assert 1.45 <= ratio <= 1.55


def test_directions_cost_a_pass_each_by_differences():
    ratio = operations(nine_layers(), "logits@gradient(random=4)") / operations(nine_layers(), None)
    assert ratio == pytest.approx(5, rel=0.01)


def test_where_a_picture_is_seen_costs_next_to_nothing_behind_average_pooling():
    """The way from the last maps to the logits has one small layer."""
    ours = Learner(nine_layers(), ["kd", match("explanation", "23@gradcam", "23@gradcam")], encode=pixels)
    plain, rows = Learner(nine_layers(), ["kd"], encode=pixels), batch()
    told = Live(nine_layers(1), ["logits", "23@gradcam"], encode=pixels)(rows)
    counts = []
    for learner in (ours, plain):
        with FlopCounterMode(display=False) as counter:
            learner(rows, told)["loss"].backward()
        counts.append(counter.get_total_flops())
    assert counts[0] / counts[1] < 1.01


def asked(teacher: Teacher, rows: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        teacher(rows)
    return int(counter.get_total_flops())


def test_a_recorded_gradient_costs_the_teacher_nothing_more(tmp_path):
    live = Live(nine_layers(1), ["logits", "logits@gradient", "logits@gradient(random=2)"], encode=pixels)
    rows = batch()
    expected = live(rows)
    store = record(live, source(), tmp_path / "store")
    assert isinstance(store, Store) and asked(live, rows) > 0
    assert asked(store, rows) == 0
    told = store(rows)
    for name in ("logits@gradient", "logits@gradient(random=2)"):
        error = (told[name].float() - expected[name]).norm() / expected[name].norm()
        assert float(error) < 1e-3, "halves over each row's norm"
