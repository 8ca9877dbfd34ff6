"""A person's own tables, from the recipe to the prediction: columns are found by name, in any order, with gaps."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pandas as pd
import pytest

from stillroom.cli import main

RECIPE = """
data: {use: table, path: PATH, label: stays, labels: 40}
teacher: {model: mlp, hidden: [16], train: {steps: 150, batch: 32, lr: 1.0e-2}}
student: {model: mlp, hidden: [8]}
objectives: [{use: labels}, {use: kd, temperature: 2}]
train: {steps: 150, batch: 32, lr: 1.0e-2}
control: false
seeds: [0]
"""


def people(rows: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(1)
    found = pd.DataFrame(
        {"age": random.normal(40, 10, rows).round(2), "town": random.choice(["Bonn", "Köln", "Ulm"], rows)}
    )
    return found.assign(stays=np.where(found["town"] == "Ulm", "yes", "no"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run on a table of one's own."""
    folder = tmp_path_factory.mktemp("tables")
    people().to_csv(folder / "people.csv", index=False)
    (folder / "mine.yaml").write_text(RECIPE.replace("PATH", str(folder / "people.csv")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(folder / "cache"))
        words = ["run", folder / "mine.yaml", "--quiet", "--jobs", 1, "--out", folder / "run"]
        patch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


def answers(command, place, file, *more) -> list[tuple[str, str]]:
    out = place / "out.csv"
    code, _, error = command("predict", place / "run", file, "--out", out, *more)
    assert code == 0, error
    with open(out, newline="") as stream:
        return [(row["class"], row["probability"]) for row in csv.DictReader(stream)]


def test_a_run_on_a_table_learns_what_is_in_it(place):
    found = json.loads((place / "run" / "metrics.json").read_text())
    assert found["models"]["main"]["accuracy"]["mean"] > 0.95


def test_columns_are_found_by_name_whatever_their_order_and_format(command, place):
    given = people(20)
    given.to_csv(place / "a.csv", index=False)
    given[["town", "age"]].assign(other=1).to_csv(place / "b.tsv", index=False, sep="\t")
    given.to_parquet(place / "c.parquet")
    first = answers(command, place, place / "a.csv")
    assert [name for name, _ in first] == list(given["stays"])
    assert first == answers(command, place, place / "b.tsv") == answers(command, place, place / "c.parquet")


def test_categories_keep_their_meaning_where_a_file_holds_fewer(command, place):
    given = people(60)
    given.to_csv(place / "all.csv", index=False)
    given.query("town == 'Ulm'").to_csv(place / "ulm.csv", index=False)
    everyone = answers(command, place, place / "all.csv")
    there = [answer for answer, town in zip(everyone, given["town"], strict=True) if town == "Ulm"]
    assert answers(command, place, place / "ulm.csv") == there, "Ulm alone is not the first of the towns"
    assert sum(name == "yes" for name, _ in there) > 0.8 * len(there)


def test_gaps_and_strangers_are_answered_and_said(command, place):
    (place / "odd.csv").write_text("town,age\nUlm,\nParis,40\n,30\n")
    code, said, _ = command("predict", place / "run", place / "odd.csv", "--out", place / "odd.out", "--json")
    assert code == 0
    found = json.loads(said)
    assert found["rows"] == 3 and found["predictions"][0]["class"] == "yes"
    notes = " ".join(found["notes"])
    assert "1 without 'age'" in notes and "1 without 'town'" in notes
    assert "1 with a 'town' that the model has not seen ('Paris')" in notes


def test_what_does_not_fit_is_refused_in_words(command, place, tmp_path):
    (tmp_path / "no_town.csv").write_text("age,twon\n1,Ulm\n")
    (tmp_path / "words.csv").write_text("age,town\nold,Ulm\n")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "none").mkdir()
    wrong = {
        "no_town.csv": "Did you mean 'twon'",
        "words.csv": "not numeric: got 'old' in line 2",
        "a.png": "takes tables",
        "none": "nothing to classify",
        "absent.csv": "no such file",
    }
    for name, words in wrong.items():
        code, _, said = command("predict", place / "run", tmp_path / name, "--out", tmp_path / "out.csv")
        assert code == 2 and words in said and "Traceback" not in said, said
        assert not (tmp_path / "out.csv").exists()
    assert command("predict", place / "run", place / "people.csv", "--column", "town")[0] == 2


def test_a_table_whose_columns_mean_something_else_is_not_measured(command, place, tmp_path):
    assert command("evaluate", place / "run", "--json")[0] == 0
    fewer = people().rename(columns={"stays": "label"}).replace("Bonn", "Ulm")
    fewer.to_csv(tmp_path / "fewer.csv", index=False)
    code, _, said = command("evaluate", place / "run", "--data", f"table:{tmp_path / 'fewer.csv'}")
    assert code == 2 and "other columns than the model" in said and "Köln" in said


def test_data_show_tells_columns_a_row_and_notes(command, place):
    people(50).assign(label=[0, 1] * 25, same=1).to_csv(place / "shown.csv", index=False)
    code, said, _ = command("data", "show", f"table:{place / 'shown.csv'}")
    assert code == 0 and "age, town, stays, same" in said and "'same'" in said and ", town " in said
