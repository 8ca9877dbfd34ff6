"""Code of one's own is known by what it does."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stillroom.behaviour import behaviour
from stillroom.losses import kd
from stillroom.models.zoo import build


def one(x: torch.Tensor, *, power: float = 2.0) -> torch.Tensor:
    return x**power


def other(x: torch.Tensor, *, power: float = 3.0) -> torch.Tensor:
    return x**power


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return one(x)


class Changed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return other(x)


def test_known_code_says_nothing():
    assert behaviour(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), kd, build("net", shape=(1, 4, 4), classes=2)) == ""


def test_defaults_closures_and_helpers_count():
    assert behaviour(one) != behaviour(other)
    assert behaviour(Own()) != behaviour(Changed()) != ""
    made = [lambda x, factor=factor: x * factor for factor in (1, 2)]
    assert behaviour(made[0]) != behaviour(made[1])

    def closed(factor: float):
        return lambda x: x * factor

    assert behaviour(closed(1)) == behaviour(closed(1)) != behaviour(closed(2))


def test_the_same_code_says_the_same_whatever_stands_around_it():
    assert behaviour(Own()) == behaviour(copy.deepcopy(Own()))
    assert behaviour(nn.Sequential(Own(), nn.ReLU())) == behaviour(nn.Sequential(Own()))
