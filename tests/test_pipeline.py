"""A recipe end to end, small: the control is fair, the metrics keep their contract, and nothing is paid for twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stillroom
from stillroom.contracts import UNLABELLED
from stillroom.data.splits import few_labels, labels_of
from stillroom.errors import RecipeError, StoreError, TrainError
from stillroom.fingerprints import fingerprint_of
from stillroom.gradients import room
from stillroom.learner import Learner
from stillroom.pipeline.checking import check_shapes, expectations
from stillroom.pipeline.plan import ALONE
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.pipeline.tasks import Workshop, tasks_of, unfinished
from stillroom.pipeline.teaching import rows_recorded
from stillroom.pipeline.workers import perform_here
from stillroom.recipe import read_recipe
from stillroom.store import Store
from stillroom.train import train

NET = {"model": "net", "hidden": 16}
RECIPE = {
    "name": "small",
    "data": {"use": "fashion-mnist-sample", "labels": 60, "train": 400},
    "teacher": {"model": "net", "hidden": 64, "train": {"steps": 60, "lr": 3e-3}},
    "student": NET,
    "objectives": [{"use": "labels", "weight": 0.1, "smoothing": 0.05}, {"use": "kd"}, {"use": "l2", "weight": 1e-4}],
    "train": {"steps": 20, "batch": {"labelled": 16, "transfer": 16}, "lr": 3e-3},
    "arms": {"kd": {}, "bank": {"add": [{"use": "bank"}]}},
    "trials": [0.3, 1],
    "seeds": [0, 1],
    "export": {"onnx": False},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run that the tests here read, with a cache of its own."""
    root = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache"))
        yield root, perform(experiment_of(read_recipe(RECIPE)), root / "run")


def changed(**blocks):
    return {**RECIPE, **blocks}


def plain(metrics):
    """Metrics without what a clock says."""
    text = json.loads(json.dumps(metrics))
    for model in text["models"].values():
        for key in ("latency_ms", "throughput_per_s"):
            model.pop(key, None)
    return text


def test_the_control_starts_where_the_arm_starts_and_reads_no_teacher():
    arms = experiment_of(read_recipe(RECIPE)).arms
    assert list(arms) == [ALONE, "kd", "bank"]
    for seed in (0, 1):
        assert len({fingerprint_of(arm.make_student(seed)) for arm in arms.values()}) == 1
    assert fingerprint_of(arms["kd"].make_student(0)) != fingerprint_of(arms["kd"].make_student(1))
    kept = {one.name: one for one in arms[ALONE].objectives()}
    assert sorted(kept) == ["l2", "labels"] and kept["labels"].weight == 1.0 and kept["l2"].weight == 1e-4
    assert kept["labels"].options == {"smoothing": 0.05, "class_weights": None}


def test_the_control_has_as_many_rows_and_steps_from_labelled_rows_only():
    experiment = experiment_of(read_recipe(RECIPE))
    for name, labelled_only in ((ALONE, True), ("kd", False)):
        arm = experiment.arms[name]
        visible = arm.data(experiment.data)
        settings, rows = arm.settings(visible), arm.rows(visible)
        order = rows.order(settings, seed=0)
        assert settings.steps == 20 and order.rows == 32
        drawn = torch.cat([order.ids(step)[:, 0] for step in range(20)])
        assert bool(torch.isin(drawn, visible.labelled).all()) is labelled_only
        assert len(visible.labelled) == 60


def test_no_hidden_label_reaches_a_student():
    experiment = experiment_of(read_recipe(RECIPE))
    arm = experiment.arms["kd"]
    visible = arm.data(experiment.data)
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(visible, name)

        def batch(self, ids):
            batch = visible.batch(ids)
            seen.append((batch["id"][:, 0], batch["labels"]))
            return batch

    learner = Learner(arm.make_student(0), ["labels"], encode=arm.encode)
    for _ in train(learner, Watched(), None, arm.settings(visible), rows=arm.rows(visible)):
        pass
    ids, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    hidden = ~torch.isin(ids, visible.labelled)
    assert hidden.any() and (labels[hidden] == UNLABELLED).all() and (labels[~hidden] != UNLABELLED).all()


def test_metrics_keep_their_contract(ran):
    root, outcome = ran
    metrics = json.loads((root / "run" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert {"verdict", "gap_closed", "agreement_gain", "seeds", "models"} <= set(metrics)
    assert set(metrics["models"]) == {"teacher", "alone", "kd", "bank", "distilled"}
    assert metrics["models"]["distilled"] == metrics["models"]["kd"] and metrics["seeds"] == [0, 1]
    for name, model in metrics["models"].items():
        keys = ("score", "accuracy", "ece", "parameters") + (() if name == "teacher" else ("agreement", "kl"))
        for key in keys:
            assert set(model[key]) == {"mean", "per_seed"}, (name, key)
        assert model["score_name"] == "accuracy"
    gain = metrics["agreement_gain"]
    assert set(gain) == {"mean", "low", "high", "n", "method"} and gain["low"] <= gain["mean"] <= gain["high"]
    assert metrics["gap_closed"] is None or set(metrics["gap_closed"]) == set(gain)
    assert metrics["gap_closed"] is not None or metrics["reason"]


def test_a_second_run_has_nothing_to_do_and_says_the_same(ran):
    root, outcome = ran
    experiment = experiment_of(read_recipe(RECIPE))
    assert unfinished(Workshop(experiment, root / "run"), tasks_of(experiment)) == []
    assert plain(perform(experiment, root / "run").metrics) == plain(outcome.metrics)


def test_two_processes_say_what_one_says(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    apart = perform(experiment_of(read_recipe(RECIPE)), tmp_path / "run", processes=2)
    assert plain(apart.metrics) == plain(ran[1].metrics)


def test_another_recipe_takes_what_it_shares_from_the_cache(ran, tmp_path):
    root, outcome = ran
    more = changed(arms={"kd": {}, "bank": {"add": [{"use": "bank"}]}, "hint": {"add": [{"use": "hint"}]}}, seeds=[0])
    began = []
    perform(
        experiment_of(read_recipe(more)),
        tmp_path / "run",
        told=lambda name, done, of, what: began.append((name, of, what)),
    )
    trained = {name for name, of, what in began if of > 1 and "loss" in what}
    assert trained == {"trial hint-0-x0.3", "trial hint-0-x1"}, "the rest was trained before"


def test_a_changed_recipe_sets_the_old_aside_and_loses_nothing(ran, tmp_path):
    recipe = changed(arms={"kd": {}}, seeds=[0], trials=[1])
    perform(experiment_of(read_recipe(recipe)), tmp_path)
    before = (tmp_path / "arms" / "kd-0" / "model.safetensors").read_bytes()
    perform(experiment_of(read_recipe(changed(arms={"kd": {}}, seeds=[0], trials=[1], train={"steps": 10}))), tmp_path)
    assert (tmp_path / "arms" / "old" / "kd-0-1" / "model.safetensors").read_bytes() == before


def test_a_store_teaches_as_its_teacher_did(ran, tmp_path):
    root, outcome = ran
    store = {"store": str(root / "run" / "knowledge")}
    again = perform(experiment_of(read_recipe(changed(teacher=store, arms={"kd": {}}, seeds=[0, 1]))), tmp_path / "run")
    assert again.metrics["models"]["kd"]["score"] == outcome.metrics["models"]["kd"]["score"]
    assert again.metrics["models"]["teacher"]["score"] == outcome.metrics["models"]["teacher"]["score"]


def test_a_store_without_the_tap_is_refused(ran, tmp_path):
    store = {"store": str(ran[0] / "run" / "knowledge")}
    recipe = changed(teacher=store, arms={"hint": {"add": [{"use": "hint", "student": "hidden", "teacher": "hidden"}]}})
    with pytest.raises(StoreError, match="does not hold"):
        perform(experiment_of(read_recipe(recipe)), tmp_path / "run")


def test_a_bundle_teaches(ran, tmp_path):
    root, outcome = ran
    bundle = {"load": str(root / "run" / "teacher")}
    again = perform(experiment_of(read_recipe(changed(teacher=bundle, arms={"kd": {}}, seeds=[0]))), tmp_path / "run")
    assert again.metrics["models"]["teacher"]["score"] == outcome.metrics["models"]["teacher"]["score"]


def test_two_teachers_are_one_mixture_or_named_apart(ran, tmp_path):
    teachers = {"big": RECIPE["teacher"], "other": {**RECIPE["teacher"], "hidden": 32}}
    recipe = {key: value for key, value in changed(seeds=[0], trials=[1]).items() if key != "teacher"}
    recipe |= {
        "teachers": teachers,
        "arms": {"mixture": {}, "big": {"add": [{"use": "hint", "teacher": "big/features"}]}},
    }
    metrics = perform(experiment_of(read_recipe(recipe)), tmp_path / "run").metrics
    assert set(metrics["models"]) == {"teacher", "alone", "mixture", "big", "distilled"}
    assert (tmp_path / "run" / "knowledge" / "big" / "manifest.json").is_file()


def test_without_labels_there_is_no_control_and_the_verdict_says_so(ran, tmp_path):
    recipe = changed(objectives=[{"use": "kd"}], arms={"kd": {}}, seeds=[0], trials=[1])
    metrics = perform(experiment_of(read_recipe(recipe)), tmp_path / "run").metrics
    assert "alone" not in metrics["models"] and metrics["gap_closed"] is None
    assert "no control" in metrics["verdict"] and "no control" in metrics["reason"]


def test_without_unlabelled_examples_the_labelled_ones_alone_are_recorded_and_learnt_from(
    tmp_path,
):
    text = """
data: {use: digits, train: 200, labels: 40, unlabelled: false}
teacher: {model: mlp, hidden: [16], train: {steps: 5}}
student: {model: mlp, hidden: [8]}
objectives: [{use: labels}, {use: kd}]
record: {views: 3}
train: {steps: 4, batch: 16, views: 1}
arms: {main: {}, viewed: {train: {views: 3}}}
seeds: [0]
trials: [1]
export: {onnx: false}
"""
    path = tmp_path / "few.yaml"
    path.write_text(text)
    experiment = experiment_of(read_recipe(path))
    data, arm = experiment.data, experiment.main
    known = few_labels(labels_of(data), data.splits["train"], 40, 0)
    rows = arm.rows(arm.data(data))
    assert rows.transfer is None and torch.equal(rows.labelled.sort().values, known.sort().values)
    outcome = perform(experiment, tmp_path / "run")
    assert set(outcome.metrics["models"]) >= {"teacher", "alone", "main", "viewed"}
    store = Store.open(tmp_path / "run" / "knowledge")
    others = len(data.splits["validation"]) + len(data.splits["test"])
    assert len(store) == 3 * 40 + others


def test_more_views_than_are_recorded_are_refused(tmp_path):
    path = tmp_path / "views.yaml"
    path.write_text(
        "data: {use: digits}\nteacher: {model: mlp}\nstudent: {model: mlp}\nobjectives: [{use: kd}]\n"
        "record: {views: 2}\ntrain: {views: 3}\n"
    )
    with pytest.raises(RecipeError, match="more views than are recorded.*got 3.*1 to 2"):
        experiment_of(read_recipe(path))


# --- what is said before anything is done --------------------------------------------------------------


SHIPPED = Path(stillroom.__file__).parent / "recipes" / "gradient.yaml"
STEEP = {
    **RECIPE,
    "arms": {"steep": {"add": [{"use": "input_gradient"}]}},
    "seeds": [0, 1, 2],
    "trials": [1],
    "jobs": 2,
}


def test_a_plan_announces_what_is_then_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    experiment = experiment_of(read_recipe(SHIPPED, tiny=True))
    told = expectations(experiment)["record"]
    tasks = [task for task in tasks_of(experiment) if task.kind in ("teacher", "record")]
    perform_here(Workshop(experiment, tmp_path / "run"), tasks, lambda *_: None)
    manifest = json.loads((tmp_path / "run" / "knowledge" / "manifest.json").read_text())
    assert told.startswith(f"{manifest['rows']:,} rows of logits, logits@gradient, 64 views: ")
    assert manifest["rows"] == rows_recorded(experiment) == 64 * 50 + 1000 + 5000
    written = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    assert float(told.split()[-2]) == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_the_rows_that_time_is_foreseen_for_are_those_that_are_recorded(unlabelled):
    data = {"use": "digits", "labels": 40, "unlabelled": unlabelled}
    experiment = experiment_of(read_recipe(changed(data=data, record={"views": 3}, train={"steps": 2})))
    splits = experiment.data.splits
    train = len(splits["train"]) if unlabelled else 40
    wanted = 3 * train + len(splits["validation"]) + len(splits["test"])
    assert rows_recorded(experiment) == wanted
    assert expectations(experiment)["record"].startswith(f"{wanted:,} rows")


def test_a_step_without_room_is_refused_before_the_teacher_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    with pytest.raises(TrainError, match=r"batches of 32 rows, which keep.*Allowed: .*part: 0\.25"):
        perform(experiment_of(read_recipe(STEEP)), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    plain = changed(seeds=[0], trials=[1])
    assert check_shapes(experiment_of(read_recipe(plain)))["kd"], "without derivatives nobody asks"


def test_trainings_at_once_share_the_memory(monkeypatch):
    seen = []
    monkeypatch.setattr(room, "free_memory", lambda: None)
    experiment = experiment_of(read_recipe(STEEP))
    assert "a step keeps about" in check_shapes(experiment)["steep"]
    monkeypatch.setattr(room, "size_text", lambda count: seen.append(count) or f"{count} bytes")
    check_shapes(experiment, 1)
    one = seen[0]
    monkeypatch.setattr(room, "free_memory", lambda: int(1.5 * one / room.SHARE))
    assert check_shapes(experiment, 1)["steep"]
    for processes, count in ((None, 2), (8, 3)):  # the recipe's jobs; and never more than there are seeds
        with pytest.raises(TrainError, match=rf"{count} trainings of arm 'steep' at once, of 32 rows.*jobs=1"):
            check_shapes(experiment, processes)
    tried = experiment_of(read_recipe({**STEEP, "seeds": [0], "trials": [0.3, 1, 3]}))
    with pytest.raises(TrainError, match="3 trainings"):
        check_shapes(tried, 8)
