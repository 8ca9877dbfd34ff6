"""The memory tap: an nn.LSTM or nn.GRU read at every step answers as before, and shows what it held."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stillroom.errors import TapError
from stillroom.taps import read
from stillroom.taps.recurrent import at_ends, walk

ROWS, LONGEST = 5, 9


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(inputs, **columns):
    return {"id": torch.stack([torch.arange(len(inputs)), torch.zeros(len(inputs))], 1).long(), "inputs": inputs} | {
        **columns
    }


def left_behind(module):
    return [
        part for part in module.modules() if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    ]


class Remembers(nn.Module):
    """A recurrent model; ``packed`` by lengths, or over the whole sequence."""

    def __init__(self, kind=nn.LSTM, *, packed=False, start=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.packed, self.start = packed, start
        self.rnn = kind(4, 3, batch_first=True, **options)
        self.last = None

    def forward(self, inputs, lengths):
        given = None
        if self.start:
            count = self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)
            sizes = [self.rnn.proj_size or 3, 3] if isinstance(self.rnn, nn.LSTM) else [3]
            given = tuple(drawn(count, len(inputs), size, seed=index) for index, size in enumerate(sizes))
            given = given if len(given) > 1 else given[0]
        values = (
            pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False) if self.packed else inputs
        )
        answer, self.last = self.rnn(values, given)
        return pad_packed_sequence(answer, batch_first=True)[0] if self.packed else answer


LENGTHS = torch.tensor([5, 9, 1, 8, 3])
WORDS = batch_of(drawn(ROWS, LONGEST, 4), lengths=LENGTHS)
TAKES = ("inputs", "lengths")
KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"bias": False}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"bias": False}),
]
kinds = pytest.mark.parametrize(
    ("kind", "options"), KINDS, ids=lambda part: getattr(part, "__name__", None) or "-".join(part)
)


def both(values):
    return values if isinstance(values, tuple) else (values,)


def directions(rnn):
    return 2 if rnn.bidirectional else 1


def held_after(rnn, values, steps):
    """The states (layers, directions, H) of ``rnn`` after ``values`` (T, F), forward, and of its reverse direction,

    for a top layer's input that is the same: the plain module over exactly these steps.
    """
    _, last = rnn(values[None, :steps])
    return [part[:, 0].unflatten(0, (rnn.num_layers, directions(rnn))) for part in both(last)]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("start", [False, True], ids=["from zero", "given"])
@pytest.mark.parametrize("form", ["@h", "@state", "@state/2", "@state/4", "@state/5", "@state/9", "@state/20"])
@kinds
def test_a_model_whose_memory_is_read_answers_as_before(kind, options, form, start, packed):
    model = Remembers(kind, packed=packed, start=start, **options)
    plain, last = model(WORDS["inputs"], LENGTHS), both(model.last)
    shown = read(model, ["output", f"rnn{form}"], takes=TAKES)(WORDS)
    assert torch.allclose(shown["output"], plain, atol=1e-6)
    for mine, theirs in zip(both(model.last), last, strict=True):
        assert mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6)
    valid, width = shown["rnn@h.mask"], plain.shape[2] // directions(model.rnn)
    assert torch.equal(valid, torch.arange(LONGEST) < LENGTHS[:, None])
    assert shown["rnn@h"].shape == (ROWS, LONGEST, model.rnn.num_layers, directions(model.rnn), width)
    top = shown["rnn@h"][:, :, -1]
    assert torch.allclose(top[valid], plain.unflatten(2, (-1, width))[valid], atol=1e-6), "both in the order of text"
    assert ("rnn@c" in shown) == (kind is nn.LSTM and form != "@h")
    assert not left_behind(model)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 9, 20])
@pytest.mark.parametrize("start", [False, True], ids=["from zero", "given"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"proj_size": 2}, {"bias": False}], ids=lambda one: "-".join(one)
)
def test_each_border_holds_the_cell_of_the_row_read_so_far(every, start, options, packed):
    model = Remembers(packed=packed, start=start, **options)
    shown = read(model, [f"rnn@c/{every}"], takes=TAKES)(WORDS)
    assert set(shown) == {"rnn@c", "rnn@c.mask"}
    cells, mask = shown["rnn@c"], shown["rnn@c.mask"]
    assert cells.shape == (ROWS, -(-LONGEST // every), model.rnn.num_layers, 1, 3)
    assert mask.sum(1).tolist() == [-(-length // every) for length in LENGTHS.tolist()]
    model.packed = False
    for row, length in enumerate(LENGTHS.tolist()):
        for border in range(-(-length // every)):
            model(WORDS["inputs"][:, : min((border + 1) * every, length)], None)
            assert torch.allclose(cells[row, border, :, 0], model.last[1][:, row], atol=1e-6), (row, border)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("every", [1, 2, 4, 5, 9, 20])
def test_the_reverse_direction_counts_from_the_end_of_each_row(every, packed):
    model = Remembers(packed=packed, bidirectional=True)
    shown = read(model, [f"rnn@state/{every}"], takes=TAKES)(WORDS)
    for row, length in enumerate(LENGTHS.tolist()):
        # what a one-directional LSTM with the reverse weights holds: plain padding is read before the row begins
        behind = length if packed else LONGEST
        other = nn.LSTM(4, 3, batch_first=True)
        for name, value in other.named_parameters():
            value.data = getattr(model.rnn, f"{name}_reverse").data
        backwards = WORDS["inputs"][row, :behind].flip(0)
        for border in range(-(-length // every)):
            steps = behind - length + min((border + 1) * every, length)
            (hidden,), (cell,) = (part[0] for part in held_after(other, backwards, steps))
            assert torch.allclose(shown["rnn@c"][row, border, 0, 1], cell, atol=1e-6), (row, border)
            assert torch.allclose(shown["rnn@h"][row, behind - steps, 0, 1], hidden, atol=1e-6)


def test_borders_far_beyond_the_rows_cost_nothing():
    """One border, after a billion steps: the walk to a row's own end is as long as the row, not as the spacing."""
    model = Remembers(packed=False)
    far, near = (read(model, [f"rnn@c/{every}"], takes=TAKES)(WORDS)["rnn@c"] for every in (1_000_000_000, LONGEST))
    assert far.shape[1] == 1 and torch.allclose(far, near, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_packed_bidirectional_stack_holds_in_every_row_what_the_row_alone_holds(kind):
    model = Remembers(kind, packed=True, bidirectional=True, num_layers=3)
    shown = read(model, ["rnn@state/2"], takes=TAKES)(WORDS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = batch_of(WORDS["inputs"][row : row + 1, :length], lengths=LENGTHS[row : row + 1])
        expected = read(model, ["rnn@state/2"], takes=TAKES)(alone)
        for name in ("rnn@h", "rnn@c")[: 1 + (kind is nn.LSTM)]:
            assert expected[f"{name}.mask"].all()
            assert torch.allclose(shown[name][row][shown[f"{name}.mask"][row]], expected[name][0], atol=1e-6)


def test_only_the_rows_asked_for_are_given_and_h_needs_no_spacing():
    model = Remembers()
    reader = read(model, ["rnn@h/4", "rnn@c/2"], takes=TAKES)
    assert reader.names == ["rnn@h", "rnn@c/2"]
    shown = reader(WORDS)
    assert shown["rnn@c"].shape[1] == 5 and shown["rnn@h"].shape[1] == LONGEST
    assert set(reader(WORDS, skip=[reader.taps[1]])) == {"rnn@h", "rnn@h.mask"}
    assert set(reader(WORDS, skip=reader.taps)) == set()


def test_a_gru_has_no_cells():
    with pytest.raises(TapError, match=r"A GRU has no cells: got 'rnn@c/2'.*'?rnn@h"):
        read(Remembers(nn.GRU), ["rnn@c/2"])


def test_batches_may_be_second():
    model = nn.LSTM(4, 3)
    inputs = drawn(9, ROWS, 4)
    wrapped = nn.Sequential()
    wrapped.rnn = model
    wrapped.forward = lambda inputs: wrapped.rnn(inputs.transpose(0, 1))[0]  # type: ignore[method-assign]
    shown = read(wrapped, ["rnn@state", "output"])(batch_of(inputs.transpose(0, 1).contiguous()))
    assert torch.allclose(shown["rnn@h"][:, :, 0, 0], model(inputs)[0].transpose(0, 1), atol=1e-6)
    assert torch.allclose(shown["output"], model(inputs)[0], atol=1e-6)
    assert shown["rnn@h.mask"].all() and shown["rnn@c.mask"].all()


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_dropout_between_layers_is_on_in_training_only(packed):
    model = Remembers(packed=packed, num_layers=2, dropout=0.5, bidirectional=True)
    reader = read(model, ["output", "rnn@state"], takes=TAKES)
    model.eval()
    assert torch.allclose(reader(WORDS)["output"], model(WORDS["inputs"], LENGTHS), atol=1e-6)
    model.train()
    first, second = reader(WORDS), reader(WORDS)
    assert not torch.equal(first["output"], second["output"])
    assert torch.equal(first["rnn@h"][:, :, 0], second["rnn@h"][:, :, 0]), "the first layer comes before the dropout"
    model.rnn.dropout = 0.0
    assert torch.allclose(reader(WORDS)["output"], model(WORDS["inputs"], LENGTHS), atol=1e-6)


@pytest.mark.parametrize("form", ["h", "state", "state/4"])
def test_gradients_through_a_model_that_is_read_are_those_of_the_model(form):
    model = Remembers(packed=True, num_layers=2, bidirectional=True)
    model(WORDS["inputs"], LENGTHS).square().sum().backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    read(model, ["output", f"rnn@{form}"], takes=TAKES)(WORDS)["output"].square().sum().backward()
    for name, value in model.named_parameters():
        assert torch.allclose(value.grad, expected[name], atol=1e-5), name


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_gradients_through_h_and_c_agree_with_finite_differences(packed):
    model = Remembers(packed=packed, bidirectional=True).double()
    batch = batch_of(WORDS["inputs"].double(), lengths=LENGTHS)
    reader = read(model, ["rnn@state/4"], takes=TAKES)

    def total():
        shown = reader(batch)
        return sum(
            (shown[name] * shown[f"{name}.mask"][..., None, None, None]).sin().sum() for name in ("rnn@h", "rnn@c")
        )

    total().backward()
    for name, value in model.named_parameters():
        place = (0,) * value.dim()
        with torch.no_grad():
            value[place] += 1e-5
            above = total()
            value[place] -= 2e-5
            below = total()
            value[place] += 1e-5
        assert abs(float(value.grad[place] - (above - below) / 2e-5)) < 1e-7, name


def test_a_memory_is_read_at_one_spacing():
    model = Remembers()
    with pytest.raises(TapError, match=r"two spacings: got 'rnn@state/2' and 'rnn@state'\. Allowed: one"):
        read(model, ["rnn@state/2", "rnn@state"])
    assert read(model, ["rnn@state/2", "rnn@state/2"]).names == ["rnn@state/2"]
    assert read(model, ["rnn@state/2", "rnn@h", "rnn@c/2"], takes=TAKES)(WORDS)["rnn@c"].shape[1] == 5


def test_a_forward_that_was_replaced_before_is_put_back():
    model = Remembers()
    of_the_author = model.rnn.forward
    model.rnn.forward = lambda *values: of_the_author(*values)  # type: ignore[method-assign]
    before = model.rnn.forward
    read(model, ["rnn@state"], takes=TAKES)(WORDS)
    assert model.rnn.forward is before


def test_a_memory_without_a_batch_is_refused():
    wrapped = nn.Sequential()
    wrapped.rnn = nn.GRU(4, 3, batch_first=True)
    wrapped.forward = lambda inputs: wrapped.rnn(inputs[0])[0]  # type: ignore[method-assign]
    with pytest.raises(TapError, match="needs a batch"):
        read(wrapped, ["rnn@state"])(WORDS)
    assert not left_behind(wrapped.rnn)


@pytest.mark.parametrize("sorted_before", [True, False])
def test_what_was_packed_stays_packed_in_the_same_order(sorted_before):
    lengths = torch.tensor([4, 4, 2, 2, 2]) if sorted_before else torch.tensor([2, 4, 2, 4, 2])
    packed = pack_padded_sequence(drawn(ROWS, 4, 4), lengths, batch_first=True, enforce_sorted=sorted_before)
    wrapped = nn.Module()
    wrapped.rnn = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
    seen = []
    wrapped.forward = lambda inputs: seen.append(wrapped.rnn(packed)[0])  # type: ignore[method-assign]
    read(wrapped, ["rnn@state"])(WORDS)
    plain = wrapped.rnn(packed)[0]
    for mine, theirs in zip(seen[-1], plain, strict=True):
        assert mine is theirs is None or torch.allclose(mine, theirs, atol=1e-6)


def test_lengths_hold_the_last_state_bit_for_bit():
    rnn = nn.LSTM(4, 3, batch_first=True)
    values = drawn(ROWS, 300, 4) * 20
    seen = walk(rnn, values, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        hidden, cell = held_after(rnn, values[row], length)
        assert torch.allclose(seen.last[0][:, row], hidden[:, 0], atol=1e-6)
        assert torch.allclose(seen.last[1][:, row], cell[:, 0], atol=1e-5)
    assert torch.equal(walk(rnn, values[:, :200], lengths=LENGTHS).last[1], seen.last[1])


def test_each_row_has_an_end_of_its_own():
    values = torch.arange(6).view(2, 3, 1)
    assert at_ends(values, torch.tensor([1, 3])).flatten().tolist() == [0, 5]


def test_reading_h_costs_about_one_call_and_cells_a_little_more():
    rnn, values = nn.LSTM(64, 128, batch_first=True), drawn(32, 128, 64)
    wrapped = nn.Module()
    wrapped.rnn = rnn
    wrapped.forward = lambda inputs: wrapped.rnn(inputs)[0]  # type: ignore[method-assign]
    batch = batch_of(values)
    calls = {"plain": lambda: rnn(values), **{form: read(wrapped, [f"rnn@{form}"]) for form in ("h", "c/16")}}
    most, best = {"h": 2.0, "c/16": 2.5}, dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for turn in range(200):  # the least of many turns; on a busy machine a few are not enough
            for name, call in calls.items():
                begun = time.process_time()
                call() if name == "plain" else call(batch)
                best[name] = min(best[name], time.process_time() - begun)
            if turn >= 15 and all(best[form] < times * best["plain"] for form, times in most.items()):
                break
    assert all(best[form] < times * best["plain"] for form, times in most.items()), best
