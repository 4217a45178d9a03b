"""finetune.py's metrics against scikit-learn and scipy."""
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from finetune import accuracy, f1, matthews, pearson, score, spearman

RANDOM = np.random.default_rng(0)


def classes(count):
    return RANDOM.integers(0, 2, count)


PAIRS = {  # (predictions, targets)
    "random": (classes(500), classes(500)),
    "mostly zeros": ((RANDOM.random(500) < 0.1) * classes(500), classes(500)),
    "all right": (np.array([0, 1, 1]), np.array([0, 1, 1])),
    "all wrong": (np.array([1, 0, 0]), np.array([0, 1, 1])),
    "predicted constant 0": (np.zeros(9, int), classes(9)),
    "predicted constant 1": (np.ones(9, int), classes(9)),
    "no positive at all": (np.zeros(4, int), np.zeros(4, int)),
    "large": (classes(400_000), classes(400_000)),  # the margins' product passes 2**63
}


@pytest.mark.parametrize("pair", PAIRS)
def test_metrics_against_scikit_learn(pair):
    predictions, targets = PAIRS[pair]
    reference = sklearn.metrics.accuracy_score(targets, predictions)
    assert accuracy(predictions, targets) == pytest.approx(reference, abs=1e-12)
    reference = sklearn.metrics.f1_score(targets, predictions, zero_division=0)
    assert f1(predictions, targets) == pytest.approx(reference, abs=1e-12)
    if len(set(predictions) | set(targets)) > 1:
        reference = sklearn.metrics.matthews_corrcoef(targets, predictions)
        assert matthews(predictions, targets) == pytest.approx(reference, abs=1e-12)
    else:
        assert matthews(predictions, targets) == 0


SCORES = {  # (predictions, targets)
    "random": (RANDOM.normal(size=300), RANDOM.normal(size=300)),
    "increasing": (np.arange(9.0), np.arange(9.0) ** 3),
    "decreasing": (np.arange(5.0), -np.arange(5.0)),
    "many ties": (RANDOM.integers(0, 6, 300) / 2, RANDOM.integers(0, 6, 300)),
    "far from zero": (1e8 + RANDOM.normal(size=50), RANDOM.normal(size=50)),
}


@pytest.mark.parametrize("pair", SCORES)
def test_correlations_against_scipy(pair):
    predictions, targets = SCORES[pair]
    reference = scipy.stats.pearsonr(predictions, targets)[0]
    assert pearson(predictions, targets) == pytest.approx(reference, abs=1e-9)
    reference = scipy.stats.spearmanr(predictions, targets)[0]
    assert spearman(predictions, targets) == pytest.approx(reference, abs=1e-12)


def test_a_correlation_with_a_constant_is_zero():
    assert pearson(np.ones(5), np.arange(5)) == 0
    assert pearson(np.full(3, 0.1), np.full(3, 0.1)) == 0  # whose mean is rounded, not 0.1
    assert spearman(np.ones(5), np.arange(5)) == 0


def test_scores_are_means_as_on_glues_leaderboard():
    predictions, targets = PAIRS["random"]
    both = f1(predictions, targets) + accuracy(predictions, targets)
    assert score("mrpc", {"dev": (predictions, targets)}) == pytest.approx(100 * both / 2)
    of_two_sets = {"matched": (targets, targets), "mismatched": (1 - targets, targets)}
    assert score("mnli", of_two_sets) == pytest.approx(50)
    assert score("cola", {"dev": (targets, targets)}) == pytest.approx(100)
