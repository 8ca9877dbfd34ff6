"""The curve of a job: thinned, counted whole, and the same after an interruption."""

from __future__ import annotations

import json

import torch

from stillroom.contracts import Step
from stillroom.pipeline.jobs import _Log


def step(number, cosine=None, ratio=None, norms=None):
    return Step(number, 1000, {"loss": torch.tensor(1.0)}, 0.1, norms, (), cosine, ratio)


def test_the_pull_is_thinned_but_every_look_is_counted(tmp_path):
    log = _Log(tmp_path / "curve.json", 10)
    for number in range(1, 101):
        log.add(step(number, 0.5 if number % 4 else -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    log.save()
    kept = json.loads((tmp_path / "curve.json").read_text())
    assert kept["pull"]["looked"] == 100 and kept["pull"]["against"] == 25
    assert kept["pull"]["step"] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91] == [one["step"] for one in kept["norms"]]
    assert len(kept["pull"]["cosine"]) == len(kept["pull"]["ratio"]) == 10 and set(kept["pull"]["ratio"]) == {2.0}


def test_rare_looks_are_all_kept_and_steps_without_one_are_none(tmp_path):
    log = _Log(tmp_path / "curve.json", 8)
    for number in range(1, 302):
        log.add(step(number, *((0.1, 1.0) if number % 100 == 1 else (None, 0.0))))
    assert log.kept["pull"]["step"] == [1, 101, 201, 301] and log.kept["pull"]["looked"] == 4


def test_steps_that_come_again_after_an_interruption_count_once(tmp_path):
    """Killed after the curve was saved and before the checkpoint was."""
    log = _Log(tmp_path / "curve.json", 10)
    for number in range(1, 58):
        log.add(step(number, -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    log.save()
    again = _Log(tmp_path / "curve.json", 10)
    for number in range(31, 101):
        again.add(step(number, -0.5, 2.0, {"labels": 1.0, "kd": 2.0}))
    assert again.kept["pull"]["looked"] == again.kept["pull"]["against"] == 100
    assert again.kept["pull"]["step"] == [one["step"] for one in again.kept["norms"]] == [*range(1, 100, 10)]
