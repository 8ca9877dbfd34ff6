"""What rules are learnt from and held against: rows of the data and queries, with the model's answers to both."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.mining.panel import Budget
from stillroom.mining.rules.queries import Sample, sampler
from stillroom.mining.rules.reading import Reading, fine, read_as
from stillroom.mining.rules.tree import Floats
from stillroom.mining.subject import Subject
from stillroom.randomness import integers, permutation

QUERIES, HELD_QUERIES = 4000, 2000
CHUNK = 500
LOOKED = 2500  # training rows by which it is chosen how examples are read
FINE = 28  # pixels a side that a soft tree looks at
SHARE = 0.45  # of the time that is left: for the model's answers to queries
FEWEST = 50  # queries, whatever the time
FIFTH = 5


@dataclass(frozen=True)
class Told:
    """Examples as rules read them (B, features), the model's answers (B, classes; probabilities), labels (B).

    ``pixels`` (B, C, H, W) are there for pictures: what a soft tree looks at.
    """

    rows: Floats
    answers: Floats
    labels: NDArray[np.int64]
    pixels: Tensor | None = None

    @property
    def top(self) -> NDArray[np.int64]:
        """The class (B) that the model answers."""
        return self.answers.argmax(1)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Ground:
    """All that was asked: ``rows`` and ``queries`` to learn from, ``choice`` to choose the size, ``held`` to be judged.

    ``held_queries`` are made of held-out rows. ``split`` names what is held out.
    """

    reading: Reading
    rows: Told
    queries: Told
    choice: Told
    held: Told
    held_queries: Told
    split: str
    notes: tuple[str, ...] = ()

    @property
    def both(self) -> Told:
        """Rows and queries, to learn from."""
        return joined([self.rows, self.queries])


def joined(parts: list[Told]) -> Told:
    """Return all parts as one."""
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return Told(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.labels for part in parts]),
        torch.cat(pixels) if pixels else None,
    )


def ask(subject: Subject, budget: Budget) -> Ground:
    """Ask the model about rows and, within the budget, about queries."""
    examples, logits, split = _parts(subject)
    train = examples["rows"]
    looked_at = LOOKED * (2 if subject.kind == "text" else 1)  # words are many
    few = train[permutation(len(train), subject.seed, "rules, looked at")[:looked_at]]
    looked = subject.inputs(few)
    at = {int(one): place for place, one in enumerate(train.tolist())}
    shares = _shares(logits["rows"][[at[int(one)] for one in few.tolist()]])
    reading = read_as(subject, looked, shares, subject.labels(few).numpy())
    sample = sampler(subject, looked)
    told = {
        name: joined(
            [
                _told(reading, subject.inputs(part), logits[name][start : start + CHUNK], subject.labels(part))
                for start, part in zip(range(0, len(examples[name]), CHUNK), examples[name].split(CHUNK), strict=True)
            ]
        )
        for name in examples
    }
    notes: list[str] = []
    asked = []
    for place, (name, count) in enumerate((("rows", QUERIES), ("held", HELD_QUERIES))):
        budget.progress(place, 2, "queries")
        share = SHARE * (2 / 3 if name == "rows" else 1 / 3)
        asked.append(_queries(subject, reading, sample, examples[name], count, place, share * budget.left))
        if len(asked[-1]) < count:
            notes.append(f"The model answered {len(asked[-1]):,} of {count:,} queries: more would not fit the time.")
    return Ground(reading, told["rows"], asked[0], told["choice"], told["held"], asked[1], split, tuple(notes))


def _parts(subject: Subject) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Return example numbers and logits: to learn from, to choose a size by, held out; and what the last is called."""
    splits = [split for split in ("train", "validation", "test") if len(subject.data.splits.get(split, ()))]
    found = {split: (subject.examples(split), subject.logits(split)) for split in splits}
    parts = {"rows": found["train"]}
    for name, split in (("choice", "validation"), ("held", "test")):
        if split in found:
            parts[name] = found[split]
    for name in ("choice", "held"):
        if name not in parts:
            examples, logits = parts["rows"]
            order = torch.from_numpy(permutation(len(examples), subject.seed, "rules", name))
            cut = max(1, len(examples) // FIFTH)
            parts[name] = (examples[order[:cut]], logits[order[:cut]])
            parts["rows"] = (examples[order[cut:]], logits[order[cut:]])
    split = "test" if "test" in found else "held-out training"
    return {name: one[0] for name, one in parts.items()}, {name: one[1] for name, one in parts.items()}, split


def _queries(
    subject: Subject, reading: Reading, sample: Sample, examples: Tensor, count: int, place: int, seconds: float
) -> Told:
    """Return queries made of ``examples``, with the model's answers: as many of ``count`` as fit into ``seconds``."""
    parts: list[Told] = []
    began, done, step = time.monotonic(), 0, FEWEST
    while done < count:
        seed, which = subject.seed, np.arange(done, min(count, done + step))
        first, second = (integers(len(examples), seed, "made of", place, side, which) for side in (0, 1))
        made = sample(subject.inputs(examples[first]), subject.inputs(examples[second]), 1_000_000 * place + done)
        parts.append(_told(reading, made, subject.answer(made), torch.full((len(which),), UNLABELLED)))
        done += len(which)
        spent = time.monotonic() - began
        step = min(CHUNK, int((seconds - spent) * done / max(spent, 1e-9)))
        if step < FEWEST:
            break
    return joined(parts)


def _told(reading: Reading, inputs: Tensor, logits: Tensor, labels: Tensor) -> Told:
    pixels = fine(inputs, FINE) if reading.kind == "image" else None
    return Told(reading(inputs), _shares(logits), labels.numpy(), pixels)


def _shares(logits: Tensor) -> Floats:
    """Return probabilities (B, classes)."""
    shares: Floats = logits.double().softmax(1).numpy()
    return shares
