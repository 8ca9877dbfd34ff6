"""The hard cases, each from tap to resume: tap -> record -> store -> read -> match -> step -> checkpoint -> resume.

A case that fits only by bending the nouns means that the nouns are wrong, so these come before breadth.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.arrays import ArraySource
from stillroom.data.views import Views
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.record import record
from stillroom.settings import Training
from stillroom.taps import read
from stillroom.teachers import Live, MovingAverage, Together
from stillroom.train import train

ROWS = 48
SPLITS = {"train": torch.arange(ROWS), "validation": torch.arange(0), "test": torch.arange(0)}


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def vectors(width=6, classes=3, **columns) -> ArraySource:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, width, generator=generator)
    labels = torch.arange(ROWS) % classes
    return ArraySource(inputs, labels, columns=columns, splits=SPLITS, name="vectors")


def small(width=6, hidden=8, classes=3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, classes)
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def walk(make_learner, data, make_teacher, folder: Path, *, steps=6, kill_at=4, **more) -> dict[str, Tensor]:
    """Train to the end; then stop in the middle, begin again from the checkpoint with fresh objects: equal bits."""
    settings = Training(steps=steps, batch=12, lr=1e-2, checkpoint_every=2, schedule="constant")
    whole = make_learner()
    before = weights(whole)
    values = [
        step.losses["loss"]
        for step in train(whole, data, make_teacher(whole), settings, folder=folder / "whole", **more)
    ]
    assert len(values) == steps and all(torch.isfinite(value) for value in values)
    assert not same(before, weights(whole)), "training moved nothing"
    part = make_learner()
    for step in train(part, data, make_teacher(part), settings, folder=folder / "part", **more):
        if step.number == kill_at + 1:  # one step past the last checkpoint
            break
    again = make_learner()
    teacher = make_teacher(again)
    resumed = [step.number for step in train(again, data, teacher, settings, folder=folder / "part", **more)]
    assert resumed == list(range(kill_at + 1, steps + 1))
    assert same(weights(whole), weights(again)), "a resumed training is not the same training"
    return weights(whole)


def stored(teacher, data, folder: Path, taps, **more):
    return record(teacher, data, folder, taps=taps, fingerprints={"teacher": "t", "data": data.fingerprint}, **more)


# --- (a) two tokenizers, a bidirectional two-layer LSTM whose h and c have unequal lengths -------------------------


class Reads(nn.Module):
    """A packed, bidirectional, two-layer LSTM over embedded tokens."""

    def __init__(self, hidden, tokens=20):
        super().__init__()
        self.embed = nn.Embedding(tokens, 5)
        self.lstm = nn.LSTM(5, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 3)

    def forward(self, tokens, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(out.sum(1) / lengths[:, None])


def memory(
    student_h: Tensor,
    teacher_h: Tensor,
    student_c: Tensor,
    teacher_c: Tensor,
    student_c_mask: Tensor,
    teacher_c_mask: Tensor,
) -> Tensor:
    """Masked means over time of the cells, at each side's own borders, summed over width."""

    def mean(cells, mask):
        return (cells.flatten(2).sum(2) * mask).sum(1) / mask.sum(1).clamp(min=1)

    return (
        F.mse_loss(mean(student_c, student_c_mask), mean(teacher_c, teacher_c_mask))
        + 0 * student_h.sum() * teacher_h.sum()
    )


def test_a_two_tokenizers_and_a_memory_of_unequal_lengths(tmp_path):
    generator = torch.Generator().manual_seed(2)
    longs, shorts = (
        torch.randint(6, 12, (ROWS,), generator=generator),
        torch.randint(2, 7, (ROWS,), generator=generator),
    )
    data = vectors(
        long_tokens=torch.randint(0, 20, (ROWS, 11), generator=generator),
        long_lengths=longs,
        short_tokens=torch.randint(0, 9, (ROWS, 6), generator=generator),
        short_lengths=shorts,
    )
    network = seeded(lambda: Reads(4))
    live = Live(network, ["logits", "lstm@state/4"], takes=("long_tokens", "long_lengths"))
    batch = data.batch(torch.stack([torch.arange(7), torch.zeros(7, dtype=torch.long)], 1))
    shown = live(batch)
    assert (
        shown["lstm@h"].shape == (7, int(longs[:7].max()), 2, 2, 4)
        and shown["lstm@c"].shape[1] < shown["lstm@h"].shape[1]
    )
    assert shown["lstm@h.mask"].sum(1).tolist() == longs[:7].tolist()
    store = stored(live, data, tmp_path / "store", ["logits", "lstm@state/4"])
    read_back = store(batch)
    assert torch.equal(read_back["lstm@c.mask"].sum(1), shown["lstm@c.mask"].sum(1))
    valid = shown["lstm@h.mask"]
    assert torch.allclose(read_back["lstm@h"][valid], shown["lstm@h"][valid], atol=2e-3)

    def learner():
        student = seeded(lambda: Reads(2, tokens=9))
        objective = match(
            memory,
            student={"student_h": "lstm@h/2", "student_c": "lstm@c/2"},
            teacher={"teacher_h": "lstm@h/4", "teacher_c": "lstm@c/4"},
            connector="none",
        )
        return Learner(
            student,
            ["labels", objective, match("hint", "lstm@h/2", "lstm@h/4")],
            takes=("short_tokens", "short_lengths"),
        )

    walk(learner, data, lambda _: store, tmp_path)


# --- (b) an input gradient along the teacher's top class under three views, stored equals live ----------------------


def test_b_a_recorded_gradient_under_three_views_equals_the_live_one(tmp_path):
    images = torch.randint(0, 256, (ROWS, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    data = ArraySource(images, torch.arange(ROWS) % 3, splits=SPLITS, views=Views(3, pad=1))
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 3)))

    def encode(pixels):
        return pixels.float() / 255

    live = Live(network, ["logits", "logits@gradient"], encode=encode)
    store = stored(live, data, tmp_path / "store", ["logits", "logits@gradient"], views=3)
    ids = torch.tensor([[5, 0], [5, 1], [5, 2], [40, 1]])
    batch = data.batch(ids)
    shown, kept = live(batch), store(batch)
    assert not torch.equal(batch["inputs"][0], batch["inputs"][1])
    for name in ("logits", "logits@gradient"):
        assert torch.allclose(shown[name], kept[name], rtol=2e-3, atol=1e-6), name
    student = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3)))
    reader = read(student, ["logits", "logits@gradient"], encode)
    along = reader(batch, {"logits": kept["logits"]})["logits@gradient"]
    other = reader(batch, {"logits": -kept["logits"]})["logits@gradient"]
    assert not torch.allclose(along, other), "the student must follow the teacher's class, not its own"

    def learner():
        fresh = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3)))
        gradients = match("hint", "logits@gradient", "logits@gradient", weight=10.0, every=2, name="gradient")
        return Learner(fresh, ["kd", gradients], encode=encode)

    from_store = walk(learner, data, lambda _: store, tmp_path / "stored", views=3)
    from_live = walk(learner, data, lambda _: live, tmp_path / "live", views=3)
    for name in from_store:
        assert torch.allclose(from_store[name], from_live[name], atol=1e-4), name


# --- (c) a connector and a buffer under two gloo processes, equal to one process --------------------------------------


class Remembered(nn.Module):
    """A student with a buffer that its forward moves."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return self.head(torch.tanh(self.first(inputs)))


def together(folder: Path) -> dict[str, Tensor]:
    """What each process of case (c) does: two objectives, one with a connector and one that rests every other step."""
    data = vectors()
    teacher = Live(seeded(lambda: small(hidden=8), 5), ["logits", "features"])
    objectives = ["kd", match("hint", "features", "features", every=2, weight={"from": 1, "to": 0, "until": 0.5})]
    learner = Learner(seeded(Remembered, 6), objectives)
    for _ in train(learner, data, teacher, Training(steps=5, batch=12, lr=1e-2), folder=folder):
        pass
    return weights(learner)


@pytest.mark.slow
def test_c_two_processes_equal_one(tmp_path):
    alone = together(tmp_path / "one")
    script = (
        "import sys, torch, torch.distributed as d; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_shapes import together; from safetensors.torch import save_file; d.init_process_group('gloo');"
        "w = together(Path(sys.argv[2]) / 'two');"
        "save_file({k: v.contiguous() for k, v in w.items()}, f'{sys.argv[2]}/rank{d.get_rank()}.safetensors');"
        "d.barrier(); import os; os._exit(0)"
    )
    port = str(20000 + os.getpid() % 20000)
    base = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for job in jobs:
        job.wait(timeout=120)
    from safetensors.torch import load_file

    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    assert same(ranks[0], ranks[1]), "the processes drifted apart"
    assert "objectives.1.connectors.0.weight" in alone
    for name, value in alone.items():
        assert torch.allclose(value, ranks[0][name], atol=1e-6), name


# --- (d) a teacher with a past, killed and resumed bit-identically ----------------------------------------------------


def test_d_a_teacher_with_a_past_resumes_bit_identically(tmp_path):
    def learner():
        return Learner(seeded(small), ["labels", match("kd", temperature=2.0)])

    def teacher(of):
        return MovingAverage(of.student, ["logits"], decay=0.8)

    walk(learner, vectors(), teacher, tmp_path)


# --- (e) two peers teaching each other --------------------------------------------------------------------------------


def test_e_two_peers_teach_each_other(tmp_path):
    def learner():
        peers = nn.ModuleDict({"a": seeded(small, 1), "b": seeded(lambda: small(hidden=5), 2)})
        objectives = []
        for me, other in (("a", "b"), ("b", "a")):
            objectives.append(match("labels", f"output[{me}]", name=f"labels-{me}"))
            objectives.append(match("kd", f"output[{me}]", {"student": f"output[{other}]"}, name=f"kd-{me}"))
        return Learner(peers, objectives)

    first = learner()
    data = vectors()
    batch = data.batch(torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)], 1))
    first.eval()
    first(batch)["kd-a"].backward()
    assert all(value.grad is not None for value in first.student["a"].parameters())
    assert all(value.grad is None for value in first.student["b"].parameters()), (
        "a peer must not be pulled as a teacher"
    )
    walk(learner, data, lambda _: None, tmp_path)


# --- (f) two teachers with different taps -----------------------------------------------------------------------------


def test_f_two_teachers_with_different_taps(tmp_path):
    data = vectors()
    big, wide = seeded(lambda: small(hidden=8), 3), seeded(lambda: small(hidden=16), 4)
    both = Together(
        {
            "big": stored(Live(big, ["logits", "0"]), data, tmp_path / "big", ["logits", "0"]),
            "wide": Live(wide, ["features"]),
        }
    )

    def learner():
        objectives = [
            match("kd", teacher="big/logits"),
            match("hint", "features", "wide/features", name="wide"),
            match("hint", ["0", "features"], ["big/0", "wide/features"], name="pairs"),
        ]
        return Learner(seeded(small, 9), objectives)

    walk(learner, data, lambda _: both, tmp_path)


# --- (g) rows with 0, 1 and many boxes
# ---------------------------------------------------------------------------------


class Boxes(nn.Module):
    """Answers each row with as many boxes as its first column says: a list of one tensor a row."""

    def __init__(self):
        super().__init__()
        self.box, self.head = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, inputs):
        counts = [int(value) for value in inputs[:, 0]]
        found = [self.box(row).repeat(count, 1) for row, count in zip(inputs, counts, strict=True)]
        return {"scores": self.head(inputs), "boxes": found}


def boxes(student: Tensor, teacher: Tensor, teacher_mask: Tensor) -> Tensor:
    """The student's single box against the mean of the teacher's, where there are any."""
    count = teacher_mask.sum(1)
    mean = (teacher * teacher_mask[..., None]).sum(1) / count.clamp(min=1)[:, None]
    return ((student - mean).square().sum(1) * (count > 0)).sum() / (count > 0).sum().clamp(min=1)


def test_g_rows_with_no_one_and_many_boxes(tmp_path):
    inputs = vectors().columns["inputs"].clone()
    inputs[:, 0] = torch.arange(ROWS) % 4
    data = ArraySource(inputs, splits=SPLITS, name="boxes")
    live = Live(seeded(Boxes), ["output[scores]", "output[boxes]"])
    store = stored(live, data, tmp_path / "store", ["output[scores]", "output[boxes]"])
    ids = torch.tensor([[0, 0], [1, 0], [3, 0]])
    shown, kept = live(data.batch(ids)), store(data.batch(ids))
    assert kept["output[boxes].mask"].sum(1).tolist() == [0, 1, 3] == shown["output[boxes].mask"].sum(1).tolist()
    assert torch.allclose(kept["output[boxes]"], shown["output[boxes]"], atol=2e-3)
    none = store(data.batch(torch.tensor([[0, 0], [4, 0]])))
    assert none["output[boxes]"].shape[:2] == (2, 0)

    def learner():
        return Learner(seeded(lambda: nn.Linear(6, 4)), [match(boxes, "output", "output[boxes]", connector="none")])

    walk(learner, data, lambda _: store, tmp_path)


# --- (h) dict output, tuple output, a shared submodule, an in-place ReLU behind the tap
# ----------------------------------


class Awkward(nn.Module):
    """Everything that trips a tap at once."""

    def __init__(self, form="dict"):
        super().__init__()
        self.form = form
        self.first, self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs):
        hidden = self.relu(self.first(inputs))
        logits = self.head(self.shared(self.shared(hidden)))
        return {"logits": logits, "hidden": hidden} if self.form == "dict" else (hidden[:, :, None], logits)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_h_awkward_modules(tmp_path, form):
    data = vectors()
    network = seeded(lambda: Awkward(form))
    taps = ["logits", "features", "first", "shared#0", "shared#1", "output[0]" if form == "tuple" else "output[hidden]"]
    batch = data.batch(torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)], 1))
    live = Live(network, taps)
    shown = live(batch)
    assert torch.allclose(shown["first"], network.first(batch["inputs"])) and (shown["first"] < 0).any()
    assert torch.allclose(shown["shared#1"], network.shared(shown["shared#0"]))
    assert torch.allclose(shown["features"], shown["shared#1"])
    assert torch.allclose(shown["logits"], network.head(shown["features"]))
    store = stored(live, data, tmp_path / "store", taps)
    assert torch.allclose(store(batch)["first"], shown["first"], atol=2e-3)

    def learner():
        objectives = [
            "kd",
            match("hint", "first", "first"),
            match("hint", ["shared#0", "shared#1"], ["shared#0", "shared#1"], name="both"),
        ]
        return Learner(seeded(lambda: Awkward(form), 7), objectives)

    walk(learner, data, lambda _: store, tmp_path)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
