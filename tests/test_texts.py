"""Texts as a source: bytes, labels, splits without copies, and texts given from Python."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from stillroom.contracts import UNLABELLED, Source
from stillroom.data.arrays import ArraySource, as_source
from stillroom.data.splits import LabelledSubset, labelled_rows
from stillroom.data.text_views import TextViews
from stillroom.data.texts import Bytes, TextSource, split_texts
from stillroom.errors import DataError
from stillroom.utf8 import pack, unpack


def some(rows=200):
    return [f"text number {row} {'é好🙂'[row % 3] * (row % 7)}" for row in range(rows)]


def some_labels(rows=200, classes=4):
    return np.arange(rows) % classes


def plain(examples):
    examples = torch.as_tensor(examples)
    return torch.stack([examples, torch.zeros_like(examples)], dim=1)


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_the_bytes_of_the_texts_asked_for():
    source = TextSource(some(), some_labels(), ratings=np.linspace(-4, 4, 200))
    batch = source.batch(plain([5, 199, 5, 0]))
    assert isinstance(source, Source) and source.modality == "text" and len(source) == 200
    assert set(batch) == {"id", "inputs", "labels", "ratings"}
    assert batch["inputs"].dtype == torch.uint8
    assert torch.equal(batch["inputs"], pack([some()[row] for row in (5, 199, 5, 0)]))
    assert batch["labels"].tolist() == [1, 3, 1, 0] and batch["labels"].dtype == torch.int64
    assert batch["ratings"].dtype == torch.float32 and float(batch["ratings"][1]) == 4
    assert source.show(3) == some()[3]
    assert source.batch(plain(torch.tensor([], dtype=torch.int64)))["inputs"].shape == (0, 1)


def test_bytes_that_are_no_text_read_the_same_whatever_stands_beside_them():
    source = TextSource([b"caf\xe9 noir", "a b c d e f g h"], views=TextViews(3, mask=0.9))
    alone = source.batch(torch.tensor([[0, 0]]))["inputs"]
    beside = source.batch(torch.tensor([[0, 0], [1, 2]]))["inputs"]
    assert unpack(alone) == unpack(beside)[:1] == ["caf\ufffd noir"] == [source.show(0)]
    assert torch.equal(alone[0], beside[0, : alone.shape[1]]) and int(source.lengths(torch.tensor([0]))) == 11


def test_the_padding_of_one_batch_is_that_of_its_longest_text():
    source = TextSource(["a", "bb", "好" * 5])
    assert source.batch(plain([0, 1]))["inputs"].tolist() == [[97, 0], [98, 98]]
    assert source.batch(plain([0, 2]))["inputs"].shape == (2, 15)
    assert source.lengths(torch.tensor([2, 0, 1])).tolist() == [15, 1, 2]
    assert source.lengths(torch.tensor([0])).dtype == torch.int64


def test_a_batch_makes_no_object_for_each_text_of_the_source():
    source = TextSource(f"text {row}" for row in range(50_000))
    ids = plain(range(64))
    source.batch(ids)
    tracemalloc.start()
    source.batch(ids)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100_000
    assert not any(isinstance(value, (list, tuple)) and len(value) > 1000 for value in vars(source).values())
    assert not any(isinstance(value, (list, tuple)) and len(value) > 1000 for value in vars(source.texts).values())


def test_what_does_not_exist_is_refused():
    source = TextSource(some(5))
    for row in (5, -1):
        with pytest.raises(DataError, match=f"No such example: got example {row}"):
            source.batch(plain([0, row]))


def test_rows_of_bytes_come_back_as_they_went_in():
    rows = [b"", b"abc", "好".encode(), b"", b"d"]
    kept = Bytes.of(rows)
    assert list(kept) == rows and len(kept) == 5
    assert kept.gather(np.array([4, 0, 1])).tolist() == [[100, 0, 0], [0, 0, 0], [97, 98, 99]]
    assert Bytes.of([b"", b""]).gather(np.array([0, 1])).tolist() == [[0], [0]]
    hashes = kept.hashes()
    assert hashes.dtype == np.uint64 and hashes[0] == hashes[3] and len(np.unique(hashes)) == 4


# --- labels ----------------------------------------------------------------------------------------


def test_class_names_may_be_the_labels():
    source = TextSource(["a", "b", "c", "d"], ["good", "bad", None, ""])
    assert source.classes == ["bad", "good"] and source.labels.tolist() == [1, 0, UNLABELLED, UNLABELLED]
    chosen = TextSource(["a", "b"], np.array(["good", "bad"]), classes=["good", "so so", "bad"])
    assert chosen.labels.tolist() == [0, 2] and chosen.classes == ["good", "so so", "bad"]
    with pytest.raises(DataError, match="label of example 1 .* got 'goood'. Did you mean 'good'"):
        TextSource(["a", "b"], ["bad", "goood"], classes=["good", "bad"])


def test_labels_are_checked_as_those_of_arrays_are():
    for labels, said in (([0, 5], "label 5"), ([0.5, 1.0], "whole numbers"), ([0, 1, 1], "differ in length")):
        with pytest.raises(DataError, match=said):
            TextSource(["a", "b"], labels, classes=["x", "y"])
    with pytest.raises(DataError, match="'ratings' holds NaN"):
        TextSource(["a", "b"], [0, 1], ratings=[1.0, float("nan")])
    assert TextSource(["a", "b"]).classes is None


def test_what_is_no_text_is_refused_by_its_number():
    for texts, said in (
        (["a", " \t\n", ""], "examples 1, 2"),
        (["a", 7], "int at example 1"),
        (["a", None], "NoneType at example 1"),
        ([], "0 texts"),
        ("one text", "a list of them"),
        (["\0"], "example 0"),
    ):
        with pytest.raises(DataError, match=said):
            TextSource(texts)


def test_what_a_batch_cannot_hold_is_changed_and_said():
    source = TextSource(["a\0b", "好" * 10, "c", "\ud800x"], longest=8)
    assert [source.show(row) for row in range(4)] == ["ab", "好好", "c", "?x"]
    assert source.notes == ("1 text cut to 8 bytes", "zero bytes removed from 1 text")
    assert TextSource(["a"]).notes == ()
    assert len(TextSource(["x" * 1_000_000]).show(0)) == 20_000


# --- splits ----------------------------------------------------------------------------------------


def test_splits_are_by_hash_and_stratified():
    source = TextSource(some(1000), some_labels(1000))
    again = TextSource(some(1000), some_labels(1000))
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 810, "validation": 90, "test": 100}
    for name, rows in source.splits.items():
        assert torch.equal(rows, again.splits[name])
        counts = torch.bincount(source.labels[rows])
        assert int(counts.max() - counts.min()) <= 1


def test_no_copy_crosses_a_border_whatever_its_case_and_white_space():
    texts = some(300)
    copies = [f"  {text.upper()}\n" for text in texts] + [text.replace(" ", "   ") for text in texts]
    source = TextSource(texts + copies, np.tile(some_labels(300), 3))
    keys = {name: {source.show(row).casefold().replace(" ", "").strip() for row in rows.tolist()}
            for name, rows in source.splits.items()}  # fmt: skip
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert sum(len(rows) for rows in source.splits.values()) == 300
    assert all(int(rows.max()) < 300 for rows in source.splits.values()), "the first of each is kept"


def test_given_splits_are_taken_as_they_are_and_checked():
    source = TextSource(["a", "a", "b", "c"], splits={"train": [0, 1], "test": [3]})
    assert source.splits["train"].tolist() == [0, 1] and source.splits["validation"].tolist() == []
    with pytest.raises(DataError, match="Unknown split"):
        TextSource(["a", "b"], splits={"dev": [0]})
    with pytest.raises(DataError, match="example 9"):
        TextSource(["a", "b"], splits={"train": [9]})
    with pytest.raises(DataError, match="in two splits"):
        TextSource(["a", "b"], splits={"train": [0], "test": [0]})


def test_unlabelled_texts_are_for_training_only():
    labels = np.where(np.arange(400) % 8 < 2, some_labels(400, 2), UNLABELLED)
    source = TextSource([*some(399), some(399)[0]], labels)
    for name in ("validation", "test"):
        assert (source.labels[source.splits[name]] != UNLABELLED).all() and len(source.splits[name]) >= 9
    assert len(source.splits["train"]) == 399 - 10 - 9
    assert (source.labels[source.splits["train"]] == UNLABELLED).sum() == 300 - 1
    assert len(labelled_rows(source)) == 100 - 19


def test_a_copy_of_a_held_out_text_is_no_training_text():
    keys = np.array([1, 2, 3, 4, 5, 6, 1, 2, 9], np.uint64)
    labels = np.array([0, 1, 0, 1, 0, 1, -1, -1, -1])
    splits = split_texts(keys, labels, official={"test": np.array([0, 1])}, validation=1)
    assert splits["test"].tolist() == [0, 1] and len(splits["validation"]) == 1
    assert set(splits["train"].tolist()) == {2, 3, 4, 5, 8} - set(splits["validation"].tolist())


def test_trimmed_keeps_the_classes_in_proportion_and_the_rest_as_it_is():
    source = TextSource(some(), some_labels())
    fewer = source.trimmed({"train": 40})
    assert torch.bincount(fewer.labels[fewer.splits["train"]]).tolist() == [10] * 4
    assert torch.equal(fewer.splits["test"], source.splits["test"])
    assert len(source.splits["train"]) > 100 and fewer.fingerprint == source.fingerprint


# --- fingerprints ----------------------------------------------------------------------------------


def test_fingerprints_tell_texts_and_labels_apart():
    source = TextSource(some(), some_labels())
    assert source.fingerprint == TextSource(some(), some_labels()[::-1].copy()).fingerprint
    changed = some()
    changed[7] += "!"
    others = [
        TextSource(changed, some_labels()),
        TextSource(some(), some_labels(), name="others"),
        TextSource(some(), some_labels(), views=TextViews(1, mask=0.3)),
        TextSource(some(), some_labels(), ratings=np.zeros(200)),
    ]
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert source.fingerprint == TextSource(some(), some_labels(), views=TextViews(5)).fingerprint
    assert source.labels_fingerprint != TextSource(some(), some_labels()[::-1].copy()).labels_fingerprint
    assert source.labels_fingerprint == others[0].labels_fingerprint


def test_hashes_are_of_raw_texts():
    source = TextSource(["Film", "film", "Film"], views=TextViews(3))
    hashes = source.hashes(torch.tensor([0, 1, 2]))
    assert hashes.dtype == np.uint64 and hashes[0] == hashes[2] != hashes[1]
    assert source.keys[0] == source.keys[1]
    assert hashes[0] == TextSource(["x", "Film"]).hashes(torch.tensor([1]))[0]


# --- what stands around a source -------------------------------------------------------------------


def test_hidden_labels_leave_a_text_source_a_text_source():
    source = TextSource(some(), some_labels(), views=TextViews(3))
    subset = LabelledSubset(source, source.splits["train"][:10])
    assert isinstance(subset, Source) and subset.modality == "text" and subset.views.count == 3
    rows = torch.tensor([4, 9])
    assert torch.equal(subset.lengths(rows), source.lengths(rows)) and subset.show(4) == some()[4]
    hidden = subset.batch(plain(source.splits["train"][10:12]))
    assert hidden["labels"].tolist() == [UNLABELLED] * 2 and unpack(hidden["inputs"])[0].startswith("text number")
    rated = TextSource(some(), some_labels(), ratings=np.linspace(-4, 4, 200))
    shown = LabelledSubset(rated, rated.splits["train"][:10]).batch(plain(rated.splits["train"][8:12]))
    assert shown["ratings"].isnan().tolist() == [False, False, True, True], "a rating would give the label away"
    assert not rated.batch(plain(rated.splits["train"][8:12]))["ratings"].isnan().any()
    images = LabelledSubset(
        ArraySource(np.zeros((9, 2), np.float32), np.arange(9) % 2, splits={"train": range(9)}), [0]
    )
    assert images.modality == "" and images.lengths is None


@pytest.mark.parametrize(
    "data",
    [
        (some(), some_labels()),
        [some(), some_labels().tolist()],
        (some(), ["abcd"[label] for label in some_labels()]),
        {"inputs": some(), "labels": some_labels()},
        {"texts": some(), "labels": torch.from_numpy(some_labels())},
        (pd.Series(some()), pd.Series(some_labels())),
        (np.array(some()), some_labels()),
        (pd.Series(some()), pd.Series(["abcd"[label] for label in some_labels()])),
    ],
)
def test_texts_given_from_python_become_a_source_of_texts(data):
    source = as_source(data, name="given")
    assert isinstance(source, TextSource) and source.name == "given" and len(source.classes) == 4
    assert torch.equal(source.labels, torch.from_numpy(some_labels()))
    assert source.show(7) == some()[7]


def test_texts_without_labels_and_official_splits_from_python():
    assert as_source(some()).labels is None
    assert as_source(("one text", "another")).show(1) == "another"
    parts = {"train": (some(50), ["x", "y"] * 25), "test": ([some()[3].upper(), "new"], ["x", "y"])}
    source = as_source(parts)
    assert source.splits["test"].tolist() == [50, 51] and source.classes == ["x", "y"]
    assert 3 not in source.splits["train"].tolist() + source.splits["validation"].tolist()
    assert len(source.splits["validation"]) == 5 and source.labels[51] == 1
    with pytest.raises(DataError, match="other columns"):
        as_source({"train": (some(5), [0, 1, 0, 1, 0]), "test": some(3)})
    with pytest.raises(DataError, match="No training examples"):
        as_source({"test": some(3)})
    with pytest.raises(DataError, match="differ in length"):
        as_source({"train": (some(5), [0, 1]), "test": (some(2), [0, 1])})
    with pytest.raises(DataError, match="Unknown column beside texts"):
        as_source({"inputs": some(), "scores": some_labels()})
