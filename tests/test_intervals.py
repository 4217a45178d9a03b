"""intervals.py: against tables, scipy, least squares, and experiments whose truth is known."""
import numpy as np
import pytest
import scipy.stats

from support.intervals import compare_pair, compare_with_first, dunnett_critical, row_variance

NOISE, ROWS = 1.5, 0.8  # standard deviations


# ---- Critical values ----

@pytest.mark.parametrize("comparisons, df, published", [
    # Dunnett 1964, "New tables for multiple comparisons with a control", two-sided, 5 %
    (1, 12, 2.18), (2, 12, 2.50), (3, 12, 2.68), (4, 12, 2.81), (3, 20, 2.54), (2, 5, 3.03),
    (3, 10_000, 2.35)])
def test_critical_values_against_the_published_table(comparisons, df, published):
    assert dunnett_critical(comparisons, df) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("comparisons, df", [(2, 2), (3, 12), (14, 56)])
def test_critical_values_against_the_multivariate_t_distribution(comparisons, df):
    correlation = np.full((comparisons, comparisons), 0.5) + 0.5 * np.eye(comparisons)
    reference = scipy.stats.multivariate_t(shape=correlation, df=df, seed=0)
    limit = np.full(comparisons, dunnett_critical(comparisons, df))
    assert reference.cdf(limit, lower_limit=-limit) == pytest.approx(0.95, abs=0.0005)


def test_the_interval_against_scipys_dunnett():
    """Which knows no blocks: so its variance and degrees of freedom are taken."""
    control, *others = samples = np.random.default_rng(0).normal(60, 2, (4, 6))
    variance, df = np.mean([group.var(ddof=1) for group in samples]), 4 * 5
    half = dunnett_critical(3, df) * np.sqrt(2 * variance / 6)
    reference = scipy.stats.dunnett(*others, control=control, rng=np.random.default_rng(0))
    expected = reference.confidence_interval(0.95)
    differences = np.mean(others, axis=1) - control.mean()
    assert differences - half == pytest.approx(expected.low, abs=0.02)
    assert differences + half == pytest.approx(expected.high, abs=0.02)


# ---- Intervals ----

def test_each_variant_has_its_own_variance_and_the_critical_value_of_all_comparisons():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 5)) * [[1], [0.1], [1], [9]] + np.arange(5) * 10
    for variant, value in zip(scores[1:], compare_with_first(scores, [0, 0, 0])):
        reference = scipy.stats.ttest_rel(variant, scores[0])
        standard_error = (variant - scores[0]).mean() / reference.statistic
        assert value["difference"] == pytest.approx((variant - scores[0]).mean())
        half = (value["high"] - value["low"]) / 2
        assert half == pytest.approx(dunnett_critical(3, 4) * standard_error)


def test_one_comparison_is_students_paired_t_interval():
    baseline, variant = np.array([55.0, 56.0, 55.5]), np.array([50.0, 53.0, 49.0])
    reference = scipy.stats.ttest_rel(variant, baseline).confidence_interval(0.95)
    pair = compare_pair(variant - baseline, 0)
    [first] = compare_with_first(np.array([baseline, variant]), [0])
    for value in (pair, first):
        assert value["difference"] == pytest.approx(-4.5 - 1 / 3)
        assert (value["low"], value["high"]) == pytest.approx(tuple(reference))


def test_the_rows_widen_an_interval_as_an_independent_variance():
    scores = np.random.default_rng(0).normal(size=(3, 4))
    narrow, wide = compare_with_first(scores, [0, 0]), compare_with_first(scores, [9, -9])
    half = np.sqrt((scores[1] - scores[0]).var(ddof=1) / 4 + 9)
    width = wide[0]["high"] - wide[0]["low"]
    # Fewer degrees of freedom than those of a known variance, more than those of s².
    assert dunnett_critical(2, 1000) <= width / half / 2 < dunnett_critical(2, 3) - 0.1
    assert wide[1] == narrow[1]  # an estimate below zero is zero
    pair = compare_pair(scores[1] - scores[0], 9)
    width = pair["high"] - pair["low"]
    assert 1.96 < width / half / 2 < scipy.stats.t.ppf(0.975, 3) - 0.1
    certain = compare_pair(np.full(4, 2.0), 9)  # the seeds agree: the rows' normal distribution
    assert certain["high"] == pytest.approx(2 + 3 * scipy.stats.norm.ppf(0.975), abs=0.002)
    assert compare_pair(np.full(4, 2.0), 0) == {"difference": 2, "low": 2, "high": 2}


def test_one_seed_has_no_interval():
    assert compare_with_first(np.array([[3.0], [1.0], [7.0]]), [0, 0]) == [
        {"difference": -2, "low": None, "high": None}, {"difference": 4, "low": None, "high": None}]
    assert compare_pair(np.array([2.5]), 0) == {"difference": 2.5, "low": None, "high": None}
    assert compare_with_first(np.ones((1, 5)), []) == []


# ---- The share of the rows ----

def test_the_share_of_the_rows_is_what_seeds_do_not_average_out():
    rng, rows, seeds = np.random.default_rng(0), 500, 4
    effect, noise = rng.normal(0, 2, rows), rng.normal(0, 5, (seeds, rows))
    draws = rng.integers(rows, size=(4000, rows))
    weights = np.array([np.bincount(draw, minlength=rows) for draw in draws]) / rows
    estimate = row_variance((effect + noise) @ weights.T)
    # Without the bootstrap: mean covariance of two seeds over the rows, that is the effect's.
    covariance = np.cov(effect + noise)
    expected = covariance[~np.eye(seeds, dtype=bool)].mean() / rows
    assert estimate == pytest.approx(expected, rel=0.1)
    assert estimate == pytest.approx(4 / rows, rel=0.5)


# ---- Do they hold the truth? ----

def coverage(known_rows, noise=(NOISE,) * 4, draws=2000, seeds=5, rows=ROWS):
    """The share of simulated experiments in which all intervals hold the truth.

    known_rows: R as the intervals know it. rows: its root in truth."""
    rng, truth, held = np.random.default_rng(0), np.array([0.0, -1, 0, 3]), 0
    for _ in range(draws):
        of_rows = rng.normal(0, rows / np.sqrt(2), (4, 1))
        scores = truth[:, None] + of_rows + rng.normal(0, 9, seeds)
        scores = scores + rng.normal(0, 1, (4, seeds)) * np.array(noise)[:, None]
        values = compare_with_first(scores, [known_rows] * 3)
        held += all(value["low"] <= change <= value["high"]
                    for value, change in zip(values, truth[1:]))
    return held / draws


def test_in_95_of_100_experiments_all_intervals_hold_the_truth():
    assert 0.935 < coverage(ROWS ** 2) < 0.97
    assert coverage(0) < 0.91  # without the rows they would not


def test_they_hold_it_too_if_one_variant_is_the_baselines_twin_and_another_is_noisy():
    assert 0.935 < coverage(ROWS ** 2, (0.3, 0.1, 1, 3)) < 0.97


@pytest.mark.parametrize("rows", [0.2, 0.4])
@pytest.mark.parametrize("seeds, least", [(3, 0.92), (5, 0.93), (10, 0.93)])
def test_they_hold_it_where_the_rows_are_a_small_part_of_the_variance(seeds, least, rows):
    """With Satterthwaite's degrees of freedom, 3 seeds: 0.87."""
    assert least < coverage(rows ** 2, seeds=seeds, rows=rows) < 0.97
