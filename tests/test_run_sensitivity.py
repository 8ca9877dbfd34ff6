"""What the report says of gradients: every way it can come out has its words, and maps can be seen on any paper."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from stillroom.report.figures import draw, names
from stillroom.report.run_sensitivity import ALONE, RANDOM, headline, likeness, map_picture, pictures
from stillroom.report.svg import slots


def value(*per_seed):
    return {"mean": float(np.mean(per_seed)), "per_seed": list(per_seed)}


def interval(mean, half=0.02, n=5):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "method": "t"}


def entry(cosine, others=0.1, particular=0.3, lead=None, seeds=5, above=None):
    held = {"cosine": value(*[cosine] * seeds), "others": value(*[others] * seeds)}
    held["particular"] = None if particular is None else value(*[particular] * seeds)
    held["above_others"] = interval(cosine - others if above is None else above, n=seeds)
    return held if lead is None else held | {"above_alone": lead}


def found(main, *, alone=0.2, teacher=0.4, inputs="pictures", **more):
    models = {"kd": main, RANDOM: entry(0.0, 0.0)} | more
    if alone is not None:
        models[ALONE] = entry(alone)
    return {"examples": 100, "inputs": inputs, "input": {"teacher": teacher, "models": models}}


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (entry(0.9, lead=interval(0.7)), "The teacher's gradients were passed on"),
        (entry(0.9, lead=interval(0.7, n=3)), "5 seeds are needed to claim it"),
        (entry(0.21, lead=interval(0.01, half=0.005)), "too small to matter"),
        (entry(0.2, lead=interval(0.0)), "is not shown"),
        (entry(0.1, lead=interval(-0.1)), "less like the teacher's than those of the student alone"),
        (entry(0.9, lead={**interval(0.7), "low": None, "high": None}), "is not shown"),
        (entry(0.9, 0.9, lead=interval(0.7), above=0.0), "the similarity is that of the class, not of the single"),
        (entry(0.9, lead=interval(0.7)), "With the mean of the class removed the cosine is 0.30, alone 0.30"),
    ],
)
def test_every_outcome_has_its_words(main, words):
    assert words in headline(found(main), "kd")


def test_a_teacher_whose_gradients_are_its_classes_is_told():
    told = headline(found(entry(0.9, lead=interval(0.7)), teacher=0.87), "kd")
    assert "the teacher's own have 0.87 with each other, so most of it belongs to the class" in told
    assert "so most of it" not in headline(found(entry(0.9, lead=interval(0.7)), teacher=0.4), "kd")


def test_without_a_control_no_lead_is_named():
    told = headline(found(entry(0.9), alone=None), "kd")
    assert told.startswith("The gradients of 'kd' have a cosine of 0.90") and "alone" not in told
    assert "(random weights 0.00)" in told
    assert headline(found(entry(0.9)), "nobody") == ""


def test_numbers_are_not_called_pictures():
    held = likeness(found(entry(0.9, lead=interval(0.7)), inputs="numbers"), "kd")
    assert "picture" not in held.sentence + held.control + str(held.figure) and "example" in held.sentence
    assert "each number" in held.sentence


def test_the_figure_holds_every_model_its_control_and_the_rest():
    held = found(entry(0.9, lead=interval(0.7)), other=entry(0.5, particular=None, lead=interval(0.3)))
    finding = likeness(held, "kd")
    first, second = finding.figure["figures"]
    shown = [row["name"] for row in first["rows"]]
    assert shown[:4] == [ALONE, "kd", "other", RANDOM] and "teacher, other pictures" in shown
    assert "kd, other pictures" in shown and f"{RANDOM}, other pictures" not in shown
    assert [row["name"] for row in second["rows"]] == [ALONE, "kd", RANDOM]
    assert "'other' has the highest cosine, 0.50" in finding.sentence
    html = str(draw(finding.figure, slots(names(finding.figure))))
    assert "nan" not in html and html.count("<svg") == 2


def test_explanation_maps_have_panels_of_their_own():
    held = found(entry(0.9, lead=interval(0.7)))
    held["explanation"] = {"teacher": 0.6, "models": {"kd": entry(0.8, 0.7, lead=interval(0.0)), ALONE: entry(0.8)}}
    finding = likeness(held, "kd")
    assert (
        "Grad-CAM maps have a cosine of 0.80, those of 'alone' 0.80" in finding.sentence
        and "which may be chance" in finding.sentence
    )
    assert len(finding.figure["figures"]) == 4


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA")).astype(int)


def test_a_map_is_clear_at_nought_and_coloured_by_sign():
    picture = decoded(map_picture([[1.0, 0.0], [-1.0, 0.5]]))
    assert picture.shape == (2, 2, 4)
    assert picture[0, 1, 3] == 0 and picture[0, 0, 3] == picture[1, 0, 3] == 255
    assert picture[0, 0, 0] > picture[0, 0, 2] and picture[1, 0, 2] > picture[1, 0, 0]
    assert 100 < picture[1, 1, 3] < 160


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[float("nan"), 1e-30]], [[5.0]]])
def test_odd_maps_are_drawn(values):
    assert np.isfinite(decoded(map_picture(values))).all()


def test_one_extreme_pixel_does_not_hide_the_rest():
    values = np.full((20, 20), 1.0)
    values[3, 3] = 1e6
    assert (decoded(map_picture(values.tolist()))[..., 3] == 255).all()


def test_the_sheet_says_its_rule_and_each_cosine():
    items = [
        {
            "pixels": [[0, 255], [128, 7]],
            "class": "<b>Coat",
            "maps": {name: [[0.5, -1.0], [0.0, 1.0]] for name in ("teacher", ALONE, "kd")},
            "cosines": {ALONE: 0.25, "kd": 0.75},
        }
    ]
    finding = pictures(items, [ALONE, "kd"], "kd")
    assert finding.figure["columns"] == ["picture", "teacher", ALONE, "kd"] and finding.number == 0.75
    assert "where 'kd' leads 'alone' most" in finding.figure["note"]
    assert "where the cosine of 'kd' is highest" in pictures(items, ["kd"], "kd").figure["note"]
    html = str(draw(finding.figure, {}))
    assert html.count("<img") == 4 and "<b>" not in html
    assert re.findall(r"<p>([^<]*)</p>", html) == ["&lt;b&gt;Coat", "", "0.25", "0.75"]
    assert 'alt="gradient of kd for &lt;b&gt;Coat, cosine 0.75"' in html
