"""95 % intervals of an experiment: variants and a baseline, each repeated with the same few seeds.

The variants of one seed share its data, order and masks, so their scores are compared seed by seed
(statistics calls such seeds blocks). The variance s² of these differences is each variant's own,
because they differ: a student without the cosine loss is nearly the baseline's twin, one without
the MLM loss is not. One more source of chance is the same in all seeds, and more seeds do not
average it out: the dev rows. Its variance R is added (Bouthillier et al. 2021, arXiv:2103.03098:
vary every source of chance). It is measured on thousands of rows, and taken as known:

    change of a variant = mean difference of n seeds ± c · sqrt(s² / n + R)
    c = (c_seeds · s² / n + c_rows · R) / (s² / n + R)

c_seeds is the critical value for n - 1 degrees of freedom: the fewer seeds s² comes from, the
larger. c_rows is that of a variance which is known. Their mean is weighted by the variances
(Cochran and Cox 1950, for two means of unequal variances). Degrees of freedom for the sum
(Satterthwaite 1946) would make narrower intervals that miss too often: where s² is small by chance,
R seems to be most of the sum, the sum as good as known, and an interval that is too narrow already
gets narrower.

Several variants are compared with one baseline. Dunnett's critical values (Dunnett 1955) hold for
all of these comparisons at once: in 95 % of experiments not one of the intervals misses the truth.
They are derived for equal variances; support/coverage.py simulates how well they hold for those
that were measured.
Read next: support/bootstrap.py, which measures R.
"""
import functools

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95
MANY = 10_000  # degrees of freedom of a variance that is taken as known
GAUSS_HERMITE = np.polynomial.hermite_e.hermegauss(40)    # nodes and weights for exp(-z²/2)
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(40)      # from -1 to 1


def compare_with_first(scores, row_variances, comparisons=None):
    """The changes of the second, third, ... variant against the first: a list of intervals.

    scores: (variants, seeds). row_variances: R of each comparison.
    comparisons: how many the critical value allows for; default: all of these."""
    differences = scores[1:] - scores[0]
    return [compare_pair(of_variant, of_rows, comparisons or len(differences))
            for of_variant, of_rows in zip(differences, row_variances)]


def compare_pair(differences, row_variance, comparisons=1):
    """The interval of one change: if R is 0 and it is the only comparison, the paired t interval.

    differences: of each seed, (seeds,). row_variance: R; an estimate below 0 counts as 0.
    comparisons: how many are to hold at once.
    With one seed there is no interval: "low" and "high" are None."""
    seeds = len(differences)
    if seeds == 1:
        return interval(differences[0])
    variances = np.array([differences.var(ddof=1) / seeds, max(0.0, row_variance)])
    critical = [dunnett_critical(comparisons, df) for df in (seeds - 1, MANY)]
    total = variances.sum()
    half = np.dot(critical, variances) / np.sqrt(total) if total else 0.0
    return interval(differences.mean(), half)


def interval(difference, half=None):
    """{"difference", "low", "high"}. half: half of the interval's width; None: no interval."""
    low, high = (None, None) if half is None else (difference - half, difference + half)
    values = {"difference": difference, "low": low, "high": high}
    return {key: None if value is None else float(value) for key, value in values.items()}


def row_variance(resampled):
    """R, the share of the dev rows in the variance of a difference. It may be below zero by chance.

    resampled: (seeds, resamples), at least two seeds: the difference, measured on resampled rows.
    A row has an effect on the difference that is the same in all seeds, and a noise of each seed
    (crossed random effects; Owen 2007, "The pigeonhole bootstrap"). With their variances over the
    rows, m rows and n seeds:

        variance of one seed's difference:  V_1 = (effect + noise) / m
        variance of the mean over seeds:    V_n = effect / m + noise / (n m)

    So n V_n - V_1 = (n - 1) effect / m = (n - 1) R. The noise is already in s²: V_n would count it
    twice."""
    seeds = len(resampled)
    of_one = resampled.var(axis=1, ddof=1).mean()
    of_mean = resampled.mean(axis=0).var(ddof=1)
    return float((seeds * of_mean - of_one) / (seeds - 1))


@functools.cache
def dunnett_critical(comparisons, df):
    """c such that P(all |T_i| < c) = 0.95, for Dunnett's two-sided test with equal group sizes.

    T_i = (Z_i - Z_0) / (√2 S), where the Z are standard normal and S² is chi²/df: the T_i share
    Z_0, the baseline, so their correlation is 1/2. Given Z_0 and S they are independent; over
    these two we integrate (Gaussian quadrature). One comparison: Student's t."""
    tail = (1 - CONFIDENCE) / 2
    alone, bonferroni = stats.t.ppf((1 - tail, 1 - tail / comparisons), df)
    if comparisons == 1:
        return float(alone)
    z, weight_of_z = GAUSS_HERMITE
    nodes, weight_of_node = GAUSS_LEGENDRE
    first, last = stats.chi.ppf((1e-9, 1 - 1e-9), df)
    s = first + (nodes + 1) / 2 * (last - first)
    density = stats.chi.pdf(s, df) * weight_of_node * (last - first) / 2

    def excess(critical):
        centre, reach = z[:, None], np.sqrt(2 / df) * critical * s
        inside = special.ndtr(centre + reach) - special.ndtr(centre - reach)
        probability = weight_of_z @ inside ** comparisons @ density / np.sqrt(2 * np.pi)
        return probability - CONFIDENCE
    return float(optimize.brentq(excess, alone, bonferroni, xtol=1e-6))
