"""Reading what a person wants classified: pictures, folders of pictures, NumPy arrays, files of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, say
from stillroom.paths import exists, is_file, is_folder, reading, regular

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz")
LINES = (".txt",)
ENCODING = "--encoding "  # how the command line gives an encoding


def rows_of(places: Sequence[Path], wanted: Mapping[str, Any]) -> tuple[list[str], Tensor]:
    """Return a name and a row for everything in ``places``, in the dtype and shape a model takes.

    Raises:
        DataError: a place is missing, unreadable, of another shape, or there is nothing to read.
    """
    import torch

    names: list[str] = []
    rows: list[Tensor] = []
    for place in [file for one in places for file in _files(one)]:
        found = _picture(place, wanted)[None] if place.suffix.lower() in PICTURES else _array(place, wanted)
        names += [str(place)] if len(found) == 1 else [f"{place}[{index}]" for index in range(len(found))]
        rows.append(found)
    if not names:
        raise DataError(
            say(
                "There is nothing to classify",
                ", ".join(map(str, places)),
                f"files ending in {', '.join(PICTURES + ARRAYS)}",
            )
        )
    return names, torch.cat(rows)


def _files(place: Path) -> list[Path]:
    if is_folder(place):
        return sorted(file for file in place.rglob("*") if file.suffix.lower() in PICTURES + ARRAYS)
    regular(place, DataError)
    if not is_file(place):
        raise DataError(f"Cannot read {place}: there is no such file or folder. Check the path.")
    if place.suffix.lower() not in PICTURES + ARRAYS:
        raise DataError(say(f"Cannot read {place}", f"a file ending in '{place.suffix}'", ", ".join(PICTURES + ARRAYS)))
    return [place]


def _picture(place: Path, wanted: Mapping[str, Any]) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    shape = wanted["shape"]
    if wanted["dtype"] != "uint8" or len(shape) != 3:
        raise DataError(
            say(
                f"This model does not take pictures, such as {place}",
                "a picture",
                f"{wanted['dtype']} rows of shape {shape}",
            )
        )
    try:
        with reading(place, DataError), Image.open(place) as picture:
            fitted = ImageOps.fit(picture.convert("L" if shape[0] == 1 else "RGB"), (shape[2], shape[1]))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"Cannot read the picture {place}: {error}. Remove it or save it again.") from error
    pixels = np.asarray(fitted).copy()
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _array(place: Path, wanted: Mapping[str, Any]) -> Tensor:
    import numpy as np
    import torch

    try:
        with reading(place, DataError):
            found = np.load(place, allow_pickle=False)
            array = found if isinstance(found, np.ndarray) else found[next(iter(found.files))]
    except (OSError, ValueError, StopIteration, KeyError) as error:
        raise DataError(f"Cannot read the array {place}: {error}. Save it again with numpy.save.") from error
    shape = tuple(wanted["shape"])
    if array.shape[1:] != shape and array.shape[1:] == shape[1:] and shape[0] == 1:
        array = array[:, None]
    if array.shape[1:] != shape:
        raise DataError(say(f"The rows of {place} do not fit this model", f"shape {array.shape[1:]}", f"shape {shape}"))
    return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, wanted["dtype"]))


# --- tables ------------------------------------------------------------------------------------------------


def table_of(
    places: Sequence[Path], columns: Sequence[Mapping[str, Any]], encoding: str = "utf-8"
) -> tuple[list[str], Tensor, list[str]]:
    """Return a name and a row (float32, B x columns) for every row of the tables in ``places``, and what is odd.

    ``columns`` are those of the model, found by their names; plain arrays, which have none, have them in its order.

    Raises:
        DataError: a place is missing, unreadable, without one of the columns, or there is nothing to read.
    """
    import numpy as np
    import torch

    from stillroom.data.table_files import read_columns, rows_for

    names: list[str] = []
    rows: list[Tensor] = []
    notes: list[str] = []
    for place in [file for one in places for file in _table_files(one)]:
        found = read_columns(place, encoding, setting=ENCODING)
        if place.suffix.lower() in ARRAYS and not any(column["name"] in found for column in columns):
            row = _array(place, {"dtype": "float32", "shape": [len(columns)]})
        else:
            values, odd = rows_for(found, columns, place)
            row, notes = torch.from_numpy(np.ascontiguousarray(values)), notes + odd
        names += [f"{place}[{index}]" for index in range(len(row))]
        rows.append(row)
    if not names:
        raise DataError(say("There is nothing to classify", ", ".join(map(str, places)), "tables"))
    return names, torch.cat(rows), notes


def _table_files(place: Path) -> list[Path]:
    from stillroom.data.table_files import KINDS
    from stillroom.data.text_tables import kind_of

    if is_folder(place):
        return sorted(file for file in place.rglob("*") if is_file(file) and kind_of(file) in KINDS)
    regular(place, DataError)
    if not is_file(place):
        raise DataError(f"Cannot read {place}: there is no such file or folder. Check the path.")
    if kind_of(place) not in KINDS:
        given = f"a file ending in '{place.suffix}'"
        raise DataError(say(f"This model takes tables, and {place} is none", given, ", ".join(KINDS)))
    return [place]


# --- texts -------------------------------------------------------------------------------------------------


def texts_of(places: Sequence[Path], column: str | None = None, encoding: str = "utf-8") -> tuple[list[str], list[str]]:
    """Return a name (``file:line``) and a text for every text in ``places``.

    A .txt file has a text a line; .csv, .tsv and .jsonl files (also .gz) a row, in ``column``: the one called ``text``
    where none is named, or the only one. Blank lines of a .txt file are passed over.

    Raises:
        DataError: a place is missing, unreadable or of another kind, has no such column, or there is nothing to read.
    """
    names: list[str] = []
    texts: list[str] = []
    for place in [file for one in places for file in _text_files(one)]:
        for line, text in _texts_in(place, column, encoding):
            names.append(f"{place}:{line}")
            texts.append(text)
    if not texts:
        raise DataError(say("There is nothing to classify", ", ".join(map(str, places)), "a text a line, or a row"))
    return names, texts


def _text_files(place: Path) -> list[Path]:
    from stillroom.data.text_tables import KINDS, kind_of

    allowed = (*LINES, *KINDS)
    if is_folder(place):
        return sorted(file for file in place.rglob("*") if is_file(file) and kind_of(file) in allowed)
    if kind_of(place) not in allowed and exists(place):
        given = f"a file ending in '{place.suffix}'"
        raise DataError(say(f"This model takes texts, and {place} is none", given, f"{', '.join(allowed)}, also .gz"))
    regular(place, DataError)
    if not is_file(place):
        raise DataError(f"Cannot read {place}: there is no such file or folder. Check the path.")
    return [place]


def _texts_in(place: Path, column: str | None, encoding: str) -> Iterator[tuple[int, str]]:
    from stillroom.data.text_tables import check_column, kind_of, lines_of, read_rows

    if kind_of(place) in LINES:
        yield from lines_of(place, encoding, setting=ENCODING)
        return
    chosen = column
    for number, (line, row) in enumerate(read_rows(place, encoding, setting=ENCODING)):
        if not number:
            chosen = column or (next(iter(row)) if len(row) == 1 else "text")
            check_column(chosen, row, place, "Name it with --column COLUMN.")
        yield line, row.get(str(chosen), "")
