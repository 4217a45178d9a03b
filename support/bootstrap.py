"""Scores on resampled dev rows: the bootstrap (Efron 1979) that tells how much the rows matter.

A resample draws as many dev rows as there are, with replacement: each row counts 0, 1, 2, ...
times. So the metrics of finetune.py are written here once more, with a weight for each row, for
all resamples at once. Read next: support/statistics.py.
"""
import numpy as np

import finetune

RESAMPLES = 400


def resampled_scores(task, sets_of_runs):
    """The score of several runs on resampled dev rows, (runs, RESAMPLES), out of 100.

    sets_of_runs: {name of a dev set: (predictions, targets)} of each run; for squad the predictions
    are replaced by their F1. The resamples are the same for all runs and in all calls with as many
    rows, so differences are paired."""
    rng, values = np.random.default_rng(0), []
    for name, (_, targets) in sets_of_runs[0].items():
        weights = draw_weights(len(targets), rng)
        pairs = [run[name] for run in sets_of_runs]
        if task == "squad":
            values.append([weighted_mean(f1s, weights) for f1s, _ in pairs])
            continue
        for metric in finetune.headline_metrics(task):
            values.append([WEIGHTED[metric](*pair, weights) for pair in pairs])
    return 100 * np.mean(values, axis=0)


def draw_weights(rows, rng):
    """How often each row is drawn, (RESAMPLES, rows)."""
    draws = rng.integers(rows, size=(RESAMPLES, rows))
    return np.array([np.bincount(draw, minlength=rows) for draw in draws], float)


# ---- Weighted metrics: (predictions, targets, weights) -> (RESAMPLES) ----

def weighted_mean(values, weights):
    """values: (rows), or (RESAMPLES, rows) if they differ between the resamples."""
    sums = weights @ values if values.ndim == 1 else (weights * values).sum(axis=1)
    return sums / weights.sum(axis=1)


def accuracy(predictions, targets, weights):
    return weighted_mean(np.equal(predictions, targets).astype(float), weights)


def f1(predictions, targets, weights):
    true_pos, false_pos, false_neg, _ = confusion(predictions, targets, weights)
    return ratio(2 * true_pos, 2 * true_pos + false_pos + false_neg)


def matthews(predictions, targets, weights):
    true_pos, false_pos, false_neg, true_neg = confusion(predictions, targets, weights)
    margins = ((true_pos + false_pos) * (true_pos + false_neg)
               * (true_neg + false_pos) * (true_neg + false_neg))
    return ratio(true_pos * true_neg - false_pos * false_neg, np.sqrt(margins))


def confusion(predictions, targets, weights):
    """finetune.confusion of every resample: four arrays, (RESAMPLES)."""
    predicted, actual = np.equal(predictions, 1), np.equal(targets, 1)
    cells = (predicted & actual, predicted & ~actual, ~predicted & actual, ~predicted & ~actual)
    return [weights @ cell for cell in cells]


def pearson(predictions, targets, weights):
    """predictions, targets: (rows), or (RESAMPLES, rows)."""
    x = predictions - weighted_mean(predictions, weights)[:, None]
    y = targets - weighted_mean(targets, weights)[:, None]
    covariance, x_variance, y_variance = (
        weighted_mean(product, weights) for product in (x * y, x * x, y * y))
    return ratio(covariance, np.sqrt(x_variance * y_variance))


def spearman(predictions, targets, weights):
    return pearson(ranks(predictions, weights), ranks(targets, weights), weights)


def ranks(values, weights):
    """finetune.ranks in every resample, (RESAMPLES, rows): equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts  # where each value begins in sorted order
    totals = np.add.reduceat(weights[:, np.argsort(values)], first, axis=1)
    return (np.cumsum(totals, axis=1) - (totals - 1) / 2)[:, places]


def ratio(above, below):
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


WEIGHTED = {
    finetune.accuracy: accuracy, finetune.f1: f1, finetune.matthews: matthews,
    finetune.pearson: pearson, finetune.spearman: spearman,
}
