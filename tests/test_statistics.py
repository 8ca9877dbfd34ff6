"""Intervals that may be printed, against scipy, by hand, and by counting how often they are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stillroom.randomness import uniform
from stillroom.statistics import Interval, gap_closed, over_examples, over_seeds, paired, unpaired, wider


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.91, 0.93, 0.9], [3.0, 3.0, 3.0, 3.0], list(range(12))])
def test_the_interval_over_seeds_is_students(values):
    found = over_seeds(values)
    assert found.mean == pytest.approx(np.mean(values)) and found.n == len(values)
    if np.std(values):
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high))
    else:
        assert found.low == found.high == 3.0
    assert f"Student's t over {len(values)} seeds" in found.method


def test_one_seed_has_no_interval_and_says_so():
    found = over_seeds([0.5])
    assert (found.mean, found.low, found.high, found.n) == (0.5, None, None, 1) and "one seed" in found.method
    assert found.width == math.inf
    assert found.plain() == {"mean": 0.5, "low": None, "high": None, "n": 1, "method": found.method}


def test_the_wider_is_taken_and_one_without_ends_yields():
    narrow, wide = Interval(1, 0.9, 1.1, 3, "narrow"), Interval(1, 0.5, 1.5, 3, "wide")
    none = over_seeds([1.0])
    assert wider(narrow, wide) is wide is wider(wide, narrow)
    assert wider(none, narrow) is narrow is wider(narrow, none) and wider(none, none) is none


def hits(seed: int, examples: int, rate: float) -> np.ndarray:
    return (uniform(seed, "hits", np.arange(examples)) < rate).astype(float)


def test_the_bootstrap_is_the_same_every_time_and_about_as_wide_as_theory_has_it():
    values = hits(1, 900, 0.8)
    found = [over_examples(lambda rows: float(values[rows].mean()), 900, seeds=1) for _ in range(2)]
    assert found[0] == found[1] and found[0].mean == values.mean()
    other = over_examples(lambda rows: float(values[rows].mean()), 900, seeds=1, seed=5)
    assert other != found[0]
    half = 1.96 * values.std() / math.sqrt(900)
    assert found[0].width == pytest.approx(2 * half, rel=0.12)
    assert found[0].low < values.mean() < found[0].high and "bootstrap over 900 test examples" in found[0].method


def test_pairing_takes_away_what_both_models_share():
    shared = hits(2, 600, 0.7)
    better = np.maximum(shared, hits(3, 600, 0.05))
    found = paired(np.stack([better] * 3), np.stack([shared] * 3))
    apart = over_examples(lambda rows: float(better[rows].mean()), 600, seeds=3)
    assert found.mean == pytest.approx(better.mean() - shared.mean()) and found.low > 0
    assert found.width < apart.width / 2


def test_seeds_that_disagree_make_the_wider_interval():
    base = np.zeros((3, 400))
    spread = np.stack([np.full(400, value) for value in (0.0, 0.1, 0.2)])
    found = paired(spread, base)
    assert "Student" in found.method and found.low < 0 < found.high
    steady = np.stack([hits(4, 400, 0.5)] * 3)
    assert "bootstrap" in paired(steady, base).method


def test_the_gap_closed_is_a_ratio_of_means():
    teacher, base = np.ones(1000), hits(1, 1000, 0.8)
    alone = np.stack([base, base, base])
    distilled = np.stack([np.maximum(base, hits(seed, 1000, 0.5)) for seed in (5, 6, 7)])
    found, reason = gap_closed(distilled, alone, teacher)
    assert reason == "" and found.mean == pytest.approx((distilled.mean() - base.mean()) / (1 - base.mean()))
    assert found.low < found.mean < found.high and found.low > 0.3
    worse, _ = gap_closed(alone * 0.9, alone, teacher)
    assert worse.mean < 0 and worse.high < 0, "a student that got worse closes less than nothing"
    same, _ = gap_closed(np.stack([teacher] * 3), alone, teacher)
    assert same.mean == pytest.approx(1) and same.low == pytest.approx(1)


def test_without_a_gap_there_is_a_reason_and_no_number():
    alone = np.stack([hits(seed, 500, 0.8) for seed in (1, 2, 3)])
    for teacher in (hits(9, 500, 0.8), hits(9, 500, 0.5)):
        found, reason = gap_closed(alone, alone, teacher)
        assert found is None and "does not lead" in reason and "points [" in reason and "no gap to close" in reason


def test_a_single_seed_is_judged_by_its_examples():
    base = hits(1, 1000, 0.7)
    found, reason = gap_closed(np.maximum(base, hits(2, 1000, 0.5))[None], base[None], np.ones(1000))
    assert reason == "" and found.n == 1 and "bootstrap" in found.method


def test_the_interval_over_seeds_is_right_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    right = sum(
        found.low <= 1.0 <= found.high
        for found in (over_seeds(generator.normal(1.0, 0.3, size=3).tolist()) for _ in range(400))
    )
    assert 0.92 < right / 400 < 0.98


def test_the_gap_is_divided_by_the_teachers_lead_and_seeds_widen_it_by_the_delta_method():
    """Teacher 90 %, alone 50 and 60 %, distilled 70 and 90 %: gains 20 and 30 of leads 40 and 30 points."""

    def right(*shares):
        return np.stack([np.arange(1000) < 1000 * share for share in shares]).astype(float)

    teacher, alone, distilled = right(0.9)[0], right(0.5, 0.6, 0.5, 0.6), right(0.7, 0.9, 0.7, 0.9)
    found, reason = gap_closed(distilled, alone, teacher)
    assert reason == "" and found.mean == pytest.approx(0.25 / 0.35), "not 0.25 / 0.9, nor the mean of 0.5 and 1"
    share = 0.25 / 0.35
    pseudo = [share + (gain - share * lead) / 0.35 for gain, lead in ((0.2, 0.4), (0.3, 0.3)) * 2]
    low, high = stats.t.interval(0.95, 3, loc=share, scale=stats.sem(pseudo))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high)) and found.n == 4
    assert found.method == "Student's t over 4 seeds, 95 %"


def test_rows_paired_wrongly_make_another_interval():
    """Two models that differ in ten of 400 rows: paired they are told apart; with one's rows shuffled they are not."""
    shared = hits(2, 400, 0.7)
    better = shared.copy()
    better[np.flatnonzero(shared == 0)[:10]] = 1
    mixed = better[np.random.default_rng(0).permutation(400)]
    right, wrong = paired(better[None], shared[None]), paired(mixed[None], shared[None])
    assert right.mean == pytest.approx(wrong.mean) == pytest.approx(10 / 400)
    assert right.low > 0 > wrong.low and right.n == 1 and wrong.width > 3 * right.width
    seeds = np.stack([shared, better])
    assert paired(seeds, seeds).width == 0 < paired(seeds, seeds[::-1]).width, "seeds are paired too"


def test_seeds_that_are_not_shared_have_welchs_interval():
    one, two = [0.9, 0.93, 0.91, 0.95], [0.85, 0.84, 0.89]
    found, theirs = unpaired(one, two), stats.ttest_ind(one, two, equal_var=False).confidence_interval()
    assert found.mean == pytest.approx(0.9225 - 0.86) and found.n == 3
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert unpaired(one, [0.5]).low is None and unpaired(one, [0.5]).mean == pytest.approx(0.4225)


def test_a_lead_within_chance_is_no_gap():
    """Two more right of 400, by ten that only one of them has: the teacher leads by half a point, by chance."""
    alone = np.zeros(400)
    alone[:304] = 1
    teacher = alone.copy()
    teacher[300:304], teacher[304:310] = 0, 1
    assert teacher.mean() - alone.mean() == pytest.approx(0.005)
    found, reason = gap_closed(teacher[None], alone[None], teacher)
    assert found is None and "+0.5 points [−" in reason
