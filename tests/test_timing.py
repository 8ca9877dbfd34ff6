"""Masks and spans beside what runs along a model's steps, live and from a store."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom import utf8
from stillroom.contracts import HasSteps
from stillroom.record import record
from stillroom.store import Store
from stillroom.taps import read
from stillroom.taps.timing import timing
from stillroom.teachers import Live

TEXTS = ["a bee", "four words are here", "one", "", "ten or so letters in this one row of text here"]


class Words(nn.Module):
    """Cuts at blanks; the first step stands for no text, as [CLS] does. Counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def tokens(self, inputs):
        spans = []
        for row in utf8.unpack_bytes(inputs):
            found, at = [(0, 0)], 0
            for word in row.split():
                at = row.index(word, at)
                found.append((at, at + len(word)))
                at += len(word)
            spans.append(found)
        longest = max(len(row) for row in spans)
        mask = torch.tensor([[step < len(row) for step in range(longest)] for row in spans])
        return mask, torch.tensor([[*row, *[(0, 0)] * (longest - len(row))] for row in spans], dtype=torch.int32)

    def steps(self, inputs):
        self.asked += 1
        return self.tokens(inputs)

    def forward(self, inputs):
        mask, spans = self.tokens(inputs)
        return {"ids": spans.long().sum(2) % 7 + mask, "mask": mask}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.lstm, self.head = nn.Embedding(9, 5), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2)
        self.maps = nn.Conv1d(5, 6, 1)

    def forward(self, ids, mask):
        embedded = self.embed(ids)
        self.maps(embedded.transpose(1, 2))
        hidden = self.lstm(embedded)[0] * mask[..., None]
        return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


def batch_of(rows):
    ids = torch.tensor([[row, 0] for row in rows])
    return {"id": ids, "inputs": utf8.pack([TEXTS[row] for row in rows])}


BATCH = batch_of(range(len(TEXTS)))
COUNTS = [3, 5, 2, 1, 12]


def test_what_runs_along_the_steps_has_a_mask_and_says_what_they_stand_for():
    encode = Words()
    assert isinstance(encode, HasSteps)
    reader = read(Net(), ["embed", "lstm[0]", "lstm@h", "lstm@c/4", "maps", "logits"], encode)
    reader.prepare(BATCH)
    encode.asked = 0
    shown = reader(BATCH)
    assert set(shown) == {"embed", "lstm[0]", "lstm@h", "lstm@c", "maps", "logits", "spans"} | {
        f"{name}.mask" for name in ("embed", "lstm[0]", "lstm@h", "lstm@c", "spans")
    }
    for name in ("embed", "lstm[0]", "lstm@h", "spans"):
        assert shown[f"{name}.mask"].sum(1).tolist() == COUNTS and shown[name].shape[:2] == (5, 12)
    assert shown["lstm@c.mask"].sum(1).tolist() == [1, 2, 1, 1, 3]
    assert shown["spans"].dtype == torch.int32 and shown["spans"][0, :3].tolist() == [[0, 0], [0, 1], [2, 5]]
    assert encode.asked == 1, "found out once a pass"


@pytest.mark.parametrize(("taps", "asked"), [(["logits"], 0), (["head:in"], 0), (["embed"], 1), (["lstm@c/2"], 1)])
def test_nothing_is_found_out_for_what_does_not_run_along_time(taps, asked):
    encode = Words()
    reader = read(Net(), taps, encode)
    reader.prepare(BATCH)
    encode.asked = 0
    shown = reader(BATCH)
    assert encode.asked == asked and ("spans" in shown) == bool(asked)


def test_an_axis_that_once_was_not_time_never_is():
    reader = read(Net(), ["maps"], Words())
    assert set(reader(BATCH)) == {"maps"}
    six = batch_of([4]) | {"inputs": utf8.pack(["a b c d e"])}
    assert reader(six)["maps"].shape == (1, 6, 6) and set(reader(six)) == {"maps"}


def test_each_pass_has_its_own_steps():
    reader = read(Net(), ["embed"], Words())
    with reader:
        for rows in ([0, 1], [2, 3], [4]):
            shown = reader(batch_of(rows))
            assert shown["embed.mask"].sum(1).tolist() == [COUNTS[row] for row in rows]
            assert shown["spans"].shape[1] == shown["embed"].shape[1] == max(COUNTS[row] for row in rows)


def test_a_column_of_lengths_makes_the_same_masks_without_spans():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    batch = {"id": BATCH["id"], "inputs": torch.randn(5, 9, 3), "lengths": torch.tensor([2, 7, 1, 3, 4])}
    shown = read(net, ["0", "output"])(batch)
    assert shown["0.mask"].sum(1).tolist() == shown["output.mask"].sum(1).tolist() == [2, 7, 1, 3, 4]
    assert shown["0.mask"].shape == (5, 9) and "spans" not in shown
    cut = nn.Sequential(nn.Linear(3, 4))
    cut.forward = lambda inputs: cut[0](inputs[:, :7])  # type: ignore[method-assign]
    assert read(cut, ["0"])(batch)["0.mask"].shape == (5, 7)
    cut.forward = lambda inputs: cut[0](inputs[:, :6])  # type: ignore[method-assign]
    assert set(read(cut, ["0"])(batch)) == {"0"}, "other steps than those that were counted"


def test_nothing_is_known_of_the_time_of_an_image():
    assert timing({"id": BATCH["id"], "inputs": torch.zeros(5, 3, 8, 8)}, "inputs", None).mask(3) is None
    assert set(read(nn.Conv2d(3, 4, 1), ["output"])({"id": BATCH["id"], "inputs": torch.zeros(5, 3, 8, 8)})) == {
        "output"
    }


class Texts:
    """A source of the texts above."""

    classes, fingerprint = ("no", "yes"), "texts"
    splits = {"train": torch.arange(5)}

    def __len__(self):
        return len(TEXTS)

    def batch(self, ids):
        return batch_of(ids[:, 0].tolist())

    def hashes(self, examples):
        return examples.numpy().astype("uint64")

    def show(self, example):
        return TEXTS[example]


def test_a_store_keeps_the_steps_of_every_batch_and_their_spans(tmp_path):
    taps = ["logits", "embed", "lstm@h", "lstm@c/4"]
    live, data = Live(Net(), taps, encode=Words()), Texts()
    record(live, data, tmp_path / "store", taps=taps, batch=2, fingerprints={"teacher": "t", "data": "d"})
    store = Store.open(tmp_path / "store")
    assert store.manifest.signals["lstm@h"].axes == ("time", "layer", "direction", "unit")
    shown, back = live(BATCH), store(BATCH)
    assert set(back) == set(shown)
    for name in ("embed", "lstm@h", "lstm@c", "spans"):
        mask = shown[f"{name}.mask"]
        assert torch.equal(back[f"{name}.mask"], mask)
        assert torch.allclose(back[name][mask].float(), shown[name][mask].float(), atol=2e-3)
    assert set(store.use(["lstm@h"])(BATCH)) == {"lstm@h", "lstm@h.mask", "spans", "spans.mask"}
    assert set(store.use(["embed", "spans"]).signals) == {"embed", "spans"}
    assert store.use(["logits"]).signals == ("logits",), "what does not run along time needs no spans"
    assert store.use(["logits"]).bank(["logits"], BATCH, rows=2, seed=0, step=0)["logits.bank"].shape == (2, 2)


def test_spans_of_several_teachers_stay_with_their_own(tmp_path):
    from stillroom.teachers import Together

    teacher = Together({"a": Live(Net(), ["embed"], encode=Words()), "b": Live(Net(), ["embed"], encode=Words())})
    record(teacher, Texts(), tmp_path / "store", batch=2, fingerprints={"teacher": "t", "data": "d"})
    assert Store.open(tmp_path / "store").use(["b/embed"]).signals == ("b/embed", "b/spans")
