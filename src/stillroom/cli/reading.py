"""Reading what a person wants classified: pictures, folders of pictures, NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, say

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz")


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
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.suffix.lower() in PICTURES + ARRAYS)
    if not place.is_file():
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
        with Image.open(place) as picture:
            fitted = ImageOps.fit(picture.convert("L" if shape[0] == 1 else "RGB"), (shape[2], shape[1]))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"Cannot read the picture {place}: {error}. Remove it or save it again.") from error
    pixels = np.asarray(fitted).copy()
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _array(place: Path, wanted: Mapping[str, Any]) -> Tensor:
    import numpy as np
    import torch

    try:
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
