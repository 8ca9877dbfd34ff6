"""stillroom evaluate STUDENT --teachers ...: the best first, a sentence, and every mistake in words."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import stillroom
from stillroom.cli import main
from stillroom.cli.app import app
from stillroom.cli.teachers import advice
from stillroom.models.bundle import save_bundle
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.randomness import forked
from stillroom.suitability import Suitability


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``stillroom ...`` here; return its code, what it printed and what it complained of."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(import_module("stillroom.suitability"), "WARMUP", 20)  # a smaller net learns sooner

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


def bundle(folder: Path, data: stillroom.ArraySource, steps: int, classes: list[str]) -> None:
    shape = (1, 6, 6)
    with forked(steps, "weights"):
        model = build("net", shape=shape, classes=len(classes), hidden=16)
    encode = encode_for(data)
    if steps:
        settings = stillroom.Training(steps=steps, batch=32, lr=1e-2)
        stillroom.fit(stillroom.Learner(model, ["labels"], encode=encode), data, None, settings)
    config = {
        "model": {"use": "net", "options": {"hidden": 16}},
        "shape": list(shape),
        "input": {"dtype": "uint8", "shape": list(shape)},
        "classes": classes,
    }
    save_bundle(folder, model, encode=encode, config=config)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A source as a file, a teacher that knows it, one that does not, one of other classes, and a store."""
    import numpy as np

    root = tmp_path_factory.mktemp("shelf")
    with forked(0, "pictures"):
        labels = torch.arange(360) % 3
        images = torch.randint(0, 120, (360, 1, 6, 6), dtype=torch.uint8)
        for label in range(3):
            images[labels == label, 0, 2 * label] += 80
    np.savez(root / "bars.npz", x=images.numpy(), y=labels.numpy())
    data = stillroom.open_source("npz", path=str(root / "bars.npz"))
    names = [str(name) for name in data.classes]
    bundle(root / "knows", data, 150, names)
    bundle(root / "guesses", data, 0, names)
    bundle(root / "other", data, 0, ["x", "y", "z"])
    bundle(root / "wide", data, 0, [*names, "more"])
    knows = stillroom.load(root / "knows")
    stillroom.record(stillroom.Live(knows.model, encode=knows.encode), data, root / "store", classes=data.classes)
    return root


def test_the_best_comes_first_and_is_named(command, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    code, out, err = command("evaluate", "net:hidden=8", "--teachers", "guesses", "knows", "--data", "npz:bars.npz")
    assert code == 0, err
    lines = [line for line in out.splitlines() if re.match(r"\s*(knows|guesses)\s+\d", line)]
    assert [line.split()[0] for line in lines] == ["knows", "guesses"]
    assert "Take knows" in out and "In our measurements" in out


def test_json_a_store_and_a_bundle_for_the_student(command, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    code, out, err = command("evaluate", "guesses", "--teachers", "guesses,store", "--data", "npz:bars.npz", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["best"] == "store" and found["sentence"].startswith("Take store")
    assert [one["teacher"] for one in found["teachers"]] == ["store", "guesses"]
    assert all(len(one["each"]) == 3 and one["accuracy"] <= 1 for one in found["teachers"])
    again = json.loads(
        command("evaluate", "guesses", "--teachers", "guesses", "store", "--data", "npz:bars.npz", "--json")[1]
    )
    assert again == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["net", "--teachers", "knows"], "two or more"),
        (["net", "--teachers", "knows", "knows"], "twice"),
        (["net", "--teachers", "knows", "absent"], "'absent', no folder"),
        (["nett", "--teachers", "knows", "guesses"], "Did you mean 'net'?"),
        (["net:hidden=eight", "--teachers", "knows", "guesses"], "hidden=eight"),
        (["net:depth=8", "--teachers", "knows", "guesses"], "'depth'"),
        (["bigru", "--teachers", "knows", "guesses"], "texts"),
        (["net", "--teachers", "knows", "other"], "other classes than the data"),
        (["net", "--teachers", "knows", "wide"], "other classes"),
        (["net", "--teachers", "knows", "."], "not a bundle"),
        (["net", "--teachers", "knows", "guesses", "--on", "digits"], "cannot be combined with"),
        (["knows", "guesses"], "--teachers"),
    ],
)
def test_what_is_wrong_is_said_in_words(command, shelf, monkeypatch, words, said):
    monkeypatch.chdir(shelf)
    code, out, err = command("evaluate", *words, "--data", "npz:bars.npz")
    assert code == 2 and said in err and not out and "Traceback" not in err, err


def test_data_are_those_of_a_run_or_must_be_named(command, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    code, _, err = command("evaluate", "net", "--teachers", "knows", "guesses")
    assert code == 2 and "--data" in err
    run = shelf / "run"
    shutil.copytree(shelf / "knows", run / "teacher")
    recipe = "data: {use: npz, path: bars.npz}\nteacher: {model: net}\nstudent: {model: net}\nobjectives: [{use: kd}]\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    code, out, err = command("evaluate", "net", "--teachers", "run/teacher", "guesses", "--json")
    assert code == 0, err
    assert json.loads(out)["best"] == "run/teacher"


def test_a_damaged_store_and_one_of_other_data_are_refused(command, shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(shelf)
    shutil.copytree(shelf / "store", tmp_path / "store")
    code, _, err = command("evaluate", "net", "--teachers", "knows", tmp_path / "store", "--data", "digits")
    assert code == 2 and "fit" in err
    next((tmp_path / "store").glob("*.parquet")).unlink()
    code, _, err = command("evaluate", "net", "--teachers", "knows", tmp_path / "store", "--data", "npz:bars.npz")
    assert code == 2 and "Traceback" not in err


def test_a_narrow_lead_is_called_one():
    def row(name: str, *each: float) -> Suitability:
        return Suitability(name, sum(each) / len(each), each, 1.0, 1.0, 0.9, 0.1, 0.9)

    assert advice([row("a", 0.9, 0.8, 0.9), row("b", 0.8, 0.7, 0.8)]).startswith("Take a")
    assert "too close" in advice([row("a", 0.9, 0.8, 0.9), row("b", 0.8, 0.81, 0.8)])
    assert "too close" in advice([row("a", 0.9), row("b", 0.8)])


def test_help_shows_how():
    from typer.main import get_command

    text = get_command(app).commands["evaluate"].help
    assert "--teachers" in text and "cnn:width=8" in text
