"""Examples that are left out are gone for everyone, and what cannot be left out is refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stillroom.data.arrays import ArraySource
from stillroom.data.leaving_out import examples_in, rows_print, rows_told, without
from stillroom.errors import DataError, RecipeError
from stillroom.pipeline.checking import check_shapes, expectations
from stillroom.pipeline.jobs import job_inputs
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.teaching import teacher_inputs
from stillroom.recipe import read_recipe


@pytest.fixture(scope="module")
def source():
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    return ArraySource(values, labels=np.arange(60) % 3, splits={"train": range(40), "validation": [40], "test": [41]})


def recipe(more: str = "", tiny: bool = False):
    text = f"""
data: {{use: breast-cancer, labels: 20{more}}}
teacher: {{model: mlp, train: {{steps: 5}}}}
student: {{model: mlp, hidden: [4]}}
objectives: [{{use: labels}}, {{use: kd}}]
train: {{steps: 5}}
"""
    return read_recipe(text, tiny=tiny)


def test_rows_are_gone_from_training_alone(source):
    fewer = without(source, [3, 7, 3])
    assert fewer.splits["train"].tolist() == [one for one in range(40) if one not in (3, 7)]
    assert fewer.splits["test"].tolist() == [41] and len(fewer) == 60 and fewer.fingerprint == source.fingerprint
    assert len(source.splits["train"]) == 40, "the source itself is as it was"
    assert rows_told(fewer) == "38 train, 1 validation, 1 test (2 left out of train)"
    assert rows_told(source) == "40 train, 1 validation, 1 test"
    assert without(source, []).splits["train"].equal(source.splits["train"])


def test_rows_of_equal_number_and_sum_are_told_apart(source):
    one, other = without(source, [1, 4]), without(source, [2, 3])
    assert rows_print(one)["train"] != rows_print(other)["train"] != rows_print(source)["train"]
    assert rows_print(one)["test"] == rows_print(other)["test"]


@pytest.mark.parametrize(
    ("given", "said"),
    [([41], "example 41, the first in test"), ([999], "example 999 of 60"), ([50], "in no split")],
)
def test_what_is_no_training_row_is_refused(source, given, said):
    with pytest.raises(DataError, match="Only training examples can be left out") as caught:
        without(source, given)
    assert said in str(caught.value)


def test_something_must_be_left(source):
    with pytest.raises(DataError, match="No training example is left"):
        without(source, range(40))


def test_a_file_of_numbers_or_of_suspects_is_read(tmp_path):
    (tmp_path / "plain.json").write_text("[7, 3, 7]")
    (tmp_path / "suspects.json").write_text(json.dumps([{"example": 5, "label": "a", "suggested": "b", "score": 0.9}]))
    assert examples_in(tmp_path / "plain.json") == [3, 7] and examples_in(str(tmp_path / "suspects.json")) == [5]
    assert examples_in([]) == []


@pytest.mark.parametrize("content", ['{"a": 1}', "[1.5]", '["7"]', "[-1]", "[true]", '[{"row": 1}]', "no json"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(DataError):
        examples_in(tmp_path / "odd.json")
    with pytest.raises(DataError, match="cannot be read"):
        examples_in(tmp_path / "absent.json")


def test_a_run_without_some_examples_is_another_run_and_says_so(tmp_path):
    whole = experiment_of(recipe())
    train = whole.data.splits["train"].tolist()
    (tmp_path / "gone.json").write_text(json.dumps(train[:2]))
    listed = experiment_of(recipe(f", leave_out: [{train[0]}, {train[1]}]"))
    filed = experiment_of(recipe(f", leave_out: '{tmp_path / 'gone.json'}'"))
    others = experiment_of(recipe(f", leave_out: [{train[0]}, {train[2]}]"))
    assert listed.data.splits["train"].tolist() == filed.data.splits["train"].tolist() == train[2:]
    prints = [teacher_inputs(one, one.teachers[""]) for one in (whole, listed, filed, others)]
    assert prints[1] == prints[2] and len(set(prints)) == 3
    jobs = [job_inputs(one, one.main, 0, 1.0, "") for one in (whole, listed, filed, others)]
    assert jobs[1] == jobs[2] and len(set(jobs)) == 3
    assert "(2 left out of train)" in check_shapes(listed)["data"] and "left out" not in check_shapes(whole)["data"]
    assert "(2 left out of train)" in expectations(listed)["data"] and "data" not in expectations(whole)


def test_in_a_recipe_it_is_a_list_or_a_file_of_the_whole_recipe():
    assert recipe(", leave_out: [7, 3]").resolved()["data"]["leave_out"] == [7, 3]
    assert recipe(", leave_out: gone.json").resolved()["data"]["leave_out"] == "gone.json"
    assert "leave_out" not in recipe().resolved()["data"]
    assert recipe(", leave_out: [7]", tiny=True).data.leave_out is None
    for more, said in ((", leave_out: 7", "must be a list"), (", leave_out: [-1]", "at least 0")):
        with pytest.raises(RecipeError, match=said):
            recipe(more)
    plain = recipe(", leave_out: [7]").resolved()
    with pytest.raises(RecipeError, match="only 'labels' and 'unlabelled' may differ"):
        read_recipe({**plain, "arms": {"kd": {"data": {"leave_out": [1]}}}})
    with pytest.raises(RecipeError, match="not of other tasks"):
        read_recipe({**plain, "evaluate": {"on": [{"use": "digits", "leave_out": [1]}]}})


def test_labels_are_chosen_from_what_is_left():
    whole = experiment_of(recipe())
    first = int(whole.main.seen(whole.data).labelled[0])
    fewer = experiment_of(recipe(f", leave_out: [{first}]"))
    seen = fewer.main.seen(fewer.data)
    assert first not in seen.labelled.tolist() and len(seen.labelled) == 20
    assert len(set(seen.labelled.tolist()) & set(whole.main.seen(whole.data).labelled.tolist())) == 19
    assert not torch.isin(seen.splits["train"], torch.tensor([first])).any()
