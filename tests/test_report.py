"""The report: its numbers are those of the runs, and its sentences follow from them."""

import numpy as np
import pytest
import sklearn.metrics
from tiny_experiment import TASKS, arguments, read_json, run_experiment, score_of

import ablation
from support.errors import InputError
from support.report import conclusion
from support.trivial_baselines import measure_trivial_baselines

MODELS = ("teacher", "full", "no_ce")


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    """(folder, what was printed) of two variants on four tasks, one seed."""
    out_dir = tmp_path_factory.mktemp("runs") / "mini"
    return out_dir, run_experiment(arguments(world, out_dir, "--variants", "full,no_ce"))


# ---- The report of a real experiment ----

def test_the_report_says_what_it_shows(experiment):
    out_dir, printed = experiment
    text = (out_dir / "report.md").read_text()
    # MNLI's folder holds a stand-in, and says so.
    assert "| model | CoLA | tiny pairs | MRPC | macro | IMDb |" in text
    assert "Macro: the mean of CoLA, tiny pairs, MRPC." in text
    assert "paper's Table 4 (GLUE macro)" in text
    assert "| -2.96 |" in text
    assert "one seed cannot tell" in text
    for variant in ("full", "no_ce"):
        title, _ = ablation.VARIANTS[variant]
        assert text.count(f"| {title} |") == (2 if variant == "full" else 3)
    assert "(majority)" in text
    assert "(TF-IDF)" in text
    assert "| variant |" in printed
    for name in ("ablation.png", "losses.png"):
        picture = (out_dir / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000


def test_the_scores_and_changes_are_those_of_the_runs(experiment):
    out_dir, _ = experiment
    summary = read_json(out_dir, "results.json")
    baseline = summary["scores"]["full (baseline)"]
    for model in MODELS:
        scores = {task: score_of(out_dir, model, 0, task) for task in TASKS}
        scores["macro"] = np.mean([scores["cola"], scores["mnli"], scores["mrpc"]])
        columns = summary["scores"][summary["titles"][model]]
        shown = {column: value["mean"] for column, value in columns.items()}
        assert shown == pytest.approx(scores)
        if model == "full":
            continue
        for column, value in summary["change"][model].items():
            assert value["difference"] == pytest.approx(shown[column] - baseline[column]["mean"])
            assert value["low"] is None and value["high"] is None  # one seed


def test_the_trivial_baselines_are_in_the_table(experiment):
    out_dir, _ = experiment
    scores = read_json(out_dir, "results.json")["scores"]
    assert scores["(majority)"]["imdb"]["mean"] == 50
    assert scores["(majority)"]["cola"]["mean"] == 0
    assert scores["(TF-IDF)"]["imdb"]["mean"] > 80  # the label is a word of praise or blame


def test_the_report_shows_what_is_done_so_far_and_names_the_rest(
        world, experiment, tmp_path, capsys):
    out_dir, _ = experiment
    report_only = arguments(world, tmp_path, "--report_only")
    with pytest.raises(InputError, match="nothing to report yet"):
        ablation.main(report_only)
    (tmp_path / "full").symlink_to(out_dir / "full")
    (tmp_path / "no_ce").symlink_to(out_dir / "no_ce")
    ablation.main(report_only)
    text = (tmp_path / "report.md").read_text()
    assert "no distillation loss" in capsys.readouterr().out
    assert "cosine distance |" in text
    assert ("**Left out**, because not finished for every model and seed: "
            "teacher, no cosine loss, no MLM loss, random init") in text


def test_a_damaged_result_is_named(world, experiment, tmp_path):
    out_dir, _ = experiment
    folder = tmp_path / "full" / "seed0" / "cola"
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes((out_dir / "full/seed0/cola/run.json").read_bytes())
    (folder / "results.json").write_text('{"data": "CoLA", "score": 1.0}')
    (folder / "predictions.tsv").write_text("header\ndev\t0\tacceptable\n")
    message = "full/seed0: results.json or predictions.tsv of cola is damaged .*; delete the folder"
    with pytest.raises(InputError, match=message):
        ablation.main(arguments(world, tmp_path, "--report_only"))


# ---- The arithmetic, against references ----

@pytest.mark.parametrize("seeds, over", [(1, "the dev rows; one seed"), (3, "n = 3 seeds")])
def test_the_conclusion_tells_effects_from_noise(seeds, over):
    def macro(difference, low, high):
        return {"macro": {"difference": difference, "low": low, "high": high}}
    titles = {"full": "full", "teacher": "teacher", "a": "no A", "b": "no B", "c": "no C"}
    summary = {
        "titles": titles,
        "baseline": "full",
        "main_column": "macro",
        "seeds": seeds,
        "change": {
            "teacher": macro(9, 8, 10),
            "a": macro(-1, -2, -0.5),
            "b": macro(1, -1, 3),
            "c": macro(-7, -9, -5),
        },
    }
    assert conclusion(summary) == (
        "Against full: no C changes the macro-score by -7.0 points [-9.0, -5.0]; "
        "no A changes the macro-score by -1.0 points [-2.0, -0.5] "
        f"(95 % interval over {over}); the effect of no B cannot be told from noise here.")
    summary["change"] = {"b": macro(1, -1, 3)}
    assert conclusion(summary) == (
        "Against full: the effect of no B cannot be told from noise here.")


def test_the_majority_baseline_against_scikit_learns_own_metrics(world, tmp_path):
    baselines = measure_trivial_baselines(tmp_path, str(world / "data"), ["mrpc"])
    truth = [1] * 32 + [0] * 32  # half of the rows; argmax takes the first of equals, 0
    answers = [0] * 64
    f1 = sklearn.metrics.f1_score(truth, answers, zero_division=0)
    accuracy = sklearn.metrics.accuracy_score(truth, answers)
    assert baselines["mrpc"]["majority"] == pytest.approx(100 * np.mean([f1, accuracy]))
