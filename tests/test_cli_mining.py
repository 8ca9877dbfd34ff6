"""``stillroom mine`` on a small finished run: the recipe it writes runs, and what it refuses it refuses in words."""

from __future__ import annotations

import json
import runpy
import sys
from typing import NamedTuple

import pytest

from stillroom.cli import main
from stillroom.recipe import read_recipe

RECIPE = """
data: {use: breast-cancer, labels: 30}
teacher: {model: mlp, hidden: [16], train: {steps: 100, batch: 32, lr: 1.0e-2}}
student: {model: mlp, hidden: [4]}
objectives: [{use: labels, weight: 0.5}, {use: kd, temperature: 2, weight: 0.5}]
train: {steps: 60, batch: 32, lr: 1.0e-2}
control: false
seeds: [0]
trials: [1]
export: {onnx: false}
"""
TWO = RECIPE.replace("teacher:", "teachers: {one:").replace("1.0e-2}}", "1.0e-2}}}", 1)
NONE = """
data: {use: breast-cancer}
student: {model: mlp, hidden: [4]}
objectives: [{use: labels}]
train: {steps: 20, batch: 32}
seeds: [0]
trials: [1]
export: {onnx: false}
"""


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs: with one teacher, with named ones, without."""
    root = tmp_path_factory.mktemp("mined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache"))
        patch.setenv("COLUMNS", "300")
        for name, text in (("one", RECIPE), ("two", TWO), ("none", NONE)):
            (root / f"{name}.yaml").write_text(text)
            words = ["stillroom", "run", root / f"{name}.yaml", "--quiet", "--jobs", 1, "--out", root / name]
            patch.setattr(sys, "argv", [str(word) for word in words])
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code
        yield root


@pytest.fixture
def command(monkeypatch, capsys, runs):
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Said(int(stop.value.code or 0), shown.out, " ".join(shown.err.split()))

    return run


def test_a_mined_recipe_can_be_run_and_be_written_again(command, runs, tmp_path):
    path = tmp_path / "mined.yaml"
    words = ("mine", runs / "one", "--only", "answers", "--recipe", path, "--out", tmp_path / "mining", "--quiet")
    said = command(*words)
    assert said.code == 0 and f"Recipe: {path}" in said.out and "\nrecipe " in said.out, said.err
    assert path.read_bytes() == (tmp_path / "mining" / "recipe" / "recipe.yaml").read_bytes()
    found = read_recipe(path)
    assert found.name == "one-mined" and found.objectives[0].weight < 0.5, "the teacher is hardly ever wrong"
    assert "# The teacher is wrong on" in path.read_text()
    kept = json.loads((tmp_path / "mining" / "findings.json").read_text())["panels"]
    assert set(kept) == {"answers", "recipe"} and kept["recipe"]["numbers"]["choices"]["name"]["is"] == "one-mined"
    assert command(*words).code == 0, "a mined recipe is written over"
    said = command("run", path, "--quiet", "--jobs", 1, "--out", tmp_path / "again")
    assert said.code == 0, said.err


def test_without_the_option_the_recipe_lies_beside_the_report(command, runs, tmp_path):
    said = command("mine", runs / "one", "--only", "answers", "--out", tmp_path / "mining", "--json")
    assert said.code == 0 and json.loads(said.out)["folder"] == str(tmp_path / "mining")
    assert read_recipe(tmp_path / "mining" / "recipe" / "recipe.yaml").name == "one-mined"


def test_a_panel_that_says_nothing_of_the_recipe_changes_its_name_alone(command, runs, tmp_path):
    path = tmp_path / "mined.yaml"
    said = command("mine", runs / "one", "--only", "rules", "--recipe", path, "--out", tmp_path / "mining", "--quiet")
    assert said.code == 0 and "gives no reason to change the recipe" in said.out, said.err
    whole = {**read_recipe(path).resolved(), "name": "one"}
    assert whole == read_recipe(runs / "one" / "recipe.yaml").resolved()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("two", "--model", "one"), "No recipe can be mined"),
        (("two",), "No recipe can be mined"),
        (("none",), "No recipe can be mined"),
        (("one", "--model", "main"), "No recipe can be mined"),
    ],
)
def test_a_run_without_its_one_teacher_gives_no_recipe(command, runs, tmp_path, words, said):
    path = tmp_path / "mined.yaml"
    found = command("mine", runs / words[0], *words[1:], "--only", "answers", "--recipe", path, "--out", tmp_path / "m")
    assert found.code == 2 and said in found.err and "one teacher" in found.err
    assert not path.exists() and not (tmp_path / "m").exists()


def test_a_bundle_gives_no_recipe(command, runs, tmp_path):
    words = ("mine", runs / "one" / "export" / "student", "--data", "breast-cancer", "--only", "answers")
    found = command(*words, "--recipe", tmp_path / "mined.yaml", "--out", tmp_path / "m")
    assert found.code == 2 and "No recipe can be mined" in found.err and "--data breast-cancer" in found.err
    assert command(*words, "--out", tmp_path / "m", "--quiet").code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("rules.leafs=3", "Did you mean 'rules.leaves'"),
        ("rule.leaves=3", "Did you mean 'rules'"),
        ("rules.leaves=few", "a whole number"),
        ("rules.leaves", "panel.option=value"),
        ("rules.leaves=1", "2 to 64"),
        ("rules.fidelity=95", "above 0, at most 1"),
        ("similarity.temperature=0", "above 0"),
        ("concepts.tap=nowhere", "no submodule to tap: got 'nowhere'"),
    ],
)
def test_an_option_that_is_none_or_does_not_fit_is_refused(command, runs, tmp_path, option, said):
    found = command("mine", runs / "one", "--set", option, "--out", tmp_path / "m", "--quiet")
    assert found.code == 2 and said in found.err, found.err


def test_what_is_no_run_is_refused(command, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "absent"):
        found = command("mine", tmp_path / place, "--recipe", tmp_path / "mined.yaml")
        assert found.code == 2 and str(tmp_path / place) in found.err and "stillroom run RECIPE" in found.err
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"], "nothing was written"


def test_a_recipe_takes_nothing_elses_place(command, runs, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.yaml").write_text("name: mine\n")
    for place, said in (
        ("folder", "is a file: got"),
        ("absent/mined.yaml", "no folder to lie in"),
        ("own.yaml", "another file's place"),
    ):
        found = command(
            "mine", runs / "one", "--only", "answers", "--recipe", tmp_path / place, "--out", tmp_path / "m"
        )
        assert found.code == 2 and said in found.err, found.err
    assert (tmp_path / "own.yaml").read_text() == "name: mine\n"
    assert not (tmp_path / "absent").exists() and not (tmp_path / "m").exists(), "refused before anything is mined"


def test_the_rules_that_are_offered_answer_as_often_like_the_model_as_is_said(command, runs, tmp_path):
    out = tmp_path / "m"
    said = command("mine", runs / "one", "--only", "rules", "--only", "students", "--out", out, "--json")
    assert said.code == 0, said.err
    sentence = next(
        one["sentence"] for one in json.loads(said.out)["findings"] if one["title"] == "What to do with this"
    )
    numbers = json.loads((out / "findings.json").read_text())["panels"]["rules"]["numbers"]
    assert "A student that needs no library is rules/rules.py" in sentence
    assert f"{numbers['rules']} rules" in sentence and f"{100 * numbers['fidelity']:.1f} %" in sentence
    assert "'main' gives the model's answer on" in sentence

    from stillroom.pipeline.mining import subjects_of_run

    subject, _ = subjects_of_run(runs / "one")
    predict = runpy.run_path(str(out / "rules" / "rules.py"))["predict"]
    rows = subject.inputs(subject.examples("test")).tolist()
    told = [subject.classes[place] for place in subject.logits("test").argmax(1).tolist()]
    same = sum(predict(row)[0] == name for row, name in zip(rows, told, strict=True)) / len(rows)
    assert same == pytest.approx(numbers["fidelity"], abs=1e-9)
