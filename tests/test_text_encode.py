"""Texts become tokens: shapes, spans, what is cut, what is remembered, and being made again from a description."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time

import pytest
import torch

import stillroom
from stillroom.contracts import HasSteps
from stillroom.errors import MissingPart, ModelError
from stillroom.models import text_encode
from stillroom.models.encode import from_description
from stillroom.models.text_encode import HuggingFaceEncode, WordEncode, cut_share, words_for
from stillroom.utf8 import pack

tokenizers = pytest.importorskip("tokenizers", reason="the extra [text] is not installed")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "caf", "##e", "##s", "bad", ".", "好"]


def word_pieces(padding: bool = True):
    """A tokenizer as BERT's, whose own padding and cutting are set as those of published ones are."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: number for number, piece in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    if padding:
        made.enable_padding(length=16, pad_id=0)
        made.enable_truncation(3)
    return made


class Texts:
    """The least a source must have here."""

    def __init__(self, texts, train=None):
        self.texts = texts
        self.splits = {"train": torch.arange(len(texts)) if train is None else torch.tensor(train, dtype=torch.int64)}

    def batch(self, ids):
        assert ids.dtype == torch.int64 and not ids[:, 1].any(), "only the plain view"
        return {"id": ids, "inputs": pack([self.texts[number] for number in ids[:, 0].tolist()])}


# --- words ---------------------------------------------------------------------------------------------------


def test_words_become_numbers_as_long_as_the_longest_row():
    encode = WordEncode(["good", "film", "好"], longest=4)
    found = encode(pack(["Good FILM!", "", "好 film good good good", "?"]))
    assert found["ids"].tolist() == [[2, 3, 1, 0], [1, 0, 0, 0], [4, 3, 2, 2], [1, 0, 0, 0]]
    assert found["mask"].tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 4, [True] + [False] * 3]
    assert found["ids"].dtype == torch.int64 and found["mask"].dtype == torch.bool
    assert encode(pack([""]))["ids"].tolist() == [[1]]
    assert encode(torch.zeros(0, 5, dtype=torch.uint8))["ids"].shape == (0, 1)
    assert encode.size == 5


def test_the_steps_of_words_are_bytes_of_the_raw_text():
    encode, texts = WordEncode(["good"], longest=3), ["İt’s Good 好 x", ""]
    mask, spans = encode.steps(pack(texts))
    assert spans.dtype == torch.int32 and mask.tolist() == [[True] * 3, [True, False, False]]
    raw = texts[0].encode()
    assert [raw[first:end].decode() for first, end in spans[0].tolist()] == ["İt’s", "Good", "好"]
    assert not spans[1].any(), "what stands for no text has an empty span"
    assert torch.equal(mask, encode(pack(texts))["mask"])


def test_characters_are_a_unit_too():
    encode = WordEncode(["好", "iphone"], unit="character")
    assert encode(pack(["好iPhone！"]))["ids"].tolist() == [[2, 3, 1]]


@pytest.mark.parametrize(
    ("vocabulary", "options", "message"),
    [
        ([], {}, "0 entries"),
        (["a", "a"], {}, "1 of them different"),
        (["a", ""], {}, "none of them empty"),
        (["a"], {"unit": "letter"}, "Unknown unit"),
        (["a"], {"longest": 0}, "from 1 on"),
        (["a"], {"longest": 2.0}, "from 1 on"),
    ],
)
def test_a_word_encode_refuses_what_it_cannot_use(vocabulary, options, message):
    with pytest.raises(ModelError, match=message):
        WordEncode(vocabulary, **options)


# --- Hugging Face ----------------------------------------------------------------------------------------------


def test_a_tokenizer_keeps_its_tokens_and_takes_our_length():
    encode = HuggingFaceEncode(word_pieces(), longest=6)
    found = encode(pack(["A good film.", "", "a a a a a a a"]))
    assert found["input_ids"].tolist() == [[2, 4, 5, 6, 11, 3], [2, 3, 0, 0, 0, 0], [2, 4, 4, 4, 4, 3]]
    assert found["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1] * 6]
    assert {value.dtype for value in found.values()} == {torch.int64}
    assert encode(pack(["a"]))["input_ids"].shape == (1, 3), "padded to the batch, not to the tokenizer's own length"
    assert encode.cut(pack(["a a a a", "a a a a a"])).tolist() == [False, True]
    assert encode.size == len(WORDS)


def test_the_steps_of_a_tokenizer_are_bytes_of_the_raw_text():
    encode, texts = HuggingFaceEncode(word_pieces()), ["Cafés 好 good", "good"]
    mask, spans = encode.steps(pack(texts))
    raw = texts[0].encode()
    assert [raw[first:end].decode() for first, end in spans[0].tolist()] == ["", "Caf", "é", "s", "好", "good", ""]
    assert spans[1].tolist() == [[0, 0], [0, 4], [0, 0]] + [[0, 0]] * 4
    assert mask.sum(dim=1).tolist() == [7, 3] and spans.dtype == torch.int32


def test_the_callers_tokenizer_stays_as_it_was():
    own = word_pieces()
    HuggingFaceEncode(own, longest=8)
    assert own.padding["length"] == 16 and own.truncation["max_length"] == 3


def test_the_padding_is_the_tokenizers_own():
    own = word_pieces()
    own.enable_padding(pad_id=11)
    assert HuggingFaceEncode(own)(pack(["a", "a a"]))["input_ids"].tolist() == [[2, 4, 3, 11], [2, 4, 4, 3]]
    encode = HuggingFaceEncode(word_pieces(padding=False))
    assert encode.padding == 0, "found by its name"
    own.post_processor = tokenizers.processors.Sequence([])
    bare = HuggingFaceEncode(own)(pack([" ", "a a"]))
    assert bare["input_ids"].tolist() == [[1, 11], [4, 4]] and bare["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_tokenizer_that_cannot_be_used_says_why():
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        HuggingFaceEncode("{}")
    with pytest.raises(ModelError, match="adds 2 of its own"):
        HuggingFaceEncode(word_pieces(), longest=2)
    with pytest.raises(ModelError, match="from 1 on"):
        HuggingFaceEncode(word_pieces(), longest=0)


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPart, match=r"stillroom\[text\]"):
        HuggingFaceEncode("{}")


# --- both ----------------------------------------------------------------------------------------------------


def both():
    return [WordEncode(["good", "好"], unit="character", longest=5), HuggingFaceEncode(word_pieces(), longest=7)]


@pytest.mark.parametrize("number", [0, 1])
def test_an_encode_can_be_copied_sent_and_made_again(number):
    encode, inputs = both()[number], pack(["Good 好 ?", "", "good " * 9])
    assert isinstance(encode, HasSteps) and encode.outside and not encode.state_dict()
    expected, steps = encode(inputs), encode.steps(inputs)
    described = json.loads(json.dumps(encode.describe()))
    again = [copy.deepcopy(encode), pickle.loads(pickle.dumps(encode)), from_description(described)]
    for other in again:
        assert not other._memo.kept, "copies need not carry what is remembered"
        assert repr(other) == repr(encode) and other.describe() == encode.describe()
        assert all(torch.equal(value, expected[name]) for name, value in other(inputs).items())
        assert all(torch.equal(*pair) for pair in zip(other.steps(inputs), steps, strict=True))
    assert repr(both()[number]) == repr(encode) != repr(type(encode)(*different(number)))


def different(number):
    return (["good", "x"],) if number == 0 else (word_pieces().to_str().replace("film", "firm"),)


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_remembered_changes_nothing_and_is_bounded(number, monkeypatch):
    monkeypatch.setattr(text_encode, "_REMEMBERED", 3)
    encode, texts = both()[number], ["good", "好", "", "good 好", "a", "film"]
    alone = [both()[number](pack([text])) for text in texts]
    for _ in range(2):
        for text, expected in zip(texts, alone, strict=True):
            assert all(torch.equal(value, expected[name]) for name, value in encode(pack([text])).items())
            encode.steps(pack([text]))
            assert len(encode._memo.kept) <= 3
    encode(pack(["good " * 1000]))
    assert all(len(text) < 2048 for text in encode._memo.kept), "long texts are not kept"


@pytest.mark.parametrize("number", [0, 1])
def test_a_line_of_a_megabyte_costs_nothing_and_bytes_that_are_no_text_are_stated(number):
    encode = both()[number]
    start = time.perf_counter()
    big = pack(["good " * 200_000, "好" * 300_000])
    assert encode.cut(big).tolist() == [True, True] and encode(big)
    encode.steps(big)
    assert time.perf_counter() - start < 2
    broken = torch.tensor([[0xFF, 0x67, 0xE5, 0xA5]], dtype=torch.uint8)
    assert encode(broken) and encode.steps(broken)


def test_the_encode_is_made_from_the_training_texts_only():
    texts = ["good film film", "good film", "bad bad bad", "good " * 30]
    source = Texts(texts, train=[0, 1])
    encode = words_for(source, longest=2)
    assert encode.vocabulary == ("film", "good") and encode.unit == "word" and encode.longest == 2
    assert words_for(source, rows=torch.tensor([2])).vocabulary == ("bad",)
    assert words_for(source, size=1).vocabulary == ("film",)
    assert words_for(Texts(["好好，", "真好，"])).unit == "character"
    assert cut_share(encode, source, torch.tensor([0, 1, 2, 3])) == 0.75
    assert cut_share(encode, source, torch.tensor([], dtype=torch.int64)) == 0


def test_what_is_no_text_has_no_words():
    source = Texts([])
    with pytest.raises(ModelError, match="0 rows"):
        words_for(source)
    images = Texts(["x"])
    images.batch = lambda ids: {"inputs": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)}
    with pytest.raises(ModelError, match=r"uint8 of shape \(1, 1, 2, 2\)"):
        words_for(images)


@pytest.mark.parametrize(
    "description", [{"kind": "sound"}, {"kind": "words"}, {"kind": "hugging-face", "longest": 3}, {"kind": "image"}]
)
def test_descriptions_of_nothing_known_are_refused(description):
    with pytest.raises(ModelError, match="Unknown kind of encode"):
        from_description(description)


def test_another_process_may_fork_and_hear_no_warning():
    code = (
        "import os, sys, tokenizers\n"
        "from stillroom.models.text_encode import HuggingFaceEncode\n"
        "from stillroom.utf8 import pack\n"
        "encode = HuggingFaceEncode(sys.stdin.read())\n"
        "inputs = pack(['a good film'] * 64 + [f'good {n}' for n in range(200)])\n"
        "expected = encode(inputs)['input_ids']\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    encode._memo.kept.clear()\n"
        "    os._exit(not (encode(inputs)['input_ids'] == expected).all())\n"
        "sys.exit(os.waitpid(child, 0)[1])\n"
    )
    environment = {"PYTHONPATH": next(iter(stillroom.__path__)) + "/..", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=word_pieces().to_str(), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
