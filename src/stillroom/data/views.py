"""Replayable views: each augmented example is a pure function of (seed, example, view).

View 0 is the plain example. A view v >= 1 is cut from the example padded with zeros, at a place of its
own, flipped left to right or not, and noised where that is asked for. Nothing depends on the rest of the
batch, so a stored answer to a view stays true.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.randomness import draw

_FIELD = np.uint64(21)
_MASK = np.uint64((1 << 21) - 1)


@dataclass(frozen=True)
class Views:
    """How many views an example has (view 0, the plain one, among them) and how the others are made.

    ``pad`` is in pixels, each side; ``flip`` allows left-right flips; ``noise`` is the deviation of normal noise that
    is added, as a share of the range of whole numbers (of 255) and in the unit of floats. To imitate a teacher on
    noised inputs is, to second order, to match its derivatives too: their free control (Srinivas and Fleuret 2018,
    https://arxiv.org/abs/1803.00443). Raises DataError on impossible settings.
    """

    count: int = 1
    pad: int = 2
    flip: bool = True
    seed: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise DataError(say("Views cannot be made", f"views={self.count!r}", "a whole number from 1 on, 1 = plain"))
        if not isinstance(self.pad, int) or isinstance(self.pad, bool) or self.pad < 0:
            raise DataError(say("Views cannot be made", f"pad={self.pad!r}", "a whole number of pixels from 0 on"))

        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise DataError(say("Views cannot be made", f"seed={self.seed!r}", "a whole number"))
        if not isinstance(self.flip, bool):
            raise DataError(say("Views cannot be made", f"flip={self.flip!r}", "true or false"))
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise < math.inf:
            raise DataError(say("Views cannot be made", f"noise={self.noise!r}", "a number from 0 on"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings that shape views 1, 2, ...: ``count`` only says how many are used."""
        settings = asdict(self)
        del settings["count"]
        if not self.noise:
            del settings["noise"]  # as it was before there was any
        return fingerprint({"kind": "pad-crop-flip", "version": 1, **settings})

    def check(self, views: NDArray[np.int64]) -> None:
        """Refuse view numbers that do not exist.

        Raises:
            DataError: a view is below 0 or not below ``count``.
        """
        check_views(views, self.count)

    def apply(self, images: NDArray[Any], examples: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[Any]:
        """Return the views of ``images`` (B, C, H, W; any number type): a new array of the same shape and type."""
        batch, _, height, width = images.shape
        top, left, flipped = self._places(examples, views)
        if self.pad:
            frame = ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad))
            padded = np.pad(images, frame)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
            images = windows[np.arange(batch), :, top, left]
        else:
            images = images.copy()
        if flipped.any():
            images[flipped] = images[flipped, :, :, ::-1]
        return self._noised(images, examples, views) if self.noise else images

    def _noised(self, images: NDArray[Any], examples: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[Any]:
        """Add noise to every view but the plain one: normal, by Box and Muller, two numbers from each random word."""
        rows = views > 0
        size, shape = int(np.prod(images.shape[1:])), images[rows].shape
        words = draw(self.seed, "noise", examples[rows, None], views[rows, None], np.arange(-(-size // 2)))
        radius = np.sqrt(-2 * np.log1p(-(words >> np.uint64(32)).astype(np.float64) / 2**32))
        angle = (words & np.uint64(2**32 - 1)).astype(np.float64) * (2 * np.pi / 2**32)
        noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :size].reshape(shape)
        if np.issubdtype(images.dtype, np.integer):
            most = np.iinfo(images.dtype).max
            moved = images[rows] + noise * (self.noise * most)
            images[rows] = moved.round().clip(np.iinfo(images.dtype).min, most).astype(images.dtype)
        else:
            images[rows] = (images[rows] + noise * self.noise).astype(images.dtype)
        return images

    def _places(
        self, examples: NDArray[np.int64], views: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Cut one random word into the row and column of the cut and the flip; the plain view sits in the middle."""
        words = draw(self.seed, "view", examples, views)
        span = np.uint64(2 * self.pad + 1)
        top = (((words & _MASK) * span) >> _FIELD).astype(np.int64)
        left = ((((words >> _FIELD) & _MASK) * span) >> _FIELD).astype(np.int64)
        flipped = (words >> np.uint64(63)).astype(bool) if self.flip else np.zeros(len(words), bool)
        plain = views == 0
        top[plain] = self.pad
        left[plain] = self.pad
        return top, left, flipped & ~plain


def check_views(views: NDArray[np.int64], count: int) -> None:
    """Refuse view numbers below 0 or not below ``count``.

    Raises:
        DataError: naming the first of them.
    """
    if views.size and (views.min() < 0 or views.max() >= count):
        wrong = views[(views < 0) | (views >= count)]
        raise DataError(
            say(
                "No such view",
                f"view {int(wrong[0])}",
                f"0 to {count - 1}",
                "Make the source with more views (views: N), or ask for fewer.",
            )
        )
