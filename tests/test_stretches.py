"""Stretches of a memory: read side by side, started from the teacher's states, compared at the next border."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stillroom.contracts import Segments, State, place, tap
from stillroom.data.arrays import ArraySource
from stillroom.errors import LossError, TapError
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.objectives.stretches import at_borders, starts
from stillroom.record import record
from stillroom.settings import Training
from stillroom.taps import read
from stillroom.teachers import Live
from stillroom.tensors import lstm_runs_in_bf16
from stillroom.train import train

ROWS, STEPS, FEATURES = 5, 11, 3
LENGTHS = torch.tensor([11, 4, 8, 1, 5])


class Net(nn.Module):
    """Reads numbers in time, packed where it is told the lengths."""

    def __init__(self, width: int, kind: type[nn.RNNBase] = nn.LSTM, seed: int = 0, **options) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.memory = kind(FEATURES, width, batch_first=True, **options)
            self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self.head(self.memory(inputs)[0][:, -1])
        packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0].sum(1))


def batch(lengths: bool = False) -> dict[str, Tensor]:
    inputs = torch.randn(ROWS, STEPS, FEATURES, generator=torch.Generator().manual_seed(3))
    made = {"id": torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)], 1), "inputs": inputs}
    return made | ({"lengths": LENGTHS} if lengths else {})


def takes(lengths: bool) -> tuple[str, ...]:
    return ("inputs", "lengths") if lengths else ("inputs",)


def both(every: int = 4, **options):
    """The cells and the states of one transition, as two pairs of one objective."""
    ours = [f"memory@segments.{part}/{every}" for part in "ch"]
    return match("memory_cells", ours, [f"memory@c/{every}", "memory@h"], **options)


@pytest.mark.parametrize("every", [1, 3, 4, 11, 20])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("kind", "layers"), [(nn.LSTM, 1), (nn.LSTM, 2), (nn.GRU, 2)])
def test_stretches_started_where_the_model_was_end_where_it_got_to(kind, layers, lengths, every):
    net, given = Net(6, kind, num_layers=layers), batch(lengths)
    parts = "hc" if kind is nn.LSTM else "h"
    told = read(net, ["memory@h", f"memory@c/{every}"] if "c" in parts else ["memory@h"], takes=takes(lengths))(given)
    at = {}
    for part in parts:
        theirs = place(f"memory@{part}/{every}" if part == "c" else "memory@h")
        name = f"memory@segments.{part}/{every}"
        at[name] = at_borders("x", place(name), theirs, told[f"memory@{part}"], told[f"memory@{part}.mask"])
    start = {f"{name}.start": starts(states, None) for name, (states, _) in at.items()}
    shown = read(net, list(at), takes=takes(lengths))(given, start)
    assert set(shown) == {*at, *(f"{name}.mask" for name in at)}
    for name, (states, mask) in at.items():
        count = -(-STEPS // every)
        assert shown[name].shape == (ROWS, count, layers, 1, 6) and torch.equal(shown[f"{name}.mask"], mask)
        assert torch.allclose(shown[name][mask], states[mask], atol=1e-6)
        expected = -(-(LENGTHS if lengths else torch.full((ROWS,), STEPS)) // every)
        assert mask.sum(1).tolist() == expected.tolist()


@pytest.mark.parametrize("lengths", [False, True])
def test_the_teacher_itself_loses_nothing_and_another_student_learns(lengths):
    teacher, given = Net(6, seed=1), batch(lengths)
    live = Live(teacher, ["memory@h", "memory@c/4"], takes=takes(lengths))
    same = Learner(copy.deepcopy(teacher), [both()], takes=takes(lengths))
    same.size(given, live(given))
    assert float(same(given, live(given))["loss"].detach()) == pytest.approx(0, abs=1e-9)
    learner = Learner(Net(4, seed=2), [both()], takes=takes(lengths))
    learner.size(given, live(given))
    assert [tuple(one.weight.shape) for one in learner.objectives[0].connectors.values()] == [(6, 4)] * 2
    before = [value.clone() for value in learner.student.memory.parameters()]
    optimizer = torch.optim.Adam(learner.parameters(), 0.02)
    losses = []
    for _ in range(40):
        losses.append(learner(given, live(given))["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.6 * float(losses[0].detach())
    assert all(not torch.equal(*pair) for pair in zip(before, learner.student.memory.parameters(), strict=True))


def test_the_loss_is_that_of_single_stretches_by_hand():
    """One stretch after the other through nn.LSTM itself, started from what the pseudo-inverse makes of the teacher."""
    teacher, student, given, every = Net(6, seed=1), Net(4, seed=2), batch(), 4
    told = Live(teacher, ["memory@h", "memory@c/4"])(given)
    learner = Learner(student, [both(every)])
    learner.size(given, told)
    back = [torch.linalg.pinv(one.weight) for one in learner.objectives[0].connectors.values()]
    cells, states, begin = [], [], (torch.zeros(1, ROWS, 4),) * 2
    for border, first in enumerate(range(0, STEPS, every)):
        _, (h, c) = student.memory(given["inputs"][:, first : first + every], begin)
        cells.append(c[0])
        states.append(h[0])
        end = min(first + every, STEPS) - 1
        theirs = told["memory@c"][:, border, 0, 0] @ back[0].T, told["memory@h"][:, end, 0, 0] @ back[1].T
        begin = (theirs[1][None], theirs[0][None])
    expected = 0
    targets = told["memory@c"][:, :, 0, 0], told["memory@h"][:, [3, 7, 10], 0, 0]
    for mine, target, one in zip((cells, states), targets, learner.objectives[0].connectors.values(), strict=True):
        variance = target.var((0, 1), correction=0).clamp(min=1e-3 * float(target.square().mean()) + 1e-6)
        expected = expected + ((torch.stack(mine, 1) @ one.weight.T - target).square() / variance).mean()
    assert torch.allclose(learner(given, told)["loss"], expected, rtol=1e-5)


def test_nothing_is_learnt_through_the_start():
    teacher, given = Net(6, seed=1), batch()
    told = Live(teacher, ["memory@h", "memory@c/4"])(given)
    learner = Learner(Net(4, seed=2), [both()])
    learner.size(given, told)
    start = learner.objectives[0].give(told)
    assert sorted(start) == ["memory@segments.c/4.start", "memory@segments.h/4.start"]
    for value in start.values():
        assert not value.requires_grad and value.shape == (ROWS, 3, 1, 1, 4) and not value[:, 0].any()
    connector = learner.objectives[0].connectors["0"]
    states = torch.randn(2, 3, 1, 1, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(starts(connector(states), connector)[:, 1:], states[:, :-1], atol=1e-5), "there and back"


def test_a_stored_teacher_and_bfloat16_train(tmp_path):
    inputs = torch.randn(24, STEPS, FEATURES, generator=torch.Generator().manual_seed(5))
    splits = {"train": torch.arange(24), "validation": torch.arange(0), "test": torch.arange(0)}
    data = ArraySource(inputs, torch.arange(24) % 2, splits=splits, name="noise")
    taps = ["logits", "memory@h", "memory@c/4"]
    live = Live(Net(6, seed=1, bidirectional=True), taps)  # its forward direction teaches
    store = record(live, data, tmp_path, taps=taps, fingerprints={"teacher": "t", "data": data.fingerprint})
    for precision in ("float32", *(["bf16"] if lstm_runs_in_bf16() else [])):
        learner = Learner(Net(4, seed=2), ["labels", both(every=4)], precision=precision)
        settings = Training(steps=3, batch=8, lr=1e-2, schedule="constant")
        losses = [float(step.losses["loss"].detach()) for step in train(learner, data, store, settings)]
        assert len(losses) == 3 and all(value == value and value < 1e3 for value in losses)


def test_a_resting_objective_reads_no_stretches():
    teacher, given = Net(6, seed=1), batch()
    live = Live(teacher, ["logits", "memory@h", "memory@c/4"])
    objective = match(
        "memory_cells", ["memory@segments.c/4", "memory@segments.h/4"], ["memory@c/4", "memory@h"], every=2
    )
    learner = Learner(Net(4, seed=2), ["kd", objective])
    learner.size(given, live(given))
    assert set(learner(given, live(given), step=1)) == {"kd", "loss"}
    assert set(learner(given, live(given), step=2)) == {"kd", "memory_cells", "loss"}


def test_the_tap_as_text():
    assert (
        tap("net.memory@segments.c/8") == Segments("net.memory", 8, "c")
        and str(Segments("m", 2, "h")) == "m@segments.h/2"
    )
    assert place("memory@segments.h/8") == ("", Segments("memory", 8, "h"), "memory@segments.h/8")
    for wrong in ("m@segments/8", "m@segments.c", "m@segments.c/0"):
        with pytest.raises(TapError, match=r"lstm@segments\.c/8"):
            tap(wrong)


@pytest.mark.parametrize(
    ("net", "one", "message"),
    [
        (
            Net(4, bidirectional=True),
            "memory@segments.c/4",
            "got LSTM in two directions. Allowed: an nn.LSTM or nn.GRU",
        ),
        (Net(4), "head@segments.h/4", "got Linear"),
        (Net(4, nn.GRU), "memory@segments.c/4", r"A GRU has no cells.*memory@segments\.h/4"),
    ],
)
def test_what_has_no_stretches_is_said(net, one, message):
    with pytest.raises(TapError, match=message):
        read(net, [one])


def test_half_a_state_and_other_layers_are_said():
    given, told = batch(), Live(Net(6, seed=1, num_layers=2), ["memory@h", "memory@c/4"])(batch())
    single = match("memory_cells", "memory@segments.c/4", "memory@c/4")
    learner = Learner(Net(4, seed=2, num_layers=2), [single])
    learner.size(given, told)
    with pytest.raises(TapError, match=r"got 'memory@segments\.c/4' alone.*reads 'memory@segments\.h/4'"):
        learner(given, told)
    learner = Learner(Net(4, seed=2, num_layers=3), [both()])
    learner.size(given, told)
    with pytest.raises(TapError, match=r"cannot start from the states that are given: got \(5, 3, 2, 1, 4\).*as deep"):
        learner(given, told)
    learner = Learner(Net(4, seed=2), [both()])
    learner.size(given, told)
    last = {name: value if name.endswith(".mask") else value[:, :, 1:] for name, value in told.items()}
    assert torch.equal(learner(given, told)["loss"], learner(given, last)["loss"]), "a deeper teacher: its last layer"


@pytest.mark.parametrize("theirs", ["memory@c/3", "layer", "memory@state/4"])
def test_states_at_other_borders_are_no_start(theirs):
    ours, states = place("memory@segments.c/4"), torch.zeros(2, 3, 1, 1, 4)
    with pytest.raises(LossError, match=r"Allowed: 'memory@h' or 'memory@c/4' of the teacher"):
        at_borders("x", ours, place(theirs), states, None)


def test_ones_own_states_are_no_start():
    with pytest.raises(LossError, match="start from states of: got the student itself"):
        match("memory_cells", "memory@segments.c/4", {"student": "memory@c/4"})


def test_without_a_mask_the_last_border_is_the_end():
    states = torch.arange(5.0).view(1, 5, 1, 1, 1)
    found, mask = at_borders("x", place("m@segments.h/2"), place(State("m", part="h")), states, None)
    assert found.flatten().tolist() == [1, 3, 4] and mask is None
