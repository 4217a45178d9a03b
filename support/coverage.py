"""Simulated experiments whose truth is known: how often do the intervals of the report hold it?

    python -m support.coverage --results runs/toy/results.json

The variances and changes of a finished experiment are taken as the truth, and many experiments
are drawn from it, with new seeds and new dev rows. Their intervals are those of
support/intervals.py. All intervals of one experiment should hold the truth together in 95 of 100.
"""
from math import sqrt

import numpy as np

from support.bootstrap import draw_weights
from support.cli import Parser, command_line, in_range
from support.errors import InputError
from support.files import read_json
from support.intervals import compare_with_first, row_variance
from support.statistics import glue_tasks, summary_of_probes

# ---- Scores, drawn as numbers: the share of the rows is known ----

def draw_scores(rng, truth, seeds, covariance, row_shares):
    """Scores of one experiment, (variants, seeds).

    truth: the true score of each variant, (variants,), the baseline first. covariance: of the
    variants' scores over the seeds. row_shares: R of each variant's change. New rows move the
    baseline, too: half of the smallest R is its part."""
    of_baseline = min(row_shares) / 2
    variances = np.array([of_baseline, *(share - of_baseline for share in row_shares)])
    of_rows = rng.normal(0, np.sqrt(variances))
    noise = rng.multivariate_normal(np.zeros(len(truth)), covariance, seeds).T
    return (truth + of_rows)[:, None] + noise


# ---- Scores as the share of rows that are right: R is measured in each experiment ----

def row_model(truth, rows, deviation, row_shares):
    """How rows become right or wrong, such that the variances are the given ones.

    truth and row_shares as in draw_scores, deviation: s of mean_deviation, all as shares of 1.
    A row is always right, always wrong, or unsure: then a coin decides in each run. The coins make
    half of s² or less; the rest is the seed's, which biases the coins of a run. A variant decides
    some rows anew, in all seeds alike: so many that its R is the given one.
    Returns (share of unsure rows, deviation of a run's bias, [share of rows decided anew, of each
    variant])."""
    p = truth[0]
    unsure = min(2 * rows * deviation ** 2, p / 2, (1 - p) / 2)
    bias = sqrt(max(0, deviation ** 2 - unsure / 4 / rows)) / unsure if unsure else 0.0
    decided_anew = []
    for change, share in zip(truth[1:] - p, row_shares):
        # A row's x is 1, 1/2 or 0. If a share t of them is drawn anew, from a distribution whose
        # mean is higher by change / t, the variance of the difference of x is
        # t (2 p (1 - p) - unsure / 2) + change (1 - 2 p) - change².
        anew = rows * share + change ** 2 - change * (1 - 2 * p)
        anew /= 2 * p * (1 - p) - unsure / 2
        fewest = max(change / (1 - p - unsure / 2), -change / (p - unsure / 2), 1e-9)
        decided_anew.append(min(max(anew, fewest), 1))
    return unsure, bias, decided_anew


def draw_answers(rng, truth, rows, seeds, model):
    """Whether each answer is right, 1.0 or 0.0: (variants, seeds, rows). truth: as shares of 1."""
    unsure, bias, decided_anew = model

    def draw_rows(right):
        place = rng.random(rows)  # always right, unsure, always wrong: parts of the unit interval
        return ((place < right - unsure / 2) + 1.0 * (place < right + unsure / 2)) / 2
    knowledge = [draw_rows(truth[0])]
    for score, anew in zip(truth[1:], decided_anew):
        others = draw_rows(truth[0] + (score - truth[0]) / anew)
        knowledge.append(np.where(rng.random(rows) < anew, others, knowledge[0]))
    chance = np.array(knowledge)[:, None, :]
    biases = rng.normal(0, bias, (len(knowledge), seeds, 1))
    coins = rng.random((len(knowledge), seeds, rows)) < 0.5 + biases
    return np.where(chance == 0.5, coins, chance)


def measured_intervals(answers, weights):
    """The intervals of an experiment, from its answers. weights: see bootstrap.draw_weights."""
    variants, seeds, rows = answers.shape
    scores = 100 * answers.mean(axis=-1)
    resampled = 100 / rows * answers.reshape(-1, rows) @ weights.T
    resampled = resampled.reshape(variants, seeds, -1)
    shares = [row_variance(of_variant - resampled[0]) for of_variant in resampled[1:]]
    return compare_with_first(scores, shares)


# ---- How often they hold the truth ----

def held(intervals, truth):
    """Whether each interval holds the truth, a list. truth: (variants,), the baseline first."""
    return [value["low"] <= change <= value["high"]
            for value, change in zip(intervals, truth[1:] - truth[0])]


def coverage_of_scores(column, draws):
    """(draws, comparisons): which intervals hold the truth. column: see read_column."""
    rng, shares = np.random.default_rng(1), column["row_shares"]
    found = []
    for _ in range(draws):
        scores = draw_scores(rng, column["truth"], column["seeds"], column["covariance"], shares)
        found.append(held(compare_with_first(scores, shares), column["truth"]))
    return np.array(found)


def coverage_of_rows(column, rows, draws):
    """The same for a task of so many rows, whose score is the share of rows that are right."""
    rng = np.random.default_rng(2)
    level = column["truth"][0]  # a correlation may be near zero; a share of right rows may not
    truth = column["truth"] - level + np.clip(level, 20, 95)
    weights = draw_weights(rows, rng)
    of_rows = [share / 100 ** 2 for share in column["row_shares"]]
    model = row_model(truth / 100, rows, column["sd"] / 100, of_rows)
    found = []
    for _ in range(draws):
        answers = draw_answers(rng, truth / 100, rows, column["seeds"], model)
        found.append(held(measured_intervals(answers, weights), truth))
    return np.array(found)


# ---- The command ----

def read_column(summary, column):
    """What a simulation of one column needs, from results.json."""
    variants = summary["family"]
    score = summary["scores"][summary["titles"][summary["baseline"]]][column]["mean"]
    covariance = np.array(summary["covariance"][column])
    changes = [summary["change"][name][column]["difference"] for name in variants]
    return {
        "truth": np.array([score, *(score + change for change in changes)]),
        "seeds": len(summary["seeds"]),
        "covariance": covariance,
        "sd": mean_deviation(covariance),
        "row_shares": [max(0.0, summary["row_share"][name][column]) for name in variants],
    }


def mean_deviation(covariance):
    """s, such that 2 s² is the mean variance of a variant's difference from the baseline."""
    own, baseline, shared = np.diag(covariance)[1:], covariance[0, 0], covariance[0, 1:]
    return float(np.sqrt(max(0.0, np.mean(own + baseline - 2 * shared)) / 2))


def show(heading, found):
    """A line of the table: how many of 100 experiments have all intervals right, and each one."""
    alone = " ".join(f"{100 * share:.1f}" for share in found.mean(axis=0))
    print(f"| {heading} | {100 * found.all(axis=1).mean():.1f} | {alone} |", flush=True)


def show_columns(summary, draws, kind=""):
    """The lines of the table for every column, and the main one's with R measured each time."""
    columns, main_column = summary["columns"], summary["main_column"]
    for column, heading in columns.items():
        show(kind + heading, coverage_of_scores(read_column(summary, column), draws))
    tasks = glue_tasks(columns) if main_column == "macro" else [main_column]
    rows = sum(summary["rows"][task] for task in tasks)
    show(f"{kind}{columns[main_column]}, as the share of {rows} rows that are right; how much "
         "they matter is measured each time",
         coverage_of_rows(read_column(summary, main_column), rows, draws))


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--results", required=True,
                        help="results.json of a finished experiment with several seeds")
    parser.add_argument("--draws", type=in_range(int, 1), default=2000,
                        help="simulated experiments of each column")
    args = parser.parse_args(arguments)
    summary = read_json(args.results)
    if not summary.get("covariance"):
        raise InputError(f"{args.results}: holds no intervals; they need several seeds, and a "
                         "variant beside the baseline")
    print(f"{args.draws} simulated experiments of {len(summary['seeds'])} seeds, from the "
          f"variances in {args.results}: {', '.join(summary['family'])} against "
          f"{summary['baseline']}.\n\n"
          "| column | all intervals hold the truth, % (aim: 93 to 97) | each alone, % |\n"
          "|---|---:|---:|")
    show_columns(summary, args.draws)
    if probes := summary_of_probes(summary):
        show_columns(probes, args.draws, "linear probes, ")


if __name__ == "__main__":
    command_line(main)
