"""The report: its numbers are those of the runs, and its sentences follow from them."""
import shutil

import numpy as np
import pytest
import sklearn.metrics
from made_summary import make_probe, make_summary
from tiny_experiment import TASKS, arguments, read_json, run_experiment, score_of

import ablation
from support.errors import InputError
from support.report import report_text
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
    assert "smoke test, one seed" in text.splitlines()[0]
    for variant in ("full", "no_ce"):
        title, _ = ablation.VARIANTS[variant]
        assert text.count(f"| {title} |") == (3 if variant == "full" else 5), variant
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
    message = ("full/seed0/cola: results.json or predictions.tsv is damaged .*; delete this "
               "folder and run")
    with pytest.raises(InputError, match=message):
        ablation.main(arguments(world, tmp_path, "--report_only"))


@pytest.mark.parametrize("path, old, new, message", [
    ("full/seed0/run.json", "heldout_after", "heldout_aftes", "full: one of its seeds' run.json"),
    ("full/seed0/cola/run.json", '"seconds"', '"secondt"', "full/seed0/cola: run.json"),
    ("full/seed0/log.jsonl", '{"step"', '5\n{"step"', "full/seed0: log.jsonl"),
])
def test_a_damaged_record_is_named(world, experiment, tmp_path, path, old, new, message):
    out_dir, _ = experiment
    shutil.copytree(out_dir, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / path).read_text()
    assert old in text
    (tmp_path / path).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=f"{message} is damaged"):
        ablation.main(arguments(world, tmp_path, "--report_only"))


# ---- The sentences, from made-up summaries ----

def findings(summary):
    """The paragraph of the report that says what was found."""
    text = report_text(summary, "title")
    return text.split("## What was found\n\n")[1].split("\n\n##")[0]


def test_the_findings_tell_effects_from_noise():
    summary = make_summary()
    summary["change"]["no_cos"]["macro"] = {"difference": -0.3, "low": -1.3, "high": 0.7}
    summary["change"]["no_ce"]["macro"] = {"difference": -2.4, "low": -3.4, "high": -1.4}
    summary["change"]["no_mlm"]["macro"] = {"difference": 1.2, "low": 0.2, "high": 2.2}
    text = findings(summary)
    assert ("**The macro-score differs from that of full (baseline): random initialisation -28.8 "
            "points [-31.0, -26.6], no distillation loss -2.4 points [-3.4, -1.4], no MLM loss "
            "+1.2 points [+0.2, +2.2]**") in text
    assert "The macro-score was not found to differ: no cosine loss [-1.3, +0.7]. With" in text
    assert "no distillation loss, no cosine loss, no MLM loss: the paper's order" in text
    assert "no distillation loss (agreement with the teacher -4.8 [-5.2, -4.4] points, KL " in text
    assert "noise" not in text
    assert "temperature" not in text

    summary["change"]["no_cos"]["macro"]["difference"] = 2.0
    assert "no distillation loss, no MLM loss, no cosine loss: not the paper's order" in (
        findings(summary))


def test_the_findings_of_the_probes_stand_beside_those_of_fine_tuning():
    summary = make_summary()
    alone = findings(summary)
    summary["probe"] = make_probe()
    text = findings(summary)
    added = ("**The macro-score of the linear probes differs from that of full (baseline): random "
             "initialisation -29.3 points [-29.8, -28.8], no distillation loss -2.7 points "
             "[-3.2, -2.2]**, each with its 95 % interval. The macro-score of the linear probes "
             "was not found to differ: no cosine loss [-0.6, +0.4], no MLM loss [-0.1, +0.9]. "
             "With 95 % confidence, what difference there is lies within the brackets.\n\n")
    assert added in text and text.replace(added, "") == alone


def test_the_probes_have_tables_of_their_own():
    summary = make_summary()
    assert "probe" not in report_text(summary, "title")
    summary["probe"] = make_probe()
    section = report_text(summary, "title").split("## Linear probes of the frozen models")[1]
    section = section.split("\n##")[0]
    assert "fitted to 4000 training rows at most" in section
    assert "| full (baseline) | 41.2 ± 0.4 | 41.2 ± 0.4 |" in section
    assert "| teacher | 49.3 ± 0.4 | 49.3 ± 0.4 |" in section
    assert "| no distillation loss | -2.7 [-3.2, -2.2] | -2.7 [-3.2, -2.2] |" in section
    assert "| no MLM loss | +0.4 [-0.1, +0.9] noise |" in section
    assert ("**Left out**, because not probed for every model and seed: toy MNLI, toy MRPC, toy "
            "IMDb.") in section
    summary["probe"]["since_edit"] = {"no_ce": summary["probe"]["change"]["no_ce"]}
    edited = report_text(summary, "title").split("## Change since the edit")[1].split("\n##")[0]
    assert edited.count("| no distillation loss |") == 1 and "Probes:" in edited


def test_no_effect_is_bold_if_all_intervals_contain_zero():
    summary = make_summary(variants=("no_cos", "T_4"))
    text = findings(summary)
    assert "**" not in text
    assert text.count("noise") == 0 and "no cosine loss [-1.3, +0.7]" in text
    assert "order" not in text  # the three losses are not all there


def test_the_findings_are_about_the_variants_that_were_run():
    text = findings(make_summary(variants=("random_init",), also=("distilbert",)))
    assert text == ("**The macro-score differs from that of full (baseline): random initialisation "
                    "-28.8 points [-31.0, -26.6]**, each with its 95 % interval.")


def test_one_seed_shows_no_interval_and_draws_no_conclusion():
    text = report_text(make_summary(seeds=1), "title")
    assert "[" not in text and "noise" not in text and "±" not in text.split("## The students")[0]
    assert "What was found" not in text
    assert text.count("**") == 2 and "**A smoke test**" in text
    assert "| -2.4 |" in text


def test_the_report_says_what_the_intervals_hold():
    text = report_text(make_summary(seeds=6, also=("distilbert",)), "title")
    assert "n = 6: seeds 0 to 5." in text
    assert "the differences over the seeds, each model's own, with 5 degrees of freedom" in text
    assert ("no cosine loss, no distillation loss, no MLM loss: Dunnett's critical values for 3 "
            "comparisons") in text
    assert "teacher, random initialisation, distilbert: Student's critical values" in text


def test_the_change_since_an_edit_has_a_table_of_its_own():
    summary = make_summary()
    assert "Change since the edit" not in report_text(summary, "title")
    summary["since_edit"] = {name: summary["change"][name] for name in ("no_ce", "no_mlm")}
    table = report_text(summary, "title").split("## Change since the edit")[1].split("\n##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| no ")]
    assert [row.split(" | ")[0] for row in rows] == ["| no distillation loss", "| no MLM loss"]
    assert all(row.count("[") == len(summary["columns"]) for row in rows)


def test_the_majority_baseline_against_scikit_learns_own_metrics(world, tmp_path):
    baselines = measure_trivial_baselines(tmp_path, str(world / "data"), ["mrpc"])
    truth = [1] * 32 + [0] * 32  # half of the rows; argmax takes the first of equals, 0
    answers = [0] * 64
    f1 = sklearn.metrics.f1_score(truth, answers, zero_division=0)
    accuracy = sklearn.metrics.accuracy_score(truth, answers)
    assert baselines["mrpc"]["majority"] == pytest.approx(100 * np.mean([f1, accuracy]))
