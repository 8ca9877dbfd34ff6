"""Texts from files: the shipped samples, tables of every kind, and every mistake told with its line."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest
import torch

from stillroom.cli.reading import texts_of
from stillroom.contracts import UNLABELLED
from stillroom.data.table import SOURCES, open_source, options_of
from stillroom.data.text_tables import read_rows
from stillroom.errors import DataError
from stillroom.utf8 import unpack

HEAD = "text,label\n"


def write(folder, content, name="reviews.csv", encoding="utf-8"):
    file = folder / name
    raw = content if isinstance(content, bytes) else content.encode(encoding)
    file.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return file


def rows(count=60, classes=("bad", "good")):
    return "".join(f"review number {row},{classes[row % len(classes)]}\n" for row in range(count))


def opened(file, **options):
    return open_source("text", path=file, **options)


def plain(examples):
    examples = torch.as_tensor(examples)
    return torch.stack([examples, torch.zeros_like(examples)], dim=1)


# --- the samples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "train", "validation"), [("movie-reviews-sample", 3400, 600), ("reviews-zh-sample", 5200, 800)]
)
def test_the_samples_have_fixed_splits_without_copies(use, train, validation):
    source, again = open_source(use), open_source(use, seed=7, views=3)
    assert {name: len(part) for name, part in source.splits.items()} == {
        "train": train,
        "validation": validation,
        "test": 2000,
    }
    for name, part in source.splits.items():
        assert torch.equal(part, again.splits[name])
        assert torch.bincount(source.labels[part]).tolist() == [len(part) // 2] * 2
    assert source.classes == ["negative", "positive"] and source.name == use and source.notes == ()
    assert len(np.unique(source.keys)) == len(source)
    fewer = open_source(use, train=100)
    assert len(fewer.splits["train"]) == 100 and len(fewer.splits["test"]) == 2000


def test_the_english_sample_has_ratings_whose_sign_is_the_label():
    batch = open_source("movie-reviews-sample").batch(plain(range(500)))
    assert torch.equal(batch["ratings"] > 0, batch["labels"] == 1) and float(batch["ratings"].abs().max()) <= 4
    assert "ratings" not in open_source("reviews-zh-sample").batch(plain([0]))


def test_views_of_the_chinese_sample_are_cut_to_more_characters():
    source = open_source("reviews-zh-sample", views=2, augment={"sample": 1, "mask": 0})
    ids = plain(range(300))
    ids[:, 1] = 1
    lengths = [len(text.replace(" ", "")) for text in unpack(source.batch(ids)["inputs"])]
    assert min(lengths) >= 2 and max(lengths) > 5
    assert open_source("reviews-zh-sample", augment={"shortest": 3}).views.shortest == 3


def test_the_sources_are_in_the_table_and_their_options_are_told():
    assert {"movie-reviews-sample", "reviews-zh-sample", "text"} <= set(SOURCES)
    assert {"path", "text", "label", "encoding", "train", "views", "augment"} <= set(options_of("text"))
    with pytest.raises(DataError, match="needs 'path'"):
        open_source("text")
    with pytest.raises(DataError, match="'masks'. Did you mean 'mask'"):
        open_source("movie-reviews-sample", augment={"masks": 0.1})


# --- tables ----------------------------------------------------------------------------------------


def test_the_same_table_in_every_form_is_the_same_source(tmp_path):
    table = [(f"a text, it says “{row}”", "xy"[row % 2]) for row in range(40)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in table]
    forms = {
        "a.csv": HEAD + "".join(f'"{text}",{label}\n' for text, label in table),
        "a.csv.gz": HEAD + "".join(f'"{text}",{label}\n' for text, label in table),
        "a.tsv": "label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in table),
        "a.tsv.gz": "text\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in table),
        "a.jsonl": "\n".join(lines) + "\n\n",
        "a.jsonl.gz": "\r\n".join(lines),
    }
    found = [opened(write(tmp_path, content, name)) for name, content in forms.items()]
    found.append(
        opened(write(tmp_path, "text;label\n" + "".join(f"{text};{label}\n" for text, label in table), "a.csv"))
    )
    found.append(opened(write(tmp_path, "\ufeff" + forms["a.csv"], "a.csv")))
    found.append(opened(write(tmp_path, forms["a.tsv"], "a.tsv", "utf-16")))
    found.append(opened(write(tmp_path, forms["a.jsonl"], "a.jsonl", "gb18030"), encoding="gb18030"))
    assert {source.fingerprint for source in found} == {found[0].fingerprint}
    assert {source.labels_fingerprint for source in found} == {found[0].labels_fingerprint}
    assert found[0].show(3) == table[3][0] and found[0].classes == ["x", "y"] and found[0].name == "a"


def test_quotes_breaks_and_long_fields_of_csv(tmp_path):
    texts = ['he said "good"', "two\nlines", "a,b", "x" * 200_000, "last"]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows((text, row % 2) for row, text in enumerate(texts))
    limit = csv.field_size_limit()
    found = list(read_rows(tmp_path / "a.csv"))
    assert [row["text"] for _, row in found] == texts and csv.field_size_limit() == limit
    assert [line for line, _ in found] == [2, 3, 5, 6, 7]
    source = opened(tmp_path / "a.csv", validation=0, test=1)
    assert source.notes == ("1 text cut to 20,000 bytes",) and len(source.show(3)) == 20_000


def test_quotes_of_a_tsv_are_plain_characters(tmp_path):
    file = write(tmp_path, 'text\tlabel\n"good\t1\nbad"\t0\n"', "a.tsv")
    with pytest.raises(DataError, match="1 field in line 4"):
        list(read_rows(file))
    file = write(tmp_path, 'text\tlabel\n"good\t1\nbad"\t0\n', "a.tsv")
    assert [row["text"] for _, row in read_rows(file)] == ['"good', 'bad"']


def test_fields_of_json_lines_may_be_numbers_or_absent(tmp_path):
    lines = [{"text": f"t{row}", "label": row % 2} for row in range(30)]
    lines += [{"text": "u", "label": None}, {"text": "v"}, {"label": 1}]
    source = opened(write(tmp_path, "\n".join(map(json.dumps, lines)), "a.jsonl"))
    assert source.classes == ["0", "1"] and (source.labels == UNLABELLED).sum() == 2
    assert source.notes == ("1 row without a text left out (a.jsonl:33)",)


def test_a_column_split_and_files_in_a_folder_are_official_splits(tmp_path):
    parts = ["train"] * 40 + ["dev"] * 10 + ["Test"] * 10
    table = "".join(f"t{row},{row % 2},{part}\n" for row, part in enumerate(parts))
    source = opened(write(tmp_path, "text,label,split\n" + table))
    assert [len(source.splits[name]) for name in ("train", "validation", "test")] == [40, 10, 10]
    assert source.splits["test"].tolist() == list(range(50, 60))
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("train", "test"):
        kept = (line.rsplit(",", 1)[0] for line in table.splitlines() if line.lower().endswith(name))
        write(folder, HEAD + "\n".join(kept), f"{name}.csv.gz")
    again = opened(folder)
    assert len(again.splits["validation"]) == 4 and len(again.splits["train"]) == 36
    texts = sorted(again.show(row) for row in again.splits["test"].tolist())
    assert texts == [f"t{row}" for row in range(50, 60)]
    (folder / "train.csv.gz").unlink()
    with pytest.raises(DataError, match="no training texts: got test.csv.gz"):
        opened(folder)


# --- labels ----------------------------------------------------------------------------------------


def test_numbers_as_labels_are_classes_in_their_order(tmp_path):
    stars = opened(write(tmp_path, HEAD + "".join(f"t{row},{row % 10 + 1}\n" for row in range(50))))
    assert stars.classes == [str(star) for star in range(1, 11)] and stars.labels[9] == 9
    floats = opened(write(tmp_path, HEAD + "".join(f"t{row},{['0.0', '1.0', ''][row % 3]}\n" for row in range(50))))
    assert floats.classes == ["0", "1"] and floats.labels[:3].tolist() == [0, 1, UNLABELLED]


def test_ratings_are_labels_by_their_sign(tmp_path):
    table = "".join(f"t{row},{row / 10 - 2}\n" for row in range(41))
    for file, options in (
        (write(tmp_path, "text,rating\n" + table, "a.csv"), {}),
        (write(tmp_path, "text,score\n" + table, "b.csv"), {"label": "score"}),
    ):
        source = opened(file, **options)
        assert len(source) == 41 - 9 and source.notes == ("9 rows with a rating below 0.5 in size left out",)
        ratings = source.batch(plain(range(32)))["ratings"]
        assert torch.equal(ratings > 0, source.labels == 1) and float(ratings.abs().min()) == 0.5
        assert source.classes == ["negative", "positive"] and source.show(31) == "t40"


def test_texts_without_labels_are_a_transfer_set(tmp_path):
    source = opened(write(tmp_path, "text\n" + "".join(f"t{row}\n" for row in range(50))), label=None)
    assert source.labels is None and source.classes is None and set(source.batch(plain([0]))) == {"id", "inputs"}
    mixed = opened(write(tmp_path, HEAD + rows(60) + "".join(f"more {row},\n" for row in range(40))))
    assert (mixed.labels == UNLABELLED).sum() == 40 and mixed.classes == ["bad", "good"]
    assert (mixed.labels[mixed.splits["train"]] == UNLABELLED).sum() == 40


def test_copies_are_left_out_and_said(tmp_path):
    table = HEAD + rows(60) + "REVIEW  number 3,good\nreview number 4,good\n"
    source = opened(write(tmp_path, table))
    (note,) = source.notes
    assert note.startswith("2 rows left out as the copy of another") and "1 of these texts have more than one" in note
    assert sum(len(part) for part in source.splits.values()) == 60
    assert len(opened(write(tmp_path, table), train=10).splits["train"]) == 10


# --- mistakes --------------------------------------------------------------------------------------

GOOD = HEAD + rows(20)
MISTAKES = {
    "no such file": (None, "a.csv", {}, "does not exist"),
    "kind": (GOOD, "a.xlsx", {}, r"ending in '.xlsx'. Allowed: .csv"),
    "empty file": ("", "a.csv", {}, "no columns"),
    "no rows": (HEAD, "a.csv", {}, "no texts in"),
    "text column": (
        GOOD.replace("text", "texts", 1),
        "a.csv",
        {},
        "'text'. Did you mean 'texts'.*Write 'text: COLUMN'",
    ),
    "label column": (GOOD, "a.csv", {"label": "labels"}, "'labels'. Did you mean 'label'"),
    "no label": (GOOD.replace("label", "polarity", 1), "a.csv", {}, "columns text, polarity.*'label: COLUMN'"),
    "label in capitals": (GOOD.replace("label", "Label", 1), "a.csv", {}, "'label'. Did you mean 'Label'"),
    "no label filled in": (HEAD + "a,\nb,\n", "a.csv", {}, "empty label in every row"),
    "one class": (HEAD + "a,x\nb,x\n", "a.csv", {}, "one class, 'x', in all 2 labelled rows"),
    "one side": (HEAD + "a,0.5\nb,1.5\n", "a.csv", {}, "one class, 'positive'.*subtract the middle"),
    "label is text": (HEAD + "".join(f"t{row},u{row}\n" for row in range(90)), "a.csv", {}, "90 different values"),
    "rating is text": ("text,rating\na,PG\nb,R\n", "a.csv", {}, "'rating' that does not hold numbers"),
    "latin": (GOOD + "café,good\n", "a.csv", {}, r"byte 0xe9 at 43\d \(line 22\). Give 'encoding: cp1252'"),
    "chinese": (GOOD + "很好吃,good\n", "a.csv", {}, r"line 22\). Give 'encoding: gb18030'"),
    "utf-16": (GOOD, "a.csv", {}, "every second byte is zero. Give 'encoding: utf-16-le'"),
    "cut short": (GOOD.encode() + "é".encode()[:1], "a.csv", {}, r"byte 0xc3 at 43\d \(line 22\)"),
    "encoding": (GOOD, "a.csv", {"encoding": "utf-9"}, "'utf-9'. Did you mean 'utf-8'"),
    "fields": (GOOD + "a,b,c\n", "a.csv", {}, "3 fields in line 22.*double quotes"),
    "columns": ("text,label,label\n", "a.csv", {}, "two columns of one name: got 'label'"),
    "open quote": (HEAD + 'a,1\n"b,0\n' + rows(), "a.csv", {}, "open at or after line 3"),
    "no object": ('{"text": "a"}\n[1]\n', "a.jsonl", {"label": None}, "a list in line 2"),
    "no json": ('{"text": "a"}\n{"text"\n', "a.jsonl", {"label": None}, "line 2 is not JSON"),
    "split": ("text,label,split\na,x,train\nb,y,tset\n", "a.csv", {}, "Line 3 .* 'tset'. Did you mean 'test'"),
    "bare": ("text,label,split\na,x,train\nb,y,train\nc,,test\n", "a.csv", {}, "no label: got 1 of them.*a.csv:4"),
    "size": (GOOD, "a.csv", {"test": 50}, "size of 'test'"),
    "views": (GOOD, "a.csv", {"views": 0}, "count=0"),
    "not gzip": (b"text", "a.csv.gz", {}, "Check that it is whole"),
}
WRITTEN_AS = {"latin": "latin-1", "chinese": "gb18030", "utf-16": "utf-16-le"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_to_do(mistake, tmp_path):
    content, name, options, said = MISTAKES[mistake]
    file = tmp_path / name
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode(WRITTEN_AS.get(mistake, "utf-8"))
        file.write_bytes(raw)
    with pytest.raises(DataError, match=said) as caught:
        opened(file, **options)
    assert str(tmp_path) in str(caught.value) or mistake in ("encoding", "views", "size", "bare")
    assert str(caught.value).endswith(".")


def test_the_place_of_a_wrong_byte_is_counted_from_the_start_of_a_large_file(tmp_path):
    start = (HEAD + rows(100_000)).encode()
    file = write(tmp_path, start + b"caf\xe9 au lait,good\n")
    assert len(start) > 1 << 20
    with pytest.raises(DataError, match=rf"0xe9 at {len(start) + 3:,} \(line 100,002\)"):
        opened(file)


def test_rows_without_text_are_left_out_and_a_zero_byte_too(tmp_path):
    table = HEAD + rows(30) + ",good\n   ,bad\n\n\0,bad\nze\0ro,good\n"
    source = opened(write(tmp_path, table))
    assert len(source) == 31 and source.show(30) == "zero"
    assert source.notes == (
        "3 rows without a text left out (reviews.csv:32, reviews.csv:33, reviews.csv:35)",
        "zero bytes removed from 1 text",
    )


# --- what a person wants classified ----------------------------------------------------------------


def test_texts_to_classify_come_with_their_file_and_row(tmp_path):
    lines = write(tmp_path, "first\n\n  second one \n", "a.txt")
    table = write(tmp_path, "id,text\n1,third\n2,\n", "b.csv")
    found = texts_of([lines, table])
    assert found.rows == ["first", "second one", "third", ""]
    places = [(one["input"], one["row"]) for one in found.shown]
    assert places == [(str(lines), 1), (str(lines), 3), (str(table), 1), (str(table), 2)]
    assert [one["columns"] for one in found.shown[2:]] == [{"id": "1", "text": "third"}, {"id": "2", "text": ""}]
    assert texts_of([tmp_path]).rows == found.rows
    only = write(tmp_path, '{"review": "fourth"}\n', "c.jsonl")
    assert texts_of([only]).rows == ["fourth"]
    assert texts_of([table], column="id").rows == ["1", "2"]


def test_what_cannot_be_classified_is_told(tmp_path):
    table = write(tmp_path, "id,review\n1,third\n", "b.csv")
    with pytest.raises(DataError, match="'text'.*Name it with --column"):
        texts_of([table])
    with pytest.raises(DataError, match="'reviews'. Did you mean 'review'"):
        texts_of([table], column="reviews")
    with pytest.raises(DataError, match="no such file"):
        texts_of([tmp_path / "none.txt"])
    with pytest.raises(DataError, match="This model takes texts.*ending in '.png'"):
        texts_of([write(tmp_path, "x", "a.png")])
    with pytest.raises(DataError, match="nothing to classify"):
        texts_of([write(tmp_path, "\n \n", "a.txt")])
    with pytest.raises(DataError, match="--encoding cp1252"):
        texts_of([write(tmp_path, "café\n", "a.txt", "latin-1")])
