"""Runs side by side: each number under its own column, and the difference by the right formula."""

from __future__ import annotations

import json

import pytest
from scipy import stats

from stillroom.report import compare

ONE, TWO = [0.90, 0.93, 0.91], [0.85, 0.84, 0.89]


def write(path, main, seeds=(0, 1, 2), alone=0.7, teacher=0.95, **more):
    """Write a run whose main arm scored ``main``; the rates of every model differ."""

    def model(values):
        return {"score": {"mean": sum(values) / len(values), "per_seed": values}, "score_name": "accuracy"}

    models = {"teacher": model([teacher]), "alone": model([alone] * len(main)), "kd": model(main)}
    gap = {"mean": 0.61, "low": 0.5, "high": 0.7, "n": 3, "method": "by hand"}
    gain = {"mean": 0.072, "low": 0.05, "high": 0.09, "n": 3, "method": "by hand"}
    held = {"models": {**models, "distilled": models["kd"]}, "seeds": list(seeds), "arms": ["kd"], "main": "kd",
            "gap_closed": gap, "agreement_gain": gain, **more}  # fmt: skip
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps(held))
    (path / "recipe.yaml").write_text("train: {steps: 1}\n")
    return path


def cells(finding):
    names = [column["name"] for column in finding.figure["columns"]]
    return [dict(zip(names, row, strict=True)) for row in finding.figure["rows"]]


def test_each_cell_stands_under_its_own_name(tmp_path):
    places = [write(tmp_path / "one", ONE), write(tmp_path / "two", TWO, alone=0.6, teacher=0.8)]
    one, two = cells(compare(places)[1][0])
    for row, run, teacher, alone, main in ((one, "one", 95, 70, 100 * sum(ONE) / 3), (two, "two", 80, 60, 86.0)):
        assert row["run"] == run and row["first arm"] == "kd" and row["seeds"] == 3
        assert row["teacher"]["mean"] == pytest.approx(teacher) and row["alone"]["mean"] == pytest.approx(alone)
        assert row["distilled"]["mean"] == pytest.approx(main)
        assert row["agreement gain, points"]["mean"] == pytest.approx(7.2)


def test_equal_seeds_are_paired_and_others_are_not(tmp_path):
    """As many seeds, but not the same ones: nothing ties run 1's second to run 2's second."""
    same = [write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)]
    other = [same[0], write(tmp_path / "c", TWO, seeds=(3, 4, 5))]
    gap = 100 * (sum(ONE) - sum(TWO)) / 3
    paired = stats.ttest_rel(ONE, TWO).confidence_interval()
    welch = stats.ttest_ind(ONE, TWO, equal_var=False).confidence_interval()
    for places, interval, how in ((same, paired, "paired by 3 seeds"), (other, welch, "Welch, seeds not shared")):
        sentence = compare(places)[1][0].sentence
        half = 100 * (interval.high - interval.low) / 2
        assert f"{gap:.1f} ± {half:.1f} points" in sentence and how in sentence, sentence
    assert abs(paired.high - welch.high) > 0.005


def test_runs_on_other_data_or_under_other_teachers_are_not_ranked_without_a_word(tmp_path):
    one = write(tmp_path / "a", ONE, data={"fingerprint": "1"})
    two = write(tmp_path / "b", TWO, data={"fingerprint": "2"})
    said = compare([one, two])[1][0].sentence
    assert said == "The runs were measured on different data, so their scores cannot be compared."
    taught = write(tmp_path / "c", TWO, data={"fingerprint": "1"}, teacher=0.9)
    assert "Their teachers differ" in compare([one, taught])[1][0].sentence
    same = write(tmp_path / "d", TWO, data={"fingerprint": "1"})
    assert "teachers differ" not in compare([one, same])[1][0].sentence


def test_the_best_run_and_the_smallest_file_are_named(tmp_path):
    places = [write(tmp_path / name, values) for name, values in (("a", TWO), ("b", ONE), ("c", [0.5, 0.51, 0.52]))]
    for place, size in zip(places, (300, 200, 400), strict=True):
        held = json.loads((place / "metrics.json").read_text())
        for name in ("kd", "distilled"):
            held["models"][name]["bytes"] = {"mean": size, "per_seed": [size]}
        (place / "metrics.json").write_text(json.dumps(held))
    findings = compare(places)[1]
    assert findings[0].sentence.startswith("The students of 'b' and 'a' cannot be told apart: 5")
    assert findings[2].sentence == "The student of 'b' has the smallest file."


def test_the_run_with_fewer_seeds_decides_whether_a_claim_may_be_made(tmp_path):
    many = write(tmp_path / "a", [*ONE, 0.92, 0.9], seeds=range(5))
    few = write(tmp_path / "b", [0.5, 0.51, 0.52])
    said = compare([many, few])[1][0].sentence
    assert "comes out better" in said and "5 seeds are needed to claim it" in said
