"""A fingerprint changes with whatever changes the answers, and with nothing else."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from stillroom.errors import ModelError, TapError
from stillroom.models.open_box import count_parameters, describe, fingerprint, shape_after


def a_net(slope: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope), nn.Flatten(), nn.Linear(16, 2))


def test_the_same_network_has_the_same_fingerprint_however_it_lies_in_memory():
    wanted = fingerprint(a_net())
    assert len(wanted) == 64 and int(wanted, 16)
    assert fingerprint(a_net().to(memory_format=torch.channels_last)) == wanted
    assert fingerprint(a_net().eval().requires_grad_(False)) == wanted
    assert fingerprint(copy.deepcopy(a_net())) == wanted
    assert fingerprint(torch.compile(a_net())) == wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[4].weight.data[0, 0].add_(1e-6),
        lambda net: net[1].running_mean.add_(1),
        lambda net: net[1].num_batches_tracked.add_(1),
        lambda net: net.register_buffer("table", torch.ones(2), persistent=False),
        lambda net: net.bfloat16(),
        lambda net: setattr(net[2], "negative_slope", 0.2),
    ],
)
def test_what_changes_the_answers_changes_the_fingerprint(change):
    net = a_net()
    with torch.no_grad():
        change(net)
    assert fingerprint(net) != fingerprint(a_net())


def test_a_buffer_that_checkpoints_leave_out_is_read():
    one, two = a_net(), a_net()
    one.register_buffer("table", torch.zeros(2), persistent=False)
    two.register_buffer("table", torch.ones(2), persistent=False)
    assert fingerprint(one) != fingerprint(two)


def test_swapped_names_are_another_network():
    one = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    two = nn.ModuleDict({"a": one["b"], "b": one["a"]})
    assert fingerprint(one) != fingerprint(two)


def test_describe_counts_tied_weights_once_and_is_json():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    told = describe(net)
    assert json.loads(json.dumps(told)) == told
    assert count_parameters(net) == told["parameters"] == 9 + 3 + 3 + 6
    assert (told["trainable"], told["buffers"]) == (18, 7)
    assert told["bytes"] == 21 * 4 + 6 * 4 + 8
    assert told["class"] == "torch.nn.modules.container.Sequential" and told["fingerprint"] == fingerprint(net)


def test_a_network_without_data_has_no_fingerprint():
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="device meta"):
        fingerprint(net)


def test_shape_after_leaves_the_network_as_it_was():
    net = a_net().train()
    net[2].eval()
    before, state = fingerprint(net), torch.random.get_rng_state()
    assert shape_after(net, torch.randn(3, 1, 4, 4, generator=torch.Generator())) == (2,)
    assert fingerprint(net) == before and net.training and not net[2].training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_shape_after_says_what_does_not_fit():
    with pytest.raises(ModelError, match=r"does not take these inputs: got uint8 \(2, 1, 4, 4\).*encode"):
        shape_after(a_net(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ModelError, match="each example"):
        shape_after(nn.Flatten(0), torch.zeros(2, 3))
    with pytest.raises(TapError, match="logits"):
        shape_after(nn.LSTM(3, 4), torch.zeros(2, 5, 3))
