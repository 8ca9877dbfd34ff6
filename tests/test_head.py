"""A report says on what it stands: data, labels, models, seeds and day; a run from Python keeps its settings."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from stillroom.pipeline.distill import distill
from stillroom.pipeline.run import Outcome


class Wide(nn.Sequential):
    """A teacher with a name of its own."""


class Small(nn.Sequential):
    """A student with a name of its own."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    inputs = torch.randn(200, 6)
    labels = inputs[:, :3].argmax(1)
    teacher = Wide(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(folder / "cache"))
        result = distill(
            teacher, lambda: Small(nn.Linear(6, 3)), (inputs, labels), ["labels", "kd"], steps=4, labels=30,
            seeds=(0, 1), out=folder / "run",
        )  # fmt: skip
    return result


def test_the_head_names_data_labels_models_seeds_and_day(run):
    page = run.report().read_text(encoding="utf-8")
    head = page.split("</header>")[0]
    rows = {name: f"{count} {name}" for name, count in (("train", 160), ("validation", 20), ("test", 20))}
    assert "<h1>Small from Wide on arrays</h1>" in head
    subtitle = head.split('class="subtitle">')[1].split("</p>")[0]
    told = json.loads((run.folder / "settings.json").read_text())
    assert told["data"]["rows"].keys() == rows.keys()
    for name, count in told["data"]["rows"].items():
        assert f"{count} {name}" in subtitle
    assert "(30 with a label)" in subtitle and "Seeds: 0, 1" in subtitle
    assert "Teacher: Wide (203 parameters)" in subtitle and "Student: Small (21 parameters)" in subtitle
    day = json.loads((run.folder / "events.jsonl").read_text().splitlines()[0])["time"]
    assert subtitle.endswith(_day(day))


def _day(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def test_a_run_from_python_keeps_its_settings_and_its_report_shows_them(run):
    told = json.loads((run.folder / "settings.json").read_text())
    main = told["arms"]["main"]
    assert [one["name"] for one in main["objectives"]] == ["labels", "kd"] and main["labels"] == 30
    assert main["train"]["steps"] == 4 and main["train"]["batch"] and main["train"]["lr"]
    assert main["student"]["class"].endswith("Small") and told["seeds"] == [0, 1]
    page = run.report().read_text(encoding="utf-8")
    assert "1 x labels + 1 x kd" in page and "4 steps" in page and "30 labels" in page
    assert "<dt>recipe</dt>" not in page and "repeat the run" not in page and "code is not kept here" in page


def test_what_python_prints_of_a_run_is_short(run):
    lines = repr(run).splitlines()
    assert lines[0] == run.verdict and lines[-1] == f"Report: {run.report()}" and len(repr(run)) < 1500
    assert lines[1].split()[:2] == ["model", "accuracy"] and [line.split()[0] for line in lines[2:5]] == [
        "teacher", "alone", "distilled"]  # fmt: skip
    assert f"{100 * run.metrics['models']['main']['accuracy']['mean']:.1f} %" in lines[4]
    assert f"{100 * run.metrics['models']['main']['macro_f1']['mean']:.1f} %" in lines[4]
    shown = run._repr_html_()
    assert shown.count("<tr>") == 4 and run.report().absolute().as_uri() in shown and "<strong>" in shown
    assert len(repr(Outcome(run.folder, run.metrics, run.findings))) < 300
    assert all(len(repr(finding)) < 1500 for finding in run.findings)
