"""Subgroups of examples that a person can name: by class, and by what is in the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stillroom.mining.subject import Subject

LEAST = 20  # examples of a group that is told of
QUARTERS = ("lowest", "second", "third", "highest")
COLUMNS = 12  # of a table


class Subgroup(NamedTuple):
    """A name that reads after "on", and which rows of the test examples belong to it."""

    name: str
    rows: Tensor


def subgroups(subject: Subject) -> list[Subgroup]:
    """Return the subgroups of the test examples that have at least ``LEAST`` members."""
    inputs = subject.inputs(subject.examples("test"))
    labels = subject.labels(subject.examples("test"))
    found = [
        Subgroup(f"class '{name}'", (labels == place).nonzero()[:, 0]) for place, name in enumerate(subject.classes)
    ]
    if subject.kind == "image":
        pixels = inputs.double().flatten(1)
        found += [*_quarters("brightness", pixels.mean(1)), *_quarters("contrast", pixels.std(1))]
    elif subject.kind == "text":
        found += _quarters("length", (inputs != 0).sum(1).double())
    else:
        found += _columns(subject, inputs)
    return [group for group in found if LEAST <= len(group.rows) < len(labels)]


def _quarters(what: str, values: Tensor) -> Iterator[Subgroup]:
    """Four groups of equal size; fewer where values are alike."""
    edges = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype))
    if len(edges.unique()) < 3:
        return
    places = torch.bucketize(values.contiguous(), edges)
    for number, name in enumerate(QUARTERS):
        yield Subgroup(f"the {name} quarter of {what}", (places == number).nonzero()[:, 0])


def _columns(subject: Subject, inputs: Tensor) -> Iterator[Subgroup]:
    """Of a table: each category, and the quarters of each number."""
    flat = inputs.flatten(1).double()
    names = list(getattr(subject.data, "names", None) or [f"column {place}" for place in range(flat.shape[1])])
    kinds = list(getattr(subject.data, "kinds", None) or ["numeric"] * flat.shape[1])
    categories = getattr(subject.data, "categories", {})
    for place, (name, kind) in enumerate(list(zip(names, kinds, strict=False))[:COLUMNS]):
        if kind == "categorical":
            for number, text in enumerate(categories.get(name, ())):
                yield Subgroup(f"{name} = {text}", (flat[:, place] == number).nonzero()[:, 0])
        else:
            yield from _quarters(name, flat[:, place])
