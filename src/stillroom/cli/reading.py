"""Reading what a person wants classified: pictures, folders of pictures, NumPy arrays, files of texts, tables.

A file that cannot be read is noted, and the others are read all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.data.pictures import PICTURES, files_under
from stillroom.errors import DataError, say
from stillroom.paths import is_file, is_folder, regular

if TYPE_CHECKING:
    from torch import Tensor

ARRAYS = (".npy", ".npz")
LINES = (".txt",)
ENCODING = "--encoding "  # how the command line gives an encoding
LISTED = 20  # files that an error names


@dataclass
class Found:
    """What was found in files: for each row where it stands and the person's own columns, and the row itself.

    ``shown`` have ``input`` (the file), ``row`` (from 1; None where a file is one row) and ``columns``. ``bad`` says of
    each file that was not read why.
    """

    shown: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    files: int = 0

    def add(self, file: Path, rows: Sequence[Any] | Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Note the ``rows`` of a file, in order, with the columns that stand beside them."""
        beside = columns or {}
        for number in range(len(rows)):
            own = {name: values[number] for name, values in beside.items()}
            self.shown.append({"input": str(file), "row": number + 1, "columns": own})
        self.rows.append(rows)


def _read(files: Sequence[Path], read: Callable[[Path, Found], None], allowed: str) -> Found:
    """Let ``read`` take each file in turn, past those that it cannot read.

    Raises:
        DataError: no file could be read, or there is nothing in them.
    """
    found = Found(files=len(files))
    for file in files:
        try:
            read(file, found)
        except DataError as error:
            found.bad.append(str(error))
    if not found.shown and found.bad:
        raise DataError(found.bad[0] if len(found.bad) == 1 else unread(found))
    if not found.shown:
        given = ", ".join(map(str, files)) or "no such files"
        raise DataError(say("There is nothing to classify", given[:200], allowed))
    return found


def unread(found: Found) -> str:
    """Say which files could not be read, the first twenty with their reasons."""
    more = f"\n  and {len(found.bad) - LISTED:,} more" if len(found.bad) > LISTED else ""
    listed = "".join(f"\n  {one}" for one in found.bad[:LISTED])
    return f"{len(found.bad):,} of {found.files:,} file{'s' * (found.files != 1)} cannot be read:{listed}{more}"


def _files(places: Sequence[Path], fits: Callable[[Path], bool], what: str, allowed: Collection[str]) -> list[Path]:
    """Return the files that were named, and in the folders that were named those that fit."""
    files = []
    for place in places:
        if is_folder(place, DataError):
            files += [file for file in files_under(place) if fits(file)]
            continue
        regular(place, DataError)
        if not is_file(place, DataError):
            raise DataError(f"Cannot read {place}: there is no such file or folder. Check the path.")
        elif not fits(place):
            given = f"a file ending in '{place.suffix}'"
            raise DataError(say(f"{what}, and {place} is none", given, ", ".join(allowed)))
        else:
            files.append(place)
    return files


# --- pictures and arrays -----------------------------------------------------------------------------------


def rows_of(places: Sequence[Path], wanted: Mapping[str, Any]) -> Found:
    """Return everything in ``places`` as rows in the dtype and shape a model takes (``wanted``).

    Pictures are read as :func:`stillroom.data.pictures.decode` reads them for training.

    Raises:
        DataError: a place is missing or of another kind, or nothing can be read.
    """
    import torch

    from stillroom.data.pictures import decode

    allowed = PICTURES + ARRAYS
    shape = wanted["shape"]
    what = "This model takes pictures and arrays" if _pictures(wanted) else "This model takes arrays"
    kinds = allowed if _pictures(wanted) else ARRAYS
    files = _files(places, lambda file: file.suffix.lower() in kinds, what, kinds)

    def read(file: Path, found: Found) -> None:
        if file.suffix.lower() in PICTURES:
            found.add(file, torch.from_numpy(decode(file, shape))[None])
            found.shown[-1]["row"] = None
        else:
            found.add(file, array_of(file, wanted))

    return _read(files, read, f"files ending in {', '.join(kinds)}")


def _pictures(wanted: Mapping[str, Any]) -> bool:
    return wanted["dtype"] == "uint8" and len(wanted["shape"]) == 3 and wanted["shape"][0] in (1, 3)


def array_of(place: Path, wanted: Mapping[str, Any], *, gaps: bool = False) -> Tensor:
    """Return the rows of an .npy or .npz file (its array x or inputs, or the first) as a model takes them.

    Raises:
        DataError: it cannot be read, or holds rows of another shape, dtype or range.
    """
    from stillroom.data.columns import as_tensor
    from stillroom.data.numpy_files import load_arrays
    from stillroom.models.raw_inputs import held_to

    arrays = load_arrays(place)
    if not arrays:
        raise DataError(say(f"Cannot read {place}", "an archive without arrays", "an array of rows"))
    chosen = next((arrays[name] for name in ("x", "inputs") if name in arrays), next(iter(arrays.values())))
    shape = tuple(wanted["shape"])
    if chosen.ndim == 0:
        allowed = f"an array of rows of shape {shape}"
        raise DataError(say(f"The rows of {place} do not fit this model", "a single number", allowed))
    if not len(chosen):
        raise DataError(say("There is nothing to classify", f"no rows in {place}", "an array of at least one row"))
    rows = held_to(as_tensor(chosen, place.name), wanted, f"The rows of {place}", gaps=gaps)
    if len(shape) == 3 and rows.shape[1:] == (*shape[1:], shape[0]) != shape:  # channels last
        rows = rows.permute(0, 3, 1, 2).contiguous()
    if rows.shape[1:] != shape and rows.shape[1:] == shape[1:] and shape[0] == 1:
        rows = rows[:, None]
    if rows.shape[1:] != shape:
        given = f"shape {tuple(rows.shape[1:])}"
        raise DataError(say(f"The rows of {place} do not fit this model", given, f"shape {shape}"))
    return rows


# --- tables ------------------------------------------------------------------------------------------------


def table_of(places: Sequence[Path], columns: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Found:
    """Return a row (float32, columns) for every row of the tables in ``places``, and what is odd.

    ``columns`` are those of the model, found by their names; plain arrays, which have none, have them in its order.

    Raises:
        DataError: a place is missing or of another kind, or nothing can be read.
    """
    import torch

    from stillroom.data.table_files import KINDS, cells_of, rows_for, tidied
    from stillroom.data.text_tables import kind_of

    def read(file: Path, found: Found) -> None:
        cells = cells_of(file, encoding, setting=ENCODING)
        if file.suffix.lower() in ARRAYS and not any(column["name"] in cells for column in columns):
            found.add(file, array_of(file, {"dtype": "float32", "shape": [len(columns)]}, gaps=True))
            return
        values, odd = rows_for(tidied(cells, file), columns, file)
        found.add(file, torch.from_numpy(values.copy()), {name: _written(cell) for name, cell in cells.items()})
        found.notes += odd

    files = _files(places, lambda file: kind_of(file) in KINDS, "This model takes tables", KINDS)
    return _read(files, read, "tables")


def _written(values: Any) -> list[str]:
    """Return the cells of a column as texts, empty where nothing is."""
    return ["" if cell is None else cell if isinstance(cell, str) else str(cell) for cell in values.to_pylist()]


# --- texts -------------------------------------------------------------------------------------------------


def texts_of(
    places: Sequence[Path], column: str | None = None, encoding: str = "utf-8", usual: str = "text"
) -> Found:
    """Return every text in ``places``, with the columns beside it.

    A .txt file has a text a line, whose number is its ``row``; .csv, .tsv and .jsonl files (also .gz) a row, in
    ``column``; where none is named, in the only one, in ``usual`` (what the model was trained on), or in ``text``.
    Blank lines are passed over.

    Raises:
        DataError: a place is missing or of another kind, or nothing can be read.
    """
    from stillroom.data.text_tables import KINDS, kind_of

    allowed = (*LINES, *KINDS)

    def read(file: Path, found: Found) -> None:
        rows = list(_texts_in(file, column, encoding, usual))  # the whole file first: it is read, or it is not
        for row, text, beside in rows:
            found.shown.append({"input": str(file), "row": row, "columns": beside})
            found.rows.append(text)

    files = _files(places, lambda file: kind_of(file) in allowed, "This model takes texts", (*allowed, "also .gz"))
    return _read(files, read, "a text a line, or a row")


def _texts_in(place: Path, column: str | None, encoding: str, usual: str) -> Iterator[tuple[int, str, dict[str, str]]]:
    from stillroom.data.text_tables import check_column, kind_of, lines_of, read_rows

    if kind_of(place) in LINES:
        for line, text in lines_of(place, encoding, setting=ENCODING):
            yield line, text, {"text": text}
        return
    chosen = column
    for number, (_, row) in enumerate(read_rows(place, encoding, setting=ENCODING)):
        if not number:
            among = [name for name in (usual, "text") if name in row]
            chosen = column or (next(iter(row)) if len(row) == 1 else among[0] if among else usual)
            check_column(chosen, row, place, "Name it with --column COLUMN.")
        yield number + 1, row.get(str(chosen), ""), dict(row)
