"""Cutting texts: the pieces, where they lie in the raw bytes, and the list of the frequent ones."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings, strategies

from stillroom.errors import ModelError
from stillroom.models import vocabulary
from stillroom.models.vocabulary import UNITS, build, counted, pieces, split, unit_for


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop!", ["don't", "stop", "!"]),
        ("It\u2019s the dogs' 2nd", ["it's", "the", "dogs", "'", "2nd"]),
        ("a 3.5-star_film...", ["a", "3", ".", "5", "-", "star", "_", "film", ".", ".", "."]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "cafe\u0301"]),
        ("Привет, МИР", ["привет", ",", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("这部iPhone很好", ["这", "部", "iphone", "很", "好"]),
        ("\ufeff \t\n\u200b", []),
        ("", []),
    ],
)
def test_words_are_cut_as_a_person_would(text, found):
    assert split(text, "word") == found


def test_characters_stand_alone_and_runs_of_latin_letters_do_not():
    assert split("这部iPhone14 don't，好！", "character") == ["这", "部", "iphone14", "don't", "，", "好", "！"]
    assert split("мир ひらカタ한국", "character") == list("мирひらカタ한국")
    assert split("ひらカタ漢字 한국", "word") == [*"ひらカタ漢字", "한국"], "Korean is written with spaces"


SAMPLES = ["", "It’s İstanbul: ΟΔΟΣ. ΑΣ.Α", "👨‍👩‍👧 好 x", "a\u0301\u0301 ß ẞ ﬁ", "don't " * 20, "\x00\x01 \x7f"]


@pytest.mark.parametrize("unit", UNITS)
@settings(deadline=None, max_examples=150)
@given(text=strategies.text(max_size=40) | strategies.sampled_from(SAMPLES), most=strategies.sampled_from([None, 1, 5]))
def test_both_ways_cut_alike_and_spans_hold_the_raw_bytes(unit, text, most):
    found = pieces(text, unit, most)
    assert [piece.text for piece in found] == split(text, unit, most)
    raw, behind = text.encode("utf-8", "replace"), 0
    for piece in found:
        assert behind <= piece.first < piece.end <= len(raw)
        cut = raw[piece.first : piece.end].decode("utf-8")  # whole characters, or this raises
        assert cut.lower().replace("\u2019", "'") == piece.text
        assert not raw[behind : piece.first].decode().replace("\ufeff", "").replace("\u200b", "").strip()
        behind = piece.end


def test_a_capital_that_grows_does_not_shift_what_comes_after():
    assert pieces("İİ film", "word")[1] == ("film", 5, 9)


def test_text_of_a_megabyte_is_cut_only_as_far_as_asked():
    for text in ("word " * 200_000, "wörd " * 200_000, "x" * 1_000_000, "字" * 300_000):
        start = time.perf_counter()
        assert len(split(text, "word", 65)) == 65
        assert len(pieces(text, "word", 65)) == 65
        assert time.perf_counter() - start < 0.5
    assert max(map(len, split("x" * 10_000 + " é", "word"))) == 64, "no piece becomes megabytes"


def test_the_vocabulary_is_by_frequency_then_by_text_whatever_the_order():
    texts = ["b b b a a", "c c a d", "e'e d"]
    expected = ["a", "b", "c", "d"]
    for seed in range(5):
        random.Random(seed).shuffle(texts)
        assert build(texts) == (expected, "word")
        assert list(counted(texts, "word")) == [("a", 3), ("b", 3), ("c", 2), ("d", 2), ("e'e", 1)]
    assert build(texts, size=2)[0] == ["a", "b"]
    assert build(texts, least=1)[0] == [*expected, "e'e"]
    assert build(iter(texts))[0] == expected, "texts that can be read once only"


def test_the_unit_is_chosen_by_the_share_of_letters():
    assert unit_for(["这是中文", "ok"]) == "character"
    assert unit_for(["ab", "日"]) == "word", "exactly a third is not more"
    assert unit_for(["ab", "日日"]) == "character"
    assert unit_for(["12 !!"]) == "word"
    assert build(["好好 very fine indeed"])[1] == "word"
    assert build(["好好 ok ok"], unit="word")[1] == "word"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "letter"}, "Allowed: word, character"),
        ({"size": 0}, "from 1 on"),
        ({"least": True}, "from 1 on"),
        ({"least": 3}, "Give more text"),
    ],
)
def test_mistakes_say_what_is_allowed(options, message):
    with pytest.raises(ModelError, match=message):
        build(["a a b b"], **options)


def test_no_text_gives_no_vocabulary():
    with pytest.raises(ModelError, match="0 texts"):
        build([])


def test_cutting_needs_no_torch():
    code = "import sys, stillroom.models.vocabulary; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    path = str(next(iter(__import__("stillroom").__path__)) + "/..")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0
    assert "torch" not in vocabulary.__dict__


@pytest.mark.parametrize("text", ["a [MASK] film", "un [MASK] été"])
def test_what_hides_a_word_is_one_piece(text):
    assert split(text, "word")[1] == "[mask]" and len(split(text, "word")) == 3
    assert split("好[MASK]吗", "character") == ["好", "[mask]", "吗"]
