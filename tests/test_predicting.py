"""predict on files of texts: a class beside each, blank where there is none, and a word for whatever was cut."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch
from torch import nn

from stillroom.cli import main
from stillroom.cli import models as commands
from stillroom.cli.predicting import predictions, table
from stillroom.data.texts import LONGEST
from stillroom.errors import DataError, UserError
from stillroom.models.bundle import Deployed
from stillroom.models.text_encode import WordEncode

WORDS = ["fine", "good", "dull", "bad", "film", "好", "坏"]


class Votes(nn.Module):
    """Fine and good speak for a text, dull and bad against it."""

    def __init__(self):
        super().__init__()
        weights = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0, -1.0, 0.0, 1.0, -1.0])
        self.register_buffer("weights", torch.stack([-weights, weights], 1))

    def forward(self, ids, mask):
        return (self.weights[ids] * mask.unsqueeze(2)).sum(1)


@pytest.fixture
def votes():
    config = {"shape": [9], "input": {"dtype": "text", "shape": []}, "classes": ["negative", "positive"]}
    return Deployed(Votes(), WordEncode(WORDS, longest=8), config=config).eval()


@pytest.fixture
def pictures():
    config = {"shape": [1, 4, 4], "input": {"dtype": "uint8", "shape": [1, 4, 4]}}
    return Deployed(nn.Flatten(), config=config).eval()


@pytest.fixture
def command(monkeypatch, capsys, votes, tmp_path):
    """Run ``stillroom ...`` with the model of this file."""
    monkeypatch.setattr(commands, "_load", lambda place: votes)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


TABLE = 'note,text\n1,a fine film\n2,"a dull,\nbad film"\n3,  \n4,good good bad\n'


def test_a_table_is_answered_line_by_line(command, tmp_path):
    (tmp_path / "texts.csv").write_text(TABLE)
    code, out, err = command("predict", "model", "texts.csv", "--out", "answers.csv")
    assert code == 0 and "Wrote 4 predictions to answers.csv" in out and "1 text is empty" in out and not err
    with open("answers.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["input", "row", "note", "text", "class", "probability"]
    assert {row["input"] for row in rows} == {"texts.csv"} and [row["row"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["note"] for row in rows] == ["1", "2", "3", "4"], "the person's own columns"
    assert [row["class"] for row in rows] == ["positive", "negative", "", "positive"]
    assert rows[1]["text"] == "a dull,\nbad film" and rows[2]["probability"] == ""
    assert float(rows[0]["probability"]) == pytest.approx(1 / (1 + 2.718281828**-2), abs=1e-4)


def test_json_holds_the_same_and_nothing_else(command, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"review": "好"}\n{"review": null}\n{"review": "坏坏"}\n', encoding="utf-8")
    code, out, _ = command("predict", "model", "texts.jsonl", "--column", "review", "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 3 and found["file"] == "predictions.csv"
    assert [row["class"] for row in found["predictions"]] == ["positive", None, "negative"]
    assert found["notes"] == ["1 text is empty: the class is left blank."]


def test_every_kind_of_file_gives_the_same(votes, tmp_path):
    texts = ["a fine film", "dull", "good"]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "b.tsv").write_text("id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said = [predictions(votes, [tmp_path / name])[0] for name in ("a.txt", "b.tsv", "c.jsonl")]
    assert len({tuple((row["text"], row["class"], row["probability"]) for row in one) for one in said}) == 1
    assert predictions(votes, [tmp_path])[0] == [row for one in said for row in one], "a folder is all of its files"
    gb = tmp_path / "gb.txt"
    gb.write_bytes("好电影\n坏\n".encode("gb18030"))
    assert [row["class"] for row in predictions(votes, [gb], encoding="gb18030")[0]] == ["positive", "negative"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("a.txt", "好电影\n坏\n".encode("gb18030"), "Give '--encoding gb18030'"),
        ("a.csv", "text\ncafé\n".encode("latin-1"), "Give '--encoding cp1252'"),
        ("a.csv", "text\nfine\n".encode("utf-16-le"), "Give '--encoding utf-16-le'"),
    ],
)
def test_another_encoding_is_answered_with_the_flag_that_gives_it(command, tmp_path, file, content, told):
    (tmp_path / file).write_bytes(content)
    code, out, err = command("predict", "model", file)
    assert code == 2 and told in err and not out and not (tmp_path / "predictions.csv").exists()


def test_one_prediction_is_called_one(command, tmp_path):
    (tmp_path / "a.txt").write_text("fine\n")
    assert "Wrote 1 prediction to predictions.csv" in command("predict", "model", "a.txt")[1]


def test_what_was_cut_is_said_and_a_line_of_a_megabyte_does_no_harm(votes, tmp_path):
    place = tmp_path / "long.txt"
    place.write_text("good " * 20 + "\n" + "dull " * 200_000 + "\n" + "x" * 1_000_000 + "\nfine\n")
    answers, notes, _ = predictions(votes, [place])
    assert [row["class"] for row in answers[:2]] == ["positive", "negative"]
    assert answers[2]["text"] == "x" * 1_000_000, "texts are given back whole"
    assert f"2 texts are over {LONGEST:,} bytes: the rest was not read." in notes
    assert "3 texts are longer than the 8 tokens this model reads: the beginning was classified." in notes


def test_a_cut_never_breaks_a_character(votes, tmp_path):
    place = tmp_path / "long.txt"
    place.write_text("a" + "好" * LONGEST, encoding="utf-8")
    answers, notes, _ = predictions(votes, [place])
    assert answers[0]["class"] == "positive" and len(notes) == 2


def test_only_empty_texts_are_left_blank(votes, tmp_path):
    (tmp_path / "x.csv").write_text("text,n\n,1\n \0,2\n")
    answers, notes, _ = predictions(votes, [tmp_path / "x.csv"])
    assert [row["class"] for row in answers] == [None, None] and "2 texts are empty" in notes[0]
    assert table(answers).decode().splitlines()[1].endswith(",1,,1,,")


@pytest.mark.parametrize(
    "name, content, options, words",
    [
        ("x.csv", b"review,n\nfine,1\n", {}, "'text'"),
        ("x.csv", b"review,n\nfine,1\n", {"column": "reveiw"}, "Did you mean 'review'"),
        ("x.csv", b"", {}, "x.csv"),
        ("x.txt", b"\n\n", {}, "nothing to classify"),
        ("x.txt", "fine\n好电影坏电影\n".encode("gb18030"), {}, "gb18030"),
        ("x.png", b"\x89PNG", {}, "takes texts"),
        ("x.npy", b"\x93NUMPY", {}, "takes texts"),
        ("x.jsonl", b"fine\n", {}, "not JSON"),
    ],
)
def test_wrong_files_are_refused_in_words(votes, tmp_path, name, content, options, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        predictions(votes, [tmp_path / name], **options)


def test_nothing_is_written_when_a_file_is_refused(command, tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    code, out, err = command("predict", "model", "x.csv")
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err and not out
    assert not (tmp_path / "predictions.csv").exists()


def test_a_model_of_pictures_refuses_texts(pictures, tmp_path):
    (tmp_path / "x.csv").write_text("text\nfine\n")
    with pytest.raises(DataError, match=r"does not take texts.*pictures or arrays, uint8 rows of shape \(1, 4, 4\)"):
        predictions(pictures, [tmp_path / "x.csv"])
    with pytest.raises(UserError, match="--column"):
        predictions(pictures, [tmp_path / "x.png"], column="text")


# --- the other commands ------------------------------------------------------------------------------------


@pytest.fixture
def reviews(tmp_path):
    lines = ["text,label"]
    for number in range(60):
        word, label = (("fine", "positive"), ("dull", "negative"))[number % 2]
        lines.append(f"{word} film {number},{label}")
    (tmp_path / "reviews.csv").write_text("\n".join(lines) + "\n,positive\n")
    return "text:reviews.csv"


def test_a_model_of_texts_is_measured_on_texts_and_on_nothing_else(command, reviews):
    code, out, _ = command("evaluate", "model", "--data", reviews, "--json")
    found = json.loads(out)
    assert code == 0 and found["accuracy"] == 1.0 and found["rows"] >= 3
    code, _, err = command("evaluate", "model", "--data", "digits")
    assert code == 2 and "got rows of shape (1, 28, 28) and uint8. Allowed: texts." in err


def test_a_model_of_texts_is_exported_on_texts(command, reviews, tmp_path):
    code, out, _ = command("export", "model", "--data", reviews, "--int8", "--out", "out", "--json")
    found = json.loads(out)
    assert code == 0 and found["files"]["model.onnx"]["agreement"] == 1.0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(found["files"])


def test_what_texts_hold_is_shown(command, reviews):
    code, out, _ = command("data", "show", reviews)
    assert code == 0 and "without a text" in out and "film" in out and "at most" in out
    found = json.loads(command("data", "show", reviews, "--json")[1])
    assert found["input"] == {"dtype": "text", "shape": []} and found["classes"] == ["negative", "positive"]


def test_the_column_that_a_run_was_trained_on_is_found_without_being_named(votes, tmp_path):
    (tmp_path / "x.csv").write_text("id,message,text\n1,good,bad\n")
    assert [row["row"] for row in predictions(votes, [tmp_path / "x.csv"], usual="message").answers] == [1]
    columns = ("message", "text", "no")
    told = {usual: predictions(votes, [tmp_path / "x.csv"], usual=usual).answers[0] for usual in columns}
    said = {name: predictions(votes, [tmp_path / "x.csv"], column=name).answers[0] for name in ("message", "text")}
    assert told["message"] == said["message"] and told["text"] == told["no"] == said["text"] != said["message"]
