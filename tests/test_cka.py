"""Debiased CKA: 1 for a rotated copy, near 0 for noise, however wide the layers are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Subject
from stillroom.mining.cka import as_rows, cka, layers_of, matrix
from stillroom.mining.reading import vectors


def drawn(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [5, 400])
def test_a_rotated_and_scaled_copy_is_the_same(width):
    values = drawn(100, width, 0)
    rotation = torch.linalg.qr(drawn(width, width, 1)).Q
    assert cka(values, 3.0 * values @ rotation + 7) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("width", [5, 400])
def test_noise_has_nothing_in_common_also_where_it_is_wide(width):
    found = [cka(drawn(100, width, 2 * seed), drawn(100, width, 2 * seed + 1)) for seed in range(5)]
    assert all(abs(one) < 0.15 for one in found) and abs(sum(found)) / 5 < 0.07


def test_a_network_and_its_rotated_copy_answer_alike_and_are_alike_and_one_of_noise_is_not():
    """Two layers without a kink between, the first turned and the second turned back."""
    torch.manual_seed(0)
    data = ArraySource(torch.randn(200, 20), torch.arange(200) % 3)
    net, other = (nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 3)) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(64, 64)).Q
    turned = copy.deepcopy(net)
    with torch.no_grad():
        turned[0].weight.copy_(rotation @ net[0].weight)
        turned[0].bias.copy_(rotation @ net[0].bias)
        turned[1].weight.copy_(net[1].weight @ rotation.T)
        other[0].weight.normal_()
    subject, copied = (Subject(data, one) for one in (net, turned))
    examples = subject.examples("train")
    torch.testing.assert_close(copied.logits("train"), subject.logits("train"), atol=1e-4, rtol=1e-4)
    shown = [vectors(one, ["0"], examples)["0"] for one in (subject, copied)]
    assert not torch.allclose(*shown, atol=0.1) and cka(*shown) == pytest.approx(1, abs=1e-5)
    rows = torch.randn(len(examples), 20)
    unseen = Subject(ArraySource(rows, torch.arange(len(rows)) % 3, splits={"train": torch.arange(len(rows))}), other)
    assert abs(cka(shown[0], vectors(unseen, ["0"], torch.arange(len(rows)))["0"])) < 0.1


def test_what_is_shared_in_part_lies_between():
    shared = drawn(300, 10, 0)
    found = [cka(shared, shared + much * drawn(300, 10, 1)) for much in (0.3, 1.0, 3.0)]
    assert 1 > found[0] > found[1] > found[2] > 0.02


def test_against_the_sum_over_quadruples():
    """The unbiased HSIC by its definition, over all ordered quadruples of different examples."""
    from itertools import permutations

    one, other = drawn(6, 3, 0), drawn(6, 2, 1)

    def hsic(a, b):
        a, b = a - a.mean(0), b - b.mean(0)
        k, g = a @ a.T, b @ b.T
        total, count = 0.0, 0
        for i, j, q, r in permutations(range(6), 4):
            total += float(k[i, j] * (g[i, j] + g[q, r] - 2 * g[i, q]))
            count += 1
        return total / count

    expected = hsic(one, other) / math.sqrt(hsic(one, one) * hsic(other, other))
    assert cka(one, other) == pytest.approx(expected, rel=1e-9)


def test_what_does_not_vary_has_no_likeness():
    assert math.isnan(cka(torch.ones(20, 3), drawn(20, 3, 0)))


def test_layers_are_spread_and_rows_are_vectors():
    net = nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(4, 4), nn.ReLU())])
    found = layers_of(net, 4)
    assert len(found) == 4 and found[0] == "0" and found[-1] == "22"
    assert as_rows(torch.rand(2, 3, 4, 4)).shape == (2, 3)
    masked = as_rows(torch.tensor([[[1.0], [5.0], [9.0]]]), torch.tensor([[True, True, False]]))
    assert masked.item() == 3.0
    values = {"a": drawn(50, 3, 0), "b": drawn(50, 4, 1)}
    table = matrix(values, values)
    assert table[0][0] == pytest.approx(1) and abs(table[0][1]) < 0.3
