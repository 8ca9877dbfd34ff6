"""What each word of a text adds to its answer: by gradients at the embedding, or with the word taken away."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.mining.attribution.faithful import COARSE, curves, faithfulness, rank_correlation, together
from stillroom.mining.attribution.findings import drawn, in_parts, top_shares
from stillroom.mining.attribution.gradients import embedded, error, usual
from stillroom.mining.attribution.removal import Ask, occlusion
from stillroom.mining.panel import Budget
from stillroom.mining.subject import Subject
from stillroom.models import vocabulary
from stillroom.utf8 import pack_bytes, unpack, unpack_bytes

MOST, CONTROLLED, CHECKED = 600, 40, 60  # texts that are explained; by random weights too; whose words are taken away
STEPS = (4, 8, 16, 32)  # midpoints, the fewest that are enough: a transformer needs more than a sum of word vectors
ENOUGH = 0.1  # of the difference that the words of a text should sum up to
PILOT, PATIENCE = 8, 0.2  # texts by which the number of midpoints is chosen, in such a share of the time
USUAL = 64  # texts whose tokens make the mean one
POINTS = 64  # on the ways to texts, in a batch: more are no faster, and longer texts are padding to shorter ones
QUICK, WORSE = 0.75, 0.02  # of the time: from which on bfloat16 is used, if it does not miss the sums by more than that
LONGEST = 120  # words of a text that are told apart

Pieces = list[vocabulary.Piece]


class Said(NamedTuple):
    """Texts (uint8, N x bytes) that are explained, their words, their answers, and what each word adds (N, words).

    ``ends`` (N, 2) are the scores of the baseline and the text, ``steps`` the midpoints; None where words were taken
    away instead. ``halved``: gradients in bfloat16.
    """

    inputs: Tensor
    words: list[Pieces]
    counts: Tensor
    classes: Tensor
    shares: Tensor
    values: Tensor
    ends: Tensor | None = None
    steps: int | None = None
    halved: bool = False
    missed: float | None = None  # by how much tokens miss the difference they should sum up to


class _Found(NamedTuple):
    values: Tensor  # (N, words)
    sums: Tensor  # (N): of all tokens
    ends: Tensor


def explained(subject: Subject, budget: Budget, notes: list[str]) -> Said:
    """Return what the words of test texts add, as many as fit into about half of the time."""
    inputs = subject.inputs(drawn(subject, MOST))
    words = words_of(subject, inputs)
    there = torch.tensor([row for row, pieces in enumerate(words) if pieces], dtype=torch.int64)
    inputs, words = inputs[there], [words[row] for row in there.tolist()]
    try:
        found = None if subject.module is None else _by_gradients(subject, budget, inputs, words)
        if found is None:
            why = "its tokens have no embedding of their own"
            why = "only its answers are known" if subject.module is None else why
            notes.append(f"{why}: words were taken away, and no gradients taken")
    except (RuntimeError, UserError) as problem:
        notes.append(f"it gives no gradients at its embedding ({str(problem).splitlines()[0][:120]})")
        found = None
    return _by_removal(subject, budget, inputs, words) if found is None else found


def words_of(subject: Subject, inputs: Tensor) -> list[Pieces]:
    """Return the words of each text; characters where Chinese or Japanese is written, or the model reads them."""
    raw = unpack(inputs)
    unit = getattr(subject.encode, "unit", None)
    unit = unit if unit in vocabulary.UNITS else vocabulary.unit_for(raw)
    return [vocabulary.pieces(text, unit, LONGEST) for text in raw]


def _by_removal(subject: Subject, budget: Budget, inputs: Tensor, words: list[Pieces]) -> Said:
    ask, counts = without_words(subject, inputs, words), torch.tensor([len(pieces) for pieces in words])

    def work(start: int, end: int) -> Said:
        classes, shares = top_shares(subject, inputs[start:end])

        def some(rows: Tensor, keep: Tensor) -> Tensor:
            return ask(rows + start, keep)

        values = occlusion(some, counts[start:end], classes)[0]
        return Said(inputs[start:end], words[start:end], counts[start:end], classes, shares, values)

    return _joined(in_parts(budget, len(words), 0.5, work))


def _by_gradients(subject: Subject, budget: Budget, inputs: Tensor, words: list[Pieces]) -> Said | None:
    """What is found by gradients; None where there are none."""
    start = usual(subject, inputs[:USUAL])
    if start is None:
        return None
    way = _enough(subject, budget, inputs[:PILOT], words[:PILOT], start)

    def work(first: int, end: int) -> Said:
        classes, shares = top_shares(subject, inputs[first:end])
        found = _gradients(subject, inputs[first:end], words[first:end], classes, start, way)
        counts = torch.tensor([len(pieces) for pieces in words[first:end]])
        held = inputs[first:end], words[first:end], counts, classes, shares, found.values, found.ends
        return Said(*held, way.steps, way.halved, error(found.sums[:, None], found.ends))

    return _joined(in_parts(budget, len(words), 0.55, work))


class _Way(NamedTuple):
    steps: int
    halved: bool = False


def _enough(subject: Subject, budget: Budget, inputs: Tensor, words: list[Pieces], start: Tensor) -> _Way:
    """The fewest midpoints with which the words of a few texts sum up to what they should, but for a tenth.

    In bfloat16 where not all texts fit into the time, it is faster on this machine, and sums are missed by no more.
    """
    classes = top_shares(subject, inputs)[0]
    began, allowed = time.perf_counter(), PATIENCE * budget.left

    def tried(way: _Way) -> tuple[float, float]:
        start_ = time.perf_counter()
        found = _gradients(subject, inputs, words, classes, start, way)
        return error(found.sums[:, None], found.ends), time.perf_counter() - start_

    for steps in STEPS:
        missed, seconds = tried(_Way(steps))
        if missed <= ENOUGH or 3 * (time.perf_counter() - began) > allowed:  # twice as many take twice as long
            break
    if seconds * MOST < budget.left * len(inputs) or seconds > allowed:
        return _Way(steps)
    try:
        other, quicker = tried(_Way(steps, True))
    except RuntimeError:  # a layer that knows no bfloat16
        return _Way(steps)
    return _Way(steps, quicker < QUICK * seconds and other <= missed + WORSE)


def _gradients(
    subject: Subject, inputs: Tensor, words: list[Pieces], classes: Tensor, start: Tensor, way: _Way
) -> _Found:
    """What each word adds (N, words), from its tokens; what all tokens add; the scores they should sum up to."""
    values = torch.zeros(len(words), max(len(pieces) for pieces in words), dtype=torch.float64)
    sums, ends = torch.zeros(len(words)), torch.zeros(len(words), 2)
    lengths = (inputs != 0).sum(1)
    for part in lengths.argsort(stable=True).split(max(2, POINTS // way.steps)):  # like lengths: little is padding
        longest = max(1, int(lengths[part].max()))
        given = inputs[part, :longest], classes[part]
        found = embedded(subject, *given, start=start, steps=way.steps, halved=way.halved)
        assert found is not None, "the mean token was found before"
        sums[part], ends[part] = found.values.sum(1), found.ends
        for place, row in enumerate(part.tolist()):
            real = found.mask[place]
            of = belongs(found.spans[place][real].numpy(), words[row])
            known = of >= 0
            values[row].index_add_(0, torch.from_numpy(of[known]), found.values[place][real].double()[known])
    return _Found(values, sums, ends)


def effects(subject: Subject, inputs: Tensor, words: list[Pieces], classes: Tensor, steps: int = 8) -> Tensor | None:
    """Return what each of ``words`` adds to the score of ``classes`` (N, words); None where there are no gradients."""
    try:
        start = usual(subject, inputs)
        return None if start is None else _gradients(subject, inputs, words, classes, start, _Way(steps)).values
    except (RuntimeError, UserError):
        return None


def belongs(spans: np.ndarray, words: Pieces) -> np.ndarray:
    """Return the word each token lies in, by their bytes; -1 for none."""
    firsts = np.array([piece.first for piece in words])
    ends = np.array([piece.end for piece in words])
    place: np.ndarray = np.searchsorted(ends, spans[:, 0], side="right")
    inside = np.minimum(place, len(words) - 1)
    return np.where((place < len(words)) & (firsts[inside] < spans[:, 1]), inside, -1)


def _joined(parts: list[Said]) -> Said:
    """All parts as one: values as wide as the longest text, what was missed in proportion."""
    widest = max(one.values.shape[1] for one in parts)
    ends = [one.ends for one in parts if one.ends is not None]
    sizes = [float((one[:, 1] - one[:, 0]).abs().sum()) for one in ends]
    missed = sum((one.missed or 0.0) * size for one, size in zip(parts, sizes, strict=False)) / max(1e-12, sum(sizes))
    return Said(
        torch.cat([one.inputs for one in parts]),
        [pieces for one in parts for pieces in one.words],
        torch.cat([one.counts for one in parts]),
        torch.cat([one.classes for one in parts]),
        torch.cat([one.shares for one in parts]),
        torch.cat([torch.nn.functional.pad(one.values, (0, widest - one.values.shape[1])) for one in parts]),
        torch.cat(ends) if ends else None,
        parts[0].steps,
        parts[0].halved,
        missed if ends else None,
    )


# --- controls ------------------------------------------------------------------------------------------


def without_words(subject: Subject, inputs: Tensor, words: list[Pieces]) -> Ask:
    """Return how to ask about texts of which some words are kept.

    What lies between words, and beyond the last that is told apart, stays.
    """
    raw = unpack_bytes(inputs)

    def without(row: int, keep: list[bool]) -> bytes:
        text, parts, behind = raw[row], [], 0
        for piece, kept in zip(words[row], keep, strict=False):
            if not kept:
                parts.append(text[behind : piece.first])
                behind = piece.end
        return b"".join([*parts, text[behind:]])

    def ask(rows: Tensor, keep: Tensor) -> Tensor:
        left = [without(row, kept) for row, kept in zip(rows.tolist(), keep.tolist(), strict=True)]
        return subject.answer(pack_bytes(left)).double().softmax(1)

    return ask


def by_random_weights(subject: Subject, found: Said, budget: Budget) -> Tensor | None:
    """Return what random weights would have explained (fewer, words); None where they show no embedding."""
    other, way = subject.randomised(subject.seed), _Way(found.steps or STEPS[0], found.halved)
    start = usual(other, found.inputs[:USUAL])
    if start is None:
        return None

    def work(first: int, end: int) -> Tensor:
        given = found.inputs[first:end], found.words[first:end], found.classes[first:end]
        values = _gradients(other, *given, start, way).values
        return torch.nn.functional.pad(values, (0, found.values.shape[1] - values.shape[1]))

    return torch.cat(in_parts(budget, min(CONTROLLED, len(found.words)), 0.35, work))


def one_at_a_time(subject: Subject, found: Said, budget: Budget) -> dict[str, Any]:
    """Return how alike what words add is to what leaving each out by itself changes: the mean rank correlation."""
    ask = without_words(subject, found.inputs, found.words)

    def work(start: int, end: int) -> list[float]:
        def some(rows: Tensor, keep: Tensor) -> Tensor:
            return ask(rows + start, keep)

        without = occlusion(some, found.counts[start:end], found.classes[start:end])[0]
        told = []
        for row, count in enumerate(found.counts[start:end].tolist()):
            alike = rank_correlation(found.values[start + row, :count][None], without[row, :count][None])
            told += [] if alike is None else [alike]
        return told

    each = [alike for part in in_parts(budget, min(CONTROLLED, len(found.words)), 0.5, work) for alike in part]
    return {"examples": len(each), "alike": sum(each) / len(each) if each else None}


def checked(subject: Subject, found: Said, budget: Budget) -> dict[str, Any]:
    """Return whether answers change sooner where words are taken away in the order of what they add."""
    ask = without_words(subject, found.inputs, found.words)

    def work(start: int, end: int) -> Any:
        def some(rows: Tensor, keep: Tensor) -> Tensor:
            return ask(rows + start, keep)

        part = slice(start, end)
        given = found.values[part], found.counts[part], found.classes[part]
        return curves(some, *given, subject.seed + start, COARSE)

    return faithfulness(together(in_parts(budget, min(CHECKED, len(found.words)), 0.6, work)))
