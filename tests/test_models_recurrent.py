"""Recurrent networks that know how long each row is, and the zoo's networks for sequences of numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stillroom.errors import ModelError
from stillroom.models.recurrent import PaddedGRU, PaddedLSTM, at_least_one, pooled
from stillroom.models.zoo import build, empty
from stillroom.taps import read

LENGTHS = torch.tensor([5, 9, 1, 8, 3])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VALUES = drawn(5, 9, 4)
REAL = torch.arange(9) < LENGTHS[:, None]
OPTIONS = [
    {},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "bidirectional": True},
]
kinds = pytest.mark.parametrize("kind", [PaddedLSTM, PaddedGRU])
options = pytest.mark.parametrize("options", OPTIONS, ids=lambda one: "-".join(one) or "plain")


def made(kind, **options):
    torch.manual_seed(0)
    return kind(4, 3, **options)


def both(state):
    return state if isinstance(state, tuple) else (state,)


def packed_answer(rnn, state=None):
    packed = pack_padded_sequence(VALUES, LENGTHS, batch_first=True, enforce_sorted=False)
    base = nn.LSTM if isinstance(rnn, nn.LSTM) else nn.GRU
    outputs, last = base.forward(rnn, packed, state)
    return pad_packed_sequence(outputs, batch_first=True)[0], last


@pytest.mark.parametrize("given", [False, True])
@kinds
@options
def test_with_lengths_it_equals_the_packed_module(kind, options, given):
    rnn = made(kind, **options)
    state = None
    if given:
        count = rnn.num_layers * (1 + rnn.bidirectional)
        state = drawn(count, 5, 3, seed=1), drawn(count, 5, 3, seed=2)
        state = state if kind is PaddedLSTM else state[0]
    expected, last = packed_answer(rnn, state)
    outputs, mine = rnn(VALUES, state, lengths=LENGTHS)
    assert torch.allclose(outputs[REAL], expected[REAL], atol=1e-6)
    for one, other in zip(both(mine), both(last), strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-6)
    without, nothing = rnn(VALUES, state, lengths=LENGTHS, last=False)
    assert nothing is None and torch.allclose(without[REAL], expected[REAL], atol=1e-6)


@kinds
@options
def test_without_lengths_it_is_the_plain_module(kind, options):
    rnn = made(kind, **options)
    plain = (nn.LSTM if kind is PaddedLSTM else nn.GRU)(4, 3, batch_first=True, **options)
    plain.load_state_dict(rnn.state_dict())
    outputs, last = rnn(VALUES)
    expected, other = plain(VALUES)
    assert torch.equal(outputs, expected)
    assert all(torch.equal(*pair) for pair in zip(both(last), both(other), strict=True))


@kinds
@pytest.mark.parametrize("last", [True, False])
def test_gradients_are_those_of_the_packed_module(kind, last):
    rnn = made(kind, num_layers=2, bidirectional=True)
    expected, _ = packed_answer(rnn)
    wanted = torch.autograd.grad(expected.sin().sum(), list(rnn.parameters()))
    outputs, _ = rnn(VALUES, lengths=LENGTHS, last=last)
    found = torch.autograd.grad((outputs.sin() * REAL[..., None]).sum(), list(rnn.parameters()))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(wanted, found, strict=True))


@kinds
@options
@pytest.mark.parametrize("last", [True, False])
def test_its_memory_is_read_as_that_of_the_packed_module(kind, options, last):
    rnn = made(kind, **options)
    wrapped = nn.Module()
    wrapped.memory, wrapped.last = rnn, None

    def forward(inputs, lengths):
        outputs, wrapped.last = wrapped.memory(inputs, lengths=lengths, last=last)
        return outputs

    wrapped.forward = forward  # type: ignore[method-assign]
    batch = {"id": torch.zeros(5, 2, dtype=torch.long), "inputs": VALUES, "lengths": LENGTHS}
    expected, state = packed_answer(rnn)
    for form in ("h", "state/2"):
        shown = read(wrapped, ["output", f"memory@{form}"], takes=("inputs", "lengths"))(batch)
        assert torch.allclose(shown["output"][REAL], expected[REAL], atol=1e-6)
        assert torch.allclose(shown["memory@h"][:, :, -1].flatten(2)[REAL], expected[REAL], atol=1e-6)
        assert torch.equal(shown["memory@h.mask"], REAL)
        assert (wrapped.last is None) == (not last)
        if kind is PaddedLSTM and form != "h":
            ends = shown["memory@c"][torch.arange(5), (LENGTHS - 1) // 2].flatten(1, 2).transpose(0, 1)
            assert torch.allclose(ends, state[1], atol=1e-6)


def test_forget_gates_start_open():
    rnn = PaddedLSTM(4, 50, bidirectional=True, num_layers=2)
    for name, value in rnn.named_parameters():
        if name.startswith("bias_ih"):
            assert value[50:100].mean() > 0.9 and value[:50].mean().abs() < 0.1


def test_pooling_looks_at_real_steps_only():
    outputs = drawn(5, 9, 6)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = outputs[row : row + 1, :length]
        for pool in ("max", "mean", "last"):
            for directions in (1, 2):
                mine = pooled(outputs, REAL, pool, directions=directions)[row]
                assert torch.allclose(mine, pooled(alone, None, pool, directions=directions)[0], atol=1e-6)
    expected = torch.cat([outputs[:, -1, :3], outputs[:, 0, 3:]], 1)
    assert torch.equal(pooled(outputs, None, "last", directions=2), expected)
    mask = torch.tensor([[False, False], [True, True]])
    assert at_least_one(mask).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("shape", [(7, 3), (1, 7, 3)])
@pytest.mark.parametrize("options", [{}, {"layers": 2, "bidirectional": True, "pool": "mean", "dropout": 0.3}])
def test_sequences_give_logits_and_gradients_everywhere(name, shape, options):
    torch.manual_seed(0)
    model = build(name, shape=shape, classes=4, **options)
    logits = model(torch.randn(6, *shape))
    assert logits.shape == (6, 4)
    functional.cross_entropy(logits, torch.arange(6) % 4).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())
    assert isinstance(model.memory, nn.RNNBase) and isinstance(model.head, nn.Linear)
    assert empty(name, shape=shape, classes=4, **options)(torch.empty(2, *shape, device="meta")).shape == (2, 4)


def test_an_image_is_read_row_by_row():
    torch.manual_seed(0)
    model = build("lstm", shape=(1, 7, 3), classes=4).eval()
    image = drawn(2, 1, 7, 3)
    assert torch.equal(model(image), model(image[:, 0]))
    assert torch.allclose(model(image), model.head(nn.LSTM.forward(model.memory, image[:, 0])[0][:, -1]))
    shown = read(model, ["memory@h", "memory@c/4"])({"id": torch.zeros(2, 2).long(), "inputs": image})
    assert shown["memory@h"].shape == (2, 7, 1, 1, 64) and shown["memory@c"].shape == (2, 2, 1, 1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (7,)}, "reads sequences.*steps, features.*net or mlp"),
        ({"shape": (3, 7, 7)}, "reads sequences.*1, height, width"),
        ({"pool": "max"}, "last, mean"),
        ({"bidirectional": 1}, "true or false"),
        ({"layers": 0}, "whole number above 0"),
        ({"dropout": 1}, "from 0 up to 1"),
        ({"hiden": 3}, "Did you mean 'hidden'"),
    ],
)
def test_mistakes_say_what_is_allowed(options, message):
    with pytest.raises(ModelError, match=message):
        build("lstm", **{"shape": (7, 3), "classes": 4, **options})
