"""Which rows make up which batch: a pure function of (seed, step)."""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import DataError
from stillroom.order import Order, Part

EXAMPLES = torch.arange(100, 123)


def order(count=5, *, seed=0, views=1, examples=EXAMPLES, name="labelled") -> Order:
    return Order([Part(name, examples, count)], seed=seed, views=views)


@pytest.mark.parametrize("count", [1, 5, 23, 24, 60])
def test_each_epoch_passes_every_row_once_and_all_batches_are_full(count):
    made = order(count)
    steps = -(-3 * len(EXAMPLES) // count)
    batches = [made.ids(step) for step in range(steps)]
    assert all(batch.shape == (count, 2) and batch.dtype == torch.int64 for batch in batches) and made.rows == count
    passed = torch.cat(batches)[: 3 * len(EXAMPLES), 0].view(3, -1)
    assert torch.equal(passed.sort(1).values, EXAMPLES.expand(3, -1))
    assert not torch.equal(passed[0], passed[1]) and not torch.equal(passed[1], passed[2])


def test_a_batch_belongs_to_its_seed_and_step_alone():
    forwards = [order().ids(step) for step in range(20)]
    one = order()
    backwards = [one.ids(step) for step in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True)), "nothing is remembered"
    assert not torch.equal(forwards[0], order(seed=1).ids(0)) and not torch.equal(forwards[0], order(name="b").ids(0))


def test_parts_stand_one_after_the_other_and_do_not_disturb_each_other():
    few, many = torch.tensor([7, 8, 9]), torch.arange(50)
    both = Order([Part("labelled", few, 2), Part("transfer", many, 6)], seed=3)
    for step in range(12):
        ids = both.ids(step)
        assert ids.shape == (8, 2) and set(ids[:2, 0].tolist()) <= {7, 8, 9}
        assert torch.equal(ids[:2], Order([Part("labelled", few, 2)], seed=3).ids(step))
        assert torch.equal(ids[2:], Order([Part("transfer", many, 6)], seed=3).ids(step))


def test_views_are_drawn_anew_for_each_passing_of_an_example():
    made = order(len(EXAMPLES), views=4)
    epochs = [dict(made.ids(step).tolist()) for step in range(40)]
    assert {view for epoch in epochs for view in epoch.values()} == {0, 1, 2, 3}
    assert epochs[0] != epochs[1] and len({epoch[100] for epoch in epochs}) == 4
    share = sum(view == 2 for epoch in epochs for view in epoch.values()) / (40 * len(EXAMPLES))
    assert 0.2 < share < 0.3
    assert not order(23).ids(0)[:, 1].any(), "a single view is the plain example"


def test_the_rows_drawn_do_not_depend_on_the_number_of_views():
    assert torch.equal(order(views=4).ids(3)[:, 0], order().ids(3)[:, 0])


def test_nothing_to_train_on_is_said_by_name():
    with pytest.raises(DataError, match="nothing to train on: got no transfer rows.*at least one"):
        Order([Part("labelled", EXAMPLES, 2), Part("transfer", torch.arange(0), 2)], seed=0)


def bucketed(count, total=640, seed=0) -> Order:
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(1))
    return Order([Part("labelled", torch.arange(200, 200 + total), count)], seed=seed, lengths=lengths)


@pytest.mark.parametrize(("count", "total"), [(8, 640), (7, 640), (64, 100), (1, 30), (200, 30)])
def test_buckets_pass_every_row_once_an_epoch_in_full_batches(count, total):
    made = bucketed(count, total)
    batches = [made.ids(step) for step in range(-(-3 * total // count))]
    assert all(len(batch) == count for batch in batches)
    passed = torch.cat(batches)[: 3 * total, 0].view(3, -1)
    assert torch.equal(passed.sort(1).values, torch.arange(200, 200 + total).expand(3, -1))


def test_buckets_hold_rows_of_like_length_and_take_turns():
    made = bucketed(8, 800)
    lengths = [made.lengths[made.ids(step)[:, 0].numpy()] for step in range(300)]
    plain = Order(made.parts, seed=0)
    loose = [made.lengths[plain.ids(step)[:, 0].numpy()] for step in range(300)]
    spread = sum(float(part.max() - part.mean()) for part in lengths) / 300
    assert spread < 0.2 * sum(float(part.max() - part.mean()) for part in loose) / 300
    means = torch.tensor([float(part.mean()) for part in lengths[:50]])
    assert not torch.equal(means, means.sort().values), "short texts must not all come first"
    assert torch.equal(made.ids(7), bucketed(8, 800).ids(7)) and not torch.equal(
        made.ids(7), bucketed(8, 800, seed=1).ids(7)
    )
