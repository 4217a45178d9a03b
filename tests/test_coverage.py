"""coverage.py: its simulated worlds have the given variances, and its verdict can be bad."""
import json
import re

import numpy as np
import pytest

from support import coverage
from support.bootstrap import draw_weights
from support.errors import InputError
from support.intervals import compare_with_first, row_variance

COVARIANCE = np.array([[5.0, 4.5, 1, 1], [4.5, 5, 1, 1], [1, 1, 5, 1], [1, 1, 1, 9]])
COLUMN = {"truth": np.array([80.0, 79.0, 77.5, 80.4]), "seeds": 4, "sd": 2.0,
          "covariance": COVARIANCE, "row_shares": [2.0, 2.5, 3.0]}
ROWS = 500


def test_drawn_scores_have_the_given_variances():
    rng = np.random.default_rng(0)
    scores = np.array([coverage.draw_scores(rng, COLUMN["truth"], 4, COVARIANCE,
                                            COLUMN["row_shares"])
                       for _ in range(4000)])
    changes = (scores[:, 1:] - scores[:, :1]).mean(axis=2)
    assert changes.mean(axis=0) == pytest.approx([-1, -2.5, 0.4], abs=0.15)
    expected = np.array([1, 8, 12]) / 4 + np.array(COLUMN["row_shares"])
    assert changes.var(axis=0) == pytest.approx(expected, rel=0.1)
    assert coverage.mean_deviation(COVARIANCE) == pytest.approx(np.sqrt(21 / 3 / 2))


@pytest.fixture(scope="module")
def answers():
    """(2000, variants, seeds): scores of drawn answers; and R, measured on some of them."""
    rng, truth = np.random.default_rng(0), COLUMN["truth"] / 100
    shares = [share / 1e4 for share in COLUMN["row_shares"]]
    model, weights = coverage.row_model(truth, ROWS, 0.02, shares), draw_weights(ROWS, rng)
    scores, measured = [], []
    for number in range(2000):
        drawn = coverage.draw_answers(rng, truth, ROWS, 4, model)
        scores.append(100 * drawn.mean(axis=-1))
        if number < 300:
            resampled = 100 / ROWS * drawn @ weights.T
            measured.append([row_variance(value - resampled[0]) for value in resampled[1:]])
    return np.array(scores), np.array(measured)


def test_drawn_answers_have_the_given_variances(answers):
    scores, measured = answers
    assert scores.mean(axis=(0, 2)) == pytest.approx(COLUMN["truth"], abs=0.2)
    differences = scores[:, 1:] - scores[:, :1]
    assert differences.var(axis=2, ddof=1).mean() / 2 == pytest.approx(2.0 ** 2, rel=0.05)
    changes = (scores[:, 1:] - scores[:, :1]).mean(axis=2)
    expected = 2 * 2.0 ** 2 / 4 + np.array(COLUMN["row_shares"])
    assert changes.var(axis=0) == pytest.approx(expected, rel=0.12)
    assert measured.mean(axis=0) == pytest.approx(COLUMN["row_shares"], rel=0.06)


def test_measured_intervals_hold_the_truth_and_those_without_the_rows_do_not(answers):
    found = coverage.coverage_of_rows(COLUMN, ROWS, 1000)
    assert found.shape == (1000, 3)
    assert found.all(axis=1).mean() == pytest.approx(0.95, abs=0.025)
    scores, _ = answers
    without_rows = [all(coverage.held(compare_with_first(values, [0, 0, 0]), COLUMN["truth"]))
                    for values in scores]
    assert np.mean(without_rows) < 0.85


def results_json(path, **changes):
    names, columns = ["full", "a", "b"], ("cola", "macro")
    change = dict.fromkeys(columns, {"difference": -2.0})
    shares = {"cola": -0.1, "macro": 0.5}
    summary = {
        "seeds": [0, 1, 2, 3, 4], "family": names[1:], "baseline": "full", "main_column": "macro",
        "titles": {name: name for name in names},
        "columns": {"cola": "CoLA", "macro": "macro"}, "rows": {"cola": 400},
        "scores": {"full": dict.fromkeys(columns, {"mean": 70.0})},
        "covariance": dict.fromkeys(columns, (2 * np.eye(3)).tolist()),
        "change": {"a": change, "b": change}, "row_share": {"a": shares, "b": shares},
        "probe": {}, **changes}
    path.write_text(json.dumps(summary))
    return str(path)


def test_the_command_prints_a_line_for_each_column(tmp_path, capsys):
    results = results_json(tmp_path / "results.json")
    coverage.main(["--results", results, "--draws", "300"])
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) ([\d.]+) \|$", capsys.readouterr().out,
                      re.MULTILINE)
    headings = ["CoLA", "macro", ("macro, as the share of 400 rows that are right; how much they "
                                  "matter is measured each time")]
    assert [row[0] for row in rows] == headings
    for _, together, *alone in rows:
        assert 90 < float(together) <= min(map(float, alone))


def test_the_probes_have_lines_of_their_own(tmp_path, capsys):
    probe = {"columns": {"cola": "CoLA"}, "main_column": "cola"}
    results = results_json(tmp_path / "results.json", probe=probe)
    coverage.main(["--results", results, "--draws", "50"])
    lines = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[-2] == "| linear probes, CoLA" and lines[-1].startswith(
        "| linear probes, CoLA, as the share of 400 rows")


def test_an_experiment_without_intervals_is_refused(tmp_path):
    results = results_json(tmp_path / "results.json", covariance={})
    with pytest.raises(InputError, match="holds no intervals; they need several seeds"):
        coverage.main(["--results", results])
    with pytest.raises(InputError, match="no such file"):
        coverage.main(["--results", str(tmp_path / "nowhere")])


def test_students_without_any_deviation_can_be_simulated():
    """Such as the probes of students that were only copied."""
    column = {**COLUMN, "covariance": np.zeros((4, 4)), "sd": 0.0}
    assert coverage.coverage_of_rows(column, ROWS, 200).shape == (200, 3)
    assert coverage.mean_deviation(-1e-20 * np.eye(4)) == 0


def test_scores_near_zero_and_no_share_of_the_rows_can_be_simulated():
    column = {**COLUMN, "truth": np.array([3.0, 1.0, -2.0, 3.0]), "row_shares": [0.0] * 3}
    assert coverage.coverage_of_rows(column, ROWS, 200).all(axis=1).mean() > 0.88
