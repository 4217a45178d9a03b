"""bootstrap.py: weighted metrics are those of finetune.py on rows that occur several times."""
import numpy as np
import pytest
import scipy.stats

import finetune
from support.bootstrap import RESAMPLES, draw_weights, resampled_scores
from support.intervals import row_variance

RANDOM = np.random.default_rng(0)


def classes(count, rows=300):
    """Targets, and predictions that are mostly right."""
    targets = RANDOM.integers(0, count, rows)
    wrong = RANDOM.integers(0, count, rows)
    return np.where(RANDOM.random(rows) < 0.7, targets, wrong), targets


def constant(rows=300):
    return np.ones(rows, int), RANDOM.integers(0, 2, rows)


def ratings(rows=200):
    """Many ties, as in STS-B."""
    targets = RANDOM.integers(0, 11, rows) / 2
    return np.round(targets + RANDOM.normal(0, 1.5, rows)), targets


@pytest.mark.parametrize("task, sets", [
    ("cola", {"dev": classes(2)}),
    ("cola", {"dev": constant()}),
    ("mrpc", {"dev": classes(2)}),
    ("mnli", {"dev_matched": classes(3), "dev_mismatched": classes(3, 200)}),
    ("stsb", {"dev": ratings()}),
    ("stsb", {"dev": (np.ones(50), np.arange(50.0))}),
])
def test_scores_are_those_of_the_resampled_rows(task, sets):
    scores = resampled_scores(task, [sets, sets])
    assert scores.shape == (2, RESAMPLES)
    rng = np.random.default_rng(0)
    weights = {name: draw_weights(len(targets), rng) for name, (_, targets) in sets.items()}
    for number in (0, 1, RESAMPLES - 1):
        resampled = {}
        for name, pair in sets.items():
            times = weights[name][number].astype(int)
            resampled[name] = tuple(np.repeat(values, times) for values in pair)
        expected = finetune.score(task, resampled)
        assert scores[:, number] == pytest.approx(expected, abs=1e-9)


def test_of_squad_the_mean_f1_is_resampled():
    f1s = RANDOM.random(400)
    scores = resampled_scores("squad", [{"dev": (f1s, np.array(["[]"] * 400))}])
    reference = scipy.stats.bootstrap((100 * f1s,), np.mean, rng=np.random.default_rng(1))
    assert scores.std(ddof=1) == pytest.approx(reference.standard_error, rel=0.15)


def test_the_spread_is_that_of_scipys_paired_bootstrap():
    (weak, targets), (strong, _) = classes(2, 400), classes(2, 400)
    strong = np.where(RANDOM.random(400) < 0.9, targets, strong)
    scores = resampled_scores("sst2", [{"dev": (weak, targets)}, {"dev": (strong, targets)}])
    changes = 100 * ((weak == targets) * 1.0 - (strong == targets))
    reference = scipy.stats.bootstrap((changes,), np.mean, rng=np.random.default_rng(1))
    deviation = (scores[0] - scores[1]).std(ddof=1)
    assert deviation == pytest.approx(reference.standard_error, rel=0.15)


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_the_share_of_the_rows_is_what_other_rows_would_change(task):
    """Of metrics that are not means: against many sets of rows, drawn from the same world."""
    rng, seeds, rows = np.random.default_rng(0), 4, 500

    def measured():
        """(difference of two models, R): the second knows some kinds of rows, in all seeds."""
        targets, kind = rng.integers(0, 2, rows), rng.random(rows)
        knows = np.where(kind < 0.35, 0.95, 0.35)
        runs = []
        for chance in (np.full(rows, 0.6), knows):
            for _ in range(seeds):
                known = rng.random(rows) < chance
                guess = rng.integers(0, 2, rows)
                runs.append({"dev": (np.where(known, targets, guess), targets)})
        scores = np.array([finetune.score(task, run) for run in runs]).reshape(2, seeds)
        first, second = resampled_scores(task, runs).reshape(2, seeds, -1)
        return np.mean(scores[1] - scores[0]), row_variance(second - first), scores
    found = [measured() for _ in range(300)]
    differences, shares = [value[0] for value in found], [value[1] for value in found]
    # In these runs a seed changes a score by the noise of its rows alone.
    noise = np.mean([(scores[1] - scores[0]).var(ddof=1) / seeds for *_, scores in found])
    assert np.mean(shares) == pytest.approx(np.var(differences, ddof=1) - noise, rel=0.35)
    assert np.mean(shares) > noise / 10
