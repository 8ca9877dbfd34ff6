from __future__ import annotations

import base64
import io
import json
import math
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.contracts import Finding
from stillroom.errors import DataError, StoreError, UserError
from stillroom.report import compare, write_report
from stillroom.report import run_findings as found
from stillroom.report.figures import KINDS, draw, names, picture, table
from stillroom.report.numbers import number, spread, with_interval
from stillroom.report.page import page
from stillroom.report.readings import main_arm, model_order
from stillroom.report.run_pull import pull
from stillroom.report.svg import RESERVED, slots, ticks

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;"
NAN = float("nan")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps tags, attributes and text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.words, self.ids, self.handlers = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        held = dict(attributes)
        assert len(held) == len(attributes), f"an attribute twice in <{tag}>"
        self.links += [value for key, value in attributes if key in ("src", "href", "action", "data")]
        self.handlers += [key for key, _ in attributes if key.startswith("on")]
        self.ids += [held["id"]] if "id" in held else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


BINS = [(index + 0.5) / 15 for index in range(15)]
CALIBRATION = {"confidence": BINS, "accuracy": [0.9 * c for c in BINS], "share": [1 / 15] * 15, "ece": 0.05}
FIGURES = {
    "table": {
        "columns": [
            {"name": "arm"},
            {"name": "accuracy", "unit": "%", "best": "high"},
            {"name": "file", "unit": "bytes"},
        ],
        "rows": [["alone", {"mean": 82.6, "low": 82.0, "high": 83.2, "n": 3}, 41_200], ["kd", None, NAN]],
        "note": "A note.",
    },
    "lines": {
        "x_label": "step",
        "y_label": "loss",
        "series": [{"name": "kd", "x": [1, 2, 3, 4], "y": [3, NAN, 1, 0.5]}],
    },
    "bars": {
        "labels": ["a", "b"],
        "unit": "%",
        "series": [{"name": "kd", "values": [1, None], "low": [0.5, None], "high": [2, None]}],
    },
    "dots": {
        "unit": "%",
        "zero": True,
        "references": [{"name": "teacher", "value": 9.0}],
        "rows": [
            {"name": "kd", "mean": 5.0, "low": 4.0, "high": 6.0, "points": [4.5, 5.5]},
            {"name": "none", "mean": None},
        ],
    },
    "spread": {
        "labels": ["shirt", "coat"],
        "unit": "%",
        "series": [{"name": "teacher", "values": [80, None]}, {"name": "kd", "values": [70, 60]}],
    },
    "reliability": {"series": [{"name": "kd", **CALIBRATION}]},
    "matrix": {"labels": ["a", "b"], "values": [[9, 1], [None, 8]]},
    "dendrogram": {
        "labels": ["a", "b", "c", "d"],
        "merges": [[0, 2, 60.0], [1, 3, 50.0], [4, 5, 3.0]],
        "groups": [[0, 2], [1, 3]],
        "text": "+ 3 %",
    },
    "pictures": {
        "items": [
            {"pixels": [[0, 255], [128, 7]], "caption": "true: a", "rows": [["teacher", "a 0.9"]]},
            {"text": "a film"},
        ]
    },
    "sheet": {
        "columns": ["picture", "kd"],
        "rows": [
            [{"pixels": [[0, 255], [128, 7]], "text": "a shirt"}, {"pixels": [[9]], "text": "0.9", "about": "kd"}]
        ],
    },
    "text": {"text": "seeds: [0]\n"},
    "facts": {"pairs": [["threads", 1], ["none", None], ["recipe", "a: 1\nb: 2\n"]]},
}
FIGURES["panels"] = {
    "figures": [{"kind": "lines", "title": "one", **FIGURES["lines"]}, {"kind": "bars", **FIGURES["bars"]}]
}


def model(score, seeds=3, **more):
    points = [score + 0.002 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    reading = {"mean": sum(points) / seeds, "per_seed": points}
    small = {"mean": 250_000.0, "per_seed": [250_000.0]}
    held = {"score": reading, "score_name": "accuracy", "accuracy": reading, "agreement": reading, "bytes": small}
    return {**held, "kl": {"mean": 0.1, "per_seed": [0.1] * seeds}, "ece": None, "parameters": small, **more}


def metrics(kd=0.904, alone=0.826, seeds=3, **more):
    models = {
        "alone": model(alone, seeds),
        "teacher": model(0.926, 1),
        "kd": model(kd, seeds),
        "another": model(0.83, seeds),
    }
    models["distilled"] = models["kd"]
    models["teacher"]["bytes"] = {"mean": 1_000_000.0, "per_seed": [1_000_000.0]}
    gap = {"mean": 0.78, "low": 0.7, "high": 0.86, "n": seeds, "method": "Student's t over seeds"}
    return {
        "verdict": "It helped.",
        "gap_closed": gap,
        "agreement_gain": None,
        "seeds": list(range(seeds)),
        "models": models,
        **more,
    }


def run_folder(path, held, recipe="train: {steps: 100}\n"):
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(held, sort_keys=True))
    (path / "recipe.yaml").write_text(recipe)
    return path


def whole(figures=FIGURES):
    findings = [
        Finding(f"A {kind}", f"Here is a {kind}.", 1.0, "its control", {"kind": kind, **held})
        for kind, held in figures.items()
    ]
    return dict(
        title="A run", subtitle="below", verdict="It helped.", summary=[("gap", "78 %"), ("seeds", 3), ("none", None)],
        findings=findings, facts={"wall time": "3 min", "Versions": {"torch": "2.13"}, "empty": {}},
    )  # fmt: skip


def test_the_page_is_balanced_self_contained_and_runs_nothing(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", **whole())
    html = path.read_text(encoding="utf-8")
    read = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in read.links)
    assert {link[1:] for link in read.links if link.startswith("#")} <= set(read.ids)
    assert len(set(read.ids)) == len(read.ids)
    assert not re.search(r"@import|url\(|<script|<link", html) and not read.handlers
    assert set(re.findall(r"https?://[^\"'\s<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "It helped." in read.text and "Compared with" in read.text and "2.13" in read.text
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = (write_report(tmp_path / name, **whole()).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_hostile_text_is_escaped_everywhere():
    def poisoned(value):
        if isinstance(value, dict):
            return {
                key: one if key in ("kind", "best", "unit", "digits") else poisoned(one) for key, one in value.items()
            }
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return HOSTILE if isinstance(value, str) else value

    held = {kind: poisoned(figure) for kind, figure in FIGURES.items() if kind != "panels"}
    held["panels"] = {"figures": [{"kind": "lines", **poisoned(FIGURES["lines"])}]}
    given = whole(held)
    given["findings"] = [Finding(HOSTILE, HOSTILE, None, HOSTILE, one.figure) for one in given["findings"]]
    html = page(
        **{
            **given,
            "title": HOSTILE,
            "subtitle": HOSTILE,
            "verdict": HOSTILE,
            "summary": [(HOSTILE, HOSTILE)],
            "facts": {HOSTILE: {HOSTILE: HOSTILE}},
        }
    )
    read = Page(html)
    assert "script" not in read.tags and not read.handlers and "<script" not in html
    assert "alert('x')" in read.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws(kind):
    figure = {"kind": kind, **FIGURES[kind]}
    html = str(draw(figure, slots(names(figure))))
    read = Page(html)
    assert read.tags[0] == "figure"
    assert ("svg" in read.tags) == (kind not in ("table", "pictures", "sheet", "text", "facts"))
    assert (
        "nan" not in html.lower().replace("finance", "")
        and "None" not in html
        and "inf" not in re.sub("[a-z]*info[a-z]*", "", html)
    )
    if "svg" in read.tags:
        assert html.count('role="img"') == html.count("aria-label=") - html.count('role="region"')


@pytest.mark.parametrize("kind", ["lines", "bars", "dots", "spread", "reliability", "matrix", "dendrogram", "table"])
def test_figures_with_nothing_measured_still_draw(kind):
    empty = {
        "lines": {"series": [{"name": "kd", "x": [1, 2], "y": [None, NAN]}], "log_y": True},
        "bars": {"labels": ["a"], "series": [{"name": "kd", "values": [None]}]},
        "dots": {"rows": [{"name": "kd", "mean": NAN, "low": None, "high": None}]},
        "spread": {"labels": ["a"], "series": [{"name": "kd", "values": [math.inf]}]},
        "reliability": {
            "series": [{"name": "kd", "confidence": [None] * 3, "accuracy": [NAN] * 3, "share": [0] * 3, "ece": None}]
        },
        "matrix": {"labels": ["a"], "values": [[None]]},
        "table": {"columns": [{"name": "a", "best": "high"}], "rows": []},
        "dendrogram": {"labels": ["a", "b"], "merges": [[0, 1, NAN]]},
    }  # fmt: skip
    html = str(draw({"kind": kind, **empty[kind]}, {}))
    Page(html)
    assert "nan" not in html and "inf" not in html


def test_branches_of_a_dendrogram_do_not_cross_and_families_have_a_colour():
    html = str(draw({"kind": "dendrogram", **FIGURES["dendrogram"]}, {}))
    wide = html.split("</svg>")[0]
    names = re.findall(r'class="label"[^>]*>([a-d])<|>([a-d])</text>', wide)
    assert ["".join(one) for one in names] == ["a", "c", "b", "d"], "what is merged first stands side by side"
    assert re.findall(r'class="(\S+) branch"', wide) == ["s0", "s1", "s-alone"]
    ends = [float(one) for one in re.findall(r"H([\d.]+)V", wide)]
    assert ends[0] < ends[1] < ends[2], "the less alike, the further right"


def test_missing_values_are_dashes_in_a_table():
    read = Page(str(table(FIGURES["table"])))
    assert read.words.count("–") == 2
    assert "82.6 ± 0.6" in read.words and "41.2 kB" in read.words


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"kind": "tabel"}, "Did you mean 'table'?"),
        ({"kind": "lines"}, "'lines' cannot be drawn"),
        ({"kind": "table", "columns": [{"name": "a"}], "rows": [[1, 2]]}, "2 cells under 1 columns"),
        ({"kind": "panels", "figures": [{"kind": "text", "text": "x"}]}, "A panel cannot hold"),
        ({"kind": "pictures", "items": [{"pixels": "bm90IGEgcG5n"}]}, "a PNG in base64"),
        ({"kind": "pictures", "items": [{"pixels": [[300, 1]]}]}, "0..255"),
        ({"kind": "pictures", "items": [{"pixels": [1, 2]}]}, "shape (2,)"),
        ({"kind": "sheet", "columns": ["a"], "rows": [[]]}, "0 pictures under 1 columns"),
    ],
)
def test_figures_that_cannot_be_drawn_say_why_and_leave_no_file(tmp_path, figure, message):
    with pytest.raises(DataError) as caught:
        write_report(tmp_path / "r.html", title="t", verdict="v", findings=[Finding("a", "b", figure=figure)])
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_finding_without_a_sentence_is_refused():
    with pytest.raises(DataError, match="no title or no sentence"):
        page(title="t", verdict="v", findings=[Finding("a", "")])


def test_the_best_is_stressed_only_where_no_interval_bridges():
    def stressed(*cells, apart=()):
        rows = [[str(index), cell] for index, cell in enumerate(cells)]
        html = str(
            table({"columns": [{"name": ""}, {"name": "x", "best": "high"}], "rows": rows, "apart": list(apart)})
        )
        return re.findall(r"<strong>([^<]*)</strong>", html)

    clear = {"mean": 90.0, "low": 89.0, "high": 91.0}
    assert stressed({"mean": 80.0, "low": 79.0, "high": 81.0}, clear) == ["90.0 ± 1.0"]
    assert stressed({"mean": 89.5, "low": 88.0, "high": 91.0}, clear) == []
    assert stressed(95.0, clear, 80.0, apart=[0]) == ["90.0 ± 1.0"]
    assert stressed(1.0, 1.0) == [] and stressed(1.0) == []


def test_pictures_keep_their_pixels():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    source, width = picture(pixels)
    raw = base64.b64decode(source.split(",")[1])
    assert width == 2 and np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), pixels)
    assert picture(source.split(",")[1]) == (source, 2)
    html = str(draw({"kind": "pictures", "items": [{"pixels": pixels.tolist()}]}, {}))
    assert 'class="pixels"' in html


def test_numbers_are_written_for_readers():
    assert number(-1234.5) == "−1,234.5" and number(None) == number(NAN) == "–" and number(-0.0001, 1) == "0.0"
    assert number(3.1e-6) == "3.1·10⁻⁶" and number(308394.0, unit="count") == "308,394" and number(0) == "0"
    assert [number(value, unit="bytes") for value in (812, 41_200, 999_600, 1_300_000)] == [
        "812 B",
        "41.2 kB",
        "1.00 MB",
        "1.30 MB",
    ]
    assert with_interval(90.4, 89.8, 91.0, 1) == "90.4 ± 0.6"
    assert with_interval(90.4, 88.0, 90.9, 1) == "90.4 (88.0 to 90.9)"
    assert with_interval(90.4, None, None, 1) == with_interval(90.4, 90.4, 90.4, 1) == "90.4"


def test_intervals_over_seeds_are_student_t():
    three = spread([1.0, 2.0, 3.0])
    assert three["n"] == 3 and three["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert spread([5.0])["low"] is None and spread([None, NAN])["mean"] is None


def test_names_keep_their_colour_and_ticks_are_round():
    held = slots(["alone", "kd", "teacher", "b", "kd"])
    assert held == {"alone": RESERVED["alone"], "kd": "s0", "teacher": RESERVED["teacher"], "b": "s1"}
    assert ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1.0] and ticks(0.1, 90, log=True) == pytest.approx([0.1, 1, 10])


def test_what_the_page_is_made_of_is_shipped():
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["stillroom"]
    folder = root / "src" / "stillroom"
    needed = [
        path.relative_to(folder) for path in (folder / "report").iterdir() if path.suffix in (".jinja", ".css", ".js")
    ]
    assert len(needed) == 2 and all(any(path.match(pattern) for pattern in listed) for path in needed)


# --- findings of a run -----------------------------------------------------------------------------


def test_models_are_ordered_and_the_first_arm_is_known_from_sorted_json():
    held = json.loads(json.dumps(metrics(), sort_keys=True))
    assert main_arm(held) == "kd" and model_order(held) == ["teacher", "alone", "kd", "another"]


@pytest.mark.parametrize(
    ("kd", "seeds", "words"),
    [
        (0.904, 5, "Yes."),
        (0.904, 3, "5 are needed to claim it"),
        (0.904, 1, "one seed only"),
        (0.800, 5, "No, it made the student worse."),
        (0.800, 3, "No, it made the student worse in these 3 seeds."),
    ],
)
def test_the_verdict_says_what_happened_whichever_way(kd, seeds, words):
    finding = found.verdict_dots(metrics(kd=kd, seeds=seeds))
    assert words in finding.sentence and finding.number == pytest.approx(100 * (kd - 0.826))
    Page(str(draw(finding.figure, {})))


def test_a_difference_within_chance_is_called_so():
    held = metrics()
    held["models"]["kd"]["score"]["per_seed"] = [0.80, 0.86, 0.83]
    assert found.verdict_dots(held).sentence.startswith("Not to be told from chance.")


def test_a_run_without_a_control_claims_nothing():
    held = metrics(gap_closed={"mean": None, "reason": "there is no label objective"})
    del held["models"]["alone"]
    assert "no control" in found.verdict_dots(held).sentence
    assert "there is no label objective" in found.arms_table(held).sentence


def test_a_better_rival_is_named():
    held = metrics()
    held["models"]["another"] = model(0.915)
    assert "Prefer 'another'" in found.arms_table(held).sentence
    held["models"]["another"]["score"] = {"mean": 0.905, "per_seed": [0.88, 0.93, 0.905]}
    assert "may be chance" in found.arms_table(held).sentence


def test_the_arms_table_leaves_out_what_was_not_measured():
    figure = found.arms_table(metrics()).figure
    assert [column["name"] for column in figure["columns"]] == ["model", "accuracy", "agreement", "KL"]
    assert figure["apart"] == [0] and figure["main"] == [2]
    one = found.arms_table(metrics(seeds=1))
    assert "±" not in str(draw(one.figure, {})) and "<strong>" not in str(draw(one.figure, {}))


def test_curves_are_smoothed_without_losing_their_end():
    steps = list(range(1, 1001))
    xs, ys, stretch = found.smoothed(steps, [1.0] * 999 + [NAN])
    assert len(xs) == 120 and xs[-1] == 1000 and ys == [1.0] * 120 and stretch == 8
    assert found.smoothed([], []) == ([], [], 1) and found.smoothed([7], [2])[:2] == ([7.0], [2.0])
    validation = {"step": [1, 2, 3, 4], "score": [0.1, 0.3, 0.5, 0.8]}
    finding = found.training_curves(
        {"kd": {"step": steps, "labels": [1 / s for s in steps], "validation": validation}}, "accuracy"
    )
    assert "'kd' was still gaining" in finding.sentence
    assert [panel["title"] for panel in finding.figure["figures"]] == ["On validation", "Loss: labels"]
    Page(str(draw(finding.figure, {})))


def test_the_pull_of_teacher_and_labels_is_put_into_words():
    held = {"step": [1, 101, 201, 301], "cosine": [0.5, 0.1, -0.2, -0.1], "ratio": [1.0, 2.0, 9.0, 40.0]}
    finding = pull("kd", {**held, "looked": 8, "against": 4})
    assert (
        "The two gradients were opposed in 50 % of the 8 measured steps of 'kd' (mean cosine 0.07" in finding.sentence
    )
    assert "at right angles" in finding.sentence and finding.number == pytest.approx(0.075)
    assert "5.50 times as large" in finding.sentence and "40.0 times towards the end" in finding.sentence
    assert [panel["series"][0]["y"] for panel in finding.figure["figures"]] == [held["cosine"], held["ratio"]]
    Page(str(draw(finding.figure, {})))


@pytest.mark.parametrize(
    ("cosine", "ratio", "said"),
    [
        (0.8, 1.0, "Mostly in the same direction"),
        (0.3, 1.0, "Partly in the same direction"),
        (-0.4, 1.0, "Mostly in opposite directions"),
        (0.8, 0.01, "set train.balance"),
    ],
)
def test_what_a_cosine_means_is_said(cosine, ratio, said):
    held = {"step": [1], "cosine": [cosine], "ratio": [ratio], "looked": 1, "against": int(cosine < 0)}
    finding = pull("kd", held)
    assert said in finding.sentence and "at one step of 'kd' only" in finding.sentence
    assert not finding.figure, "one point is no curve"
    assert "train.gradient_norms_every" in finding.sentence


def test_without_two_gradients_nothing_is_said_of_their_pull():
    assert pull("alone", {"step": [], "cosine": [], "ratio": [], "looked": 0, "against": 0}) is None


def test_reliability_says_which_way_a_model_errs():
    shy = {**CALIBRATION, "accuracy": [min(1.0, c + 0.1) for c in BINS]}
    sentence = found.reliability({"teacher": CALIBRATION, "kd": shy}).sentence
    assert "'teacher' is overconfident" in sentence and "'kd' is underconfident" in sentence


def test_losses_by_class_are_ordered_and_absent_classes_left_out():
    finding = found.lost_by_class(
        ["a", "b", "c", "d"], [0.9, 0.8, None, 0.7], [0.5, 0.5, 0.5, 0.7], [0.895, 0.6, 0.4, 0.69]
    )
    assert finding.figure["labels"] == ["b", "d", "a"] and finding.number == pytest.approx(20)
    assert "In 2 of 3 classes" in finding.sentence and "most on 'b': 80.0 to 60.0 %" in finding.sentence
    assert "fell in 1 of 3" in finding.sentence
    many = found.lost_by_class([str(i) for i in range(100)], [0.9] * 100, None, [0.8] * 100)
    assert len(many.figure["labels"]) == found.MOST_CLASSES and "of 100" in many.figure["note"]
    assert "No class" in found.lost_by_class(["a"], [None], None, [None]).sentence


def test_disagreements_count_who_is_right():
    item = {
        "pixels": np.zeros((2, 2)),
        "true": "a",
        "teacher": "a",
        "teacher_share": 0.9,
        "student": "b",
        "student_share": None,
    }
    finding = found.disagreements([item, {**item, "teacher": "c"}], 412, 5000)
    assert "412 of 5,000 test examples (8.2 %)" in finding.sentence
    assert "right in 1, the student in 0, neither in 1" in finding.sentence
    assert finding.figure["items"][0]["rows"] == [["teacher", "a 0.90"], ["student", "b"]]
    assert "same first choice" in found.disagreements([]).sentence


def test_sizes_share_a_row_and_a_ratio():
    finding = found.sizes(metrics())
    assert [row[0] for row in finding.figure["rows"]] == ["teacher", "student", "student against teacher"]
    assert "4.0 times smaller (250 kB)" in finding.sentence and finding.figure["rows"][2][2] == "÷ 4.0"
    bare = metrics()
    for one in bare["models"].values():
        one["bytes"] = one["parameters"] = None
    assert "not measured" in found.sizes(bare).sentence


def test_weights_say_whether_they_can_go():
    tensors = {
        "plain": [{"name": "w", "l1": 10.0, "l2": 2.0, "share_near_zero": 0.01, "size": 90}],
        "l1": [
            {"name": "w", "l1": 1.0, "l2": 0.5, "share_near_zero": 0.9, "size": 90},
            {"name": "v", "l1": 1, "l2": 1, "share_near_zero": 0.0, "size": 10},
        ],
    }
    finding = found.weights(tensors, {"plain": 0.9, "l1": 0.88}, {"plain": 0.9, "l1": 0.8799})
    assert (
        finding.number == pytest.approx(0.81)
        and "81.0 %" in finding.sentence
        and "they can be pruned" in finding.sentence
    )
    assert "they matter" in found.weights(tensors, {"l1": 0.88}, {"l1": 0.7}).sentence
    assert "No weights" in found.weights({}, {}, {}).sentence


def test_parity_is_judged_by_the_worst_file():
    same = {"name": "student.onnx", "bytes": 250_000, "rows": 500, "agreement": 1.0, "largest_difference": 3.1e-6}
    assert found.parity([same]).sentence.startswith("Yes")
    worse = found.parity([same, {**same, "name": "int8", "agreement": 0.9}])
    assert worse.sentence.startswith("Not all: 'int8'") and worse.number == 0.9
    assert "3.1·10⁻⁶" in str(draw(worse.figure, {}))
    assert "Nothing was exported" in found.parity([]).sentence


# --- comparing runs --------------------------------------------------------------------------------


def test_two_runs_are_compared_by_paired_seeds_and_their_recipes(tmp_path):
    first = run_folder(tmp_path / "a" / "images", metrics(), "train: {steps: 100}\narms: [{use: kd}]\n")
    second = run_folder(tmp_path / "b" / "images", metrics(kd=0.915), "train: {steps: 200}\narms: [{use: kd}]\n")
    title, findings = compare([first, str(second)])
    assert title == "Runs compared: a/images, b/images"
    assert (
        "'b/images' comes out better than that of 'a/images'" in findings[0].sentence
        and "paired by 3 seeds" in findings[0].sentence
    )
    assert findings[-1].figure["rows"] == [["train.steps", "100", "200"]]
    read = Page(page(title=title, verdict=findings[0].sentence, findings=findings))
    assert "a/images: kd" in read.text


def test_five_seeds_may_claim_a_better_run(tmp_path):
    places = [run_folder(tmp_path / str(kd), metrics(kd=kd, seeds=5)) for kd in (0.9, 0.915)]
    findings = compare(places)[1]
    assert "'0.915' is better than that of '0.9' by 1.5 points" in findings[0].sentence
    assert "equally large" in findings[2].sentence and "Nothing: the resolved recipes" in findings[-1].sentence


def test_runs_on_different_seeds_or_scores_are_not_ranked_rashly(tmp_path):
    first = run_folder(tmp_path / "a", metrics())
    other = metrics(kd=0.905, seeds=5)
    assert "cannot be told apart" in compare([first, run_folder(tmp_path / "b", other)])[1][0].sentence
    assert "may be chance" in compare([first, run_folder(tmp_path / "c", metrics(kd=0.95, seeds=1))])[1][0].sentence
    for one in other["models"].values():
        one["score_name"] = "perplexity"
    _, findings = compare([first, run_folder(tmp_path / "d", other)])
    assert "cannot be ranked" in findings[0].sentence
    Page(page(title="t", verdict="v", findings=findings))


def test_comparing_says_what_is_wrong_with_a_folder(tmp_path):
    good = run_folder(tmp_path / "good", metrics())
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("a: 1")
    (tmp_path / "empty").mkdir()
    foreign = run_folder(tmp_path / "foreign", {"accuracy": 0.9})
    broken = run_folder(tmp_path / "broken", {})
    (broken / "metrics.json").write_text("{")
    for bad, words in (
        (tmp_path / "nowhere", "No such run"),
        (tmp_path / "begun", "has not finished"),
        (tmp_path / "empty", "holds no metrics.json"),
        (foreign, "not the metrics of a run"),
        (broken, "not valid JSON"),
    ):
        with pytest.raises(StoreError, match=words):
            compare([good, bad])
    with pytest.raises(UserError, match="two or more"):
        compare([good])
    with pytest.raises(UserError, match="with itself"):
        compare([good, tmp_path / "begun" / ".." / "good"])
