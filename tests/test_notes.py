"""What is noted of the data before anything is trained: classes with few rows, and texts that are cut."""

from __future__ import annotations

import json

from stillroom.pipeline.notes import few_rows, notes_of
from stillroom.pipeline.recipes import experiment_of
from stillroom.recipe import read_recipe


def experiment(data: dict, model: str = "mlp", **more: object):
    return experiment_of(
        read_recipe({"data": data, "student": {"model": model, **more}, "objectives": [{"use": "labels"}]})
    )


def test_classes_with_few_rows_are_named():
    told = few_rows(experiment({"use": "digits", "size": 8, "labels": 20}))
    assert told == ["the student sees few labels of '0' (2), '1' (2), '2' (2), '3' (2), '4' (2) and 5 more classes"]
    assert few_rows(experiment({"use": "digits", "size": 8})) == []


def test_a_share_of_texts_that_are_cut_is_told_once_for_models_that_read_alike(tmp_path):
    rows = [
        {"text": " ".join(f"w{(number * 7 + place) % 50}" for place in range(3 if number % 2 else 9)), "label": label}
        for label in ("a", "b")
        for number in range(100)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = experiment({"use": "text", "path": str(path)}, "textmlp", encode={"longest": 5, "unit": "word"})
    told = [note for note in notes_of(made) if "longer" in note]
    assert len(told) == 1
    assert told[0].startswith("the student of 'main' reads the first 5 tokens of a text; ")
    share = float(told[0].partition("; ")[2].partition(" %")[0])
    assert 40 < share < 60
