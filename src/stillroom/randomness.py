"""Order and noise as pure functions of seed, example, view and step: nothing to save, nothing to lose.

One vectorised 64-bit hash (the finaliser of splitmix64) gives every number. Generators are used
only where PyTorch insists on one (weights, dropout); their seeds come from here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(words: Words) -> Words:
    """Scramble each 64-bit word (splitmix64's finaliser): a bijection that passes for random."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def stream(seed: int, *position: object) -> int:
    """Return a 63-bit seed that belongs to (seed, position) alone, for a generator that wants one."""
    return int.from_bytes(hashlib.sha256(repr((int(seed), *position)).encode()).digest()[:8], "little") >> 1


def draw(seed: int, *position: NDArray[np.int64] | int | str) -> Words:
    """Return one 64-bit word for each position; integer arrays are broadcast, names are hashed once.

    Example:
        >>> draw(0, np.array([7, 8]), 1, "flip").shape
        (2,)
    """
    state: Words = np.asarray(stream(seed), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in position:
            if isinstance(part, str):
                part = stream(0, part)
            words = np.asarray(part).astype(np.int64).view(np.uint64)
            state = mix(state + _GOLDEN + mix(words + _GOLDEN))
    return state


def uniform(seed: int, *position: NDArray[np.int64] | int | str) -> NDArray[np.float64]:
    """Return numbers in [0, 1), one for each position."""
    return (draw(seed, *position) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(high: int, seed: int, *position: NDArray[np.int64] | int | str) -> NDArray[np.int64]:
    """Return whole numbers in [0, high), one for each position."""
    return (uniform(seed, *position) * high).astype(np.int64)


def permutation(count: int, seed: int, *position: int | str) -> NDArray[np.int64]:
    """Return 0 .. count - 1 in an order that belongs to (seed, position)."""
    return np.argsort(draw(seed, *position, np.arange(count)), kind="stable")


_WORDS = 1 << 19


def row_hashes(rows: NDArray[Any]) -> Words:
    """Return a 64-bit hash of each row's bytes (any dtype, any shape after the first axis)."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    spare = -flat.shape[1] % 8
    if spare:
        flat = np.concatenate([flat, np.zeros((len(flat), spare), np.uint8)], axis=1)
    words = np.ascontiguousarray(flat).view(np.uint64)
    with np.errstate(over="ignore"):
        salt = mix(np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _GOLDEN)
        hashed = np.empty(len(words), np.uint64)
        step = max(1, min(4096, _WORDS // max(1, words.shape[1])))  # large rows few at a time: each makes copies
        for start in range(0, len(words), step):
            part = words[start : start + step]
            hashed[start : start + step] = mix(mix(part ^ salt).sum(axis=1, dtype=np.uint64))
    return hashed


def reseed(seed: int) -> None:
    """Seed PyTorch's generators, to the same numbers as ``torch.manual_seed``.

    That function leaves a note with the whole call stack for each accelerator that is not there: 0.2 ms a call.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def forked(seed: int, *position: object) -> Iterator[None]:
    """Seed PyTorch's generator for a while; what it was before comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, *position))
        yield
