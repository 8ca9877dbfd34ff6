"""NumPy files: an .npy array or an .npz archive, read whole, without pickles, and only if it fits into memory."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as layout
from numpy.typing import NDArray

from stillroom.errors import DataError, out_of_memory, say
from stillroom.paths import reading
from stillroom.system import free_memory, size_text

SHARE = 0.8  # of the free memory: rows are copied once when they become a source
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, TypeError, NotImplementedError, SyntaxError)
_LESS = "Save fewer or smaller rows, or a type with fewer bytes (uint8, float32)."
_PICKLED = "Save plain arrays of numbers or texts with numpy.save or numpy.savez (no dtype=object)."


def load_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive by name; a single array is called "".

    Raises:
        DataError: the file is absent, damaged, holds pickled objects, or claims more memory than is free.
    """
    try:
        with reading(file, DataError):
            refuse_too_large(file, _claimed(file))
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": found}
            with found as archive:
                return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"Missing file: {file} does not exist. Check the path.") from error
    except (MemoryError, OverflowError) as error:
        raise _too_large(file, error) from error
    except (ValueError, OSError, EOFError, LookupError, *_BROKEN) as error:
        if out_of_memory(error):
            raise _too_large(file, error) from error
        if "pickle" in str(error).lower():
            raise DataError(
                say(f"{file} may hold pickled objects, which are not read", "pickled data", "numbers", _PICKLED)
            ) from error
        raise DataError(f"Cannot read {file}: {error}. Save it again with numpy.save or numpy.savez.") from error


def _too_large(file: Path, error: Exception) -> DataError:
    return DataError(say(f"{file} does not fit into memory", str(error) or "too much", "", _LESS))


def refuse_too_large(file: Path, claimed: int) -> None:
    """Refuse a file whose columns or arrays take ``claimed`` bytes, if these are not free.

    Raises:
        DataError: they are not.
    """
    free = free_memory()
    if free is not None and claimed > SHARE * free:
        allowed = f"{size_text(int(SHARE * free))}, {SHARE:.0%} of what is free"
        raise DataError(say(f"{file} does not fit into memory", f"{size_text(claimed)} of values", allowed, _LESS))


def _claimed(file: Path) -> int:
    """Return how many bytes the arrays of a file take by their own heads; 0 where it is no NumPy file."""
    with open(file, "rb") as stream:
        if stream.read(2) != b"PK":
            stream.seek(0)
            return _promised(stream)
    total = 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                total += max(entry.file_size, _promised(stream))
    return total


def _promised(stream: Any) -> int:
    try:
        version = layout.read_magic(stream)
        read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
        shape, _, kind = read(stream)
    except ValueError:
        return 0  # numpy.load says what is wrong
    count = int(kind.itemsize)
    for length in shape:
        count *= int(length)
    return max(0, count)
