"""From the bytes of a text to the tokens of a model: words by a list of our own, or a Hugging Face tokenizer.

Both are Python and no part of an exported graph (``outside``), keep no weights, and say which bytes of the text each
of their steps stands for, so that two models need not share their tokens to be compared step by step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.contracts import Source
from stillroom.errors import MissingPart, ModelError, say
from stillroom.models import vocabulary as words
from stillroom.utf8 import unpack, unpack_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN, FIRST = 0, 1, 2  # what the ids of a WordEncode begin with

_REMEMBERED = 65_536  # texts, and only short ones: the same come back every epoch
_SHORT = 2_048  # bytes
_CHARACTERS = 256  # a token; what lies beyond so many times ``longest`` characters cannot change what is kept


class Tokens(NamedTuple):
    """One text: ids (int64), the bytes each stands for (int32, tokens x 2), and whether more tokens were cut off."""

    ids: np.ndarray
    spans: np.ndarray | None
    cut: bool


class _Memo:
    """Tokens by the bytes of their text, bounded; copies and other processes begin with an empty one."""

    fingerprint_ignores = ("kept",)

    def __init__(self) -> None:
        self.kept: dict[bytes, Tokens] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": {}}

    def keep(self, text: bytes, tokens: Tokens) -> None:
        if len(text) <= _SHORT:
            if len(self.kept) >= _REMEMBERED:
                self.kept.clear()
            self.kept[text] = tokens


class WordEncode(nn.Module):
    """Turn texts (uint8, B x bytes) into ``ids`` (int64) and ``mask`` (bool), both (B, T), by a list of pieces.

    T is the longest row of the batch in pieces, at most ``longest``: what is longer is cut, and
    :func:`cut_share` counts it. Id 0 is padding, 1 any piece not in ``vocabulary``, whose own ids begin at 2. A text
    without a piece is one unknown. :func:`stillroom.models.vocabulary.split` says what a piece is.

    Raises:
        ModelError: an unknown unit, no vocabulary or one with equal or empty entries, or a length below 1.
    """

    outside = True

    def __init__(self, vocabulary: Sequence[str], *, unit: words.Unit = "word", longest: int = 64) -> None:
        super().__init__()
        self.unit = words.check_unit(unit)
        self.longest = _length(longest)
        self.vocabulary = tuple(vocabulary)
        self._ids = {piece: number for number, piece in enumerate(self.vocabulary, FIRST)}
        fits = bool(self.vocabulary) and all(isinstance(piece, str) and piece for piece in self.vocabulary)
        if not fits or len(self._ids) != len(self.vocabulary):
            given = f"{len(self.vocabulary)} entries, {len(self._ids)} of them different"
            raise ModelError(say("This vocabulary cannot be used", given, "different texts, none of them empty"))
        self.fingerprint = hashlib.sha256("\0".join(self.vocabulary).encode("utf-8", "replace")).hexdigest()
        self._memo = _Memo()

    @property
    def size(self) -> int:
        """How many ids there are, padding and unknown among them: the ``shape`` of a model for these texts."""
        return len(self.vocabulary) + FIRST

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return ``ids`` (int64) and ``mask`` (bool), both (B, T)."""
        rows = [self._tokens(text, spans=False) for text in unpack_bytes(inputs.cpu())]
        ids, mask = _padded([row.ids for row in rows], PADDING)
        return {"ids": ids.to(inputs.device), "mask": mask.to(inputs.device)}

    def steps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask (bool, B x T) and the spans in bytes of the raw text (int32, B x T x 2)."""
        return _steps([self._tokens(text, spans=True) for text in unpack_bytes(inputs.cpu())], inputs.device)

    def cut(self, inputs: Tensor) -> Tensor:
        """Return which texts are longer than ``longest`` pieces (bool, B)."""
        return torch.tensor([self._tokens(text, spans=False).cut for text in unpack_bytes(inputs.cpu())])

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds it, as plain JSON values."""
        return {"kind": "words", "unit": self.unit, "longest": self.longest, "vocabulary": list(self.vocabulary)}

    def extra_repr(self) -> str:
        """Show what tells it from another: models are told apart by this text."""
        return f"{len(self.vocabulary)} {self.unit}s, longest={self.longest}, sha256={self.fingerprint[:16]}"

    def _tokens(self, text: bytes, *, spans: bool) -> Tokens:
        known = self._memo.kept.get(text)
        if known is not None and (known.spans is not None or not spans):
            return known
        raw, most = text.decode("utf-8", "replace"), self.longest
        if spans:
            found = words.pieces(raw, self.unit, most + 1)
            cut, numbers = [piece.text for piece in found], [(piece.first, piece.end) for piece in found[:most]]
            places = np.array(numbers or [(0, 0)], np.int32)
        else:
            cut, places = words.split(raw, self.unit, most + 1), None
        ids = [self._ids.get(piece, UNKNOWN) for piece in cut[:most]] or [UNKNOWN]
        tokens = Tokens(np.array(ids, np.int64), places, len(cut) > most)
        self._memo.keep(text, tokens)
        return tokens


class HuggingFaceEncode(nn.Module):
    """Turn texts (uint8, B x bytes) into ``input_ids`` and ``attention_mask`` (int64, B x T) by a tokenizer.

    ``tokenizer`` is one of the package ``tokenizers``, or the text of its ``tokenizer.json``. Its own settings for
    cutting and padding are replaced: at most ``longest`` tokens, special ones among them, and T is the longest row of
    the batch. A text that gives no token at all is one unknown (or padding) token that counts.

    Raises:
        ModelError: the text is not a tokenizer's, or ``longest`` leaves no room beside the special tokens.
        MissingPart: the package ``tokenizers`` is not installed.
    """

    outside = True

    def __init__(self, tokenizer: Tokenizer | str, *, longest: int = 128, padding: int | None = None) -> None:
        super().__init__()
        self.tokenizer = _tokenizer(tokenizer)
        self.padding = _padding(self.tokenizer) if padding is None else int(padding)
        self.longest = _length(longest)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.fingerprint = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        special = self.tokenizer.num_special_tokens_to_add(False)
        if longest <= special:
            given = f"at most {longest} tokens"
            allowed = f"more than {special}, since this tokenizer adds {special} of its own"
            raise ModelError(say("No text has room", given, allowed, "Ask for longer texts (longest)."))
        self.tokenizer.enable_truncation(self.longest)
        self._memo = _Memo()

    @property
    def size(self) -> int:
        """How many different ids the tokenizer may give: one more than its largest."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` (1 where there is text), both int64 (B, T)."""
        rows = [self._tokens(text) for text in unpack_bytes(inputs.cpu())]
        ids, mask = _padded([row.ids for row in rows], self.padding)
        return {"input_ids": ids.to(inputs.device), "attention_mask": mask.to(inputs.device, torch.int64)}

    def steps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask (bool, B x T) and the spans in bytes of the raw text (int32, B x T x 2).

        What stands for no text, such as [CLS], has the span (0, 0).
        """
        return _steps([self._tokens(text) for text in unpack_bytes(inputs.cpu())], inputs.device)

    def cut(self, inputs: Tensor) -> Tensor:
        """Return which texts are longer than ``longest`` tokens (bool, B)."""
        return torch.tensor([self._tokens(text).cut for text in unpack_bytes(inputs.cpu())])

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds it, as plain JSON values: the whole tokenizer among them."""
        return {
            "kind": "hugging-face",
            "tokenizer": self.tokenizer.to_str(),
            "longest": self.longest,
            "padding": self.padding,
        }

    def extra_repr(self) -> str:
        """Show what tells it from another: models are told apart by this text."""
        return f"longest={self.longest}, padding={self.padding}, sha256={self.fingerprint[:16]}"

    def _tokens(self, text: bytes) -> Tokens:
        known = self._memo.kept.get(text)
        if known is not None:
            return known
        raw = text.decode("utf-8", "replace")
        # one by one: a batch would start threads, which do not outlive the forks of other libraries
        found = self.tokenizer.encode(raw[: self.longest * _CHARACTERS])
        ids, spans = np.array(found.ids, np.int64), np.array(found.offsets, np.int32).reshape(-1, 2)
        if not text.isascii() and len(spans):
            spans = _byte_places(raw)[spans]
        if not len(ids):
            ids, spans = np.array([self._empty()], np.int64), np.zeros((1, 2), np.int32)
        cut = bool(found.overflowing) or len(raw) > self.longest * _CHARACTERS
        tokens = Tokens(ids, spans, cut)
        self._memo.keep(text, tokens)
        return tokens

    def _empty(self) -> int:
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        number = None if unknown is None else self.tokenizer.token_to_id(unknown)
        return self.padding if number is None else int(number)


def words_for(
    source: Source,
    *,
    unit: words.Unit | Literal["auto"] = "auto",
    size: int = 8000,
    longest: int = 64,
    rows: Tensor | None = None,
) -> WordEncode:
    """Return the encode by the most frequent words (or characters) of the source's training texts, plain view.

    ``rows`` are other example numbers to take the vocabulary from. Pieces that occur once are left out, so that the
    model learns what an unknown one means.

    Raises:
        ModelError: there are no rows, they are not texts, or no piece occurs twice.
    """
    rows = source.splits["train"] if rows is None else rows
    vocabulary, chosen = words.build(_texts(source, rows), unit=unit, size=size)
    return WordEncode(vocabulary, unit=chosen, longest=longest)


def cut_share(encode: WordEncode | HuggingFaceEncode, source: Source, rows: Tensor) -> float:
    """Return the share (0 to 1) of the texts ``rows`` (example numbers, plain view) that ``encode`` cuts."""
    cut = sum(int(encode.cut(inputs).sum()) for inputs in _columns(source, rows))
    return cut / max(1, len(rows))


def _texts(source: Source, rows: Tensor) -> list[str]:
    if not len(rows):
        raise ModelError(say("Nothing to take a vocabulary from", "0 rows", "at least one training text"))
    return [text for inputs in _columns(source, rows) for text in unpack(inputs)]


def _columns(source: Source, rows: Tensor) -> Iterator[Tensor]:
    """Yield the plain ``inputs`` of ``rows``, some hundred at a time, since one long text widens all beside it."""
    for part in torch.split(rows, 256):
        inputs = source.batch(torch.stack([part, torch.zeros_like(part)], dim=1))["inputs"]
        if inputs.dtype != torch.uint8 or inputs.ndim != 2:
            given = f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}"
            raise ModelError(say("Only texts have words", given, "UTF-8 bytes, uint8 (B, bytes)"))
        yield inputs


def _length(longest: int) -> int:
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        raise ModelError(say("This length of texts does not fit", repr(longest), "a whole number of tokens from 1 on"))
    return longest


def _padded(rows: list[np.ndarray], padding: int) -> tuple[Tensor, Tensor]:
    """Return ``rows`` of ids as int64 (B, T) and the mask of what is real (bool, B x T)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.full(mask.shape, padding, np.int64)
    if rows:
        ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _steps(rows: list[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    spans = np.zeros((*mask.shape, 2), np.int32)
    if rows:
        spans[mask] = np.concatenate([row.spans for row in rows if row.spans is not None])
    return torch.from_numpy(mask).to(device), torch.from_numpy(spans).to(device)


def _byte_places(text: str) -> np.ndarray:
    """Return the byte at which each character begins, and the end of the last (int32, characters + 1)."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int32) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(widths, dtype=np.int32)])


def _tokenizer(given: Tokenizer | str) -> Tokenizer:
    """Return a tokenizer of our own, whose settings nobody else uses."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPart("tokenizers", "text", "A Hugging Face tokenizer") from error
    text = given if isinstance(given, str) else given.to_str()
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise ModelError(
            say(
                "This is not a tokenizer",
                f"'{text[:40]}' ({error})",
                "the text of a tokenizer.json",
                "Write one where the model was made: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
            )
        ) from (error)


def _padding(tokenizer: Tokenizer) -> int:
    """Return the id that pads, as the tokenizer says or by its usual names; 0 where it has none."""
    said = tokenizer.padding
    if said and isinstance(said.get("pad_id"), int):
        return int(said["pad_id"])
    named = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((int(number) for number in named if number is not None), 0)
