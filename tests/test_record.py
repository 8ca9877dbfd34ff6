"""Recording is whole or resumable, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stillroom.errors import DataError, StoreError, UserError
from stillroom.randomness import row_hashes
from stillroom.record import estimate, record
from stillroom.store import Store
from stillroom.teachers import Live

SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    from stillroom.randomness import row_hashes
    from stillroom.record import record


    class Rows:
        classes = None
        fingerprint = "rows"

        def __init__(self, count=50):
            self.inputs = torch.arange(count * 3).view(count, 3).float() / 7
            self.splits = {"train": torch.arange(count - 10), "test": torch.arange(count - 10, count)}

        def __len__(self):
            return len(self.inputs)

        def batch(self, ids):
            return {"id": ids, "inputs": self.inputs[ids[:, 0]] + ids[:, 1:]}

        def hashes(self, examples):
            return row_hashes(self.inputs[examples].numpy())


    asked = []


    def teacher(batch):
        asked.append(batch["id"])
        return {"logits": batch["inputs"] * 2, "features": batch["inputs"].half()}


    OPTIONS = {"views": 2, "batch": 7, "rows_per_shard": 20, "fingerprints": {"teacher": "t"}}
    if __name__ == "__main__":
        record(teacher, Rows(), sys.argv[1], **OPTIONS, rank=int(sys.argv[2]), world=int(sys.argv[3]))
    """
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "recording.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def parts(script):
    space = {"__name__": "recording"}
    exec(compile(script.read_text(), str(script), "exec"), space)
    return SimpleNamespace(**space)


def start(script: Path, folder: Path, rank=0, world=1, fault="") -> subprocess.Popen:
    source = str(Path(__file__).parents[1] / "src")
    environment = {**os.environ, "STILLROOM_FAULT": fault, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(folder), str(rank), str(world)], env=environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_recording_killed_anywhere_goes_on_to_the_same_bytes(script, parts, tmp_path):
    record(parts.teacher, parts.Rows(), tmp_path / "whole", **parts.OPTIONS)
    whole = contents(tmp_path / "whole")
    points = {
        "record:batch:5": 1,
        "file:opened:4": 1,
        "record:shard:2": 1,
        "record:committed:3": 3,
        "record:manifest": 5,
        "record:done": 5,
    }
    running = {fault: start(script, tmp_path / fault.replace(":", "-"), fault=fault) for fault in points}
    for fault, kept in points.items():
        folder = tmp_path / fault.replace(":", "-")
        assert running[fault].wait(timeout=60) == -9, fault
        if fault != "record:done":
            with pytest.raises(StoreError, match="partly recorded"):
                Store.open(folder)
        parts.asked.clear()
        record(parts.teacher, parts.Rows(), folder, **parts.OPTIONS)
        rows = sum(len(ids) for ids in parts.asked)
        # one small batch to learn what a row weighs; and a row of each shard that is kept: is it the same teacher's?
        again = 7 + kept if fault != "record:done" else 8
        assert rows == max(0, 90 - 20 * kept) + again, fault
        found = {name: data for name, data in contents(folder).items() if not name.endswith(".part")}
        assert found == whole, fault


def test_a_whole_store_asks_the_teacher_eight_rows(parts, tmp_path):
    record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS)
    parts.asked.clear()
    record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS)
    assert [len(ids) for ids in parts.asked] == [8]


def test_two_ranks_write_one_store(script, parts, tmp_path):
    record(parts.teacher, parts.Rows(), tmp_path / "whole", **parts.OPTIONS)
    ranks = [start(script, tmp_path / "shared", rank, 2) for rank in (1, 0)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_ranks_one_after_the_other(parts, tmp_path):
    def run(rank):
        return record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS, rank=rank, world=2, wait=0)

    with pytest.raises(StoreError, match="waits in vain for rank 0"):
        run(1)
    with pytest.raises(StoreError, match="not whole yet.*shard-00001.parquet, shard-00003.parquet"):
        run(0)
    assert len(run(1)) == 90


def test_order_inside_a_shard_changes_what_is_asked_together_and_nothing_else(parts, tmp_path):
    plain = record(parts.teacher, parts.Rows(), tmp_path / "plain", **parts.OPTIONS)
    parts.asked.clear()
    record(parts.teacher, parts.Rows(), tmp_path / "sorted", **parts.OPTIONS, order_by=lambda examples: -examples)
    assert parts.asked[1][:, 0].tolist() == sorted(parts.asked[1][:, 0].tolist(), reverse=True)
    assert contents(tmp_path / "sorted") == contents(plain.folder)


def test_order_with_rows_of_varying_length(parts, tmp_path):
    def teacher(batch):
        mask = torch.arange(4) < (batch["id"][:, :1] % 5)
        return {"x": batch["inputs"][:, :1].repeat(1, 4), "x.mask": mask}

    stores = [
        record(teacher, parts.Rows(), tmp_path / name, **parts.OPTIONS, order_by=order)
        for name, order in (("a", None), ("b", lambda examples: examples % 5))
    ]
    ids = stores[0].rows("train")
    one, two = (store({"id": ids}) for store in stores)
    assert torch.equal(one["x"], two["x"]) and torch.equal(one["x.mask"], two["x.mask"])


def test_another_plan_moves_the_old_store_away(parts, tmp_path):
    folder = tmp_path / "s"
    before = contents(record(parts.teacher, parts.Rows(), folder, **parts.OPTIONS).folder)
    record(parts.teacher, parts.Rows(), folder, **{**parts.OPTIONS, "fingerprints": {"teacher": "another"}})
    assert contents(tmp_path / "old" / "s-1") == before
    assert Store.open(folder).manifest.fingerprints["teacher"] == "another"


def test_a_deleted_shard_alone_is_recorded_anew(parts, tmp_path):
    store = record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS)
    before = contents(store.folder)
    (store.folder / "shard-00003.parquet").unlink()
    parts.asked.clear()
    record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS)
    assert [len(ids) for ids in parts.asked] == [4, 7, 7, 7, 6]  # a row of each other shard, an example, this one
    assert contents(store.folder) == before


def test_compression_changes_the_size_not_the_answer(parts, tmp_path):
    plain = record(parts.teacher, parts.Rows(2000), tmp_path / "plain", **{**parts.OPTIONS, "rows_per_shard": 2000})
    small = record(
        parts.teacher, parts.Rows(2000), tmp_path / "s", **parts.OPTIONS | {"rows_per_shard": 2000}, compression="zstd"
    )
    assert small.manifest.bytes < plain.manifest.bytes
    ids = plain.rows("train")
    assert torch.equal(plain({"id": ids})["features"], small({"id": ids})["features"])


# --- refusals ---------------------------------------------------------------------------------------------------


def test_nan_names_the_examples_and_keeps_what_was_whole(parts, tmp_path):
    source = parts.Rows()
    source.inputs[[33, 35], 1] = float("nan")
    with pytest.raises(StoreError, match=r"not finite: got NaN or infinity for examples 33, 33 \(view 1\), 35, 35"):
        record(parts.teacher, source, tmp_path / "s", **{**parts.OPTIONS, "batch": 20})
    assert [path.name for path in sorted((tmp_path / "s").glob("*.parquet"))] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
        "shard-00002.parquet",
    ]


@pytest.mark.parametrize("name", ["logits", "x", "x@gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_form_of_storing_hides_what_is_not_finite(parts, tmp_path, name, value):
    def teacher(batch):
        answer = torch.rand(len(batch["id"]), 1200)
        answer[batch["id"][:, 0] == 4, 7] = value
        return {name: answer}

    for dtypes in ({}, {name: "float32"}, {name: "int32"}):
        with pytest.raises(StoreError, match="not finite: got NaN or infinity for examples 4"):
            record(teacher, parts.Rows(), tmp_path / "s", dtypes=dtypes)


def test_a_value_too_large_for_half_precision_names_the_cure(parts, tmp_path):
    def teacher(batch):
        return {"features": batch["inputs"] + 1e6 * (batch["id"][:, :1] == 2)}

    with pytest.raises(StoreError, match="too large for float16.*examples 2.*dtypes={'features': 'float32'}"):
        record(teacher, parts.Rows(), tmp_path / "s")
    assert len(record(teacher, parts.Rows(), tmp_path / "t", dtypes={"features": "float32"})) == 50


def test_what_does_not_fit_is_refused_with_both_numbers(parts, tmp_path, monkeypatch):
    need = estimate(parts.teacher, parts.Rows(), **parts.OPTIONS)
    assert need.rows == 90 and need.bytes == 90 * (12 + 6 + 21) and need.by_signal == {"features": 6, "logits": 12}
    with pytest.raises(StoreError, match="90 rows need 3,510 bytes, the limit is 3,000 bytes. Most is 'logits'"):
        record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS, limit=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(
        StoreError, match="does not fit on the disk: 90 rows need 3,510 more bytes, .* has 1,000 bytes free"
    ):
        record(parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS)
    assert not list((tmp_path / "s").glob("shard*"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda b: {}, "showed nothing"),
        (lambda b: {"x": torch.ones(3, 2)}, r"one row an example: got \(3, 2\)"),
        (lambda b: {"x": [1.0]}, "one row an example: got list"),
        (lambda b: {"x": torch.ones(len(b["id"]), 1 + int(b["id"].max() > 30))}, "changed its shape.*mask"),
        (lambda b: {"x": b["inputs"]} | ({"y": b["inputs"]} if b["id"].max() > 30 else {}), "same signals on every"),
        (lambda b: {"x": b["inputs"], "x.mask": torch.ones(len(b["id"]), 2)}, "mask of signal 'x' does not fit"),
        (lambda b: {"x": torch.ones(len(b["id"]), 0)}, "is empty"),
        (lambda b: {"x": b["inputs"].to(torch.complex64)}, "dtype that cannot be stored"),
    ],
)
def test_a_teacher_that_cannot_be_recorded(parts, tmp_path, answer, message):
    with pytest.raises(StoreError, match=message):
        record(answer, parts.Rows(), tmp_path / "s", batch=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": 2}, "no such option.*Did you mean 'views'"),
        ({"views": 0}, "'views': got 0"),
        ({"splits": ["trian"]}, "no such split.*Did you mean 'train'"),
        ({"ids": [3, 99]}, "no such examples"),
        ({"ids": []}, "nothing to record"),
        ({"dtypes": {"logit": "float32"}}, "Did you mean 'logits'"),
        ({"dtypes": {"logits": "float31"}}, "Did you mean 'float32'"),
        ({"rank": 2, "world": 2}, "no such rank"),
        ({"compression": "zip"}, "cannot be compressed so"),
        ({"fingerprints": {"pupil": "x"}}, "no such fingerprint"),
    ],
)
def test_wrong_options(parts, tmp_path, options, message):
    with pytest.raises(StoreError, match=message):
        record(parts.teacher, parts.Rows(), tmp_path / "s", **options)
    assert not list(tmp_path.rglob("*.parquet"))


def test_splits_that_overlap_are_refused(parts, tmp_path):
    source = parts.Rows()
    source.splits["test"] = torch.arange(38, 50)
    with pytest.raises(StoreError, match="Splits overlap: examples 38, 39"):
        record(parts.teacher, source, tmp_path / "s")


def test_a_folder_that_cannot_be_made(parts, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Could not write"):
        record(parts.teacher, parts.Rows(), tmp_path / "file" / "s")


def test_progress_is_told_and_the_hash_of_each_row_kept(parts, tmp_path):
    told = []
    store = record(
        parts.teacher, parts.Rows(), tmp_path / "s", **parts.OPTIONS, progress=lambda *seen: told.append(seen)
    )
    assert told[-1] == (90, 90, "rows")
    kept = torch.cat([torch.from_numpy(part.astype("int64")) for part in store._shelf.key("hash")])
    want = row_hashes(parts.Rows().inputs[store._shelf.index.ids(torch.arange(90).numpy())[:, 0]].numpy())
    assert torch.equal(kept, torch.from_numpy(want.astype("int64")))


def test_another_teacher_is_never_answered_with_the_store_of_the_first(parts, tmp_path):
    first, second = (torch.nn.Linear(3, 2) for _ in range(2))
    live = [Live(network, ["logits"]) for network in (first, second)]
    batch = {"id": torch.tensor([[0, 0], [7, 0]])}
    before = record(live[0], parts.Rows(), tmp_path / "store")(batch)["logits"]
    after = record(live[1], parts.Rows(), tmp_path / "store")(batch)["logits"]
    assert not torch.equal(before, after)
    assert (tmp_path / "old" / "store-1").is_dir()


def test_answers_in_bfloat16_are_another_teachers(parts, tmp_path):
    network = torch.nn.Linear(3, 2)
    prints = [
        record(Live(network, ["logits"], precision=precision), parts.Rows(), tmp_path / "store").manifest.fingerprints
        for precision in ("float32", "bf16", "bf16")
    ]
    assert prints[0]["teacher"] != prints[1]["teacher"] == prints[2]["teacher"]
    assert [place.name for place in (tmp_path / "old").iterdir()] == ["store-1"]


def test_a_teacher_without_a_name_is_known_by_its_answers(parts, tmp_path):
    def other(batch):
        return {name: value + 1 for name, value in parts.teacher(batch).items()}

    record(parts.teacher, parts.Rows(), tmp_path / "store")
    record(parts.teacher, parts.Rows(), tmp_path / "store")
    assert not (tmp_path / "old").exists()
    store = record(other, parts.Rows(), tmp_path / "store")
    assert (tmp_path / "old" / "store-1").is_dir() and "asked anew" in store.manifest.notes[0]


def test_arrays_are_no_source(tmp_path):
    with pytest.raises(DataError, match=r"This is no source: got tuple.*as_source"):
        record(lambda batch: {}, (torch.zeros(2, 2), torch.zeros(2)), tmp_path / "s")
    assert not (tmp_path / "s").exists()
