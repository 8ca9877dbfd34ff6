"""A store answers as the teacher did, and says so where it cannot."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.errors import StoreError
from stillroom.randomness import row_hashes
from stillroom.record import record
from stillroom.store import Store, export_columns, inspect, list_stores, prune, verify
from stillroom.store.encoding import DTYPES, encode, lay_out
from stillroom.store.store import _sample

PRINTS = {"teacher": "net-1", "data": "rows-1", "transform": "plain"}


class Rows:
    """A source of ``count`` rows: 0 .. a half for training, then validation, then test."""

    classes = ["cat", "dog", "owl"]
    fingerprint = "rows-1"

    def __init__(self, count=40, seed=0):
        self.inputs = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
        first, second = count // 2, count * 3 // 4
        self.splits = {
            "train": torch.arange(first),
            "validation": torch.arange(first, second),
            "test": torch.arange(second, count),
        }

    def __len__(self):
        return len(self.inputs)

    def batch(self, ids):
        return {"id": ids, "inputs": self.inputs[ids[:, 0]] + ids[:, 1:]}

    def hashes(self, examples):
        return row_hashes(self.inputs[examples].numpy())

    def show(self, example):
        return str(self.inputs[example])


def logits(batch):
    return {"logits": batch["inputs"][:, :3] * 5}


def boxes(batch):
    """0 .. 4 boxes a row, padded with rubbish that must not come back."""
    counts = batch["id"][:, 0] % 5
    length = int(counts.max()) if len(counts) else 0
    mask = torch.arange(length) < counts[:, None]
    filled = (batch["inputs"][:, None, :] + torch.arange(length)[:, None]).masked_fill(~mask[..., None], float("nan"))
    classes = (batch["id"][:, :1] + torch.arange(length)).int()
    return {"boxes": filled, "boxes.mask": mask, "classes": classes, "classes.mask": mask}


def both(batch):
    return logits(batch) | boxes(batch) | {"features": batch["inputs"]}


def pairs(*examples, view=0):
    return torch.tensor([[example, view] for example in examples])


@pytest.fixture
def make(tmp_path):
    def build(teacher=logits, source=None, name="store", **options):
        options = {"fingerprints": PRINTS, "batch": 8, "rows_per_shard": 16, **options}
        return record(teacher, source or Rows(), tmp_path / name, **options)

    return build


# --- round trips -----------------------------------------------------------------------------------


def test_every_dtype_comes_back_as_it_was_stored(make):
    values = torch.linspace(-3, 3, 40).view(40, 1) * torch.ones(1, 6)

    def teacher(batch):
        picked = values[batch["id"][:, 0]]
        return {f"as.{name}": picked.abs().to(kind) for name, kind in DTYPES.items()}

    store = make(teacher, dtypes={f"as.{name}": name for name in DTYPES})
    ids = pairs(31, 0, 17, 17)
    back = store({"id": ids})
    for name, kind in DTYPES.items():
        want = values[ids[:, 0]].abs().to(kind)
        wide = want.float() if kind in (torch.float16, torch.bfloat16) else want
        assert store.manifest.signals[f"as.{name}"].dtype == name
        assert back[f"as.{name}"].dtype == wide.dtype and torch.equal(back[f"as.{name}"], wide), name


def test_a_bfloat16_signal_keeps_its_bits_and_other_floats_become_halves(make):
    store = make(lambda batch: {"a": batch["inputs"].bfloat16(), "b": batch["inputs"], "c": batch["inputs"].double()})
    assert {name: column.dtype for name, column in store.manifest.signals.items()} == {
        "a": "bfloat16",
        "b": "float16",
        "c": "float16",
    }


@pytest.mark.parametrize("classes", [3, 1000, 1001])
def test_logits_are_exact_up_to_1000_classes_and_exact_enough_above(make, classes):
    table = torch.randn(40, classes, generator=torch.Generator().manual_seed(1)) * 20
    store = make(lambda batch: {"logits": table[batch["id"][:, 0]]})
    back = store({"id": store.rows("train")})["logits"]
    if classes <= 1000:
        assert torch.equal(back, table[:20])
    else:
        assert store.manifest.signals["logits"].form == "shifted"
        assert (back.softmax(1) - table[:20].softmax(1)).abs().max() < 1e-3


def test_gradients_of_any_size_keep_their_direction_and_norm(make):
    scale = 10.0 ** torch.arange(-20, 20).float()
    scale[5] = 0

    def teacher(batch):
        return {"logits@gradient": batch["inputs"] * scale[batch["id"][:, 0]][:, None]}

    source = Rows()
    store = make(teacher, source)
    back = store(source.batch(pairs(*range(40))))
    assert list(back) == ["logits@gradient"]
    want = source.inputs * scale[:, None]
    assert torch.allclose(back["logits@gradient"], want, rtol=2e-3, atol=0)
    assert torch.allclose(store.use("logits@gradient.norm")({"id": pairs(7)})["logits@gradient.norm"], want[7].norm())


def test_rows_with_no_one_and_many_boxes(make):
    source = Rows()
    store = make(boxes, source)
    for examples in ([0, 1, 4], [5, 10], [3], [39, 0]):
        ids = pairs(*examples)
        live, back = boxes(source.batch(ids)), store({"id": ids})
        assert torch.equal(back["boxes.mask"], live["boxes.mask"])
        assert torch.allclose(back["boxes"], live["boxes"].nan_to_num(0.0), atol=4e-3)
        assert torch.equal(back["classes"], live["classes"].masked_fill(~live["classes.mask"], 0))
        assert back["classes"].dtype == torch.int32


def test_all_rows_without_boxes(make):
    def teacher(batch):
        return {"boxes": torch.zeros(len(batch["id"]), 0, 4), "boxes.mask": torch.zeros(len(batch["id"]), 0).bool()}

    back = make(teacher)({"id": pairs(3, 4)})
    assert back["boxes"].shape == (2, 0, 4) and back["boxes.mask"].shape == (2, 0)


def test_what_a_mask_leaves_out_is_not_kept_wherever_it_lies(make):
    def teacher(batch):
        values = torch.arange(5).repeat(len(batch["id"]), 1) + 10 * batch["id"][:, :1]
        mask = torch.tensor([False, True, False, True, True]).repeat(len(values), 1)
        return {"tokens": values, "tokens.mask": mask}

    back = make(teacher)({"id": pairs(0, 2)})
    assert back["tokens"].tolist() == [[1, 3, 4], [21, 23, 24]] and back["tokens.mask"].all()


def test_attention_maps_that_vary_along_two_axes(make):
    def teacher(batch):
        lengths = batch["id"][:, 0] % 3 + 1
        longest = int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]
        maps = torch.rand(len(lengths), 2, longest, longest, generator=torch.Generator().manual_seed(0))
        maps = maps + batch["id"][:, 0].view(-1, 1, 1, 1)
        return {"mha@attention": maps, "mha@attention.mask": mask}

    ids = torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.int64)], 1)
    store = make(teacher, batch=40, rows_per_shard=64, dtypes={"mha@attention": "float32"})
    assert store.manifest.signals["mha@attention"].shape == (2, None, None)
    live, back = teacher({"id": ids}), store({"id": ids})
    inside = (live["mha@attention.mask"][:, None, :, None] & live["mha@attention.mask"][:, None, None, :]).expand(
        -1, 2, -1, -1
    )
    assert torch.equal(back["mha@attention"], live["mha@attention"].masked_fill(~inside, 0))
    short = store({"id": pairs(3, 0)})
    assert short["mha@attention"].shape == (2, 2, 1, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_and_order_comes_back(tmp_path, data):
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12)))
    order = torch.tensor(data.draw(st.permutations(range(12))))
    values = torch.rand(12, 3, *shape, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.arange(3) < lengths[:, None]

    def teacher(batch):
        rows = batch["id"][:, 0]
        return {"plain": values[rows, 0], "varying": values[rows], "varying.mask": mask[rows]}

    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    rows_per_shard, batch = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
    wide = {"plain": "float64", "varying": "float64"}
    budget = data.draw(st.sampled_from([0, 10**9]))
    record(teacher, Rows(12), tmp_path / "any", rows_per_shard=rows_per_shard, batch=batch, dtypes=wide)
    back = Store.open(tmp_path / "any", budget=budget)({"id": torch.stack([order, order * 0], 1)})
    longest = int(lengths.max())
    assert torch.equal(back["plain"], values[order, 0])
    assert torch.equal(back["varying.mask"], mask[order][:, :longest])
    outside = ~mask.view(12, 3, *[1] * len(shape))
    assert torch.equal(back["varying"], values.masked_fill(outside, 0)[order][:, :longest])


# --- views, ids, columns chosen ------------------------------------------------------------------------


def test_views_are_of_training_rows_only_and_found_by_id(make):
    source = Rows()
    store = make(logits, source, views=3)
    assert (
        len(store) == 20 * 3 + 20 and store.views == 3 and store.splits == {"train": 60, "validation": 10, "test": 10}
    )
    ids = torch.tensor([[4, 2], [4, 0], [30, 0], [19, 1]])
    assert torch.equal(store({"id": ids})["logits"], logits(source.batch(ids))["logits"])
    for row in ([30, 1], [4, 3], [-1, 0], [4, -1], [40, 0]):
        with pytest.raises(StoreError, match="does not know these examples"):
            store({"id": torch.tensor([[0, 0], row])})


def test_an_id_that_is_not_there_is_named(make):
    store = make()
    with pytest.raises(StoreError, match=r"44, 45 \(view 2\)\. It holds 40 rows"):
        store({"id": torch.tensor([[1, 0], [44, 0], [45, 2]])})
    with pytest.raises(StoreError, match=r"3 \(view 1\)"):
        store({"id": torch.tensor([[3, 1]])})
    with pytest.raises(StoreError, match="int64"):
        store({"id": torch.tensor([1, 2])})


def test_a_subset_of_examples_can_be_recorded(make):
    source = Rows()
    store = make(logits, source, ids=[25, 3, 11, 39, 4])
    assert torch.equal(store.rows("train")[:, 0], torch.tensor([3, 4, 11]))
    assert torch.equal(store({"id": pairs(39, 4)})["logits"], logits(source.batch(pairs(39, 4)))["logits"])
    with pytest.raises(StoreError, match="examples: 5, 26"):
        store({"id": pairs(5, 3, 26)})


def test_a_dense_range_that_does_not_begin_at_0(make):
    source = Rows()
    store = make(logits, source, splits=["test"])
    assert torch.equal(store({"id": pairs(35, 30)})["logits"], logits(source.batch(pairs(35, 30)))["logits"])
    with pytest.raises(StoreError, match="29"):
        store({"id": pairs(29)})


def test_the_tap_of_a_memory_means_what_it_gave(tmp_path):
    states = {"lstm@h": torch.zeros(1, 6, 1, 1, 2), "lstm@c": torch.ones(1, 2, 1, 1, 2)}

    def remembers(batch):
        return {name: value.expand(len(batch["id"]), *value.shape[1:]) for name, value in states.items()}

    kept = record(remembers, Rows(), tmp_path / "store", taps=["lstm@h", "lstm@c/3"], fingerprints=PRINTS)
    for names in ("lstm@state/3", ["lstm@h", "lstm@c/3"], ["lstm@h", "lstm@c"]):
        assert set(kept.use(names)({"id": pairs(0, 1)})) == {"lstm@h", "lstm@c"}
    with pytest.raises(StoreError, match=r"cells at other borders: got 'lstm@c/4'.*lstm@c/3"):
        kept.use("lstm@c/4")
    with pytest.raises(StoreError, match="does not hold this signal: got 'gru@h'"):
        kept.use("gru@h")
    nameless = record(remembers, Rows(), tmp_path / "nameless", fingerprints=PRINTS)
    assert nameless.use("lstm@c/4").signals == ("lstm@c",), "nobody said where the borders were"


def test_only_the_signals_in_use_are_decoded_and_shared(make, monkeypatch):
    store = make(both)
    few = store.use(["logits", "boxes.mask"])
    assert few.signals == ("logits", "boxes") and set(few({"id": pairs(1)})) == {"logits", "boxes", "boxes.mask"}
    assert not store._shelf.has("features")
    assert few.use("logits")._shelf is store._shelf
    with pytest.raises(StoreError, match="Did you mean 'features'"):
        store.use(["feature"])


def test_logits_take_three_operators_a_batch(make):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.seen += 1
            return function(*args, **(kwargs or {}))

    store, batch = make().use("logits").decode(), {"id": pairs(1, 2, 3)}
    with Count():
        store(batch)
    assert Count.seen <= 3


def test_the_mapped_path_equals_the_path_in_memory_and_leaves_no_file(make):
    store = make(both, views=2)
    mapped = Store.open(store.folder, budget=0)
    ids = store.rows("train")[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    here, there = store({"id": ids}), mapped({"id": ids})
    assert set(here) == set(there) and all(torch.equal(here[name], there[name]) for name in here)
    assert not list(store.folder.glob(".decoded-*"))
    there["logits"].zero_()  # what is handed out is a copy
    assert torch.equal(mapped({"id": ids})["logits"], here["logits"])


# --- bank, derive -------------------------------------------------------------------------------------


def test_a_bank_belongs_to_seed_and_step_and_masks_own_rows(make):
    source = Rows()
    store = make(logits, source)
    one, other = {"id": pairs(1, 30, 2)}, {"id": pairs(7)}
    bank = store.bank(["logits"], one, rows=20, seed=3, step=5)
    assert torch.equal(bank["logits.bank"], store.bank(["logits"], other, rows=20, seed=3, step=5)["logits.bank"])
    assert not torch.equal(bank["logits.bank"], store.bank(["logits"], one, rows=20, seed=3, step=6)["logits.bank"])
    train = logits(source.batch(store.rows("train")))["logits"]
    assert torch.equal(bank["logits.bank"].sort(0).values, train.sort(0).values), "20 of 20 rows, none twice"
    mask = bank["logits.bank.mask"]
    assert mask.shape == (3, 20) and mask.sum(1).tolist() == [19, 20, 19]
    own = bank["logits.bank"][~mask[0]]
    assert torch.equal(own, train[1:2])


def test_a_bank_masks_all_views_of_the_same_example(make):
    store = make(views=3)
    mask = store.bank(["logits"], {"id": pairs(1, 2, view=1)}, rows=60, seed=0, step=1)["logits.bank.mask"]
    assert mask.sum(1).tolist() == [57, 57]


@pytest.mark.parametrize(("count", "rows"), [(1000, 64), (100, 60), (10, 10), (3, 8)])
def test_bank_rows_come_once_where_there_are_enough(count, rows):
    drawn = _sample(count, rows, 0, 1)
    assert len(drawn) == rows and drawn.min() >= 0 and drawn.max() < count
    assert len(np.unique(drawn)) == rows if rows <= count else len(np.unique(drawn)) <= count


def test_a_bank_of_varying_rows_is_refused(make):
    with pytest.raises(StoreError, match="cannot stand in a bank"):
        make(boxes).bank(["boxes"], {"id": pairs(0)}, rows=2, seed=0, step=0)


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_derived_signal_is_made_once_and_returned(make, budget):
    calls = []

    def soften(values):
        calls.append(len(values))
        return (values / 4).softmax(1)

    store = Store.open(make().folder, budget=budget).use("logits")
    store.derive("soft@4", "logits", soften).derive("soft@4", "logits", soften)
    back = store({"id": pairs(5, 2)})
    assert calls == [1, 40] and torch.allclose(back["soft@4"], (back["logits"] / 4).softmax(1))
    assert set(store.use("soft@4")({"id": pairs(5)})) == {"soft@4"}
    with pytest.raises(StoreError, match="recorded"):
        store.derive("logits", "logits", soften)
    with pytest.raises(StoreError, match="does not hold"):
        store.derive("x", "nothing", soften)


# --- trust ----------------------------------------------------------------------------------------------


def flip(path, place=-200):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_byte_is_found_in_its_shard_and_mended_by_recording_again(make):
    store = make()
    before = store({"id": store.rows("test")})["logits"]
    shard = store.folder / "shard-00001.parquet"
    flip(shard, 100)
    with pytest.raises(StoreError, match=r"shard-00001\.parquet.*only this shard is recorded anew"):
        store.verify()
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.folder, verify=True)
    shard.unlink()
    assert torch.equal(make()({"id": store.rows("test")})["logits"], before)
    assert verify(store.folder)["shards"] == 3


def test_a_store_is_verified_when_it_is_opened_unless_it_is_said_otherwise(make):
    store = make()
    flip(store.folder / "shard-00001.parquet", 100)
    with pytest.raises(StoreError, match=r"shard-00001\.parquet \(SHA-256"):
        Store.open(store.folder)
    assert len(Store.open(store.folder, verify=False)) == 40
    with pytest.raises(StoreError, match="damaged"):
        verify(store.folder)


def test_what_changes_after_a_store_was_opened_is_seen_when_a_column_is_read(make):
    make()
    store = Store.open(make().folder)
    flip(store.folder / "shard-00001.parquet", 100)
    with pytest.raises(StoreError, match="damaged"):
        store({"id": pairs(1)})


def test_a_column_whose_name_is_no_text_is_damage_whether_verified_or_not(make):
    store = make()
    shard = store.folder / "shard-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"example", b"ex\xffmple"))
    for trusting in (True, False):
        with pytest.raises(StoreError, match="damaged"):
            Store.open(store.folder, verify=not trusting)


def test_a_shard_changed_before_the_store_was_whole_is_recorded_again(make):
    store = make()
    before = store({"id": store.rows("test")})["logits"]
    (store.folder / "manifest.json").unlink()
    flip(store.folder / "shard-00002.parquet", 100)
    flip(store.folder / "shard-00001.json", 40)
    again = make()
    assert torch.equal(again({"id": again.rows("test")})["logits"], before) and verify(again.folder)["shards"] == 3


def test_a_damaged_store_is_mended_by_recording_again(make):
    store = make()
    files = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    flip(store.folder / "shard-00001.parquet", 100)
    flip(store.folder / "manifest.json", 100)
    make()
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == files


WRONG = {
    "lacks a size": (lambda m: m["shards"][0]["sizes"].pop("logits"), "differ in logits"),
    "another type": (lambda m: m["signals"]["logits"].update(dtype="flmat32"), "'flmat32', allowed: float64"),
    "a size": (lambda m: m["shards"][1]["sizes"].update(logits=7), r"cannot have 7 bytes of 'logits' in 16 rows of 12"),
    "a shape": (lambda m: m["signals"]["logits"].update(shape=[-3]), "shape below 0"),
    "no norms": (lambda m: m["signals"]["logits"].update(form="unit"), "lacks its norms"),
    "rows": (lambda m: m.update(rows=300), "40 rows, not 300"),
    "a shard less": (lambda m: m["shards"].pop(), "32 rows, not 40"),
    "above": (lambda m: m["shards"][0].update(file="../shard-00000.parquet"), "a name of its own inside the folder"),
    "elsewhere": (lambda m: m["shards"][0].update(file="/etc/passwd"), "a name of its own inside the folder"),
    "twice": (lambda m: m["shards"][1].update(file="shard-00000.parquet"), "a name of its own"),
    "order": (lambda m: m["shards"].reverse(), "another order"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_is_held_against_itself(make, case):
    change, words = WRONG[case]
    folder = make().folder
    shutil.copy(folder / "shard-00000.parquet", folder.parent)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="manifest of the store is damaged.*does not match its checksum"):
        Store.open(folder)
    del manifest["checksum"]  # as those were that were written before there was one
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for look in (Store.open, inspect, verify):
        with pytest.raises(StoreError, match=f"manifest of the store is damaged.*{words}"):
            look(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"rows": ' + "9" * 5_000 + "}"])
def test_a_manifest_too_deep_or_too_long_for_json_is_damaged(make, content):
    folder = make().folder
    (folder / "manifest.json").write_text(content)
    with pytest.raises(StoreError):
        Store.open(folder)


def test_a_shard_that_is_a_link_out_of_the_folder_is_not_followed(make):
    folder = make().folder
    shard = folder / "shard-00001.parquet"
    shard.rename(folder.parent / shard.name)
    shard.symlink_to(folder.parent / shard.name)
    with pytest.raises(StoreError, match=r"shard-00001\.parquet is a link that leads out"):
        Store.open(folder)


def test_a_missing_or_cut_shard_is_named(make):
    store = make()
    shard = store.folder / "shard-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(StoreError, match="shard-00002.parquet has"):
        Store.open(store.folder)
    shard.unlink()
    with pytest.raises(StoreError, match="shard-00002.parquet is not in .*record"):
        Store.open(store.folder)


def test_a_shard_that_is_no_parquet_is_damaged_not_a_traceback(make):
    store = make()
    shard = store.folder / "shard-00000.parquet"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.folder)


def test_what_is_not_a_store_says_so(tmp_path, make):
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="not a store"):
        Store.open(tmp_path)
    folder = make().folder
    manifest = folder / "manifest.json"
    good = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "checksum"}
    manifest.write_text(json.dumps(good | {"schema_version": 99}))
    with pytest.raises(StoreError, match="another schema"):
        Store.open(folder)
    manifest.write_text(json.dumps(good | {"rows": "many"}))
    with pytest.raises(StoreError, match="manifest of the store is damaged.*rows"):
        Store.open(folder)
    manifest.write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        Store.open(folder)
    manifest.unlink()
    with pytest.raises(StoreError, match="only partly recorded: .* has 3 whole shards"):
        Store.open(folder)
    assert inspect(folder)["complete"] is False


def test_another_teacher_data_or_transform_is_named(make):
    store = make()
    store.check(teacher_fingerprint="net-1", data_fingerprint="rows-1", transform_fingerprint="plain")
    for side in ("teacher", "data", "transform"):
        with pytest.raises(StoreError, match=f"another {side}: got other, recorded with {PRINTS[side]}"):
            store.check(**{f"{side}_fingerprint": "other"})
    make(name="unsigned", fingerprints={}).check(teacher_fingerprint="any")  # nothing was noted, nothing is compared


def test_row_hashes_decide_about_the_data(make):
    store, source = make(), Rows()
    store.check(source, data_fingerprint="an extended set")
    source.inputs[[3, 17]] += 1
    with pytest.raises(StoreError, match="other data: examples 3, 17 are not"):
        store.check(source)
    source = Rows()
    source.classes = ["cat", "dog", "rat"]
    with pytest.raises(StoreError, match="other classes"):
        store.check(source)


def test_the_canary_tells_another_teacher(make):
    source, store = Rows(), make(both)
    store.check(source, canary=both)
    with pytest.raises(StoreError, match="not the teacher that was recorded: 'logits'"):
        store.check(source, canary=lambda batch: both(batch) | {"logits": batch["inputs"][:, :3] * 6})
    store.check(source, canary=logits)  # a teacher that shows less is compared in what it shows


def test_rows_of_another_split_are_refused_for_training(make):
    store = make()
    store.require(torch.arange(20))
    with pytest.raises(StoreError, match="examples 25, 26 were recorded as 'validation'"):
        store.require(torch.tensor([1, 25, 26]))
    with pytest.raises(StoreError, match="does not know these examples: 44"):
        store.require(torch.tensor([44]))
    with pytest.raises(StoreError, match="no such split.*Did you mean 'train'"):
        store.rows("trian")


# --- folders of stores -------------------------------------------------------------------------------------


def test_inspect_and_list_say_what_is_there(make, tmp_path):
    store = make(both)
    said = inspect(store.folder)
    assert said["rows"] == 40 and said["complete"] and said["signals"]["boxes"]["shape"] == [None, 4]
    assert said["bytes"] == sum(path.stat().st_size for path in store.folder.glob("*.parquet"))
    json.dumps(said)
    listed = list_stores(tmp_path)
    assert [entry["folder"] for entry in listed] == [str(store.folder)] and listed[0]["teacher"] == "net-1"


def test_prune_takes_stores_and_nothing_else(make, tmp_path):
    for name in ("a", "b", "c"):
        make(name=name)
    (tmp_path / "b" / "letter.txt").write_text("mine")
    stranger = tmp_path / "photos"
    stranger.mkdir()
    (stranger / "manifest.json").write_text('{"kind": "photos"}')
    with pytest.raises(StoreError, match="which stores may go"):
        prune(tmp_path)
    assert prune(tmp_path, older_than=1) == []
    assert len(prune(tmp_path, keep=1, dry_run=True)) == 2 and len(list_stores(tmp_path)) == 3
    gone = prune(tmp_path, keep=1)
    assert sorted(entry["folder"] for entry in gone) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "photos"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["letter.txt"] and list(stranger.iterdir())


def test_exported_columns_are_read_by_pandas(make, tmp_path):
    import pandas

    source = Rows()
    store = make(lambda batch: both(batch) | {"maps": batch["inputs"].view(-1, 2, 2)}, source)
    path = export_columns(store.folder, tmp_path)
    table = pandas.read_parquet(path)
    assert path.name == "store.parquet" and len(table) == 40
    assert list(table["split"].unique()) == ["train", "validation", "test"]
    assert np.allclose(np.stack(table["logits"]), source.inputs[:, :3] * 5)
    assert [len(row) for row in table["boxes"]] == [example % 5 for example in range(40)]
    assert np.allclose(np.stack(table["boxes"][7]), source.inputs[7] + torch.arange(2)[:, None], atol=4e-3)
    assert np.allclose(np.stack(table["maps"][3]), source.inputs[3].view(2, 2), atol=1e-3)


def test_small_numbers_are_not_lost_in_halves():
    small = torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) * 1e-7
    columns = lay_out({"features": small})
    kept = encode(columns, {"features": small}, torch.zeros(4, 2, dtype=torch.int64))["features"].values.view(4, 8)
    torch.testing.assert_close(kept, small)
    assert lay_out({"features": small * 1e4})["features"].dtype == "float16"
    assert lay_out({"features": small * 0})["features"].dtype == "float16"
