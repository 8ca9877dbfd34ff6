"""What features are worth on other tasks: probes with known answers, fair controls, sentences true to the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom import ArraySource, open_source
from stillroom.data.table import named
from stillroom.errors import DataError
from stillroom.files import read_json
from stillroom.generality import compare, curve, findings, headline, probes, summary, task_of
from stillroom.generality.compare import raw_input
from stillroom.pipeline.generality import generality_of_run, open_tasks
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.recipe import read_recipe
from stillroom.report.page import page


def blobs(rows: int = 240, classes: int = 3, apart: float = 4.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    middles = generator.normal(size=(classes, 6)) * apart
    return (middles[labels] + generator.normal(size=(rows, 6))).astype(np.float32), labels.astype(np.int64)


# --- probes ------------------------------------------------------------------------------------------------


def test_probes_know_what_is_plain_and_do_not_know_what_is_not_there():
    rows, labels = blobs(apart=8.0)
    halves = rows[:120], labels[:120], rows[120:], labels[120:]
    assert probes.linear(*halves)[0].mean() == 1.0 and probes.nearest(*halves) == 1.0
    assert probes.clustering(*halves[2:]) > 0.95
    assert probes.retrieval(*halves[2:]) == {"recall_at_1": 1.0, "recall_at_5": 1.0, "map": pytest.approx(1.0)}
    assert min(probes.few_shot(*halves, shots=5, draws=4)) > 0.95
    noise = np.random.default_rng(1).normal(size=(240, 6)).astype(np.float32)
    empty = noise[:120], labels[:120], noise[120:], labels[120:]
    assert abs(probes.linear(*empty)[0].mean() - 1 / 3) < 0.15 and abs(probes.nearest(*empty) - 1 / 3) < 0.15
    assert probes.clustering(*empty[2:]) < 0.1


def test_probes_are_equal_for_equal_seeds_and_the_penalty_is_chosen():
    rows, labels = blobs(apart=1.0)
    halves = rows[:120], labels[:120], rows[120:], labels[120:]
    first, second = (probes.linear(*halves, seed=3) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1] in probes.STRENGTHS
    assert probes.few_shot(*halves, shots=1, draws=5, seed=1) == probes.few_shot(*halves, shots=1, draws=5, seed=1)
    assert probes.few_shot(*halves, shots=1, draws=5, seed=1) != probes.few_shot(*halves, shots=1, draws=5, seed=2)
    assert probes.clustering(*halves[2:], seed=1) == probes.clustering(*halves[2:], seed=1)


def test_retrieval_by_hand():
    rows = np.array([[1.0, 0], [0.9, 0.1], [0, 1.0]], np.float32)
    found = probes.retrieval(rows, np.array([0, 1, 0]))
    # Row 0 finds row 1 (wrong) before row 2: precision 1/2. Row 2 finds row 1, then row 0: 1/2. Row 1 has no partner.
    assert found == {"recall_at_1": 0.0, "recall_at_5": 1.0, "map": 0.5}


def test_votes_of_neighbours_are_weighted_by_how_near_they_are():
    train = np.array([[1, 0], [0, 1], [0.02, 1]], np.float32)
    assert (
        probes.nearest(train, np.array([0, 1, 1]), np.array([[1, 0.05]], np.float32), np.array([0]), neighbours=3)
        == 1.0
    )


# --- comparing ---------------------------------------------------------------------------------------------


def source(seed: int = 0, classes: int = 3, name: str = "blobs", rows: int = 300) -> ArraySource:
    values, labels = blobs(rows, classes, apart=1.5, seed=seed)
    return ArraySource(
        torch.from_numpy(values), torch.from_numpy(labels), classes=[str(one) for one in range(classes)], name=name
    )


def half(data, examples):
    return raw_input(data, examples)[:, :2]


def nothing(data, examples):
    return np.random.default_rng(0).normal(size=(len(examples), 2)).astype(np.float32)


@pytest.fixture(scope="module")
def result() -> dict:
    tasks = [task_of(source(seed, 2 + seed, f"task-{seed}"), rows=200) for seed in range(3)]
    readers = {
        "student": [half, half],
        "teacher": [raw_input],
        "labels only": [nothing, nothing],
        "raw input": [raw_input],
    }
    found = compare(readers, tasks, draws=3)
    found["curve"] = curve(
        lambda data, rows, width, dtype: raw_input(data, rows)[:, :width], tasks, 6, dimensions=(2, 4)
    )
    return found


def test_the_comparison_is_plain_json_and_adds_up(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    held = [task["readers"]["student"]["linear"]["mean"] for task in again["tasks"].values()]
    assert again["mean"]["student"] == pytest.approx(np.mean(held))
    assert again["kept"] == pytest.approx(again["mean"]["student"] / again["mean"]["teacher"])
    lead = again["lead"]["labels only"]
    assert lead["mean"] == pytest.approx(again["mean"]["student"] - again["mean"]["labels only"])
    assert lead["low"] < lead["mean"] < lead["high"] and lead["low"] > 0
    entry = again["tasks"]["task-0"]["readers"]["teacher"]
    assert {"dimensions", "linear", "knn", "few_shot", "nmi", "recall_at_1", "recall_at_5", "map"} == set(entry)
    assert list(entry["few_shot"]) == ["1", "5", "10"] and entry["few_shot"]["5"]["n"] == 3
    assert [(one["dimensions"], one["dtype"]) for one in again["curve"]] == [
        (2, "float32"),
        (4, "float32"),
        (6, "float32"),
        (6, "float16"),
        (6, "int8"),
        (6, "binary"),
    ]
    assert again["curve"][-1]["bytes"] == 1


def test_findings_say_what_the_numbers_say_and_can_be_drawn(result):
    found = findings(result)
    assert [one.title for one in found] == [
        "What the features are worth on other tasks",
        "Search and grouping with the features",
        "Learning from a few examples",
        "How small the features may be",
    ]
    assert all(one.control and one.sentence.endswith(".") for one in found)
    assert "at 33 % of their size" in found[0].sentence and "is behind by" in found[0].sentence
    html = page(title="features", verdict=summary(result), findings=found)
    assert "task-2" in html and "nearest neighbours" in html


def test_a_miss_is_said(result):
    ahead = {**result["lead"], "raw input": {"mean": 0.1, "low": 0.05, "high": 0.15}}
    worse = {**result, "kept": 0.8, "lead": ahead}
    assert "Less than 95 % of the teacher's is kept" in findings(worse)[0].sentence
    assert "do not need trained features" in findings(result)[0].sentence
    even = {**result, "kept": 0.97, "lead": {**ahead, "raw input": {"mean": 0.0, "low": -0.05, "high": 0.05}}}
    assert "Raw input does as well, with 6 numbers instead of 2. They can stand in" in findings(even)[0].sentence
    lead = {"mean": -0.01, "low": -0.03, "high": 0.01}
    chance = {**result, "kept": 0.97, "lead": {**ahead, "labels only": lead}}
    assert "training on labels alone would do" in findings(chance)[0].sentence
    assert "cannot be told apart" in summary(chance) and "-1.0 points [-3.0, +1.0]" in headline(chance)


def test_what_is_no_task_is_refused():
    with pytest.raises(DataError, match="no task to judge features by"):
        task_of(ArraySource(torch.rand(50, 3), torch.zeros(50, dtype=torch.int64), classes=["one"]))
    with pytest.raises(DataError, match="named twice"):
        open_tasks([("digits", {}), ("digits", {})], 100)
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        named("digts")
    with pytest.raises(DataError, match="takes no path"):
        named("digits:here")
    assert named("npz:some/file.npz") == ("npz", {"path": "some/file.npz"})


# --- sources that ask other questions ------------------------------------------------------------------------


def test_turned_images_are_turned_by_what_the_label_says():
    plain, turned = open_source("digits"), open_source("rotations", of="digits")
    assert len(turned) == len(plain) and len(turned.classes) == 4
    for example in range(20):
        turn = int(turned.labels[example])
        assert torch.equal(turned.inputs[example], torch.rot90(plain.inputs[example], turn, (1, 2)))
    assert {name: rows.tolist() for name, rows in turned.splits.items()} == {
        name: rows.tolist() for name, rows in plain.splits.items()
    }
    with pytest.raises(DataError, match="no other views"):
        open_source("rotations", views=2)


def test_some_classes_make_a_task_of_their_own():
    whole, some = open_source("fashion-mnist-sample"), open_source("fashion-mnist-sample", only=[4, 2])
    assert list(some.classes) == ["Coat", "Pullover"] and set(some.labels.tolist()) == {0, 1}
    for split, rows in some.splits.items():
        own = whole.labels[whole.splits[split]]
        assert torch.bincount(some.labels[rows]).tolist() == [int((own == 4).sum()), int((own == 2).sum())]
    first = whole.splits["train"][
        (whole.labels[whole.splits["train"]] == 2) | (whole.labels[whole.splits["train"]] == 4)
    ][:1]
    assert torch.equal(some.inputs[some.splits["train"][:1]], whole.inputs[first])
    for wrong in ([1], [1, 1], [1, 10]):
        with pytest.raises(DataError, match="cannot be chosen"):
            open_source("fashion-mnist-sample", only=wrong)


def test_digits_have_the_size_that_is_asked_for():
    assert open_source("digits", size=16).inputs.shape == (1797, 1, 16, 16)
    with pytest.raises(DataError, match="cannot be enlarged"):
        open_source("digits", size=4)


# --- in a run --------------------------------------------------------------------------------------------------


LABEL_FREE = """
data: {use: npz, path: PATH, labels: 60}
teacher: {model: net, hidden: 16, train: {epochs: 4}}
student: {model: net, hidden: 8}
objectives: [{use: bank, weight: {from: 1, to: 0, until: 1}}]
train: {steps: 12, batch: {labelled: 16, transfer: 16}}
arms: {bank: {}, labels: {objectives: [{use: labels}]}}
trials: [1]
seeds: [0]
export: {onnx: false}
evaluate: {on: ["npz:OTHER"], rows: 100}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    place = tmp_path_factory.mktemp("run")
    for name, seed in (("here", 0), ("there", 5)):
        values, labels = blobs(400, 4, apart=1.5, seed=seed)
        np.savez(place / f"{name}.npz", x=values, y=labels)
    text = LABEL_FREE.replace("PATH", str(place / "here.npz")).replace("OTHER", str(place / "there.npz"))
    patch = pytest.MonkeyPatch()
    patch.setenv("STILLROOM_CACHE", str(place / "cache"))
    request.addfinalizer(patch.undo)
    experiment = experiment_of(read_recipe(text, name="free"))
    return experiment, place / "run", perform(experiment, place / "run")


def test_a_recipe_without_labels_runs_and_is_chosen_by_its_own_objective(run):
    experiment, folder, outcome = run
    assert not experiment.main.answers and experiment.arms["labels"].answers
    scores = read_json(folder / "arms" / "bank-0" / "scores.json")
    assert (
        scores["validation"] < 0
        and scores["validation"] == max(scores["validation_by_step"].values())
        and "test" not in scores
    )
    metrics = outcome.metrics
    assert (
        metrics["gap_closed"] is None
        and "trained without labels" in metrics["verdict"]
        and "On 1 other task" in metrics["verdict"]
    )
    for name in ("teacher", "bank", "labels", "distilled"):
        assert (
            metrics["models"][name]["score_name"] == "kNN accuracy"
            and 0 < metrics["models"][name]["score"]["mean"] <= 1
        )
    assert "accuracy" not in metrics["models"]["bank"] and "agreement" not in metrics["models"]["bank"]


def test_generality_is_in_metrics_and_report_and_asked_once(run):
    experiment, folder, outcome = run
    held = read_json(folder / "metrics.json")["generality"]
    readers = held["tasks"]["there"]["readers"]
    assert set(readers) == {"student", "teacher", "labels only", "random weights", "raw input"}
    assert readers["student"]["dimensions"] == 8 and readers["teacher"]["dimensions"] == 16
    assert held["curve"][-1]["dtype"] == "binary"
    assert "What the features are worth on other tasks" in (folder / "report.html").read_text(encoding="utf-8")
    before = (folder / "generality" / "done.json").stat().st_mtime_ns
    assert perform(experiment, folder).metrics["generality"] == outcome.metrics["generality"]
    assert (folder / "generality" / "done.json").stat().st_mtime_ns == before


def test_a_finished_run_can_be_asked_about_more(run):
    _, folder, _ = run
    told = []
    result = generality_of_run(folder, [task_of(source(), rows=100)], lambda *values: told.append(values))
    assert set(result["mean"]) == {"student", "teacher", "labels only", "random weights", "raw input"} and told


def test_a_task_that_cannot_be_opened_is_told_before_anything_is_trained(tmp_path):
    values, labels = blobs(200)
    np.savez(tmp_path / "here.npz", x=values, y=labels)
    text = LABEL_FREE.replace("PATH", str(tmp_path / "here.npz")).replace("OTHER", str(tmp_path / "absent.npz"))
    with pytest.raises(DataError, match="evaluate.on: .*absent.npz"):
        perform(experiment_of(read_recipe(text)), tmp_path / "run")
    assert not Path(tmp_path / "run" / "teacher").exists()
