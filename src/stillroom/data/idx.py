"""IDX files, plain or gzipped: the format in which MNIST and Fashion-MNIST are published.

Layout (https://yann.lecun.com/exdb/mnist/): two zero bytes, a type code, the number of axes, each axis's
length as a big-endian 32-bit number, then the values in C order, big-endian.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import DataError, say
from stillroom.paths import is_file, reading

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_AGAIN = "Fetch the file again."


def read_idx(path: Path, *, axes: int | None = None) -> NDArray[Any]:
    """Return the array in ``path`` (gzipped if its name ends in ``.gz``), native byte order.

    ``axes`` is the number of axes it must have (images 3, labels 1).

    Raises:
        DataError: the file is absent, truncated, too long, not gzip, or not IDX.
    """
    try:
        with reading(path, DataError), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            return _parse(stream, path, axes)
    except FileNotFoundError as error:
        raise DataError(f"Missing IDX file: {path} does not exist. Check the path.") from error
    except EOFError as error:
        raise DataError(f"Truncated file: {path} ends in the middle of its gzip data. {_AGAIN}") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"Unreadable IDX file: {path} ({error}). {_AGAIN}") from error


def _parse(stream: BinaryIO | io.BufferedIOBase, path: Path, axes: int | None) -> NDArray[Any]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not 1 <= head[3] <= 8:
        given = f"{path} begins with {head.hex(' ') or 'nothing'}"
        raise DataError(say("Not an IDX file", given, "00 00, a type code 08 to 0e, a number of axes", _AGAIN))
    if axes is not None and head[3] != axes:
        raise DataError(
            say("The wrong kind of IDX file", f"{path} with {head[3]} axes", f"{axes} (images have 3 axes, labels 1)")
        )
    lengths = stream.read(4 * head[3])
    if len(lengths) < 4 * head[3]:
        raise DataError(f"Truncated file: {path} has {4 + len(lengths)} bytes, its head alone needs {4 + 4 * head[3]}.")
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    kind = np.dtype(TYPES[head[2]])
    needed = kind.itemsize
    for length in shape:  # Python integers: a lying head must not overflow
        needed *= length
    content = _read(stream, needed + 1)  # one byte more than promised tells, whatever a hostile file would unpack to
    if len(content) != needed:
        actual = f"more than {needed}" if len(content) > needed else str(len(content))
        state = "Too long a file" if len(content) > needed else "Truncated file"
        raise DataError(
            f"{state}: {path} promises {' x '.join(map(str, shape))} values, so {needed} bytes are expected "
            f"after its head of {4 + 4 * head[3]}; it has {actual}. {_AGAIN}"
        )
    return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _read(stream: BinaryIO | io.BufferedIOBase, most: int) -> bytearray:
    """Read up to ``most`` bytes piece by piece: a lying head must not claim memory that the file cannot fill."""
    content = bytearray()
    while len(content) < most and (piece := stream.read(min(most - len(content), 1 << 24))):
        content += piece
    return content


def encode_idx(values: NDArray[np.uint8]) -> bytes:
    """Return the gzipped IDX file of ``values`` (uint8), the same bytes each time."""
    head = bytes([0, 0, 0x08, values.ndim]) + np.asarray(values.shape, ">u4").tobytes()
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as stream:
        stream.write(head + np.ascontiguousarray(values, np.uint8).tobytes())
    return buffer.getvalue()


def find_idx(folder: Path, stem: str, kind: str) -> Path | None:
    """Return ``folder``'s file such as ``train-images-idx3-ubyte[.gz]`` (``stem`` train, ``kind`` images), or None."""
    number = {"images": 3, "labels": 1}[kind]
    for joint in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{stem}-{kind}{joint}idx{number}-ubyte{suffix}"
            if is_file(path, DataError):
                return path
    return None
