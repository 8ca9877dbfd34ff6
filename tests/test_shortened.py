"""Long texts in a page: their beginning stands there, nothing is lost, and what is folded is escaped too."""

from __future__ import annotations

from html.parser import HTMLParser

from stillroom.report.figures import draw
from stillroom.report.run_costs import sizes
from stillroom.report.shortened import LONGEST, OVER, shortened, shortened_pieces


class Reader(HTMLParser):
    """The text outside and inside of details, without their summaries."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.summary, self.shown, self.folded = 0, False, "", ""

    def handle_starttag(self, tag, attrs):
        self.depth += tag == "details"
        self.summary = tag == "summary"

    def handle_endtag(self, tag):
        self.depth -= tag == "details"
        self.summary = False

    def handle_data(self, data):
        if self.summary:
            return
        if self.depth:
            self.folded += data
        else:
            self.shown += data


def read(markup: object) -> Reader:
    reader = Reader()
    reader.feed(str(markup))
    return reader


def test_a_long_text_is_folded_at_a_space_and_nothing_is_lost():
    text = "word " * 500 + "<b>end</b>"
    found = read(shortened(text))
    assert found.shown.endswith("word…") and len(found.shown) <= LONGEST + 1
    assert found.shown.removesuffix("…") + found.folded == text
    assert "<b>" not in str(shortened(text)) and f"more ({len(found.folded):,} characters)" in str(shortened(text))
    unbroken = "字" * 2000
    assert len(read(shortened(unbroken)).shown) == LONGEST + 1


def test_a_short_text_is_left_whole():
    for text in ("", "short", "a" * (LONGEST + OVER)):
        assert "<details" not in str(shortened(text)) and read(shortened(text)).shown == text


def test_marked_words_are_folded_between_words():
    pieces = [(f"w{place} ", f"w{place} ") for place in range(300)]
    found = read(shortened_pieces(pieces))
    assert found.shown.removesuffix("…") + found.folded == "".join(written for written, _ in pieces)
    assert found.shown.removesuffix("…").endswith(" ") and len(found.shown) <= LONGEST + 1
    assert str(shortened_pieces([])) == ""


def test_figures_fold_texts_of_cards_and_tables():
    long = "word " * 400
    card = {"kind": "pictures", "items": [{"text": long, "caption": "true: a"}]}
    marked = {"kind": "pictures", "items": [{"words": [["word ", 0.5]] * 400, "caption": "a"}]}
    table = {"kind": "table", "columns": [{"name": "a"}, {"name": "b"}], "rows": [["x", long]]}
    for figure in (card, marked, table):
        drawn = str(draw(figure, {}))
        assert drawn.count("<details") == 1 and len(read(drawn).shown) < LONGEST + 60, figure["kind"]
    assert "of-texts" in str(draw(card, {}))


def test_a_curve_of_one_point_is_not_drawn():
    one = {"kind": "lines", "title": "one", "series": [{"name": "a", "x": [1], "y": [0.5]}]}
    two = {"kind": "lines", "title": "two", "series": [{"name": "a", "x": [1, 2], "y": [0.5, 0.7]}]}
    bars = {"kind": "bars", "title": "bars", "labels": ["a"], "series": [{"name": "s", "values": [1]}], "unit": ""}
    drawn = str(draw({"kind": "panels", "figures": [one, two, bars]}, {}))
    assert "<h3>two</h3>" in drawn and "<h3>bars</h3>" in drawn and "<h3>one</h3>" not in drawn
    assert str(draw({"kind": "panels", "figures": [one, one], "note": "n"}, {})) == ""


def test_costs_that_were_not_measured_have_no_columns():
    score = {"mean": 0.5, "per_seed": [0.5]}
    models = {name: {"score": score, "parameters": {"mean": 21, "per_seed": [21]}} for name in ("alone", "main")}
    metrics = {"models": {**models, "distilled": models["main"]}, "arms": ["main"]}
    finding = sizes(metrics)
    assert [column["name"] for column in finding.figure["columns"]] == ["model", "parameters"]
    assert finding.figure["rows"][0][1]["mean"] == 21 and not finding.figure["note"]
    for model in models.values():
        model["parameters"] = None
    assert not sizes(metrics).figure and "not measured" in sizes(metrics).sentence


def test_a_place_without_a_picture_stays_empty():
    cell = {"pixels": [[0, 255]], "text": "a"}
    drawn = str(draw({"kind": "sheet", "columns": ["", ""], "rows": [[cell, None]]}, {}))
    assert drawn.count("<img") == 1 and "<td></td>" in drawn
