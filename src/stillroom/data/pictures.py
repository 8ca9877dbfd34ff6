"""Picture files: which there are, and the one way in which each becomes pixels, for training and for ``predict``.

A picture is turned as its EXIF tag says, brought to 8 bits a channel, cut to the wanted shape around its middle and
resized (bilinear). 16-bit grey is divided by the depth that the file names; what has no known range is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import DataError, UserError, out_of_memory, say
from stillroom.paths import is_file, reading

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 120_000_000
"""A larger picture is refused before it is decoded; the environment variable ``STILLROOM_MAX_PIXELS`` sets another."""
LISTED = 20  # pictures that an error names
_SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
_SIXTEEN = "I;16"
_BITS = 258  # the TIFF tag BitsPerSample
_SMALLER = 2  # a JPEG is decoded to no less than so many times the wanted side


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a tool, and not to the data."""
    return name.startswith(".") or name.lower() in _SYSTEM


def files_under(folder: Path) -> list[Path]:
    """Return the files at any depth of ``folder``, sorted, but those of other systems and in hidden folders."""
    return sorted(
        file
        for file in folder.rglob("*")
        if not any(map(passed_over, file.relative_to(folder).parts)) and is_file(file, DataError)
    )


def pictures_under(folder: Path) -> list[Path]:
    """Return the pictures at any depth of ``folder``, sorted."""
    return [file for file in files_under(folder) if file.suffix.lower() in PICTURES]


def decode(file: Path, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the pixels of a picture, uint8 of ``shape``: (1, height, width) is grey, (3, height, width) colour.

    Raises:
        DataError: it cannot be read, has more than MAX_PIXELS, or pixels whose range is unknown.
    """
    from PIL import Image, ImageOps

    channels, height, width = (int(one) for one in shape)
    mode = "RGB" if channels == 3 else "L"
    try:
        with _any_size(), reading(file, DataError), Image.open(file) as picture:
            _bounded(picture, file)
            picture.draft(None, (_SMALLER * max(height, width),) * 2)  # JPEG alone: others stay as they are
            upright = _eight_bits(ImageOps.exif_transpose(picture), picture, file).convert(mode)
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        if out_of_memory(error):
            raise DataError(
                say(f"The picture {file} does not fit into memory", reason, "", "Save it smaller.")
            ) from error
        raise DataError(f"Corrupt picture: {file} cannot be read ({reason}). Save it again, or remove it.") from error
    pixels = np.array(fitted, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def decode_all(files: Sequence[Path], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the pixels of all ``files``, uint8 (N, *shape).

    Raises:
        DataError: some cannot be read; it names the first twenty, each with its reason, and how many there are.
    """
    images = np.empty((len(files), *shape), np.uint8)
    wrong: list[str] = []
    for place, file in enumerate(files):
        try:
            images[place] = decode(file, shape)
        except DataError as error:
            wrong.append(str(error))
    if len(wrong) == 1:
        raise DataError(wrong[0])
    if wrong:
        more = f"\n  and {len(wrong) - LISTED:,} more" if len(wrong) > LISTED else ""
        listed = "".join(f"\n  {one}" for one in wrong[:LISTED])
        raise DataError(f"{len(wrong):,} of {len(files):,} pictures cannot be read:{listed}{more}")
    return images


def most_pixels() -> int:
    """Return how many pixels a picture may have.

    Raises:
        UserError: ``STILLROOM_MAX_PIXELS`` is no whole number above 0.
    """
    given = os.environ.get("STILLROOM_MAX_PIXELS", "").strip()
    if not given:
        return MAX_PIXELS
    if not (given.isascii() and given.isdigit() and int(given[:12]) > 0):
        raise UserError(say("STILLROOM_MAX_PIXELS cannot be used", f"'{given[:40]}'", "a whole number above 0"))
    return int(given)


def _bounded(picture: Picture, file: Path) -> None:
    count, most = picture.width * picture.height, most_pixels()
    if count > most:
        given = f"{picture.width:,} x {picture.height:,} = {count:,} pixels"
        do = f"Make {file.name} smaller, or set STILLROOM_MAX_PIXELS={count} if it is to be trusted."
        raise DataError(say(f"{file} is too large a picture", given, f"up to {most:,}", do))


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open a picture of any size without a word: the size is looked at here, before the decoding."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's words on odd metadata and on palettes with transparency
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _eight_bits(upright: Picture, opened: Picture, file: Path) -> Picture:
    """Return a picture whose levels are 0 to 255: deeper grey is divided by its depth."""
    from PIL import Image

    mode = upright.mode
    sixteen = mode.startswith(_SIXTEEN) or (mode == "I" and opened.format in ("PNG", "PPM"))
    if not sixteen and mode not in ("I", "F"):
        return upright
    if not sixteen:
        what = "32-bit whole numbers" if mode == "I" else "floats"
        allowed = "8 bits a channel, or 16-bit grey"
        do = "Save it again with levels from 0 to 255, or leave it out."
        raise DataError(say(f"The range of the pixels of {file} is not known", f"mode {mode}, {what}", allowed, do))
    bits = _bits(opened) if mode.startswith(_SIXTEEN) else 16
    levels = np.asarray(upright).astype(np.float64) * (255 / (2**bits - 1))
    return Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))


def _bits(opened: Picture) -> int:
    """Return the depth of a 16-bit picture: a TIFF may say that it uses 12."""
    tags: Any = getattr(opened, "tag_v2", None) or {}
    found = tags.get(_BITS, 16)
    bits = int(found[0] if isinstance(found, tuple) else found)
    return bits if 8 < bits <= 16 else 16
