"""From signals to rows of raw bytes, and what must be known to read them back.

One row of a signal is its little-endian bytes. Where an axis varies only the places that the mask
lets through are kept, in their order; reading puts them first and pads behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from stillroom.contracts import Signals
from stillroom.errors import StoreError, say

MASK, NORM = ".mask", ".norm"
FULL_LOGITS = 1000  # up to this many classes logits stay float32: float16 would change p by up to 7e-3

DTYPES: dict[str, torch.dtype] = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class Column(BaseModel):
    """How one signal is stored: dtype of its bytes, shape of a row (None where it varies), names of the axes.

    ``form`` is ``shifted`` where each row's maximum was subtracted, ``unit`` where each row was divided
    by its norm, which is the signal ``<name>.norm``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    given: str
    shape: tuple[int | None, ...]
    axes: tuple[str, ...]
    form: Literal["plain", "shifted", "unit"] = "plain"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the stored bytes."""
        return DTYPES[self.dtype]

    @property
    def ragged(self) -> bool:
        """Whether an axis of the row varies."""
        return None in self.shape

    @property
    def unit(self) -> int:
        """Elements of a row, the varying axes left out."""
        return math.prod(size for size in self.shape if size is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row (of one place along the varying axes, where there are any)."""
        return self.unit * self.torch_dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """Some rows of one signal, ready to be written: flat values, and each row's number of elements if it varies."""

    values: Tensor
    counts: Tensor | None = None


def readings(signals: Iterable[str]) -> list[str]:
    """Return the names in ``signals`` that are readings themselves: a mask belongs to its signal."""
    names = set(signals)
    return sorted(name for name in names if not (name.endswith(MASK) and name.removesuffix(MASK) in names))


def lay_out(signals: Signals, dtypes: Mapping[str, str] | None = None) -> dict[str, Column]:
    """Decide from an example batch how each signal is stored; ``dtypes`` overrides the rule by name.

    Logits are float32 up to 1,000 classes, else float16 less each row's maximum; gradients are float16
    over each sample's norm; other floats float16 (bfloat16 keeps its bits; float32 where all lie below float16's
    smallest normal number, 6e-5); whole numbers as they are.

    Raises:
        StoreError: a dtype cannot be stored, or ``dtypes`` names a signal that is not there.
    """
    wanted = dict(dtypes or {})
    names = readings(signals)
    for name, kind in wanted.items():
        if name not in names:
            raise StoreError(say("A dtype was given for a signal that the teacher does not show", f"'{name}'", names))
        if kind not in DTYPES:
            raise StoreError(say(f"Signal '{name}' cannot be stored as asked", f"'{kind}'", DTYPES))
    columns: dict[str, Column] = {}
    for name in names:
        columns[name] = _column(name, signals[name], signals.get(name + MASK), wanted.get(name))
        if columns[name].form == "unit":
            columns[name + NORM] = Column(dtype="float32", given="float32", shape=(), axes=())
    return columns


def _column(name: str, values: Tensor, mask: Tensor | None, wanted: str | None) -> Column:
    given = str(values.dtype).removeprefix("torch.")
    if given not in DTYPES:
        raise StoreError(say(f"Signal '{name}' has a dtype that cannot be stored", given, DTYPES, "Convert it first."))
    shape: list[int | None] = list(values.shape[1:])
    if mask is not None:
        for axis in _varying(name, values, mask):
            shape[axis] = None
    elif 0 in shape:
        raise StoreError(
            f"Signal '{name}' is empty: got shape {tuple(values.shape)}. Every axis needs a size, or a mask "
            f"'{name}.mask' where it varies. Leave this tap out."
        )
    dtype, form = _rule(name, values, wanted)
    return Column(dtype=dtype, given=given, shape=tuple(shape), axes=_axes(name, shape), form=form)


def _rule(name: str, values: Tensor, wanted: str | None) -> tuple[str, Literal["plain", "shifted", "unit"]]:
    given = str(values.dtype).removeprefix("torch.")
    if not values.is_floating_point():
        return wanted or given, "plain"
    narrow = wanted in (None, "float16")
    last = name.rsplit("/", 1)[-1]
    if last == "logits" and values.dim() >= 2:
        if wanted is None and values.shape[-1] <= FULL_LOGITS:
            return "float32", "plain"
        return wanted or "float16", "shifted" if narrow else "plain"
    if "@gradient" in last or "@gradcam" in last:
        return wanted or "float16", "unit" if narrow else "plain"
    if wanted is None and values.numel() and 0 < float(values.abs().max()) < torch.finfo(torch.float16).smallest_normal:
        return "float32", "plain"  # halves would keep a few bits of such small numbers, or none
    return wanted or ("bfloat16" if given == "bfloat16" else "float16"), "plain"


def _varying(name: str, values: Tensor, mask: Tensor) -> tuple[int, ...]:
    """Return the axes of a row along which ``mask`` (B x length) runs."""
    length = mask.shape[1] if mask.dim() == 2 else -1
    if name.endswith("@attention") and values.dim() == 4 and values.shape[3] == length:
        return (1, 2) if values.shape[2] == length else (2,)
    if mask.dtype == torch.bool and values.dim() >= 2 and mask.shape == values.shape[:2]:
        return (0,)
    raise StoreError(
        f"The mask of signal '{name}' does not fit it: got {mask.dtype} {tuple(mask.shape)} beside "
        f"{tuple(values.shape)}. Allowed: bool (examples, length), length being the signal's second axis. "
        "Correct the teacher's mask."
    )


def _axes(name: str, shape: list[int | None]) -> tuple[str, ...]:
    last = name.rsplit("/", 1)[-1]
    if last.endswith("@attention") and len(shape) == 3:
        return ("head", "query", "key")
    if last.endswith(("@h", "@c")) and len(shape) == 4:
        return ("time", "layer", "direction", "unit")
    if "@gradient(" in last and len(shape) == 2 and ("random=" in last or "along=" in last):
        return ("way", "class")
    if "@gradcam" in last and len(shape) == 2:
        return ("height", "width")
    if last == "logits" and shape:
        return (*_axes("", shape[:-1]), "class") if len(shape) > 1 else ("class",)
    known = {1: ("feature",), 2: ("time", "feature"), 3: ("channel", "height", "width")}
    if shape and shape[0] is None and len(shape) == 1:
        return ("time",)
    return known.get(len(shape), tuple(f"axis{number}" for number in range(1, len(shape) + 1)))


# --- one batch -------------------------------------------------------------------------------------


def encode(columns: Mapping[str, Column], signals: Signals, ids: Tensor) -> dict[str, Piece]:
    """Turn the signals of one batch into pieces to write; ``ids`` (B x 2) names rows in errors.

    Raises:
        StoreError: signals are missing, of another shape than before, not finite or too large for their dtype.
    """
    names = readings(signals)
    expected = [name for name in columns if not (name.endswith(NORM) and name.removesuffix(NORM) in columns)]
    if names != sorted(expected):
        raise StoreError(
            f"The teacher does not show the same signals on every batch: got {names}, but {sorted(expected)} before. "
            "Make it answer alike for every batch, then record again."
        )
    pieces: dict[str, Piece] = {}
    for name in names:
        column, values, mask = columns[name], signals[name].detach().cpu(), signals.get(name + MASK)
        _fits(name, column, values, len(ids))
        values, owners, counts = _choose(column, values, None if mask is None else mask.detach().cpu())
        shown = values
        if column.form == "shifted" and values.numel():
            values = values.float() - values.float().amax(-1, keepdim=True)
        elif column.form == "unit":
            norms = _norms(values, owners, len(ids))
            _finite(name, norms, torch.arange(len(ids)), ids)
            pieces[name + NORM] = Piece(norms)
            share = (norms.clamp_min(torch.finfo(torch.float32).tiny))[owners]
            values = values.float() / share.view(-1, *[1] * (values.dim() - 1))
        stored = values.to(column.torch_dtype)
        if not stored.is_floating_point():
            _finite(name, shown, owners, ids)
        elif (wrong := _bad(stored, owners, ids)) is not None:  # looked at once: most batches are sound
            _finite(name, shown, owners, ids)
            raise StoreError(_too_large(name, column, wrong))
        if stored.data_ptr() == signals[name].data_ptr():
            stored = stored.clone()  # a teacher may write its next answer over this one
        pieces[name] = Piece(stored.contiguous().flatten(), counts)
    return pieces


def _fits(name: str, column: Column, values: Tensor, rows: int) -> None:
    shape = values.shape[1:]
    same = len(shape) == len(column.shape) and all(
        want is None or size == want for size, want in zip(shape, column.shape, strict=False)
    )
    if values.shape[:1] != (rows,) or not same:
        want = ", ".join("?" if size is None else str(size) for size in column.shape)
        raise StoreError(
            f"Signal '{name}' changed its shape: got {tuple(values.shape)} for {rows} examples, but rows of ({want}) "
            f"before. An axis may vary only beside a mask '{name}.mask'. Let the teacher give one, or pool that axis."
        )


def _choose(column: Column, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what is kept, the row each entry of its first axis belongs to, and elements a row if that varies."""
    rows = torch.arange(len(values))
    if not column.ragged:
        return values, rows, None
    assert mask is not None
    if column.shape[0] is None:
        lengths = mask.sum(1)
        return values[mask], rows.repeat_interleave(lengths), lengths * column.unit
    parts = []
    for row, keep in zip(values, mask, strict=True):
        part = row[..., keep]
        parts.append((part[:, keep] if column.shape[1] is None else part).flatten())
    counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    return torch.cat(parts), rows.repeat_interleave(counts), counts


def _norms(values: Tensor, owners: Tensor, rows: int) -> Tensor:
    squares = values.double().square().flatten(1).sum(1) if values.dim() > 1 else values.double().square()
    return torch.zeros(rows, dtype=torch.float64).index_add_(0, owners, squares).sqrt().float()


def named(ids: Tensor) -> str:
    """Name the first five (example, view) rows of ``ids`` for a message."""
    shown = ", ".join(f"{int(row[0])}" + (f" (view {int(row[1])})" if int(row[1]) else "") for row in ids[:5])
    return shown + (f", ... ({len(ids)} in all)" if len(ids) > 5 else "")


def _bad(values: Tensor, owners: Tensor, ids: Tensor) -> Tensor | None:
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return None
    wrong = ~torch.isfinite(values.reshape(len(values), -1)).all(1)
    return ids[torch.unique(owners[wrong])]


def _finite(name: str, values: Tensor, owners: Tensor, ids: Tensor) -> None:
    wrong = _bad(values, owners, ids)
    if wrong is not None:
        raise StoreError(
            f"The teacher's signal '{name}' is not finite: got NaN or infinity for examples {named(wrong)}. "
            "Only finite numbers can be taught. Look at these examples, or at the teacher's precision; nothing was "
            "written for this shard."
        )


def _too_large(name: str, column: Column, ids: Tensor) -> str:
    return (
        f"The teacher's signal '{name}' is too large for {column.dtype}: got values above "
        f"{torch.finfo(column.torch_dtype).max:g} for examples {named(ids)}. Allowed: float32, bfloat16. "
        f"Record it wider: dtypes={{'{name}': 'float32'}}."
    )
