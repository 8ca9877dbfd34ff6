"""What a plan says of time: counted up by hand from a pace that is given, and the schedule of several processes."""

from __future__ import annotations

import pytest
import torch

from stillroom.pipeline import costing
from stillroom.pipeline.costing import Estimate, _StandIn, _wall, estimated
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.tasks import Task, tasks_of
from stillroom.recipe import read_recipe

RECIPE = {
    "data": {"use": "digits", "size": 8},
    "teacher": {"model": "mlp", "hidden": [4], "train": {"steps": 50}},
    "student": {"model": "mlp", "hidden": [4]},
    "objectives": [{"use": "labels"}, {"use": "kd"}],
    "train": {"steps": 20, "batch": 10, "gradient_norms_every": 10},
    "seeds": [0, 1],
    "trials": [1],
    "export": {"onnx": False},
}


def test_tasks_are_counted_up_by_hand(monkeypatch):
    asked = []
    monkeypatch.setattr(costing, "_pace", lambda *given: asked.append(given) or costing._Pace(2.0, 10, True))
    experiment = experiment_of(read_recipe(RECIPE))
    tasks, heard = tasks_of(experiment), []
    found = estimated(experiment, tasks, 1, lambda *told: heard.append(told))
    assert found is not None
    sizes = {name: len(rows) for name, rows in experiment.data.splits.items()}
    rows = sum(sizes.values())
    # A step of 10 rows takes 2 s, and to answer them a third of that.
    recording = rows / 10 * 2 / 3
    answers = (3 * sizes["validation"] + sizes["test"]) / 10 / 3
    alone, main = (2 * (20 + 2 * terms * 2 / 3 + answers) for terms in (1, 2))  # two looks, a backward pass a term
    assert found.kinds == pytest.approx({"teacher": 100, "recording": recording, "students": 2 * (alone + main)})
    assert found.seconds == pytest.approx(100 + recording + 2 * (alone + main))
    assert len(asked) == 3, "teacher and recording share a pace, and so do the seeds of an arm"
    assert heard[0] == (0, len(tasks), "timing train teacher")


def test_a_pace_is_timed_and_slow_steps_on_a_part_of_a_batch(monkeypatch):
    experiment = experiment_of(read_recipe(RECIPE | {"train": {"steps": 20, "batch": 100}}))
    whole = estimated(experiment, [Task("arm", "main", 1)], 1)
    assert whole is not None and whole.exact and 0 < whole.seconds < 60
    monkeypatch.setattr(costing, "STEP", 1e-6)
    part = estimated(experiment, [Task("arm", "main", 1)], 1)
    assert part is not None and not part.exact and part.seconds > 0


def test_nothing_is_trained_and_no_random_number_is_drawn():
    experiment = experiment_of(read_recipe(RECIPE))
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    estimated(experiment, tasks_of(experiment), 2)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_num_threads() == threads


def test_processes_wait_for_what_a_task_needs():
    tasks = [
        Task("teacher", ""),
        Task("record", "", needs=("teacher",)),
        Task("arm", "alone"),
        Task("arm", "kd", needs=("record",)),
        Task("arm", "kd", 1, needs=("record",)),
    ]
    lengths = {"teacher": 10.0, "record": 5.0, "arm alone-0": 4.0, "arm kd-0": 6.0, "arm kd-1": 7.0}
    assert _wall(tasks, lengths, 1) == 32
    assert _wall(tasks, lengths, 2) == 10 + 5 + 7  # alone beside the teacher, both kd at once
    assert _wall(tasks, lengths, 9) == 22


def test_the_stand_in_has_as_many_rows_as_a_batch_and_a_bank():
    teacher = _StandIn({"logits": torch.arange(8.0).reshape(4, 2)})
    batch = {"id": torch.zeros(6, 2, dtype=torch.int64)}
    assert teacher(batch)["logits"][:, 0].tolist() == [0, 2, 4, 6, 0, 2]
    bank = teacher.bank(["logits"], batch, rows=5, seed=0, step=3)
    assert bank["logits.bank"].shape == (5, 2) and bank["logits.bank.mask"].shape == (6, 5)


def test_an_estimate_is_told_in_words():
    told = Estimate(7034, {"teacher": 3600, "students": 10468}, 2, True, 1.0).told()
    assert told["time"].startswith("about 1 h 57 min with 2 processes; measured on 3 steps of each model, give or take")
    assert told["by task"] == "teacher 1 h, students 2 h 54 min, if done one after the other"
    assert "busy now" not in told and "a third" in told["time"]
    busy = Estimate(60, {"students": 60}, 1, False, 3.0).told()
    assert "with 1 process;" in busy["time"] and "half" in busy["time"] and busy["by task"] == "students 1 min"
    assert busy["busy now"].startswith("about 3 min ")
