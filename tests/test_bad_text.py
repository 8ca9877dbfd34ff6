"""Texts and memories that cannot be used, each through a recipe: one message in words, code 2, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stillroom.cli import main

GOOD = [
    (f"a {'lovely' if number % 2 else 'dull'} film {number}", "neg" if number % 2 else "pos") for number in range(60)
]
TEXTS = "data: {use: text, path: a.csv}\n"
IMAGES = "data: {use: fashion-mnist-sample, labels: 100}\n"
BILSTM = "teacher: {model: bilstm, hidden: 4, train: {steps: 2, batch: 8}}\nstudent: {model: bilstm, hidden: 2}\n"
LSTM = "teacher: {model: lstm, hidden: 4, train: {steps: 2, batch: 8}}\nstudent: {model: lstm, hidden: 2}\n"
KD = "objectives: [{use: labels}, {use: kd}]\n"
REST = "train: {steps: 2, batch: 8}\nseeds: [0]\njobs: 1\n"


def table(rows: list[tuple[str, ...]], head: str = "text,label", encoding: str = "utf-8") -> bytes:
    return "".join(f"{line}\n" for line in [head, *map(",".join, rows)]).encode(encoding)


def remembering(use: str, student: str, teacher: str) -> str:
    return f"objectives: [{{use: labels}}, {{use: {use}, student: {student}, teacher: {teacher}}}]\n"


PLAIN = TEXTS + BILSTM + KD
FILES = {
    "no text in any row": (table([("", "pos"), (" ", "neg")] * 9), ["no texts in", "Check the file"]),
    "no labels": (table([(text,) for text, _ in GOOD], "text"), ["has no labels", "label: COLUMN"]),
    "blank labels": (table([(text, "") for text, _ in GOOD]), ["empty label in every row", "at least two classes"]),
    "one class": (table([(text, "pos") for text, _ in GOOD]), ["nothing to tell apart", "'pos'"]),
    "another encoding": (table([*GOOD, ("很好的书", "pos")], encoding="gb18030"), ["(line 62)", "'encoding: gb18030'"]),
    "a comma too many": (table([*GOOD, ("a", "b", "pos")]), ["3 fields in line 62", "double quotes"]),
}
RECIPES = {
    "pictures for texts": (
        TEXTS + BILSTM.replace("{model: bilstm, hidden: 2}", "{model: cnn}") + KD,
        ["'cnn'", "bilstm"],
    ),
    "texts for pictures": (IMAGES + BILSTM + KD, ["'bilstm' reads texts", "Choose a model"]),
    "an encode that is none": (PLAIN.replace("hidden: 2", "encode: {longst: 5}"), ["encode.longst", "'longest'"]),
    "an encode of images": (
        IMAGES + "teacher: {model: cnn, train: {steps: 2}}\nstudent: {model: cnn, encode: {longest: 6}}\n" + KD,
        ["encode.longest means nothing", "Take 'longest' away"],
    ),
    "no such encoder": (
        TEXTS + "teacher: {hf: bert-base-uncased, train: {steps: 2}}\nstudent: {model: bilstm}\n" + KD,
        ["'bert-base-uncased'", "Nothing is downloaded", "pip install"],
    ),
    "more than fits a size": (PLAIN.replace("path: a.csv", "path: a.csv, test: 400"), ["got 400.", "from 0 to"]),
    "a memory named nowhere": (TEXTS + BILSTM + "objectives: [{use: labels}, {use: memory}]\n", ["such as memory@h"]),
    "a memory that is none": (
        TEXTS
        + BILSTM.replace("{model: bilstm, hidden: 2}", "{model: textcnn}")
        + remembering("memory", "memory@h", "memory@h"),
        ["(textcnn) has no submodule 'memory'", "allowed"],
    ),
    "cells of a GRU": (
        IMAGES
        + LSTM.replace("lstm, hidden: 2", "gru, hidden: 2")
        + remembering("memory_cells", "memory@c/7", "memory@c/7"),
        ["A GRU has no cells", "memory@h"],
    ),
    "other borders": (IMAGES + LSTM + remembering("memory_cells", "memory@c/7", "memory@c/8"), ["behind '/'"]),
    "a tap that is none": (IMAGES + LSTM + remembering("memory", "memory@q", "memory@h"), ["not a tap", "lstm@c/8"]),
    "half of a start": (
        IMAGES + LSTM + remembering("memory_cells", "memory@segments.c/7", "memory@c/7"),
        ["both parts of a state", "memory@segments.h/7"],
    ),
    "stretches in two directions": (
        TEXTS + BILSTM + remembering("memory_cells", "memory@segments.c/7", "memory@c/7"),
        ["two directions", "one direction"],
    ),
    "stretches of a teacher": (
        IMAGES + LSTM + remembering("memory_cells", "memory@c/7", "memory@segments.c/7"),
        ["stretches of the teacher", "memory@c/7"],
    ),
    "prefixes of a memory": (
        IMAGES + LSTM + remembering("memory_prefix", "memory@h", "memory@h"),
        ["transformer's tokens", "the loss memory"],
    ),
    "two readers' borders": (
        TEXTS
        + BILSTM.replace("hidden: 2", "hidden: 2, encode: {longest: 3}")
        + remembering("memory_cells", "memory@c/2", "memory@c/2"),
        ["different bytes of the same texts", "one encode"],
    ),
}
CASES = {name: (PLAIN, *harm) for name, harm in FILES.items()}
CASES |= {name: (recipe, table(GOOD), told) for name, (recipe, told) in RECIPES.items()}


@pytest.mark.parametrize("name", CASES)
def test_it_is_answered_in_words_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, content, told = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "r.yaml").write_text(recipe + REST, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["stillroom", "run", "r.yaml", "--out", "out", "--quiet"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == 2, shown
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err and not shown.out
    for words in told:
        assert words in " ".join(shown.err.split()), shown.err
    assert {path.name for path in tmp_path.iterdir()} <= {"a.csv", "r.yaml", "cache"}
