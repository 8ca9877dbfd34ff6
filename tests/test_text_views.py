"""Views of texts are pure functions of (seed, example, view)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from stillroom.data import text_views
from stillroom.data.text_views import MASK, TextViews
from stillroom.data.texts import TextSource
from stillroom.errors import DataError
from stillroom.models import vocabulary
from stillroom.utf8 import unpack

TEXTS = [f"film {row} was a rather slow thing of some beauty , they say" for row in range(60)]
WRITTEN_DOWN = [
    "[MASK] [MASK] ,",
    "some [MASK]",
    "film 2 was a rather slow thing of some beauty , they [MASK]",
    "thing of some beauty",
]


def ids(examples, view):
    examples = torch.as_tensor(examples)
    return torch.stack([examples, torch.full_like(examples, view)], dim=1)


def seen(views, texts, view=1, first=0):
    return views.apply(texts, np.arange(first, first + len(texts)), np.full(len(texts), view))


def test_view_zero_is_the_plain_text_also_in_a_mixed_batch():
    source = TextSource(TEXTS, views=TextViews(4, mask=0.5))
    mixed = torch.tensor([[3, 0], [3, 1], [5, 0], [5, 2]])
    texts = unpack(source.batch(mixed)["inputs"])
    assert texts[0] == TEXTS[3] and texts[2] == TEXTS[5]
    assert texts[1] != TEXTS[3] and texts[3] != TEXTS[5]
    assert [source.show(row) for row in range(60)] == TEXTS


def test_a_view_does_not_depend_on_the_batch_it_is_in():
    source = TextSource(TEXTS, views=TextViews(8, mask=0.3, sample=0.5))
    everything = torch.cartesian_prod(torch.arange(60), torch.arange(8))
    together = unpack(source.batch(everything)["inputs"])
    for part in torch.randperm(len(everything), generator=torch.Generator().manual_seed(1)).split(7):
        assert unpack(source.batch(everything[part])["inputs"]) == [together[row] for row in part.tolist()]
    assert len(set(together)) > 300


def test_seed_and_view_change_what_is_seen():
    one = seen(TextViews(9, mask=0.3), TEXTS)
    assert one == seen(TextViews(2, mask=0.3), TEXTS)
    assert one != seen(TextViews(9, mask=0.3, seed=1), TEXTS)
    assert one != seen(TextViews(9, mask=0.3), TEXTS, view=2)


@pytest.mark.parametrize("mask", [0.1, 0.4])
def test_as_many_words_are_masked_as_asked_for(mask):
    texts = [" ".join(f"w{place}" for place in range(20))] * 2000
    words = [text.split(" ") for text in seen(TextViews(2, mask=mask, sample=0), texts)]
    share = np.mean([word == MASK for text in words for word in text])
    assert abs(share - mask) < 4 * (mask * (1 - mask) / 40000) ** 0.5
    assert all(word in (MASK, f"w{place}") for text in words for place, word in enumerate(text))
    places = Counter(place for text in words for place, word in enumerate(text) if word == MASK)
    assert len(places) == 20 and max(places.values()) < 1.4 * min(places.values())


def test_texts_are_cut_to_words_in_a_row_every_length_and_place_alike():
    texts = [" ".join(f"w{place}" for place in range(8))] * 8000
    cut = [text for text in seen(TextViews(2, mask=0, sample=0.25), texts) if text != texts[0]]
    assert abs(len(cut) / 8000 - 0.25) < 0.02
    assert all(text in texts[0] for text in cut)
    lengths = Counter(len(text.split()) for text in cut)
    assert set(lengths) == {1, 2, 3, 4, 5} and max(lengths.values()) < 1.25 * min(lengths.values())
    firsts = Counter(text.split()[0] for text in cut if len(text.split()) == 5)
    assert set(firsts) == {"w0", "w1", "w2", "w3"}, "the last five words are a place too"


def test_lengths_can_be_chosen_and_a_shorter_text_is_kept_whole():
    views = TextViews(2, mask=0, sample=1, shortest=3, longest=4)
    assert {len(text.split()) for text in seen(views, TEXTS)} == {3, 4}
    assert seen(views, ["one two"] * 5) == ["one two"] * 5


def test_no_view_is_of_masks_alone():
    views = TextViews(2, mask=1.0, sample=0.5)
    for text in seen(views, TEXTS):
        assert text.split().count(MASK) == len(text.split()) - 1
    assert seen(views, ["one"] * 9) == ["one"] * 9


def test_white_space_between_words_stays():
    (text,) = seen(TextViews(2, mask=0.5, sample=0, seed=3), [" one  two\tthree four five six"])
    kept = text.replace(MASK, "*")
    assert kept != "one  two\tthree four five six" and "*" in kept
    assert [sign for sign in kept if sign.isspace()] == [" ", " ", "\t", " ", " ", " "]


def test_characters_are_the_unit_of_chinese():
    text = "这本书iPhone 写得真好"
    (seen_,) = seen(TextViews(2, mask=1.0, sample=0), [text])
    assert seen_.count(MASK) == 7 and seen_.count(" ") == 1  # eight units, one of which is kept
    assert len(seen_.replace(MASK, "").strip()) in (1, 6)
    (by_word,) = seen(TextViews(2, mask=1.0, sample=0, unit="word"), [text])
    assert by_word.count(MASK) == 1
    (by_character,) = seen(TextViews(2, mask=1.0, sample=0, unit="character"), ["good film"])
    assert by_character.count(MASK) == 7


def test_a_character_that_stands_alone_does_so_in_views_and_in_vocabularies():
    assert text_views._CHINESE == vocabulary._APART


def test_the_fingerprint_names_what_shapes_a_view_and_nothing_else():
    plain = TextViews(1).fingerprint
    assert plain == TextViews(9).fingerprint
    changed = [
        {"mask": 0.2},
        {"sample": 0.0},
        {"seed": 1},
        {"unit": "word"},
        {"shortest": 2},
        {"longest": 6},
    ]
    prints = {TextViews(1, **change).fingerprint for change in changed}
    assert len(prints | {plain}) == len(changed) + 1
    assert TextViews(mask=0).fingerprint == TextViews(mask=0.0).fingerprint


def test_views_are_the_same_on_every_machine():
    views = TextViews(3, mask=0.3, sample=0.5)
    assert seen(views, TEXTS[:3], view=2) == seen(TextViews(99, mask=0.3, sample=0.5), TEXTS[:3], view=2)
    assert seen(views, TEXTS[:4]) == WRITTEN_DOWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": True},
        {"mask": -0.1},
        {"mask": 1.5},
        {"sample": "much"},
        {"unit": "letter"},
        {"shortest": 0},
        {"shortest": 4, "longest": 3},
        {"seed": 0.5},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        TextViews(**wrong)


def test_a_view_that_does_not_exist_is_refused():
    source = TextSource(TEXTS, views=TextViews(2))
    for view in (2, -1):
        with pytest.raises(DataError, match=f"view {view}"):
            source.batch(ids([0], view))
