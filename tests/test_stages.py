"""Trainings in several parts: an assistant, a part before the last, the control's steps, and a stop in between."""

from __future__ import annotations

import pytest

from stillroom.errors import RecipeError
from stillroom.files import checksum
from stillroom.pipeline.plan import ALONE
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.recipe import read_recipe

RECIPE = {
    "name": "stages",
    "data": {"use": "fashion-mnist-sample", "labels": 100, "train": 256},
    "teacher": {"model": "net", "hidden": 32, "train": {"steps": 10}},
    "student": {"model": "net", "hidden": 8},
    "objectives": [{"use": "labels", "weight": 0.1}, {"use": "kd", "temperature": 2}],
    "train": {"steps": 12, "batch": {"labelled": 16, "transfer": 16}},
    "stages": [
        {"student": {"model": "net", "hidden": 16}, "train": {"steps": 9, "batch": {"labelled": 16, "transfer": 16}}},
        {"objectives": [{"use": "hint"}], "train": {"steps": 6, "batch": {"labelled": 16, "transfer": 16}}},
        {},
    ],
    "trials": [1],
    "seeds": [0],
    "export": {"onnx": False},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def test_an_assistant_and_an_earlier_part(tmp_path):
    experiment = experiment_of(read_recipe(RECIPE))
    main = experiment.main
    assert [stage.assistant for stage in main.before] == [True, False]
    assert experiment.taps("") == ["logits", "features"], "the first stages read the teacher as well"
    visible = main.data(experiment.data)
    assert main.settings(visible).steps == 12
    assert experiment.arms[ALONE].settings(visible).steps == 18, "as many steps as the student's own two parts"
    outcome = perform(experiment, tmp_path / "run")
    assert outcome.metrics["models"]["main"]["parameters"]["mean"] == 784 * 8 + 8 + 8 * 10 + 10
    assert not list((tmp_path / "run" / "arms" / "main-0").glob("stage-*")), "what came before is cleared away"


def test_a_stop_between_two_parts_changes_nothing(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    perform(experiment_of(read_recipe(RECIPE)), whole)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "other cache"))
    part = tmp_path / "part"

    def stop(name, done, of, what):
        if name == "arm main-0" and what.startswith("stage 2") and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(experiment_of(read_recipe(RECIPE)), part, told=stop)
    assert (part / "arms" / "main-0" / "stage-1" / "model.safetensors").is_file()
    perform(experiment_of(read_recipe(RECIPE)), part)
    for name in ("main-0", "alone-0"):
        assert checksum(whole / "arms" / name / "model.safetensors") == checksum(
            part / "arms" / name / "model.safetensors"
        )


def test_the_last_stage_is_the_students_own():
    wrong = {**RECIPE, "stages": RECIPE["stages"][:1]}
    with pytest.raises(RecipeError, match="last stage must train the recipe's own student"):
        experiment_of(read_recipe(wrong))
