"""The same numbers in every run of the tests: chance may fail a test once in a hundred, and then it tells nothing."""

from __future__ import annotations

import random

import numpy
import pytest
import torch


def seed() -> None:
    """Begin every generator that a test may draw from without naming it at the same place."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a file draws as it is read is the same, whichever files were read before."""
    if isinstance(collector, pytest.Module):
        seed()


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """What a test draws is the same, whichever tests ran before."""
    seed()
