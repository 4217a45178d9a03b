"""statistics.py: the summary of run folders, real ones and made-up ones with known numbers."""
import itertools
import json
import shutil

import numpy as np
import pytest
import scipy.stats
from made_summary import make_summary
from tiny_experiment import arguments, score_of

import ablation
import finetune
from load_hf_weights import load_model
from support.errors import InputError
from support.predictions import table_of_predictions, write_predictions
from support.report import explanation
from support.statistics import summarize, summary_of_probes

SEEDS = [3, 4, 5, 6]
ROWS = {"cola": 300, "mrpc": 200}
TITLES = {"teacher": "teacher", "full": "full", "no_cos": "no cosine", "no_ce": "no CE",
          "random_init": "random"}


class Results:
    """Run folders of made-up models, which know a share of the rows and guess the others."""

    def __init__(self, folder, data_dir):
        self.folder, self.data_dir, self.rng = folder, data_dir, np.random.default_rng(0)
        self.targets = {task: self.rng.integers(0, 2, rows) for task, rows in ROWS.items()}

    def fine_tuning(self, name, seed, task, share, suffix=""):
        """The results of a fine-tuning, or with a suffix of a probe; returns its score."""
        targets, label_names = self.targets[task], list(finetune.TASKS[task].labels.values())
        known = self.rng.random(len(targets)) < share
        predictions = np.where(known, targets, self.rng.integers(0, 2, len(targets)))
        sets = {"dev": (predictions, targets)}
        folder = self.folder / name / f"seed{seed}" / f"{task}{suffix}"
        folder.mkdir(parents=True)
        write_predictions(folder, table_of_predictions(sets, label_names))
        results = {"data": task, "score": finetune.score(task, sets)}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "run.json").write_text('{"seconds": 60}')
        return results["score"]

    def fine_tunings(self, name, seeds, share):
        """{column: scores, (seeds,)}."""
        scores = {}
        for task in ROWS:
            scores[task] = np.array([self.fine_tuning(name, seed, task, share) for seed in seeds])
        return {**scores, "macro": (scores["cola"] + scores["mrpc"]) / 2}

    def distillation(self, name, seed, kl):
        figures = {"kl": kl, "teacher_mlm_accuracy": 0.8}
        run = {"seconds": 120, "heldout_before": {"kl": 3.0, "teacher_mlm_accuracy": 0.8},
               "heldout_after": figures}
        (self.folder / name / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        (self.folder / name / f"seed{seed}" / "run.json").write_text(json.dumps(run))

    def summary(self, seeds, titles=TITLES, also=()):
        return summarize(self.folder, self.data_dir, titles, "full", list(ROWS), seeds, also)


@pytest.fixture
def results(world, tmp_path):
    return Results(tmp_path, str(world / "data"))


@pytest.fixture
def experiment(results):
    """(results, scores, kls): {model: {column: (seeds,)}} and {student: (seeds,)}."""
    shares = {"teacher": 0.9, "full": 0.8, "no_cos": 0.75, "no_ce": 0.6, "random_init": 0.2}
    scores, kls = {}, {}
    for name, share in shares.items():
        scores[name] = results.fine_tunings(name, SEEDS, share)
        if name != "teacher":
            kls[name] = results.rng.normal(0.1, 0.01, len(SEEDS))
            for seed, kl in zip(SEEDS, kls[name]):
                results.distillation(name, seed, kl)
    return results, scores, kls


# ---- Changes against the baseline ----

def half_width(value):
    assert (value["low"] + value["high"]) / 2 == pytest.approx(value["difference"])
    return (value["high"] - value["low"]) / 2


def test_the_variants_are_adjusted_for_their_number(experiment):
    results, scores, _ = experiment
    summary = results.summary(SEEDS)
    assert summary["seeds"] == SEEDS
    assert summary["rows"] == ROWS
    assert summary["family"] == ["no_cos", "no_ce"]
    dunnett = 3.87  # two comparisons, 3 degrees of freedom
    for column in ("cola", "mrpc", "macro"):
        for name in ("no_cos", "no_ce"):
            value, of_rows = summary["change"][name][column], summary["row_share"][name][column]
            differences = scores[name][column] - scores["full"][column]
            assert value["difference"] == pytest.approx(np.mean(differences))
            variance = np.var(differences, ddof=1) / len(SEEDS) + max(0, of_rows)
            critical = half_width(value) / np.sqrt(variance)
            if of_rows <= 0:
                assert critical == pytest.approx(dunnett, abs=0.01)
            else:  # with a part that is known there are more degrees of freedom
                assert 2.21 < critical < dunnett


def test_the_covariance_of_the_baseline_and_the_variants_is_kept(experiment):
    results, scores, _ = experiment
    covariance = results.summary(SEEDS)["covariance"]["macro"]
    all_scores = [scores[name]["macro"] for name in ("full", "no_cos", "no_ce")]
    centred = np.array(all_scores) - np.mean(all_scores, axis=1, keepdims=True)
    own = centred @ centred.T / (len(SEEDS) - 1)
    assert np.array(covariance) == pytest.approx(own)


def test_other_models_have_paired_intervals_of_their_own(experiment):
    results, scores, _ = experiment
    summary = results.summary(SEEDS)
    for name, column in itertools.product(("teacher", "random_init"), ("cola", "mrpc", "macro")):
        reference = scipy.stats.ttest_rel(scores[name][column], scores["full"][column])
        low, high = reference.confidence_interval(0.95)
        value, of_rows = summary["change"][name][column], summary["row_share"][name][column]
        if of_rows <= 0:
            assert (value["low"], value["high"]) == pytest.approx((low, high))
        else:
            assert half_width(value) > 1.96 * np.sqrt(of_rows)


def test_models_that_were_only_fine_tuned_are_not_adjusted(experiment):
    results, *_ = experiment
    titles = {name: TITLES[name] for name in ("full", "no_cos")}
    alone = results.summary(SEEDS, titles)
    beside = results.summary(SEEDS, {**titles, "no_ce": "another"}, also=["no_ce"])
    assert beside["family"] == alone["family"] == ["no_cos"]
    assert beside["covariance"] == alone["covariance"]
    assert beside["change"]["no_cos"] == alone["change"]["no_cos"]
    assert beside["heldout"].keys() == {"full", "no_cos"}


def test_the_macros_share_of_the_rows_is_that_of_independent_tasks(experiment):
    results, *_ = experiment
    for shares in results.summary(SEEDS)["row_share"].values():
        assert shares["macro"] == pytest.approx((shares["cola"] + shares["mrpc"]) / 4)
        assert shares["mrpc"] != 0


def test_held_out_figures_have_intervals_without_rows(experiment):
    results, _, kls = experiment
    summary = results.summary(SEEDS)
    value = summary["heldout_change"]["no_ce"]["kl"]
    assert value["difference"] == pytest.approx(kls["no_ce"].mean() - kls["full"].mean())
    variance = np.var(kls["no_ce"] - kls["full"], ddof=1)
    assert half_width(value) == pytest.approx(3.87 * np.sqrt(variance / 4), rel=3e-3)
    reference = scipy.stats.ttest_rel(kls["random_init"], kls["full"]).confidence_interval(0.95)
    value = summary["heldout_change"]["random_init"]["kl"]
    assert (value["low"], value["high"]) == pytest.approx(tuple(reference))
    assert summary["heldout_change"].keys() == {"no_cos", "no_ce", "random_init"}
    assert summary["heldout"]["full"] == {
        "before": {"kl": 3.0, "teacher_mlm_accuracy": pytest.approx(0.8)},
        "after": {"kl": pytest.approx(kls["full"].mean()),
                  "teacher_mlm_accuracy": pytest.approx(0.8)}}
    assert summary["heldout_sd"]["full"]["kl"] == pytest.approx(np.std(kls["full"], ddof=1))


def test_one_seed_gives_no_intervals(experiment):
    results, scores, _ = experiment
    summary = results.summary([5])
    assert summary["covariance"] == {}
    for name in ("teacher", "no_ce", "random_init"):
        change = scores[name]["macro"][2] - scores["full"]["macro"][2]
        assert summary["change"][name]["macro"] == {
            "difference": pytest.approx(change), "low": None, "high": None}
    assert summary["heldout_change"]["no_ce"]["kl"]["low"] is None
    assert summary["heldout_sd"]["no_ce"]["kl"] is None
    assert summary["scores"]["full"]["macro"]["sd"] is None
    assert json.loads(json.dumps(summary)) == summary


def test_the_same_folders_give_the_same_numbers(experiment):
    results, *_ = experiment
    assert json.dumps(results.summary(SEEDS)) == json.dumps(results.summary(SEEDS))


def test_results_on_other_dev_rows_are_refused(experiment):
    results, *_ = experiment
    results.targets["cola"] = 1 - results.targets["cola"]
    shutil.rmtree(results.folder / "no_ce" / "seed4" / "cola")
    results.fine_tuning("no_ce", 4, "cola", 0.5)
    with pytest.raises(InputError, match="no_ce: not all of its dev rows of cola are"):
        results.summary(SEEDS)


def test_runs_that_are_no_repetitions_are_named(experiment):
    results, *_ = experiment
    def rewrite(folder, **record):
        path = results.folder / folder / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **record}))
    for number, (name, seed) in enumerate(itertools.product(TITLES, SEEDS)):
        of_model = {"seed": number, "model": name, "out_dir": f"{name}{seed}"}
        rewrite(f"{name}/seed{seed}/cola", arguments={"epochs": 2, **of_model},
                made_of={"code": "a", "model": f"digest {number}"})
    assert results.summary(SEEDS)["mixed"] == []
    rewrite("no_ce/seed4/cola", arguments={"epochs": 1}, made_of={"code": "a"})
    assert results.summary(SEEDS)["mixed"] == ["fine-tunings on CoLA"]
    rewrite("no_cos/seed3", arguments={"steps": 1}, made_of={"code": "b"})
    mixed = results.summary(SEEDS)["mixed"]
    assert mixed == ["fine-tunings on CoLA", "distillations of no cosine"]
    assert ("between them: fine-tunings on CoLA, distillations of no cosine. Run the experiment"
            in explanation({**make_summary(), "mixed": mixed}))


# ---- Probes ----

def test_the_probes_are_compared_like_the_fine_tunings(experiment):
    results, scores, _ = experiment
    before = results.summary(SEEDS)
    assert before["probe"] == {} and summary_of_probes(before) is None
    for name in TITLES:
        for seed, task in itertools.product(SEEDS, ROWS):
            folder = results.folder / name / f"seed{seed}" / task
            shutil.copytree(folder, f"{folder}-probe")
    after = results.summary(SEEDS)
    assert after["seconds"].pop("probes") == 60 * len(TITLES) * len(SEEDS) * len(ROWS)
    parts = ("columns", "scores", "change", "covariance", "row_share", "rows", "since_edit",
             "main_column", "macro_of")
    assert after["probe"] == {part: before[part] for part in parts}
    assert {**after, "probe": {}} == before

    for seed in SEEDS:  # the probes of one student are different, and fine-tuning is as it was
        folder = results.folder / "no_ce" / f"seed{seed}" / "cola-probe"
        folder.rename(f"{folder}~1")
    new = np.array([results.fine_tuning("no_ce", seed, "cola", 0.1, "-probe") for seed in SEEDS])
    summary = results.summary(SEEDS)
    assert summary["change"] == before["change"] and summary["since_edit"] == {}
    probes = summary_of_probes(summary)
    assert probes["change"]["no_ce"]["cola"]["difference"] == pytest.approx(
        np.mean(new - scores["full"]["cola"]))
    assert probes["since_edit"]["no_ce"]["cola"]["difference"] == pytest.approx(
        np.mean(new - scores["no_ce"]["cola"]))
    assert probes["family"] == ["no_cos", "no_ce"]


def test_probes_that_are_not_done_for_every_model_are_left_out(experiment):
    results, *_ = experiment
    for name in list(TITLES)[:-1]:
        for seed, task in itertools.product(SEEDS, ROWS):
            results.fine_tuning(name, seed, task, 0.5, "-probe")
    assert results.summary(SEEDS)["probe"] == {}
    assert results.summary(SEEDS)["left_out"][-1] == "linear probes"
    for seed in SEEDS:
        results.fine_tuning("random_init", seed, "mrpc", 0.5, "-probe")
    assert list(results.summary(SEEDS)["probe"]["columns"]) == ["mrpc", "macro"]
    assert "linear probes" not in results.summary(SEEDS)["left_out"]


# ---- Changes since an edit ----

def test_every_model_that_changed_has_its_change_since_the_edit(experiment):
    results, scores, _ = experiment
    assert results.summary(SEEDS)["since_edit"] == {}
    for seed in SEEDS:  # a student that was distilled again
        folder = results.folder / "no_ce" / f"seed{seed}"
        folder.rename(f"{folder}~1")
        results.distillation("no_ce", seed, 0.1)
    new = results.fine_tunings("no_ce", SEEDS, 0.7)
    for seed in SEEDS[:2]:  # two fine-tunings that were done again
        folder = results.folder / "teacher" / f"seed{seed}" / "mrpc"
        folder.rename(f"{folder}~1")
        results.fine_tuning("teacher", seed, "mrpc", 0.9)
    since_edit = results.summary(SEEDS)["since_edit"]
    assert since_edit.keys() == {"no_ce", "teacher"}
    for column in ("cola", "mrpc", "macro"):
        differences = new[column] - scores["no_ce"][column]
        value = since_edit["no_ce"][column]
        assert value["difference"] == pytest.approx(differences.mean())
        reference = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert half_width(value) > 0.6 * (reference.high - reference.low) / 2
    assert since_edit["teacher"]["cola"]["difference"] == 0
    now = [score_of(results.folder, "teacher", seed, "mrpc") for seed in SEEDS[:2]]
    change = np.mean(now - scores["teacher"]["mrpc"][:2])
    assert since_edit["teacher"]["mrpc"]["difference"] == pytest.approx(change)
    alone = results.summary(SEEDS[:1])["since_edit"]["no_ce"]["mrpc"]
    change = new["mrpc"][0] - scores["no_ce"]["mrpc"][0]
    assert alone == {"difference": pytest.approx(change), "low": None, "high": None}
    assert results.summary(SEEDS[2:])["since_edit"].keys() == {"no_ce"}


def test_a_task_that_was_not_done_before_the_edit_is_no_change_of_0(experiment):
    results, *_ = experiment
    for seed in SEEDS:
        folder = results.folder / "no_ce" / f"seed{seed}"
        folder.rename(f"{folder}~1")
        results.distillation("no_ce", seed, 0.1)
    results.fine_tunings("no_ce", SEEDS, 0.7)
    before = results.summary(SEEDS[:3])["since_edit"]
    shutil.rmtree(results.folder / "no_ce" / f"seed{SEEDS[3]}~1" / "mrpc")
    assert results.summary(SEEDS)["since_edit"] == before  # that seed does not count
    for seed in SEEDS:
        shutil.rmtree(results.folder / "no_ce" / f"seed{seed}~1" / "cola")
    assert results.summary(SEEDS)["since_edit"] == {}


# ---- A real experiment ----

def test_seeds_from_another_first_one_stand_beside_the_others(world, tmp_path):
    def run(*more):
        args = ablation.read_arguments(arguments(
            world, tmp_path, "--tasks", "mrpc", "--variants", "full,no_mlm", *more))
        ablation.run_experiment(args)
        titles = {name: name for name in ("full", "no_mlm")}
        return summarize(tmp_path, args.data_dir, titles, "full", args.tasks, args.seeds)
    run("--seeds", 1)
    summary = run("--seeds", 2, "--first_seed", 1)
    folders = {folder.name for folder in (tmp_path / "full").iterdir()}
    assert folders == {"seed0", "seed1", "seed2"}
    assert summary["seeds"] == [1, 2]
    mrpc = [score_of(tmp_path, "no_mlm", seed, "mrpc") for seed in (1, 2)]
    expected = {"mean": np.mean(mrpc), "sd": np.std(mrpc, ddof=1)}
    assert summary["scores"]["no_mlm"]["mrpc"] == pytest.approx(expected)
    assert summary["change"]["no_mlm"]["macro"]["low"] is not None
    first, second = (load_model(tmp_path / "full" / f"seed{seed}") for seed in (1, 2))
    weights = second.bert.layers[0].qkv.weight
    assert not first.bert.layers[0].qkv.weight.equal(weights)
