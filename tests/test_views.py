"""Views are pure functions of (seed, example, view)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillroom.data.arrays import ArraySource
from stillroom.data.views import Views
from stillroom.errors import DataError


def images(rows=12, channels=1, height=9, width=7):
    values = np.random.default_rng(0).integers(1, 256, (rows, channels, height, width), dtype=np.uint8)
    return values


def ids(examples, view):
    examples = torch.as_tensor(examples)
    return torch.stack([examples, torch.full_like(examples, view)], dim=1)


def test_view_zero_is_the_plain_example_also_in_a_mixed_batch():
    source = ArraySource(images(), views=Views(4))
    mixed = torch.tensor([[3, 0], [3, 1], [5, 0], [5, 2]])
    seen = source.batch(mixed)["inputs"]
    assert torch.equal(seen[0], source.inputs[3]) and torch.equal(seen[2], source.inputs[5])
    assert not torch.equal(seen[1], source.inputs[3])
    assert seen.dtype == torch.uint8 and seen.is_contiguous()


def test_a_view_does_not_depend_on_the_batch_it_is_in():
    source = ArraySource(images(), views=Views(8))
    everything = torch.cartesian_prod(torch.arange(12), torch.arange(8))
    together = source.batch(everything)["inputs"]
    shuffled = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
    for part in shuffled.split(7):
        assert torch.equal(source.batch(everything[part])["inputs"], together[part])
    for row in (0, 17, 95):
        assert torch.equal(source.batch(everything[row : row + 1])["inputs"][0], together[row])


def test_asking_for_views_leaves_the_source_as_it_was():
    values = images()
    source = ArraySource(values.copy(), views=Views(8, pad=0))
    source.batch(ids(range(12), 3))
    assert np.array_equal(source.inputs.numpy(), values)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_view_is_a_shifted_and_flipped_copy_as_a_loop_makes_it(flip, channels):
    values, views = images(channels=channels), Views(6, pad=2, flip=flip, seed=3)
    examples = np.arange(12)
    for view in range(1, 6):
        seen = views.apply(values, examples, np.full(12, view))
        for row in range(12):
            framed = np.zeros((channels, 13, 11), np.uint8)
            framed[:, 2:11, 2:9] = values[row]
            cuts = [framed[:, top : top + 9, left : left + 7] for top in range(5) for left in range(5)]
            candidates = cuts + ([cut[:, :, ::-1] for cut in cuts] if flip else [])
            assert sum(np.array_equal(seen[row], candidate) for candidate in candidates) == 1


def test_every_place_and_both_sides_are_drawn_about_equally_often():
    top, left, flipped = Views(2, pad=1)._places(np.arange(9000), np.ones(9000, np.int64))
    counts = np.bincount(top * 3 + left, minlength=9)
    assert counts.min() > 880 and counts.max() < 1120  # 1,000 expected, deviation 30
    assert abs(flipped.mean() - 0.5) < 0.02


def test_seeds_views_and_examples_all_matter():
    same = np.repeat(images(1), 64, axis=0)
    first = Views(8).apply(same, np.arange(64), np.ones(64, np.int64))
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 20
    assert not np.array_equal(first, Views(8, seed=1).apply(same, np.arange(64), np.ones(64, np.int64)))
    assert not np.array_equal(first, Views(8).apply(same, np.arange(64), np.full(64, 2)))


def test_the_same_everywhere_and_always():
    values = np.arange(2 * 36, dtype=np.uint8).reshape(2, 1, 6, 6)
    seen = Views(3, pad=2, seed=0).apply(values, np.array([0, 1000]), np.array([1, 2]))
    again = Views(3, pad=2, seed=0).apply(values, np.array([0, 1000]), np.array([1, 2]))
    assert np.array_equal(seen, again)
    places = Views(3, pad=2, seed=0)._places(np.array([0, 1000]), np.array([1, 2]))
    assert [part.tolist() for part in places] == FROZEN  # a stored answer must stay an answer to the same view


FROZEN = [[2, 2], [3, 0], [True, True]]


def test_float_images_have_views_too():
    values = torch.rand(5, 3, 8, 8)
    seen = ArraySource(values, views=Views(2)).batch(ids(range(5), 1))["inputs"]
    assert seen.dtype == torch.float32 and seen.shape == values.shape


def test_fingerprint_follows_what_shapes_a_view_and_not_how_many_there_are():
    base = Views(2)
    assert base.fingerprint == Views(8).fingerprint
    assert len({base.fingerprint, Views(2, pad=3).fingerprint, Views(2, seed=1).fingerprint}) == 3
    assert base.fingerprint != Views(2, flip=False).fingerprint


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"count": True}, {"count": 1.5}, {"pad": -1}, {"pad": 0.5}, {"seed": "a"}, {"flip": 1}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(DataError, match="Allowed"):
        Views(**options)


def test_a_view_that_does_not_exist_is_refused():
    source = ArraySource(images(), views=Views(3))
    with pytest.raises(DataError, match="view 3.*0 to 2"):
        source.batch(ids([0], 3))
    with pytest.raises(DataError, match="view -1"):
        source.batch(ids([0], -1))


def test_views_of_vectors_are_refused():
    with pytest.raises(DataError, match="Views are made of images"):
        ArraySource(torch.rand(4, 3), views=Views(2))


def test_noise_is_normal_of_the_asked_deviation_and_spares_the_plain_view():
    values = np.full((40, 1, 16, 16), 128, np.uint8)
    source = ArraySource(values, views=Views(3, pad=0, flip=False, noise=0.1))
    assert torch.equal(source.batch(ids(range(40), 0))["inputs"], source.inputs)
    seen = source.batch(ids(range(40), 1))["inputs"].double() - 128
    assert seen.mean().abs() < 1 and abs(float(seen.std()) - 25.5) < 0.5
    inside = (seen.abs() < 25.5).double().mean()
    assert abs(float(inside) - 0.683) < 0.01, "as many within one deviation as a normal distribution has"
    halves = seen.flatten(1)[:, :128].flatten(), seen.flatten(1)[:, 128:].flatten()
    assert abs(float(torch.corrcoef(torch.stack(halves))[0, 1])) < 0.03
    assert not torch.equal(seen, source.batch(ids(range(40), 2))["inputs"].double() - 128)


def test_noise_stays_in_the_range_of_whole_numbers_and_belongs_to_its_view():
    source = ArraySource(images(), views=Views(4, noise=0.5))
    everything = torch.cartesian_prod(torch.arange(12), torch.arange(4))
    together = source.batch(everything)["inputs"]
    assert together.dtype == torch.uint8
    for part in torch.randperm(len(everything), generator=torch.Generator().manual_seed(1)).split(5):
        assert torch.equal(source.batch(everything[part])["inputs"], together[part])
    floats = ArraySource(np.zeros((200, 1, 5, 5), np.float32), views=Views(2, noise=2.0))
    assert abs(float(floats.batch(ids(range(200), 1))["inputs"].std()) - 2.0) < 0.1


def test_no_noise_has_the_fingerprint_of_before():
    assert Views(2).fingerprint == Views(2, noise=0.0).fingerprint != Views(2, noise=0.1).fingerprint


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "much", True])
def test_noise_that_is_no_deviation(noise):
    with pytest.raises(DataError, match="noise"):
        Views(2, noise=noise)
