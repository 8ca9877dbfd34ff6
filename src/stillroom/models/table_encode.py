"""From the rows of a table to what a network wants: numbers on one scale, categories as ones and zeros.

It goes into the exported graph, which so takes rows as the source has them, with NaN where a value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Source
from stillroom.errors import ModelError, say

OTHER = "other"
Described = Mapping[str, Any]


class TableEncode(nn.Module):
    """Turn rows (float32, B x columns) into float32 (B, ``width``).

    A number becomes (x - mean) / std; a category a one among zeros, the last of which is for any other: one that was
    not seen in training. NaN is taken for ``fill``. ``columns`` describe each column in order: ``name``, ``kind``, and
    ``mean``, ``std``, ``fill`` of "numeric" ones; ``categories`` (texts), ``seen`` (their numbers) and ``fill`` (a
    number) of "categorical" ones. Numbers come first.

    ``names`` says what each of the ``width`` numbers is ("age", "sex = f", "sex = other"), ``origins`` from which
    column it comes.

    Raises:
        ModelError: a column is not described, a deviation is not above 0, or a category has no text.
    """

    fill: Tensor
    mean: Tensor
    scale: Tensor
    codes: Tensor
    numeric: Tensor
    categorical: Tensor
    groups: Tensor

    def __init__(self, columns: Sequence[Described]) -> None:
        super().__init__()
        self.columns = [_checked(column) for column in columns]
        if not self.columns:
            raise ModelError(say("Nothing of a table is described", "no columns", "at least one"))
        numeric = [place for place, column in enumerate(self.columns) if column["kind"] == "numeric"]
        whole = [place for place, column in enumerate(self.columns) if column["kind"] == "categorical"]
        pairs = [(group, place, code) for group, place in enumerate(whole) for code in self.columns[place]["seen"]]
        self.names = [self.columns[place]["name"] for place in numeric]
        self.names += [
            f"{self.columns[place]['name']} = {self.columns[place]['categories'][c]}" for _, place, c in pairs
        ]
        self.names += [f"{self.columns[place]['name']} = {OTHER}" for place in whole]
        self.origins = [*numeric, *(place for _, place, _ in pairs), *whole]
        belongs = torch.zeros(len(pairs), len(whole))
        for row, (group, _, _) in enumerate(pairs):
            belongs[row, group] = 1
        numbers = [self.columns[place] for place in numeric]
        self.register_buffer("fill", torch.tensor([float(column["fill"]) for column in self.columns]))
        self.register_buffer("mean", torch.tensor([float(column["mean"]) for column in numbers]))
        scales = torch.tensor([float(column["std"]) for column in numbers], dtype=torch.float64)
        self.register_buffer("scale", (1 / scales).float())
        self.register_buffer("codes", torch.tensor([float(code) for _, _, code in pairs]))
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.int64), persistent=False)
        places = torch.tensor([place for _, place, _ in pairs], dtype=torch.int64)
        self.register_buffer("categorical", places, persistent=False)
        self.register_buffer("groups", belongs, persistent=False)

    @property
    def width(self) -> int:
        """How many numbers a row becomes."""
        return len(self.names)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 (B, ``width``)."""
        rows = torch.where(torch.isnan(inputs), self.fill, inputs.float())
        # the mean first: folded into one multiplication and addition, large numbers would lose what tells them apart
        parts = [(rows.index_select(1, self.numeric) - self.mean) * self.scale] if len(self.numeric) else []
        if len(self.categorical) or self.groups.shape[1]:
            ones = (rows.index_select(1, self.categorical) == self.codes).float()
            parts += [ones, 1 - ones @ self.groups]
        return torch.cat(parts, dim=1)

    def describe(self) -> dict[str, Any]:
        """Return what :func:`stillroom.models.encode.from_description` needs, as plain JSON values."""
        return {"kind": "table", "columns": [dict(column) for column in self.columns]}

    def extra_repr(self) -> str:
        """Show what tells it from another: models are told apart by this text."""
        return f"{self.columns}"


def table_encode(source: Source, rows: Tensor | None = None) -> TableEncode:
    """Measure each column of a table over ``rows`` (example numbers, by default the training rows), plain view.

    A column that never changes gets the deviation 1.

    Raises:
        ModelError: there are no rows, or the source is no table.
    """
    rows = source.splits["train"] if rows is None else rows
    names, categories = getattr(source, "names", None), getattr(source, "categories", None) or {}
    if not names or not len(rows):
        given = "0 rows" if names else "a source without names of columns"
        raise ModelError(say("Nothing to measure the columns of a table on", given, "training rows of a table"))
    parts = [source.batch(torch.stack([part, torch.zeros_like(part)], 1))["inputs"] for part in rows.split(65536)]
    values = torch.cat(parts).double()
    columns: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        column = values[:, place]
        if name in categories:
            seen, counts = column[column >= 0].long().unique(return_counts=True)
            told = {"categories": list(categories[name]), "seen": seen.tolist(), "fill": int(seen[counts.argmax()])}
            columns.append({"name": str(name), "kind": "categorical", **told})
        else:
            mean = float(column.mean())
            std = float((column - mean).square().mean().sqrt())
            middle = float(column.quantile(0.5)) if len(column) < 2**24 else float(column.median())
            told = {"mean": mean, "std": std if std > 1e-7 * abs(mean) else 1.0, "fill": middle}
            columns.append({"name": str(name), "kind": "numeric", **told})
    return TableEncode(columns)


def check_columns(encode: nn.Module | None, source: Source) -> None:
    """Refuse a table whose columns are not those an encode was measured on: their numbers would mean other things.

    Raises:
        ModelError: other names, another order, or other categories.
    """
    if not isinstance(encode, TableEncode):
        return
    ours = [(column["name"], tuple(column.get("categories", ()))) for column in encode.columns]
    categories = getattr(source, "categories", None) or {}
    names = getattr(source, "names", None) or ()
    theirs = [(str(name), tuple(categories.get(name, ()))) for name in names]
    if ours == theirs:
        return
    pair = next(((one, other) for one, other in zip(ours, theirs, strict=False) if one != other), None)
    if pair is None:
        given, allowed = f"{len(theirs)} columns", f"{len(ours)}: {', '.join(name for name, _ in ours)}"
    else:
        given, allowed = (
            f"'{name}'" + (f" with {', '.join(texts)}"[:200] if texts else "") for name, texts in pair[::-1]
        )
    do = "Give the columns in this order ('columns'), from a file with these categories; predict finds them by name."
    raise ModelError(say("This table has other columns than the model", given, allowed, do))


def _checked(column: Described) -> dict[str, Any]:
    needed = {"numeric": ("mean", "std", "fill"), "categorical": ("categories", "seen", "fill")}
    kind = str(column.get("kind"))
    if kind not in needed or not {"name", *needed[kind]} <= set(column):
        allowed = ", ".join(f"kind '{name}' with name, {', '.join(parts)}" for name, parts in needed.items())
        raise ModelError(say("A column of a table is not described", str(dict(column))[:100], allowed))
    found = {key: column[key] for key in ("name", "kind", *needed[kind])}
    if kind == "numeric" and not float(found["std"]) > 0:
        given = f"std {found['std']} of '{found['name']}'"
        raise ModelError(say("This column cannot be brought to scale", given, "a deviation above 0"))
    if kind == "categorical" and not all(0 <= int(code) < len(found["categories"]) for code in found["seen"]):
        given = f"the numbers {found['seen']} of '{found['name']}'"[:100]
        raise ModelError(say("A category has no text", given, f"0 to {len(found['categories']) - 1}"))
    return found
