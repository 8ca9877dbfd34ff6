"""Tables as data: what stands in the file is what a model is given; what is filled, left out or refused is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import stillroom
from stillroom.contracts import UNLABELLED, Source
from stillroom.data.splits import LabelledSubset
from stillroom.data.tables import TableSource
from stillroom.errors import DataError

PLAIN = "a,b,label\n1,x,no\n2.5,y,yes\n-3e2,x,no\n4,z,yes\n"


def people(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """A table whose label is told by two of its columns."""
    random = np.random.default_rng(seed)
    found = pd.DataFrame(
        {
            "age": random.normal(40, 10, rows).round(3),
            "sex": random.choice(["m", "f"], rows),
            "rooms": random.integers(1, 6, rows),
            "town": random.choice(["Ulm", "Köln", "北京"], rows),
        }
    )
    found["label"] = np.where((found["age"] > 40) ^ (found["sex"] == "m"), "stays", "goes")
    return found


def table(path, **options):
    found = stillroom.open_source("table", path=path, **options)
    assert isinstance(found, TableSource) and isinstance(found, Source)
    return found


@pytest.fixture
def file(tmp_path):
    people().to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


# --- what stands in the file -------------------------------------------------------------------------------


def test_values_come_back_as_they_were_written(file):
    found, given = table(file), people()
    assert found.names == ["age", "sex", "rooms", "town"]
    assert found.kinds == ["numeric", "categorical", "numeric", "categorical"]
    assert found.categories == {"sex": ["f", "m"], "town": ["Köln", "Ulm", "北京"]}
    assert found.modality == "table" and found.inputs.dtype == torch.float32
    np.testing.assert_array_equal(found.inputs[:, 0].numpy(), given["age"].to_numpy(np.float32))
    for place, name in ((1, "sex"), (3, "town")):
        texts = [found.categories[name][int(number)] for number in found.inputs[:, place]]
        assert texts == list(given[name])
    assert [found.classes[label] for label in found.labels] == list(given["label"])
    assert found.show(0).startswith(f"age {given['age'][0]:g}, sex {given['sex'][0]}, rooms {given['rooms'][0]}, town ")
    assert not found.notes


@pytest.mark.parametrize("kind", ["tsv", "csv.gz", "jsonl", "parquet", "semicolons", "npz"])
def test_every_format_gives_the_same_source(file, tmp_path, kind):
    given, other = people(), tmp_path / "other" / f"people.{'csv' if kind == 'semicolons' else kind}"
    other.parent.mkdir()
    if kind == "parquet":
        given.to_parquet(other)
    elif kind == "jsonl":
        given.to_json(other, orient="records", lines=True, force_ascii=False)
    elif kind == "npz":
        np.savez(other, **{name: given[name].to_numpy() if name in ("age", "rooms") else given[name].to_list()
                           for name in given})  # fmt: skip
    else:
        given.to_csv(other, index=False, sep={"tsv": "\t", "semicolons": ";"}.get(kind, ","))
    ours, theirs = table(file), table(other)
    assert torch.equal(ours.inputs, theirs.inputs) and torch.equal(ours.labels, theirs.labels)
    assert ours.fingerprint == theirs.fingerprint and ours.labels_fingerprint == theirs.labels_fingerprint
    assert all(torch.equal(ours.splits[name], theirs.splits[name]) for name in ours.splits)


def test_an_array_with_labels_beside_it(tmp_path):
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 3 - 1
    np.savez(tmp_path / "a.npz", x=x, y=y, classes=["b", "a"], names=["left", "right"])
    found = table(tmp_path / "a.npz")
    assert found.names == ["left", "right"] and found.classes == ["b", "a"], "classes keep their order"
    assert found.labels.tolist() == y.tolist()
    np.savez(tmp_path / "b.npz", x_train=x[:12], y_train=y[:12] % 2, x_test=x[12:], y_test=y[12:] % 2)
    np.savez(tmp_path / "d.npz", x=x, y=y[:, None])
    found = table(tmp_path / "d.npz")
    assert found.labels.tolist() == y.tolist() and found.classes == ["0", "1"], "-1 is no label"
    np.savez(tmp_path / "s.npz", x=x, y=np.sign(np.arange(20) - 9.5).astype(int))
    assert table(tmp_path / "s.npz").classes == ["-1", "1"], "signs are two classes"
    np.savez(tmp_path / "e.npz", x=x[:0], y=y[:0], classes=["a"])
    with pytest.raises(DataError, match="no rows"):
        table(tmp_path / "e.npz")
    found = table(tmp_path / "b.npz", validation=2)
    assert found.splits["test"].tolist() == list(range(12, 20)) and found.names == ["x0", "x1"]
    np.save(tmp_path / "c.npy", np.c_[x, y])
    found = table(tmp_path / "c.npy", label="x2")
    assert found.names == ["x0", "x1"] and found.classes == ["-1", "0", "1"]


def test_columns_are_chosen_and_called_categories(file):
    assert table(file, columns=["town", "age"]).names == ["town", "age"]
    assert table(file, without=["town"]).names == ["age", "sex", "rooms"]
    found = table(file, categorical=["rooms"])
    assert found.categories["rooms"] == ["1", "2", "3", "4", "5"]
    assert (found.inputs[:, 2] + 1).tolist() == people()["rooms"].tolist()


def test_categories_of_numbers_are_sorted_by_size(tmp_path):
    (tmp_path / "a.csv").write_text("grade,label\n" + "".join(f"{row % 12},{row % 2}\n" for row in range(24)))
    assert table(tmp_path / "a.csv", categorical=["grade"]).categories["grade"] == [str(one) for one in range(12)]


def test_a_dictionary_in_parquet_keeps_its_order(tmp_path):
    given = people()
    given["label"] = pd.Categorical(given["label"], ["stays", "goes", "never"])
    given["sex"] = pd.Categorical(given["sex"], ["m", "f"])
    given.to_parquet(tmp_path / "a.parquet")
    found = table(tmp_path / "a.parquet")
    assert found.classes == ["stays", "goes"] and found.categories["sex"] == ["m", "f"]


# --- splits ----------------------------------------------------------------------------------------------------


def test_splits_belong_to_the_seed_and_hold_every_class(file):
    ours, same, other = table(file), table(file), table(file, seed=1)
    sizes = {name: len(rows) for name, rows in ours.splits.items()}
    assert sizes == {"train": 324, "validation": 36, "test": 40}
    assert all(torch.equal(ours.splits[name], same.splits[name]) for name in sizes)
    assert not torch.equal(ours.splits["test"], other.splits["test"])
    assert all(len(ours.labels[rows].unique()) == 2 for rows in ours.splits.values())
    assert len(table(file, train=50).splits["train"]) == 50
    assert len(table(file, test=0.25).splits["test"]) == 100


def test_copies_cross_no_split_even_when_they_become_equal_by_filling(tmp_path):
    given = people(100)
    twice = pd.concat([given, given, given.assign(rooms=3.0), given.assign(rooms=np.nan)])
    twice.to_csv(tmp_path / "a.csv", index=False)
    found = table(tmp_path / "a.csv")
    seen = {name: {tuple(row) for row in found.inputs[rows].tolist()} for name, rows in found.splits.items()}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert any("left out as the copy of another" in note for note in found.notes)


def test_copies_that_contradict_each_other_are_counted(tmp_path):
    given = people(100)
    pd.concat([given, given.assign(label="other")[:7]]).to_csv(tmp_path / "a.csv", index=False)
    notes = " ".join(table(tmp_path / "a.csv").notes)
    assert "7 rows left out as the copy of another; 7 of these rows have more than one label" in notes


def test_a_column_named_split_is_followed_or_else_learnt_from(tmp_path):
    given = people(60)
    given.assign(split=["train"] * 40 + ["dev"] * 8 + ["Test"] * 12).to_csv(tmp_path / "a.csv", index=False)
    found = table(tmp_path / "a.csv")
    assert "split" not in found.names
    assert found.splits["test"].tolist() == list(range(48, 60))
    assert found.splits["validation"].tolist() == list(range(40, 48))
    given.assign(split=["banana", "7-10"] * 30).to_csv(tmp_path / "b.csv", index=False)
    assert table(tmp_path / "b.csv").categories["split"] == ["7-10", "banana"]


def test_rows_without_a_label_are_for_training_only(tmp_path):
    given = people(100)
    given.loc[:59, "label"] = None
    given.to_csv(tmp_path / "a.csv", index=False)
    found = table(tmp_path / "a.csv")
    assert (found.labels == UNLABELLED).sum() == 60
    for name in ("validation", "test"):
        assert (found.labels[found.splits[name]] != UNLABELLED).all()
    assert table(tmp_path / "a.csv", label=None, without=["label"]).labels is None


# --- what is missing, and what looks odd -----------------------------------------------------------------------


def test_missing_values_are_filled_from_the_training_rows_and_said(tmp_path):
    given = people(200)
    given.loc[::10, "age"] = np.nan
    given.loc[5:9, "sex"] = ["", "NA", "?", " nan ", None]
    given.to_csv(tmp_path / "a.csv", index=False)
    found = table(tmp_path / "a.csv")
    train = found.splits["train"].numpy()
    known = given["age"].iloc[train].dropna()
    assert found.inputs[0, 0].item() == pytest.approx(float(known.median()), abs=1e-5)
    usual = given["sex"].iloc[[row for row in train if row not in range(5, 10)]].mode()[0]
    assert {found.categories["sex"][int(found.inputs[row, 1])] for row in range(5, 10)} == {usual}
    assert any(f"'age' 20 ({known.median():g}), 'sex' 5 ('{usual}')" in note for note in found.notes)


def test_a_median_does_not_see_the_test_rows(tmp_path):
    given = people(100).assign(split=["train"] * 50 + ["validation"] * 10 + ["test"] * 40)
    given.loc[50:, "age"] += 1000.0
    given.loc[99, "age"] = np.nan
    given.to_csv(tmp_path / "a.csv", index=False)
    assert table(tmp_path / "a.csv").inputs[99, 0] < 100


def test_columns_that_say_nothing_are_noted(tmp_path):
    given = people(100).assign(same=7, number=range(100), time=1.6e9 + people(100)["rooms"])
    given.to_csv(tmp_path / "a.csv", index=False)
    notes = table(tmp_path / "a.csv").notes
    assert [note.split(":")[0] for note in notes] == ["'same'", "'number'", "'time'"]
    assert "float32" in notes[2]


# --- fingerprints and what is passed on ------------------------------------------------------------------------


def test_the_fingerprint_follows_content_and_meaning(file, tmp_path):
    plain, prints = people(), {table(file).fingerprint}
    changes = [
        plain.assign(age=plain["age"].where(plain.index != 7, 1.0)),
        plain.rename(columns={"age": "years"}),
        plain.assign(sex=plain["sex"].replace("f", "x")),  # x comes after m: other numbers
        plain.assign(sex=plain["sex"].replace("f", "e")),  # the same numbers, which mean something else
    ]
    for change in changes:
        (tmp_path / "other").mkdir(exist_ok=True)
        change.to_csv(tmp_path / "other" / "people.csv", index=False)
        prints.add(table(tmp_path / "other" / "people.csv").fingerprint)
    assert len(prints) == 1 + len(changes)
    plain.assign(label=plain["label"].to_numpy()[::-1]).to_csv(tmp_path / "other" / "people.csv", index=False)
    assert table(tmp_path / "other" / "people.csv").fingerprint in prints, "labels have a print of their own"


def test_a_source_with_hidden_labels_says_what_its_columns_are(file):
    found = table(file)
    hidden = LabelledSubset(found, found.splits["train"][:20])
    assert hidden.modality == "table" and hidden.categories == found.categories
    assert list(hidden.names) == found.names and list(hidden.kinds) == found.kinds
    plain = stillroom.as_source((torch.zeros(30, 2) + torch.arange(30)[:, None], torch.arange(30) % 2))
    bare = LabelledSubset(plain, plain.splits["train"])
    assert bare.modality == ""
    for name in ("names", "kinds", "categories"):
        assert not hasattr(bare, name), "whoever asks has a default of his own"
    assert found.trimmed({"train": 10}).names == found.names


def test_the_tumours_of_scikit_learn():
    found = stillroom.open_source("breast-cancer")
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 358, "validation": 40, "test": 171}
    assert found.classes == ["malignant", "benign"] and found.inputs.shape == (569, 30)
    assert set(found.kinds) == {"numeric"} and found.show(0).startswith("mean radius 17.99, mean texture 10.38, ")
    assert int((found.labels == 0).sum()) == 212


# --- what is refused -------------------------------------------------------------------------------------------

REFUSED = {
    "an unknown label": (PLAIN, {"label": "lable"}, "Did you mean 'label'"),
    "no label": (PLAIN.replace("label", "truth"), {}, "'label: COLUMN'"),
    "an unknown column": (PLAIN, {"columns": ["A"]}, "got 'A'"),
    "an unknown category": (PLAIN, {"categorical": ["bb"]}, "got 'bb'"),
    "the label learnt from": (PLAIN, {"columns": ["a", "label"]}, "not learnt from"),
    "a word for a list": (PLAIN, {"without": "a"}, "list of columns"),
    "nothing left": (PLAIN, {"without": ["a", "b"]}, "to learn from"),
    "one class": (PLAIN.replace("yes", "no"), {}, "one class, 'no', in all 4"),
    "no labels at all": (PLAIN.replace("yes", "").replace("no", "NaN"), {}, "empty label in every row"),
    "a measurement": (PLAIN.replace("yes", "0.5").replace("no", "1"), {}, "is no label"),
    "an empty file": ("", {}, "empty first line"),
    "a first line alone": ("a,b,label\n", {}, "no rows"),
    "ragged rows": (PLAIN + "1,x\n", {}, "2 fields in line 6"),
    "an open quote": (PLAIN + '1,"x,no\n', {}, "quotes that open"),
    "two columns of a name": (PLAIN.replace("a,b", "a,a"), {}, "two columns of one name"),
    "infinity": (PLAIN + "inf,x,no\n", {}, "inf in line 6"),
    "beyond float32": (PLAIN + "1e39,x,no\n", {}, "up to 3e38"),
    "an empty column": ("a,b,label\n,x,no\n,y,yes\n,x,yes\n,w,no\n", {"test": 0, "validation": 0}, "'a' of"),
    "a size": (PLAIN, {"test": 9}, "does not fit"),
    "a decimal comma": ("a,label\n" + "".join(f'"{row},5",{row % 2}\n' for row in range(30)), {}, "a point instead"),
    "quotes in the first line": ('"a\nb",c,label\n1,2,x\n', {}, "quotes that open"),
    "another kind of file": (PLAIN, {}, ".parquet"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_is_told_in_words(what, tmp_path):
    text, options, words = REFUSED[what]
    file = tmp_path / ("a.xlsx" if what == "another kind of file" else "a.csv")
    file.write_text(text)
    with pytest.raises(DataError) as told:
        table(file, **options)
    assert words in str(told.value), told.value


def test_a_number_that_is_none_is_told_with_its_line(tmp_path):
    rows = [f"{row},{row % 2}\n" for row in range(40)]
    rows[17] = "unknown,1\n"
    (tmp_path / "a.csv").write_text("age,label\n" + "".join(rows))
    with pytest.raises(DataError, match=r"not numeric: got 'unknown' in line 19\..*'without: \[age\]'"):
        table(tmp_path / "a.csv")


def test_a_column_of_names_is_no_category(tmp_path):
    people(100).assign(name=[f"Mr {row}" for row in range(100)]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"too many categories: got 100 different.*without: \[name\]"):
        table(tmp_path / "a.csv")
    people(100).assign(day=pd.Timestamp("2026-01-01")).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'day' of .* cannot be used: got timestamp"):
        table(tmp_path / "a.parquet")


def test_a_number_of_each_row_is_no_label(tmp_path):
    people(100).assign(number=range(100)).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="'number' of .* is no label: got 100 different"):
        table(tmp_path / "a.csv", label="number")


def test_encodings(tmp_path):
    text = people(50).to_csv(index=False)
    for name in ("utf-8-sig", "utf-16", "gb18030"):
        kept = text.replace("Köln", "上海")
        (tmp_path / "a.csv").write_bytes(kept.encode(name))
        found = table(tmp_path / "a.csv", **({"encoding": name} if name == "gb18030" else {}))
        assert "北京" in found.categories["town"] and found.names[0] == "age", name
    (tmp_path / "a.csv").write_bytes(text.replace("北京", "Bonn").encode("latin-1"))
    with pytest.raises(DataError, match="not written in utf-8.*encoding: cp1252"):
        table(tmp_path / "a.csv")


def test_damaged_files_are_told_in_words(tmp_path):
    for name in ("a.parquet", "a.npz", "a.npy", "a.csv.gz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not what the name says")
        with pytest.raises(DataError, match=f"Cannot read .*{name}"):
            table(tmp_path / name)
        with pytest.raises(DataError, match="does not exist"):
            table(tmp_path / f"no{name}")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="may hold pickled objects"):
        table(tmp_path / "o.npy")
    np.savez(tmp_path / "c.npz", x=np.zeros((3, 2, 2)), y=[0, 1, 0])
    with pytest.raises(DataError, match="holds no table"):
        table(tmp_path / "c.npz")


def test_a_held_out_row_needs_a_label(tmp_path):
    given = people(60).assign(split=["train"] * 40 + ["test"] * 20)
    given.loc[50, "label"] = None
    given.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="1 of 'test', the first in line 52"):
        table(tmp_path / "a.csv")


def test_what_python_gives_is_checked_too():
    rows = np.zeros((3, 2))
    for words, options in (
        ("do not fit", {"names": ["a"]}),
        ("do not fit", {"names": ["a", "a"]}),
        ("not there", {"names": ["a", "b"], "categories": {"c": ["x"]}}),
        ("no category", {"names": ["a", "b"], "categories": {"b": []}}),
    ):
        with pytest.raises(DataError, match=words):
            TableSource(rows, [0, 1, 0], **options)
