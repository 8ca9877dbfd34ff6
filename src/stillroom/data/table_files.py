"""Columns of numbers and texts from files: CSV, TSV, JSON Lines, Parquet and NumPy, each read once.

pyarrow reads and converts. What it refuses in CSV is read again row by row, which finds the line and the words for it.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillroom.data.numpy_files import load_arrays, refuse_too_large
from stillroom.data.text_tables import KINDS as TEXT_KINDS
from stillroom.data.text_tables import MISSING, RECIPE, check_column, kind_of, lines_of, opened, read_rows
from stillroom.errors import DataError, out_of_memory, say
from stillroom.paths import reading

KINDS = (*TEXT_KINDS, ".parquet", ".npy", ".npz")
MOST = 256  # categories of a column
FEW = 20  # so many are never too many
SPLIT = "split"  # the column made of the splits that a NumPy archive names

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(inf|Inf|infinity|Infinity)$"
_PERCENT = r"^[+-]?[\d.,]+\s*%$"
_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$"
_LIKE = (
    (
        "dates",
        r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})([ T].*)?$",
        "days since a date would be",
    ),
    ("times", r"^\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?$", "minutes since midnight would be"),
    ("numbers", r"^[$€£¥]?\s*[+-]?[\d.,']*\d[\d.,']*\s*[%$€£¥]?$", "written as -1.5 or 2e3 they would be"),
)
_NUMERIC = 0.9  # a column with more numbers than this share was meant to hold numbers
_ROWS = "rows of numbers, saved as an array of shape (rows, columns), or x and y in an archive, or an array a column"

_AGAIN = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowCapacityError, OSError, EOFError, zlib.error)
"""What reading a table at once may raise, but for memory that runs out."""

Kind = Literal["auto", "numeric", "categorical"]


class Columns(dict[str, Any]):
    """Columns by name: pyarrow arrays of texts, of numbers, of categories, or of what a table cannot use.

    ``comma`` says that a comma between digits is a decimal one: fields are separated by semicolons. ``missing`` counts
    the cells of each column that say in words that they hold nothing.
    """

    comma = False

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        super().__init__(columns or {})
        self.missing: dict[str, dict[str, int]] = {}


class Column(NamedTuple):
    """Numbers, or numbers of ``categories`` (float64; NaN where there is nothing); ``note`` says what is odd."""

    values: NDArray[np.float64]
    categories: tuple[str, ...] | None
    note: str = ""


def read_columns(file: Path, encoding: str = "utf-8", *, setting: str = RECIPE) -> Columns:
    """Return the columns of a table; empty cells, and those in ``MISSING``, are null.

    The first line of a CSV or TSV file names the columns. A NumPy archive holds ``x`` (rows, columns) and ``y``, with
    ``names`` if there are any, or the same with ``_train``, ``_validation`` and ``_test``, or an array a column.

    Raises:
        DataError: the file is absent, damaged, empty, in another encoding, or is no such table.
    """
    return tidied(cells_of(file, encoding, setting=setting), file)


def cells_of(file: Path, encoding: str = "utf-8", *, setting: str = RECIPE) -> Columns:
    """Return the columns of a table as they are written; what :func:`read_columns` does before it tidies them.

    Raises:
        DataError: the file is absent, damaged, in another encoding, or is no such table.
    """
    kind = kind_of(file)
    if kind not in KINDS:
        raise DataError(say(f"Cannot read {file}", f"a file ending in '{kind}'", f"{', '.join(KINDS)}"))
    if kind in TEXT_KINDS:
        return _written(file, kind, encoding, setting)
    found = _parquet(file) if kind == ".parquet" else _numpy(file)
    return Columns({str(name): values for name, values in found.items()})


def tidied(found: Columns, file: Path) -> Columns:
    """Bring columns to texts and numbers, null where nothing is.

    Raises:
        DataError: there are no rows.
    """
    tidy = Columns({name: _tidy(values) for name, values in found.items()})
    tidy.comma = found.comma
    for name, values in found.items():
        if pa.types.is_string(values.type) and tidy[name].null_count:
            nothing = values.filter(pc.is_null(tidy[name])).drop_null()
            counts = pc.value_counts(pc.utf8_trim_whitespace(nothing)).to_pylist()
            tidy.missing[name] = {one["values"]: one["counts"] for one in counts if one["values"]}
    if not tidy or not len(next(iter(tidy.values()))):
        raise DataError(say(f"There is nothing in {file}", "no rows", "a row for each example", "Check the file."))
    return tidy


def column_of(columns: Mapping[str, Any], name: str, file: Path, kind: Kind = "auto", do: str = "") -> Column:
    """Return one column as numbers. ``auto``: texts are categories, numbers are numbers; ``do`` is what to do if not.

    Percent signs are taken off and, where semicolons separate, decimal commas made points, if all cells are such
    numbers. Categories are sorted, by size if all are numbers; those of a file that lists them keep their order.

    Raises:
        DataError: the column is not there, is no numbers where it must be, or holds what is neither number nor text.
    """
    check_column(name, columns, file, do)
    array = columns[name]
    if pa.types.is_dictionary(array.type):
        if kind != "numeric":
            return _coded(array.indices, [str(one) for one in array.dictionary.to_pylist()])
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type):
        comma = getattr(columns, "comma", False)
        plain, note = (array, "") if kind == "categorical" else spelled(array, name, comma)
        numbers = None if kind == "categorical" else _numbers(plain, name, file, kind)
        if numbers is not None:
            return Column(_finite(numbers, name, file), None, note)
        encoded = array.dictionary_encode()
        found = _coded(encoded.indices, encoded.dictionary.to_pylist(), ordered=False)
        return found._replace(note=looks_like(array, name, len(found.categories or ())) if kind == "auto" else "")
    if not pa.types.is_floating(array.type):
        do = "Turn it into numbers (days since a date, for example) or into texts, or leave it out with 'without'."
        raise DataError(say(f"Column '{name}' of {file} cannot be used", str(array.type), "numbers or texts", do))
    values = array.to_numpy(zero_copy_only=False)
    values = _finite(values, name, file)
    if kind != "categorical":
        return Column(values, None)
    known = np.unique(values[~np.isnan(values)])
    numbers = np.where(np.isnan(values), np.nan, np.searchsorted(known, values))
    return Column(numbers, tuple(_plain(value) for value in known))


def check_categories(column: Column, name: str, file: Path) -> None:
    """Refuse a column of texts in which there is nothing to learn from: nearly every row has its own.

    Raises:
        DataError: it has over 256 different texts, or more than half as many as there are rows.
    """
    texts = column.categories or ()
    if len(texts) > MOST or (len(texts) > FEW and 2 * len(texts) > int((~np.isnan(column.values)).sum())):
        given = f"{len(texts):,} different texts in {len(column.values):,} rows, such as '{texts[0][:40]}'"
        allowed = f"up to {MOST} categories, each in several rows"
        do = f"Leave it out ('without: [{name}]'), or turn it into numbers."
        if re.fullmatch(r"[+-]?\d+,\d+", texts[0]):
            do = "Write its numbers with a point instead of a comma, or leave it out."
        raise DataError(say(f"Column '{name}' of {file} has too many categories", given, allowed, do))


def place_of(file: Path, row: int) -> str:
    """Say where in a file the row with this number (from 0) is: by its line where it has one."""
    if kind_of(file) in TEXT_KINDS:
        with contextlib.suppress(DataError):
            for line, _ in islice(read_rows(file), row, row + 1):
                return f"line {line:,}"
    return f"row {row + 1:,}"


def rows_for(
    columns: Columns, wanted: Sequence[Mapping[str, Any]], file: Path
) -> tuple[NDArray[np.float32], list[str]]:
    """Return the rows of a table for a model that names its columns, in its order: float32, NaN where nothing is.

    ``wanted`` describe them: ``name``, ``kind`` and, of "categorical" ones, ``categories``. A text that is none of
    these becomes -1, and is told in the second list, as are cells without a value.

    Raises:
        DataError: a column is absent, or is not numeric where it must be.
    """
    rows: list[NDArray[np.float64]] = []
    notes: list[str] = []
    do = f"The model reads the columns {', '.join(str(one['name']) for one in wanted)}"[:300] + "."
    for one in wanted:
        name, kind = str(one["name"]), one["kind"]
        column = column_of(columns, name, file, kind, do)
        values = column.values
        if empty := int(np.isnan(values).sum()):
            notes.append(f"{file.name}: {empty:,} without '{name}': taken for the usual value.")
        if column.categories is not None:
            numbers = {text: number for number, text in enumerate(one["categories"])}
            place = np.array([numbers.get(text, -1) for text in column.categories] + [np.nan])
            values = place[np.where(np.isnan(values), -1, values).astype(np.int64)]
            strange = [text for text in column.categories if text not in numbers]
            if strange:
                shown = ", ".join(f"'{text[:40]}'" for text in strange[:3]) + ", ..." * (len(strange) > 3)
                notes.append(
                    f"{file.name}: {int((values == -1).sum()):,} with a '{name}' that the model has not seen ({shown})."
                )
        rows.append(values)
    return np.stack(rows, axis=1).astype(np.float32), notes


# --- text ------------------------------------------------------------------------------------------


def _written(file: Path, kind: str, encoding: str, setting: str) -> Columns:
    first = next(read_rows(file, encoding, setting=setting), None)
    if first is None:
        return Columns()
    names, found = list(first[1]), Columns()
    line = next(lines_of(file, encoding, setting=setting))[1]
    found.comma = kind == ".csv" and "," not in line and ";" in line
    if kind in (".csv", ".tsv") and encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        delimiter = "\t" if kind == ".tsv" else "," if "," in line else ";"
        with contextlib.suppress(*_AGAIN):  # told, or read row by row
            found.update(_quickly(file, names, delimiter))
            return found
    cells: dict[str, list[str]] = {name: [] for name in names}
    for _, row in read_rows(file, encoding, setting=setting):
        for name in names:
            cells[name].append(row.get(name, ""))
    found.update({name: pa.array(values, pa.string()) for name, values in cells.items()})
    return found


def _quickly(file: Path, names: Sequence[str], delimiter: str) -> dict[str, Any]:
    from pyarrow import csv

    with opened(file) as stream:
        table = csv.read_csv(
            stream,
            read_options=csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, quote_char=False if delimiter == "\t" else '"', newlines_in_values=True
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    return {name: table.column(name).combine_chunks() for name in names}


# --- Parquet and NumPy -----------------------------------------------------------------------------


def _parquet(file: Path) -> dict[str, Any]:
    from pyarrow import parquet

    try:
        with reading(file, DataError):
            head = parquet.read_metadata(str(file))
            refuse_too_large(file, head.num_rows * head.num_columns * 8)
            table = parquet.read_table(str(file), use_threads=False)
    except FileNotFoundError:
        raise DataError(f"Missing file: {file} does not exist. Check the path.") from None
    except (pa.ArrowException, OSError) as error:
        if out_of_memory(error):
            raise
        raise DataError(f"Cannot read {file}: {str(error).splitlines()[0]}. Save it again.") from None
    names = [name for name in table.column_names if not name.startswith("__index_level_")]  # what pandas adds
    return {name: _whole(table.column(name)) for name in names}


def _whole(chunks: Any) -> Any:
    """Return one array of a column's chunks; dictionaries, which may differ from chunk to chunk, are made one."""
    array = chunks.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(chunks.type) else chunks
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _numpy(file: Path) -> dict[str, Any]:
    arrays = load_arrays(file)
    if "" in arrays and arrays[""].dtype.names:
        arrays = {name: arrays[""][name] for name in arrays[""].dtype.names}
    found = {name: values for name, values in _splits_joined(arrays).items() if name not in ("names", "classes")}
    wide = next((name for name in ("", "x", "inputs") if name in found and found[name].ndim == 2), None)
    if wide is not None:
        values = found.pop(wide)
        names = [str(name) for name in arrays.get("names", [f"x{place}" for place in range(values.shape[1])])]
        if len(names) != values.shape[1] or len(set(names)) != len(names):
            given = f"{len(set(names))} different names for {values.shape[1]} columns"
            raise DataError(say(f"The names of {file} do not fit", given, "one for each column of x"))
        beside = {("label" if name in ("y", "labels") else name): one for name, one in found.items()}
        beside = {name: one[:, 0] if one.ndim == 2 and one.shape[1] == 1 else one for name, one in beside.items()}
        found = dict(zip(names, values.T, strict=True)) | beside
    rows = {len(values) if values.ndim == 1 else -1 for values in found.values()}
    if len(rows) > 1 or -1 in rows:
        given = ", ".join(f"{name or 'an array'} {values.shape}" for name, values in found.items())
        raise DataError(say(f"{file} holds no table", given[:200], _ROWS))
    columns = {name: _from_numpy(values) for name, values in found.items()}
    if wide is not None and "label" in found:
        columns["label"] = _named(found["label"], arrays.get("classes"))
    return columns


def _splits_joined(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Join x_train, x_test and so on below each other; a column says which rows are whose."""
    for first, second in (("x", "y"), ("inputs", "labels")):
        ends = [end for end in ("train", "validation", "val", "test") if f"{first}_{end}" in arrays]
        if f"{first}_train" in arrays and all(f"{second}_{end}" in arrays for end in ends):
            wide, known = ([arrays[f"{name}_{end}"] for end in ends] for name in (first, second))
            if {part.shape[1:] for part in wide} == {wide[0].shape[1:]} and all(map(_fit, wide, known)):
                splits = np.concatenate([np.full(len(part), end) for part, end in zip(wide, ends, strict=True)])
                return {"x": np.concatenate(wide), "y": np.concatenate(known), SPLIT: splits}
    return dict(arrays)


def _fit(one: Any, other: Any) -> bool:
    return bool(one.ndim == 2 and other.shape == (len(one),))


def _from_numpy(values: Any) -> Any:
    kind = values.dtype.kind
    if kind not in "biufUS":
        return pa.nulls(len(values), pa.binary())
    return pa.array(values.astype(str) if kind == "S" else np.ascontiguousarray(values))


def _named(values: Any, classes: Any) -> Any:
    """Return the labels beside x: -1 is none, unless it is one of two signs; ``classes`` are the names of numbers."""
    if values.dtype.kind not in "iu":
        return _from_numpy(values)
    numbers = values.astype(np.int64)
    empty = numbers == -1 if classes is not None or set(np.unique(numbers).tolist()) != {-1, 1} else None
    if classes is None or not ((numbers >= -1) & (numbers < len(classes))).all():
        return pa.array(numbers, mask=empty)
    return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=empty), pa.array(np.asarray(classes).astype(str)))


# --- cells -----------------------------------------------------------------------------------------


def _tidy(array: Any) -> Any:
    """Bring a column to texts, float64, or a dictionary of texts; what is none of these stays as it is."""
    kind = array.type
    if str(kind) in ("string_view", "large_string"):
        return _tidy(array.cast(pa.string()))
    if pa.types.is_dictionary(kind):
        texts = pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
        return array if texts else _tidy(array.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_null(kind):
        cells = pc.utf8_trim_whitespace(array.cast(pa.string()))
        return pc.if_else(pc.is_in(cells, pa.array(MISSING)), pa.scalar(None, pa.string()), cells)
    if pa.types.is_boolean(kind):
        return array.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = array.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    return array


def spelled(array: Any, name: str, comma: bool) -> tuple[Any, str]:
    """Return texts with percent signs taken off and decimal commas made points, if all are such numbers; else as given.

    The second part says what was done to the column ``name``, or nothing.
    """
    given = array.drop_null()
    plain = array
    if len(given) and pc.all(pc.match_substring_regex(given, _PERCENT)).as_py():
        plain = pc.replace_substring_regex(plain, r"\s*%$", "")
    if comma and pc.any(pc.match_substring(given, ",")).as_py():
        if pc.all(pc.match_substring_regex(plain.drop_null(), _COMMA)).as_py():
            plain = pc.replace_substring(pc.replace_substring(plain, ".", ""), ",", ".")
    left = plain.drop_null()
    if plain is array or not pc.all(pc.match_substring_regex(left, _NUMBER)).as_py():
        return array, ""
    return plain, f"'{name}' is read as numbers: '{given[0].as_py()[:40]}' as {left[0].as_py()[:40]}"


def looks_like(array: Any, name: str, categories: int) -> str:
    """Say that a column of categories looks like numbers or dates, if most of its cells do; else nothing."""
    given = array.drop_null()
    for what, pattern, do in _LIKE:
        fits = pc.match_substring_regex(given, pattern)
        count = pc.sum(fits).as_py() or 0
        if 2 * count > len(given):
            shown = given.filter(fits)[0].as_py()[:40]
            share = f"{count:,} of its {len(given):,} cells look like {what}, such as '{shown}'"
            return f"'{name}' is read as {categories:,} categories, but {share}: {do} numbers"
    return ""


def _numbers(array: Any, name: str, file: Path, kind: Kind) -> NDArray[np.float64] | None:
    """Return texts as numbers, or None where they are texts."""
    given = array.drop_null()
    fits = pc.match_substring_regex(given, _NUMBER)
    count = pc.sum(fits).as_py() or 0
    if count < len(given):
        if kind == "auto" and count <= _NUMERIC * len(given):
            return None
        odd = pc.match_substring_regex(array, _NUMBER)
        row = int(pc.index(odd, pa.scalar(False)).as_py())
        others = f" and {len(given) - count - 1:,} more" if len(given) - count > 1 else ""
        shown = f"'{array[row].as_py()[:40]}' in {place_of(file, row)}{others}"
        allowed = "numbers such as -1.5 or 2e3; an empty cell where one is missing"
        do = f"Mend these cells, or leave the column out ('without: [{name}]')"
        do += f", or take it for categories ('categorical: [{name}]')." if kind == "auto" else "."
        raise DataError(say(f"Column '{name}' of {file} is not numeric", shown, allowed, do))
    if not len(given):
        return np.full(len(array), np.nan)
    plain = pc.replace_substring_regex(array, r"^\+", "")
    values: NDArray[np.float64] = plain.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _finite(values: NDArray[np.float64], name: str, file: Path) -> NDArray[np.float64]:
    wrong = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)  # infinity too, NaN not
    if len(wrong):
        given = f"{values[wrong[0]]:g} in {place_of(file, int(wrong[0]))}"
        do = "Mend it, or leave the cell empty."
        raise DataError(say(f"Column '{name}' of {file} holds infinity", given, "numbers up to 3e38", do))
    return values


def _coded(indices: Any, texts: Sequence[str], *, ordered: bool = True) -> Column:
    """Return category numbers, counted anew over the texts that occur, in their order."""
    codes = indices.cast(pa.float64()).to_numpy(zero_copy_only=False)
    known = np.unique(codes[~np.isnan(codes)]).astype(np.int64)
    names = [texts[number] for number in known]
    order = list(range(len(names))) if ordered else sorted(range(len(names)), key=lambda place: _size(names[place]))
    place = np.full(len(texts) + 1, np.nan)
    place[known[order]] = np.arange(len(order))
    return Column(place[np.where(np.isnan(codes), -1, codes).astype(np.int64)], tuple(names[one] for one in order))


def _size(text: str) -> tuple[int, float, str]:
    """Sort numbers by size, before all else."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
