"""How figures are timed and counted: one thread on one core, paired blocks, PyTorch calls a step."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""Both sides keep the memory that they once had: else it is luck whether a network's maps are given back to the
system and fetched again at each step, which costs either side up to a quarter of its time."""


@dataclass(frozen=True)
class Figure:
    """One measured figure: its values (one a pair or block), and the bound its median must keep."""

    part: str
    name: str
    values: tuple[float, ...]
    bound: float | None = None
    most: bool = True
    """Whether ``bound`` is the most or the least that is allowed."""
    unit: str = "x"
    note: str = ""
    passed: bool | None = None
    """Set where the bound is not one on the median."""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.passed is not None or self.bound is None:
            return self.passed
        return self.median <= self.bound if self.most else self.median >= self.bound

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "median": self.median, "met": self.met}


def pin() -> int:
    """Keep this process on one core with one thread; return the core's number."""
    torch.set_num_threads(1)
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


@dataclass(frozen=True)
class Pairs:
    """Seconds of A and B, taken in turns; ``clock`` on the wall, ``work`` of the processor."""

    clock: tuple[tuple[float, float], ...]
    work: tuple[tuple[float, float], ...]

    def slowdown(self) -> tuple[float, ...]:
        """How many times as long as A each B took."""
        return tuple(b / a for a, b in self.clock)

    def speed(self) -> tuple[float, ...]:
        """How many times as fast as A each B was."""
        return tuple(a / b for a, b in self.clock)

    def more(self) -> dict[str, Any]:
        """Return the raw seconds and the ratio B / A of processor time, which waiting for the disk is not part of."""
        work = statistics.median(b / a for a, b in self.work)
        return {"seconds": [list(pair) for pair in self.clock], "processor_ratio": work}


def paired(a: Callable[[], object], b: Callable[[], object], pairs: int) -> Pairs:
    """Run A B A B ... after one of each that is not counted."""
    a(), b()
    taken = [(_timed(a), _timed(b)) for _ in range(pairs)]
    return Pairs(tuple((x[0], y[0]) for x, y in taken), tuple((x[1], y[1]) for x, y in taken))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def advance(steps: Iterator[object], count: int) -> Callable[[], None]:
    """Return a call that takes ``count`` steps of an endless training."""

    def block() -> None:
        taken = sum(1 for _ in islice(steps, count))
        assert taken == count, "the training ended before its measurement"

    return block


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls_a_step(steps: Iterator[object], count: int) -> dict[str, float]:
    """Return how often each PyTorch operator runs in a step: forward, backward and optimizer, mean of ``count``."""
    with _Counting() as mode:
        advance(steps, count)()
    return {name: number / count for name, number in sorted(mode.calls.items())}


def extra_calls(ours: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    """Return by how much ours exceeds (or, negative, saves) each operator of the floor."""
    differences = {name: ours.get(name, 0) - floor.get(name, 0) for name in sorted({*ours, *floor})}
    return {name.removeprefix("aten."): round(value, 2) for name, value in differences.items() if abs(value) >= 0.05}
