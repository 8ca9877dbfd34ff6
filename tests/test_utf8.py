import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.utf8 import pack, pack_bytes, unpack, unpack_bytes


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")), min_size=1))
def test_texts_come_back(texts):
    packed = pack(texts)
    assert packed.dtype == torch.uint8 and packed.shape == (len(texts), max(1, *(len(t.encode()) for t in texts), 1))
    assert unpack(packed) == texts


def test_the_zero_byte_ends_a_row_so_it_is_left_out():
    assert unpack(pack(["a\0b"])) == ["ab"]


def test_broken_bytes_become_the_replacement_character():
    assert unpack(pack_bytes([b"a\xff", b"abc"])) == ["a\ufffd", "abc"]
    assert unpack_bytes(pack_bytes([b"a\xff", b"abc"])) == [b"a\xff", b"abc"]


def test_half_a_surrogate_is_replaced_and_not_fatal():
    assert unpack(pack(["a\ud800"])) == ["a?"]
