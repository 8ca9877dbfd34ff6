"""Intervals that may be printed: Student's t over seeds, a bootstrap over examples, the wider of both; of a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.randomness import integers

LEVEL = 0.95
RESAMPLES = 1000
CLAIM_FROM = 5  # seeds from which "interval above 0" may be claimed
MINUS = "−"


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % interval, how many seeds it rests on and how it was made."""

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "method": self.method}

    @property
    def width(self) -> float:
        """The distance between the ends; infinite when there are none."""
        return math.inf if self.low is None or self.high is None else self.high - self.low


def signed(value: float, digits: int = 1) -> str:
    """Write a difference with its sign, a true minus where it falls: ``+3.4``, ``−3.4``, ``0.0``."""
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", MINUS)


def points(mean: float, low: float | None = None, high: float | None = None) -> str:
    """Write a difference of shares in points, with its interval where there is one: ``+5.0 points [+1.0, +9.0]``."""
    span = "" if low is None or high is None else f" [{signed(100 * low)}, {signed(100 * high)}]"
    return f"{signed(100 * mean)} points{span}"


def in_seeds(count: int) -> str:
    """Return how far a claim from ``count`` seeds reaches; nothing from five on."""
    return "" if count >= CLAIM_FROM else f" in these {count} seeds" if count > 1 else " with this one seed"


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean and Student's t interval with n - 1 degrees of freedom; without ends for a single value."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()), None, None, len(array), "one seed: no interval over seeds")
    from scipy.special import stdtrit  # imported on use; scipy.stats would take over a second

    half = float(stdtrit(len(array) - 1, 0.5 + LEVEL / 2) * array.std(ddof=1) / math.sqrt(len(array)))
    mean = float(array.mean())
    return Interval(mean, mean - half, mean + half, len(array), f"Student's t over {len(array)} seeds, 95 %")


def one_more(values: Sequence[float]) -> tuple[float, float] | None:
    """Return between which ends one more such value is expected (95 %, Student's t); None for fewer than two values.

    It is wider than the interval of their mean: a value beyond it is unlike them.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None
    from scipy.special import stdtrit  # imported on use; scipy.stats would take over a second

    reach = float(stdtrit(len(array) - 1, 0.5 + LEVEL / 2) * array.std(ddof=1) * math.sqrt(1 + 1 / len(array)))
    return float(array.mean()) - reach, float(array.mean()) + reach


def of_share(count: int, rows: int, sure: float = LEVEL) -> tuple[float, float]:
    """Return the exact interval of a share, ``count`` of ``rows`` (Clopper and Pearson 1934).

    It is for claims (https://doi.org/10.2307/2331986): of few rows and a share near 0 or 1 Wilson's misses the truth on
    one side far more often than it says.
    """
    from scipy.special import betaincinv

    tail = (1 - sure) / 2
    low = float(betaincinv(count, rows - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, rows - count, 1 - tail)) if count < rows else 1.0
    return low, high


def over_examples(
    statistic: Callable[[NDArray[np.int64]], float], examples: int, *, seeds: int, seed: int = 0
) -> Interval:
    """Return a percentile bootstrap interval of ``statistic(rows)`` over resampled test examples.

    ``statistic`` takes the numbers of the drawn rows; the same rows are drawn for every model (paired).
    """
    everything = np.arange(examples)
    values = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        values[index] = statistic(integers(examples, seed, "bootstrap", index, everything))
    values = values[np.isfinite(values)]
    mean = statistic(everything)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    method = f"bootstrap over {examples} test examples, 95 %"
    return Interval(mean, float(low), float(high), seeds, method)


def wider(first: Interval, second: Interval) -> Interval:
    """Return the interval with the larger width; one without ends yields to one with ends."""
    if first.low is None:
        return second
    if second.low is None:
        return first
    return first if first.width >= second.width else second


def paired(student: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """Return the mean difference of two models, (seeds x examples) each, paired by seed and by example.

    Its interval is the wider of Student's t over seeds and a bootstrap over examples: the one interval of a difference,
    wherever it is printed.
    """
    difference = student - other
    seeds = over_seeds(difference.mean(1).tolist())
    by_example = difference.mean(0)
    examples = over_examples(lambda rows: float(by_example[rows].mean()), difference.shape[1], seeds=len(difference))
    return wider(seeds, examples)


def unpaired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the difference of two means over seeds that are not the same, with Welch's interval."""
    one, two = (np.asarray(values, dtype=np.float64) for values in (first, second))
    mean, count = float(one.mean() - two.mean()), min(len(one), len(two))
    if count < 2:
        return Interval(mean, None, None, count, "one seed: no interval over seeds")
    from scipy.special import stdtrit  # imported on use; scipy.stats would take over a second

    spreads = [float(part.var(ddof=1)) / len(part) for part in (one, two)]
    total = sum(spreads)
    shares = sum(spread**2 / (len(part) - 1) for spread, part in zip(spreads, (one, two), strict=True))
    freedom = total**2 / shares if shares else len(one) + len(two) - 2
    half = float(stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half, count, "Welch's t, seeds not shared, 95 %")


def gap_closed(
    distilled: NDArray[np.float64], alone: NDArray[np.float64], teacher: NDArray[np.float64]
) -> tuple[Interval | None, str]:
    """Return (distilled - alone) / (teacher - alone), a ratio of means, with its interval; or None and the reason.

    ``distilled`` and ``alone`` are (seeds x examples) of correctness, ``teacher`` (examples). The gap is undefined when
    the teacher's lead over the control lies within its own interval.
    """
    lead = paired(np.broadcast_to(teacher, alone.shape), alone)
    if lead.low is None or lead.low <= 0:
        return (
            None,
            "the teacher does not lead the same student trained alone by more than chance "
            f"({points(lead.mean, lead.low, lead.high)}), so there is no gap to close",
        )
    denominator = float(teacher.mean() - alone.mean())
    share = float(distilled.mean() - alone.mean()) / denominator

    def ratio(rows: NDArray[np.int64]) -> float:
        gap = float(teacher[rows].mean() - alone[:, rows].mean())
        return float(distilled[:, rows].mean() - alone[:, rows].mean()) / gap if gap > 0 else math.nan

    # The delta method: the denominator moves with the seed's control as the numerator does.
    gains, leads = distilled.mean(1) - alone.mean(1), teacher.mean() - alone.mean(1)
    seeds = over_seeds((share + (gains - share * leads) / denominator).tolist())
    return wider(seeds, over_examples(ratio, len(teacher), seeds=len(distilled))), ""
