"""How well differences along directions, and the other modes, agree: on trained networks, and where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from stillroom import Learner, Training, fit
from stillroom.data.arrays import ArraySource
from stillroom.data.images import fashion_mnist_sample
from stillroom.models.zoo import build
from stillroom.taps import read
from stillroom.taps.directions import CENTRAL, FINE, STEP, usual
from test_gradient_cost import nine_layers

SHAPE, CLASSES, ROWS = (1, 14, 14), 10, 24
SIZES = {"cnn": {"width": 8}, "resnet": {"width": 8, "stem": 2}, "convnet": {"width": 16}}
NETWORKS = (*SIZES, "nine")
VJP, JVP, STEPPED = (f"logits@gradient(random=3,mode={mode})" for mode in ("vjp", "jvp", "finite_difference"))


def grey(pixels: Tensor) -> Tensor:
    return (pixels if pixels.is_floating_point() else pixels.float()).div(255).sub(0.286).div(0.353)


@contextmanager
def bends(smooth: bool) -> Iterator[None]:
    """With GELU in the place of every ReLU, also of those that are no modules."""
    with pytest.MonkeyPatch.context() as patch:
        if smooth:
            patch.setattr(nn.functional, "relu", lambda values, inplace=False: nn.functional.gelu(values))
        yield


def averaged(net: nn.Module) -> nn.Module:
    """The same with the mean in the place of every maximum."""
    for part in net.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(2, ceil_mode=True))
    return net


@cache
def trained(name: str, smooth: bool) -> dict[str, Tensor]:
    net = made(name, smooth)
    rows = pictures("train", 60 * 32)
    source = ArraySource(rows["inputs"], rows["labels"])
    with bends(smooth):
        fit(Learner(net, ["labels"], encode=_Grey()), source, None, Training(steps=60, batch=32, lr=3e-3))
    return net.state_dict()


@cache
def pictures(split: str, count: int) -> dict[str, Tensor]:
    """Every second pixel of so many images."""
    data = fashion_mnist_sample()
    rows = data.splits[split][:count]
    batch = data.batch(torch.stack([rows, torch.zeros_like(rows)], 1))
    return {**batch, "inputs": batch["inputs"][:, :, ::2, ::2].contiguous()}


class _Grey(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return grey(pixels)


def made(name: str, smooth: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "nine":
            net = nine_layers()
            net[0] = nn.Conv2d(1, net[0].out_channels, 3, 1, 1, bias=False)
        else:
            net = build(name, shape=SHAPE, classes=CLASSES, **SIZES[name])
    return averaged(net) if smooth else net


def network(name: str, smooth: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = made(name, smooth)
    net.load_state_dict(trained(name, smooth))
    return net.eval().to(dtype)


@cache
def images(noise: float = 20.0) -> dict[str, Tensor]:
    """Test images; with noise, so that no two neighbours of the background are equal."""
    batch = pictures("test", ROWS)
    inputs = batch["inputs"].float()
    return {**batch, "inputs": inputs + noise * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))}


def shown(net: nn.Module, tap: str, *, smooth: bool, noise: float = 20.0, rows: int = ROWS) -> Tensor:
    dtype = next(net.parameters()).dtype
    batch = {name: value[:rows] for name, value in images(noise).items()}
    with torch.no_grad(), bends(smooth):
        return read(net, [tap], grey)({**batch, "inputs": batch["inputs"].to(dtype)})[tap]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "kinked"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward_mode_agree_with_kinks_and_without(name, smooth):
    for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        net = network(name, smooth, dtype)
        assert apart(shown(net, JVP, smooth=smooth), shown(net, VJP, smooth=smooth)) < most


@pytest.mark.parametrize("name", NETWORKS)
def test_they_agree_on_ties_too_since_both_take_the_same_maximum(name):
    """A constant background: four equal numbers below each maximum, told apart by nothing but how they are rounded."""
    net = network(name, smooth=False)
    assert apart(shown(net, JVP, smooth=False, noise=0.0), shown(net, VJP, smooth=False, noise=0.0)) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_differences_on_smooth_networks(name):
    net = network(name, smooth=True)
    whole, exact = (
        shown(net, f"logits@gradient{mode}", smooth=True, rows=4) for mode in ("(mode=finite_difference)", "(mode=vjp)")
    )
    assert apart(whole, exact) < 1e-3, "to both sides"
    assert apart(shown(net, STEPPED, smooth=True), shown(net, VJP, smooth=True)) < 1e-2, "to one side"
    net = network(name, smooth=True, dtype=torch.float64)
    assert apart(shown(net, STEPPED, smooth=True), shown(net, VJP, smooth=True)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_differences_over_kinks_are_to_a_few_hundredths_and_exact_in_float64(name):
    """Between x and x + h d some ReLU bends: the fewer, the smaller the step, which float32 does not allow."""
    net = network(name, smooth=False)
    error = apart(shown(net, STEPPED, smooth=False), shown(net, VJP, smooth=False))
    assert 2e-3 < error < 6e-2
    net = network(name, smooth=False, dtype=torch.float64)
    assert apart(shown(net, STEPPED, smooth=False), shown(net, VJP, smooth=False)) < 3e-3


def test_differences_across_ties_are_another_number_in_any_precision():
    """At a tie of maxima there are derivatives to each side and no gradient: a difference is the larger one's."""
    for dtype in (torch.float32, torch.float64):
        net = network("cnn", smooth=False, dtype=dtype)
        assert apart(shown(net, STEPPED, smooth=False, noise=0.0), shown(net, VJP, smooth=False, noise=0.0)) > 0.2


def test_batch_norm_in_training_mixes_rows_and_each_mode_in_its_own_way():
    """Backward mode: what a row does to all answers. Forward: what all rows do to one; by differences, each so far as
    it is long."""
    net = network("cnn", smooth=True, dtype=torch.float64)
    still = [shown(net, tap, smooth=True) for tap in (VJP, JVP, STEPPED)]
    assert apart(still[1], still[0]) < 1e-12 and apart(still[2], still[0]) < 1e-4
    net.train()
    moving = [shown(net, tap, smooth=True) for tap in (VJP, JVP, STEPPED)]
    assert apart(moving[1], moving[0]) > 0.1 and 1e-3 < apart(moving[2], moving[1]) < apart(moving[2], moving[0])


@pytest.mark.parametrize("values", [torch.float32, torch.float64])
@pytest.mark.parametrize("answers", [torch.float32, torch.float64])
def test_the_step_is_fine_only_where_both_ends_are(values, answers):
    given = torch.zeros(1, dtype=values), torch.zeros(1, dtype=answers)
    fine = values == answers == torch.float64
    assert usual(*given) == (FINE if fine else STEP)
    assert usual(*given, central=True) == (FINE if fine else CENTRAL)
