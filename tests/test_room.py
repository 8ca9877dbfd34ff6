"""Memory is looked at before a training with derivatives begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillroom import Learner, Live, Training, match, train
from stillroom.data.arrays import ArraySource
from stillroom.errors import TrainError
from stillroom.gradients import room


def network(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Dropout(0.5), nn.BatchNorm1d(width), nn.Linear(width, 3))


def source() -> ArraySource:
    values = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    return ArraySource(values, labels=np.arange(64) % 3)


def running(tap: str | None, batch: int = 32, width: int = 64):
    asked = ["kd"] + ([match("input_gradient", tap, tap)] if tap else [])
    taps = ["logits"] + ([tap] if tap else [])
    learner = Learner(network(width), asked)
    return train(learner, source(), Live(network(), taps), Training(steps=2, batch=batch))


def kept(note: str) -> int:
    return int(note.split("about ")[1].split(" MiB")[0])


def test_a_training_says_what_a_step_keeps_and_more_rows_keep_more():
    few, many = (next(running("logits@gradient", batch, 20_000)).notes for batch in (8, 32))
    small, large = (kept(next(note for note in notes if "a step keeps" in note)) for notes in (few, many))
    assert 3 < large / small < 5
    assert not any("a step keeps" in note for note in next(running(None)).notes), "without derivatives nobody asks"


def test_looking_changes_neither_weights_nor_statistics_nor_chance():
    net, data = network(), source()
    learner = Learner(net, ["kd", match("input_gradient")])
    batch = data.batch(torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.long)], 1))
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    room.room_for(learner, batch, Live(network(), ["logits", "logits@gradient"])(batch))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state) and all(value.grad is None for value in net.parameters())


def test_a_batch_that_does_not_fit_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    with pytest.raises(TrainError, match=r"batches of 32 rows.*part: 0\.25"):
        next(running("logits@gradient"))


def test_where_the_system_does_not_say_nobody_is_refused(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: None)
    assert next(running("logits@gradient")).number == 1


def test_free_memory_is_a_number_of_bytes():
    free = room.free_memory()
    assert free is None or 2**20 < free < 2**50
