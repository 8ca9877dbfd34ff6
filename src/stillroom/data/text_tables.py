"""Tables of text from files: CSV, TSV and JSON Lines, plain or gzip'd, row by row with the line each begins at."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stillroom.errors import DataError, say
from stillroom.files import parse_json
from stillroom.paths import reading, regular

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson")
RECIPE = "encoding: "  # how a recipe gives an encoding
Row = tuple[int, Mapping[str, str]]
"""The line a row begins at (from 1) and its fields by column."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MISSING = ("", "?", "#N/A", "N/A", "NA", "NULL", "NaN", "nan", "null")
"""What a cell of a table, or a label, holds when it holds nothing, white space aside."""
LONGEST_LINE = 1 << 26
"""Characters of a line: with more, a file is no table of texts."""
UNPACKED, TIMES = 1 << 26, 100
"""A .gz file may always unpack to so many bytes, and beyond that to so many times its own size."""
_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters; long texts are cut later, and said so
_PIECE = 1 << 20


def kind_of(file: Path) -> str:
    """Return what a file's name says it is, such as ".csv", without ".gz"."""
    return Path(file.name[:-3] if file.name.lower().endswith(".gz") else file.name).suffix.lower()


def read_rows(file: Path, encoding: str = "utf-8", *, setting: str = RECIPE) -> Iterator[Row]:
    """Yield the rows of a table. A byte order mark overrules ``encoding``; blank lines are passed over.

    CSV: the first line names the columns; fields may be quoted; ``;`` separates where that line has no comma. TSV: the
    same with tabs, and quotes are plain characters. JSON Lines: an object a line; null becomes an empty field.
    ``setting`` is how a person gives another encoding, told where this one does not fit.

    Raises:
        DataError: the file is absent or damaged, is no such table, or is written in another encoding.
    """
    kind = kind_of(file)
    if kind not in KINDS:
        raise DataError(say(f"Cannot read {file}", f"a file ending in '{kind}'", f"{', '.join(KINDS)}, also .gz"))
    with _reading(file, encoding, setting) as stream:
        yield from _objects(stream, file) if kind in (".jsonl", ".ndjson") else _table(stream, file, kind)


def lines_of(file: Path, encoding: str = "utf-8", *, setting: str = RECIPE) -> Iterator[tuple[int, str]]:
    """Yield the lines of a plain text file, with their numbers from 1; lines of white space alone are passed over.

    ``setting`` is how a person gives another encoding, told where this one does not fit.

    Raises:
        DataError: the file is absent or damaged, or is written in another encoding.
    """
    with _reading(file, encoding, setting) as stream:
        for number, line in enumerate(_lines(stream, file), 1):
            if line.strip():
                yield number, line.strip()


def check_column(name: str, row: Mapping[str, str], file: Path, do: str) -> None:
    """Refuse a table without the column ``name``, suggesting the nearest one and saying what to ``do``.

    Raises:
        DataError: it is not there.
    """
    if name not in row:
        raise DataError(say(f"{file} has no such column", f"'{name}'", [key[:60] for key in row], do))


# --- kinds of table --------------------------------------------------------------------------------


def _table(stream: IO[str], file: Path, kind: str) -> Iterator[Row]:
    lines = _lines(stream, file)
    first = next(lines, "")
    if not first.strip():
        raise DataError(say(f"{file} has no columns", "an empty first line", "a first line that names the columns"))
    comma = "," if "," in first or ";" not in first else ";"
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"delimiter": comma, "strict": True}
    limit, before = csv.field_size_limit(_FIELD), 0
    try:
        names = [name.strip() for name in next(csv.reader([first], **style))]  # type: ignore[arg-type]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(say(f"{file} has two columns of one name", f"'{twice}'", "different names"))
        reader = csv.reader(lines, **style)  # type: ignore[arg-type]
        for fields in reader:
            line, before = before + 2, reader.line_num
            if fields and len(fields) != len(names):
                do = "Put a field that holds the separator into double quotes." if kind == ".csv" else ""
                given = f"{len(fields)} field{'s' * (len(fields) != 1)} in line {line}"
                allowed = f"{len(names)}, as in the first line ({', '.join(names)[:80]})"
                raise DataError(say(f"{file} is not an even table", given, allowed, do))
            if fields:
                yield line, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"Cannot read {file}: the quotes that open at or after line {before + 2} are not closed as they must be "
            f"({error}). Double a quote that is part of a text, or save the table again as .jsonl."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _objects(stream: IO[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream, file), 1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            do = "Write one object a line." if number == 1 else "Mend or remove this line."
            why = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"Cannot read {file}: line {number} is not JSON ({why}). {do}") from None
        if not isinstance(found, dict):
            given = f"a {type(found).__name__} in line {number}"
            raise DataError(
                say(f"{file} is not a table", given, 'an object a line, such as {"text": "...", "label": 1}')
            )
        yield number, {_whole(key): _field(value) for key, value in found.items()}


def _field(value: object) -> str:
    if isinstance(value, str):
        return _whole(value)
    return "" if value is None else json.dumps(value)


def label_notes(written: Mapping[str, int], name: str) -> list[str]:
    """Say which labels of the column ``name`` are odd: unknown by what they say, "None", or alike but for case.

    ``written`` counts the cells by their text, white space around it aside.
    """
    notes = []
    unknown = {text: count for text, count in written.items() if text and text in MISSING}
    if unknown:
        said = ", ".join(f"'{text}' {count:,}" for text, count in unknown.items())
        notes.append(f"labels that say that there is none are unknown: {said} (in '{name}')")
    known: dict[str, list[str]] = {}
    for text in sorted(set(written) - set(MISSING)):
        known.setdefault(" ".join(text.casefold().split()), []).append(text)
    if alike := [texts for texts in known.values() if len(texts) > 1]:
        said = "; ".join(" and ".join(f"'{text}' ({written[text]:,})" for text in texts) for texts in alike[:5])
        notes.append(f"classes that differ by case or white space only, and are kept apart: {said} (in '{name}')")
    for text in known.get("none", []):
        notes.append(f"'{text}' is a class of its own ({written[text]:,}); leave the cell empty where nobody knows")
    return notes


def _whole(text: str) -> str:
    """Return a text without half characters, which JSON can write and no file in UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# --- bytes -----------------------------------------------------------------------------------------


@contextmanager
def _reading(file: Path, encoding: str, setting: str) -> Iterator[IO[str]]:
    """Open a file as text and tell what goes wrong while it is read."""
    found = encoding
    try:
        with reading(file, DataError), opened(file) as binary:
            found = _encoding(binary, file, encoding, setting)
            with io.TextIOWrapper(binary, encoding=found, newline="") as stream:
                yield stream
    except UnicodeDecodeError as error:
        raise _wrong_encoding(file, found, error, setting) from None
    except UnicodeError as error:  # UTF-16 without its mark, for one
        raise DataError(f"Cannot read {file}: it is not {found} ({error}). Give '{setting}NAME'.") from None
    except FileNotFoundError:
        raise DataError(f"Missing file: {file} does not exist. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {file}: {error}. Check that it is whole and who may read it.") from error


def _lines(stream: IO[str], file: Path) -> Iterator[str]:
    """Yield the lines of a file, refusing one without an end before it is read whole."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            given = f"more than {LONGEST_LINE:,} characters in line {number:,}"
            do = "Check that this is a table, and that its lines end."
            raise DataError(say(f"{file} has too long a line", given, f"up to {LONGEST_LINE:,} characters", do))
        yield line


class _Unpacked(io.RawIOBase):
    """What is in a gzip file, up to a bound: a small file may unpack to more than any memory holds."""

    def __init__(self, file: Path, inner: gzip.GzipFile) -> None:
        self._file, self._inner, self._size = file, inner, file.stat().st_size
        self._most, self._read = max(UNPACKED, TIMES * self._size), 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` and return how many bytes were written; refuse what goes beyond the bound."""
        count = self._inner.readinto(buffer)
        self._read += count
        if self._read > self._most:
            given = f"more than {self._most:,} bytes from {self._size:,}"
            do = "Unpack it yourself (gunzip) and name the unpacked file, if it is to be trusted."
            allowed = f"up to {TIMES} times its size"
            raise DataError(say(f"{self._file} unpacks to too much", given, allowed, do))
        return count

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
        super().close()


def opened(file: Path) -> io.BufferedReader:
    """Open a file, unpacked where its name ends in .gz; the caller closes it."""
    regular(file, DataError)
    if file.name.lower().endswith(".gz"):
        return io.BufferedReader(_Unpacked(file, gzip.GzipFile(file, "rb")), 1 << 18)
    return open(file, "rb")


def _encoding(binary: io.BufferedReader, file: Path, encoding: str, setting: str) -> str:
    """Return what a file is written in: by its mark, else as it was given."""
    head = binary.peek(64)[:64]
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    try:
        codecs.lookup(encoding)
    except LookupError:
        allowed = ("utf-8", "utf-16", "gb18030", "big5", "cp1252", "latin-1", "shift_jis")
        raise DataError(say("There is no such encoding", f"'{encoding}'", allowed)) from None
    if not encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        for zeros, name in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
            if len(head) >= 4 and zeros.count(0) > len(head) // 4:
                raise DataError(
                    f"{file} is not written in {encoding}: every second byte is zero. Give '{setting}{name}'."
                )
    return encoding


def _wrong_encoding(file: Path, encoding: str, error: UnicodeDecodeError, setting: str) -> DataError:
    """Find the first byte that does not fit, from the start of the file, and say what it looks like instead."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read, lines, piece = 0, 1, b""
    with opened(file) as binary:
        while True:
            piece = binary.read(_PIECE)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as found:
                error = found
                break
            if not piece:
                break
            read += len(piece)
            lines += piece.count(b"\n")
    pending = len(error.object) - len(piece)
    place = read - pending + error.start
    lines += error.object[pending : error.start].count(b"\n")
    wrong = error.object[error.start]
    return DataError(
        f"{file} is not written in {encoding.removesuffix('-sig')}: got the byte 0x{wrong:02x} at {place:,} (line "
        f"{lines:,}). Give '{setting}{_likely(piece or error.object)}' if that is what it was saved in, or save it "
        "again as UTF-8."
    )


def _likely(piece: bytes) -> str:
    """Guess an encoding: bytes over 127 stand in pairs in Chinese, and mostly alone in Western languages."""
    high = [byte > 127 for byte in piece[:65536]]
    pairs = sum(one and other for one, other in zip(high, high[1:], strict=False))
    return "gb18030" if 2 * pairs > sum(high) else "cp1252"
