"""From raw pixels to what a network wants: a small module that goes into the exported graph with it.

Texts have theirs in :mod:`stillroom.models.text_encode`, tables in :mod:`stillroom.models.table_encode`; all are made
again here, from their descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import Source
from stillroom.errors import ModelError, say
from stillroom.models.table_encode import TableEncode, table_encode
from stillroom.models.text_encode import HuggingFaceEncode, WordEncode

_PIXELS = 1 << 24  # that are counted at a time


class ImageEncode(nn.Module):
    """Turn pixels (B, C, H, W; uint8, or floats from 0 to 255) into normalised float32.

    ``mean`` and ``std`` are per channel, of pixels scaled to 0..1. ``size`` (height, width) resizes, bilinear.
    The division by 255 is folded in: one multiplication and one addition.

    Raises:
        ModelError: means and deviations do not pair up, or a deviation is not above 0.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != len(self.std) or not self.mean or not all(value > 0 for value in self.std):
            given = f"mean {self.mean}, std {self.std}"
            raise ModelError(say("This normalisation cannot be used", given, "as many of each, each std above 0"))
        self.size = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
        means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        self.register_buffer("scale", (1 / (255 * deviations)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-means / deviations).float().view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised float32 images (B, C, height, width)."""
        pixels = inputs.float()
        if self.size is not None and tuple(pixels.shape[2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", align_corners=False)
        # not addcmul: with operands of one number it takes three times as long
        return (pixels * self.scale).add_(self.shift)

    def describe(self) -> dict[str, Any]:
        """Return what :func:`from_description` needs, as plain JSON values."""
        size = None if self.size is None else list(self.size)
        return {"kind": "image", "mean": list(self.mean), "std": list(self.std), "size": size}


def from_description(description: dict[str, Any] | None) -> nn.Module | None:
    """Make the encode that ``describe`` described, of images, texts or tables; None (no encode) gives None.

    Raises:
        ModelError: the description is not one of an encode, or what it says cannot be used.
        MissingPart: the package that this kind of text needs is not installed.
    """
    if description is None:
        return None
    needed = {
        "image": ("mean", "std"),
        "words": ("vocabulary",),
        "hugging-face": ("tokenizer",),
        "table": ("columns",),
    }
    kind = description.get("kind")
    if kind not in needed or not set(needed[kind]) <= set(description):
        given = {key: value for key, value in description.items() if len(str(value)) < 100}
        allowed = ", ".join(f"kind '{name}' with {' and '.join(parts)}" for name, parts in needed.items())
        raise ModelError(say("Unknown kind of encode", given, allowed))
    if kind == "words":
        unit, longest = description.get("unit", "word"), description.get("longest", 64)
        return WordEncode(description["vocabulary"], unit=unit, longest=longest)
    if kind == "hugging-face":
        longest, padding = description.get("longest", 128), description.get("padding")
        return HuggingFaceEncode(description["tokenizer"], longest=longest, padding=padding)
    if kind == "table":
        return TableEncode(description["columns"])
    return ImageEncode(description["mean"], description["std"], description.get("size"))


def from_source(source: Source, rows: Tensor, size: int | Sequence[int] | None = None) -> ImageEncode:
    """Measure mean and deviation of each channel over ``rows`` (example numbers) of uint8 images, plain view.

    A channel that never changes gets the deviation 1.

    Raises:
        ModelError: there are no rows, or they are not uint8 images.
    """
    if not len(rows):
        raise ModelError(say("Nothing to measure the normalisation on", "0 rows", "at least one training row"))
    first = source.batch(torch.tensor([[int(rows[0]), 0]]))["inputs"]
    step = max(1, min(4096, _PIXELS // max(1, first.numel())))
    count, total, squares = 0, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for part in torch.split(rows, step):
        pixels = source.batch(torch.stack([part, torch.zeros_like(part)], dim=1))["inputs"]
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            given = f"{str(pixels.dtype).removeprefix('torch.')} of shape {tuple(pixels.shape)}"
            raise ModelError(say("Only uint8 images are normalised here", given, "uint8 (B, C, H, W)"))
        # whole numbers, so the result does not depend on the order or on the number of threads
        values = pixels.transpose(0, 1).flatten(1)
        levels = torch.stack([torch.bincount(channel, minlength=256) for channel in values])
        grey = torch.arange(256)
        count += values.shape[1]
        total = total + (levels * grey).sum(dim=1)
        squares = squares + (levels * grey * grey).sum(dim=1)
    mean = total.double() / count
    std = (squares.double() / count - mean * mean).clamp(min=0).sqrt() / 255
    std = torch.where(std > 0, std, torch.ones_like(std))
    return ImageEncode((mean / 255).tolist(), std.tolist(), size)


def encode_for(source: Source, size: int | Sequence[int] | None = None) -> nn.Module | None:
    """Return an encode measured on the training rows of uint8 images or of a table; None for other floats."""
    train = source.splits["train"]
    if getattr(source, "modality", "") == "table":
        return table_encode(source)
    first = source.batch(torch.tensor([[int(train[0]) if len(train) else 0, 0]]))["inputs"]
    if first.dtype != torch.uint8 or first.ndim != 4:
        return None
    return from_source(source, train, size)
