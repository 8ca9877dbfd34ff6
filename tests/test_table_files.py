"""Columns of a table: what is a number, what a category, and what is said where the two can be mistaken."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import stillroom
from stillroom.cli import main
from stillroom.data import numpy_files, text_tables
from stillroom.data.csv_files import csv_bytes
from stillroom.data.numpy_files import load_arrays
from stillroom.data.table import MEANINGS, SOURCES, named, open_source, options_of
from stillroom.data.table_files import read_columns, rows_for
from stillroom.errors import DataError


def table(folder, text, name="x.csv", **options):
    (folder / name).write_text(text, encoding="utf-8")
    return open_source("table", path=folder / name, **options)


def rows(line, count=30):
    return "".join(line(number) + "\n" for number in range(count))


# --- numbers -----------------------------------------------------------------------------------------------


def test_decimal_commas_are_numbers_where_semicolons_separate(tmp_path):
    source = table(tmp_path, "a;b;label\n" + rows(lambda n: f"{n % 4},5;-1.23{n % 10},25;{n % 2}"))
    assert source.kinds == ["numeric", "numeric"]
    assert source.inputs[3].tolist() == [3.5, -1233.25]
    assert any("'a' is read as numbers: '0,5' as 0.5" in note for note in source.notes)
    assert any("'b' is read as numbers: '-1.230,25' as -1230.25" in note for note in source.notes)


def test_elsewhere_a_comma_may_part_thousands_and_is_told(tmp_path):
    source = table(tmp_path, "a,label\n" + rows(lambda n: f'"{n % 4},5",{n % 2}'))
    assert source.kinds == ["categorical"]
    assert "'a' is read as 4 categories, but 30 of its 30 cells look like numbers, such as '0,5'" in source.notes[0]


def test_a_comma_column_with_other_texts_stays_what_it_is(tmp_path):
    source = table(tmp_path, "a;label\n" + rows(lambda n: f"{'1,5' if n % 5 else 'low'};{n % 2}"))
    assert source.kinds == ["categorical"] and source.categories["a"] == ["1,5", "low"]
    assert "24 of its 30 cells look like numbers" in source.notes[0]


def test_percent_signs_are_taken_off(tmp_path):
    source = table(tmp_path, "a,b,label\n" + rows(lambda n: f"{n}%,{n / 2} %,{n % 2}"))
    assert source.kinds == ["numeric", "numeric"] and source.inputs[7].tolist() == [7.0, 3.5]
    source = table(tmp_path, "a;label\n" + rows(lambda n: f"{n},5 %;{n % 2}"))
    assert source.inputs[7].tolist() == [7.5]


@pytest.mark.parametrize(
    ("cell", "what"),
    [("2024-01-0{}", "dates"), ("0{}.02.2023", "dates"), ("2024/1/{} 10:00", "dates"), ("$1{}.00", "numbers")],
)
def test_dates_and_money_that_become_categories_are_told(tmp_path, cell, what):
    source = table(tmp_path, "a,b,label\n" + rows(lambda n: f"{cell.format(n % 3 + 1)},{n},{n % 2}"))
    assert source.kinds == ["categorical", "numeric"]
    assert f"'a' is read as 3 categories, but 30 of its 30 cells look like {what}" in source.notes[0]


def test_plain_categories_are_not_told(tmp_path):
    source = table(tmp_path, "a,b,label\n" + rows(lambda n: f"{'xyz'[n % 3]},A{n % 4},{n % 2}"))
    assert source.kinds == ["categorical", "categorical"] and not [note for note in source.notes if "look" in note]
    source = table(tmp_path, "a,label\n" + rows(lambda n: f"2024-01-0{n % 3 + 1},{n % 2}"), categorical=["a"])
    assert not [note for note in source.notes if "look" in note], "it was asked for"


def test_predict_reads_a_column_as_training_did(tmp_path):
    (tmp_path / "new.csv").write_text("town;a\nUlm;1,5\nBonn;2,25\n")
    wanted = [{"name": "a", "kind": "numeric"}, {"name": "town", "kind": "categorical", "categories": ["Bonn", "Ulm"]}]
    values, _ = rows_for(read_columns(tmp_path / "new.csv"), wanted, tmp_path / "new.csv")
    assert values.tolist() == [[1.5, 1.0], [2.25, 0.0]]


def test_data_show_lists_the_kind_of_every_column(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.csv").write_text("a;town;label\n" + rows(lambda n: f"{n},5;{'Ulm' if n % 3 else 'Bonn'};{n % 2}"))
    monkeypatch.setattr(sys, "argv", ["stillroom", "data", "show", f"table:{tmp_path / 'x.csv'}", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["kinds"] == ["a numeric", "town categorical (2)"]


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["table", "text"])
@pytest.mark.parametrize("nothing", ["nan", "NA", "n/a", "None"])
def test_a_label_that_says_nothing_means_the_same_for_texts_and_tables(tmp_path, use, nothing):
    text = "text,n,label\n" + rows(lambda n: f"w{n % 5} {n},{n},{nothing if n < 4 else 'ab'[n % 2]}")
    (tmp_path / "x.csv").write_text(text)
    options = {"without": ["text"]} if use == "table" else {}
    if nothing in ("nan", "NA"):
        source = open_source(use, path=tmp_path / "x.csv", validation=0, test=4, **options)
        assert source.classes == ["a", "b"] and int((source.labels == -1).sum()) == 4
        assert f"labels that say that there is none are unknown: '{nothing}' 4 (in 'label')" in source.notes
    else:
        source = open_source(use, path=tmp_path / "x.csv", validation=0, test=4, **options)
        assert sorted(source.classes) == sorted(["a", "b", nothing])
        assert any("'None' is a class of its own (4)" in note for note in source.notes) == (nothing == "None")


@pytest.mark.parametrize("use", ["table", "text"])
def test_labels_that_differ_by_case_are_told(tmp_path, use):
    text = "text,n,label\n" + rows(lambda n: f"w{n % 5} {n},{n},{['yes', 'Yes', 'no'][n % 3]}")
    (tmp_path / "x.csv").write_text(text)
    source = open_source(use, path=tmp_path / "x.csv", **({"without": ["text"]} if use == "table" else {}))
    told = "classes that differ by case or white space only, and are kept apart: 'Yes' (10) and 'yes' (10) (in 'label')"
    assert told in source.notes


def test_infinite_labels_are_refused(tmp_path):
    columns = {"a": list(range(6)), "label": [0.0, 1.0, 0.0, 1.0, float("inf"), 0.0]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="'label' of .* holds infinity"):
        open_source("table", path=tmp_path / "x.parquet")
    for use in ("table", "text"):
        with pytest.raises(DataError, match="'label' of .* holds infinity: got 'inf'"):
            (tmp_path / "x.csv").write_text("text,label\n" + rows(lambda n: f"w{n},{'inf' if n == 9 else n % 2}"))
            open_source(use, path=tmp_path / "x.csv")


# --- bounds ------------------------------------------------------------------------------------------------


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "UNPACKED", 50_000)
    bomb = "text,label\n" + "good film,1\nbad film,0\n" * 40_000
    for name in ("x.csv.gz", "x.tsv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(bomb.encode()))
        for use in ("table", "text"):
            with pytest.raises(DataError, match=r"unpacks to too much: got more than .* from .*\(gunzip\)"):
                open_source(use, path=tmp_path / name)
    monkeypatch.setattr(text_tables, "TIMES", 10_000)
    assert len(open_source("text", path=tmp_path / "x.csv.gz")) == 80_000


def test_a_line_without_an_end_is_refused_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "LONGEST_LINE", 2_000_000)
    (tmp_path / "x.csv").write_text("text,label\ngood,1\n" + "x" * 2_000_001)
    for use in ("table", "text"):
        with pytest.raises(DataError, match="too long a line: got more than 2,000,000 characters in line 3"):
            open_source(use, path=tmp_path / "x.csv")


def test_what_does_not_fit_into_memory_is_refused_with_that_reason(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 1000), np.uint8), y=np.arange(1000) % 2)
    np.save(tmp_path / "x.npy", np.zeros((500, 3)))
    pyarrow.parquet.write_table(pa.table({"a": np.zeros(1000), "label": np.arange(1000) % 2}), tmp_path / "x.parquet")
    assert load_arrays(tmp_path / "x.npz")["x"].shape == (1000, 1000)
    monkeypatch.setattr(numpy_files, "free_memory", lambda: 10_000)
    for use, name in (("npz", "x.npz"), ("table", "x.npy"), ("table", "x.parquet")):
        with pytest.raises(DataError, match=r"does not fit into memory: got 1 MiB of values"):
            open_source(use, path=tmp_path / name)


def test_a_head_that_lies_is_told_by_what_it_claims(tmp_path):
    place = tmp_path / "lies.npy"
    head = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1)))
    head["shape"] = (10**9, 10**6)
    with open(place, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, head)
        stream.write(b"0" * 64)
    with pytest.raises(DataError, match="does not fit into memory: got 7450580.6 GiB of values"):
        load_arrays(place)


# --- what is written ---------------------------------------------------------------------------------------


def test_formulas_are_written_as_texts_and_numbers_as_numbers():
    cells = ["=cmd|'/C calc'!A0", "+1-2", "-x", "@SUM(A1)", "\tx", "\rx", "-1.5", "+2e3", -3.25, "a=b", None, "'=1"]
    written = csv_bytes(["=name", "b"], [[cell, "ok"] for cell in cells]).decode()
    back = list(csv.reader(io.StringIO(written, newline="")))
    assert back[0] == ["'=name", "b"]
    right = [
        "'=cmd|'/C calc'!A0",
        "'+1-2",
        "'-x",
        "'@SUM(A1)",
        "'\tx",
        "'\rx",
        "-1.5",
        "+2e3",
        "-3.25",
        "a=b",
        "",
        "'=1",
    ]
    assert [row[0] for row in back[1:]] == right


def test_nothing_else_writes_csv_by_hand():
    root = Path(stillroom.__file__).parent
    writers = [str(file.relative_to(root)) for file in root.rglob("*.py") if "csv.writer(" in file.read_text("utf-8")]
    assert not writers, "data/csv_files.py is there for it"


# --- sources on the command line ---------------------------------------------------------------------------


def test_a_source_and_its_options_are_read_from_one_text():
    assert named("images:my photos,size=64,test=0.2,flip=false") == (
        "images",
        {"path": "my photos", "size": 64, "test": 0.2, "flip": False},
    )
    assert named("text:a,b.csv,label=verdict") == ("text", {"path": "a,b.csv", "label": "verdict"})
    assert named("digits,size=8") == ("digits", {"size": 8})
    assert named('table:x.csv,without=["a","b"]')[1]["without"] == ["a", "b"]
    for text, words in (
        ("images:x,sise=3", "Did you mean 'size'"),
        ("digits:x", "no path"),
        ("images", "needs a path"),
    ):
        with pytest.raises(DataError, match=words):
            named(text)


def test_every_option_of_every_source_has_a_meaning():
    used = {option for use in SOURCES for option in options_of(use)}
    assert used == set(MEANINGS) and list(MEANINGS) == sorted(MEANINGS)
