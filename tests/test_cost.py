"""Costs that can be counted: they do not drift with the machine, so they are tests and not only benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.data.arrays import ArraySource
from stillroom.errors import StoreError
from stillroom.models.encode import encode_for
from stillroom.randomness import reseed
from stillroom.store.decoded import Index

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from timing import calls_a_step  # noqa: E402
from training_cost import NET, Material, floor, ours  # noqa: E402


@pytest.fixture
def material():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (512, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (512,), generator=generator)
    source = ArraySource(images, labels, splits={"train": torch.arange(512)})
    encode = encode_for(source)
    return Material(source, encode, encode(images), labels)


def test_a_step_of_stored_distillation_makes_at_most_20_calls_more_than_a_plain_loop(material, tmp_path):
    store = material.store(tmp_path / "store")
    plain = calls_a_step(floor(NET.make(), material.inputs, material.labels, NET.lr), 100)
    distilled = calls_a_step(ours(NET, material, {"kd": 1.0}, store)[1], 100)
    assert sum(distilled.values()) <= sum(plain.values()) + 20


def test_reseeding_gives_the_numbers_of_manual_seed():
    torch.manual_seed(12345)
    expected = torch.rand(5)
    reseed(12345)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize("gap", [2, 50], ids=["looked up", "searched"])
@pytest.mark.parametrize("views", [1, 3])
def test_rows_of_a_store_with_gaps_are_found_and_absent_ones_named(gap, views):
    examples = np.repeat(np.arange(7, 7 + 20 * gap, gap), views)
    index = Index(examples, np.tile(np.arange(views), 20))
    assert not index.dense and (index._rows is None) == (gap == 50)
    asked = torch.tensor([[7 + 19 * gap, views - 1], [7, 0], [7 + gap, 0]])
    assert index.find(asked).tolist() == [20 * views - 1, 0, views]
    for wrong in ([8, 0], [6, 0], [-1, 0], [7 + 20 * gap, 0], [7, views], [7, -1]):
        with pytest.raises(StoreError, match=str(wrong[0])):
            index.find(torch.tensor([[7, 0], wrong]))
