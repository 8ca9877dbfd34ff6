"""The head of a mining report is the gravest that was found, and the screen has a line a panel."""

from __future__ import annotations

import numpy as np
import torch

from stillroom.contracts import Finding
from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Panel, Subject
from stillroom.mining.answers import answers
from stillroom.mining.headline import first_sentence, headline, summary
from stillroom.pipeline.mining import Mined
from stillroom.report.page import page

CLASSES = ["earn", "acq", "grain", "ship"]


def news(told: dict[int, int]) -> Subject:
    """120 test examples, 4 of 'grain' and 3 of 'ship'; the model answers a class as ``told`` says, else rightly."""
    labels = np.array([0] * 60 + [1] * 53 + [2] * 4 + [3] * 3)
    answered = np.array([told.get(one, one) for one in labels])
    both = np.concatenate([labels, labels, labels])
    inputs = np.eye(4, dtype=np.float32)[np.concatenate([answered] * 3)] * 4
    data = ArraySource(inputs, labels=both, classes=CLASSES)
    for at, split in enumerate(("train", "validation", "test")):
        data.splits[split] = torch.arange(at * 120, (at + 1) * 120)
    return Subject(data, answer=lambda inputs: inputs)


def test_classes_that_are_never_answered_are_the_head():
    panel = answers(news({2: 0, 3: 1}), Budget())
    assert panel.numbers["never_answered"] == ["grain", "ship"]
    told = headline({"answers": panel})
    assert (
        told == "It is right on 94.2 % of 120 test examples, but it never answers 'grain' and 'ship' (7 test examples)."
    )
    assert panel.findings[2].sentence.startswith("It never answers 'grain' and 'ship' (7 test examples). ")
    assert ("classes never answered", "2 of 4") in summary({"answers": panel})


def test_nothing_grave_is_said_to_be_so():
    panel = answers(news({}), Budget())
    assert panel.numbers["never_answered"] == []
    assert headline({"answers": panel}).startswith("It is right on 100.0 % of 120 test examples, ")
    assert "never" not in headline({"answers": panel}) and "never" not in panel.findings[2].sentence


def test_what_is_graver_comes_first():
    numbers = answers(news({}), Budget()).numbers
    calm = {"mean_confidence": numbers["accuracy"]}
    other = {"examples": Panel("examples", numbers={"labels": {"share_wrong": 0.08}})}
    assert headline({"answers": Panel("answers", numbers=numbers | calm), **other}).endswith(
        "but 8.0 % of the training labels look wrong.")  # fmt: skip
    worse = numbers | calm | {"never_answered": ["ship"]}
    assert "never answers 'ship'" in headline({"answers": Panel("answers", numbers=worse), **other})
    worst = worse | {"majority_class": {"class": "earn", "accuracy": numbers["accuracy"] - 0.01}}
    assert "always answering 'earn' would be right on" in headline({"answers": Panel("answers", numbers=worst)})
    assert headline({}) == "Nothing was found out: no panel could be asked."
    assert headline({"rules": Panel("rules", [Finding("t", "No rules.")])}) == "No rules."


def test_the_first_sentence_is_cut_at_its_end_and_not_in_a_number():
    assert first_sentence("It is right on 0.5 of 3. The rest is not.") == "It is right on 0.5 of 3."


def test_what_was_mined_prints_a_few_lines(tmp_path):
    figure = {"kind": "pictures", "items": [{"pixels": [[0] * 64] * 64}] * 50}
    panel = Panel("rules", [Finding("t", "No rules.", figure=figure)], {"each": list(range(9999))}, {"f": b"x" * 9999})
    for one in (Mined(tmp_path, {"rules": panel}, {"rules": 0.1}), panel, panel.findings[0]):
        assert len(repr(one)) < 600, type(one)
    assert repr(Mined(tmp_path, {"rules": panel}, {})).splitlines()[0] == "No rules."


def test_the_contents_are_grouped_by_chapters():
    findings = [Finding(f"title {place}", "A sentence.") for place in range(5)]
    told = page(title="t", verdict="v", findings=findings, chapters=[("Answers", 3), ("None", 0), ("Rules", 2)])
    assert told.count('<p class="chapter">') == 2 and "None" not in told
    assert told.index("Answers</a>") < told.index("title 0</a>") < told.index("Rules</a>") < told.index("title 3</a>")
    assert all(f'<section id="part-{place}"' in told for place in range(1, 6))
    plain = page(title="t", verdict="v", findings=findings)
    assert "chapter" not in plain.split("</style>")[1] and plain.count("<li><a") == 5
