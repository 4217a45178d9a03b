"""The numbers of an experiment, computed from its run folders: scores, and changes with intervals.

`summarize` returns what results.json holds: plain numbers that the report and the figures show.
All intervals are 95 % intervals: a paired bootstrap over the dev rows if there is one seed, a
paired t interval if there are several. Read next: support/report.py.
"""
import json
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from finetune import score
from support.errors import InputError
from support.files import read_json
from support.run_folder import archived_versions
from support.squad import f1_of_each
from support.tasks import TASKS
from support.trivial_baselines import measure_trivial_baselines

# Sanh et al. 2019, Table 4: the change of GLUE's macro-score against the full loss, in points.
PAPER_TABLE_4 = {"no_ce": -2.96, "no_cos": -1.46, "no_mlm": -0.31, "random_init": -3.69}
NOT_GLUE = ("imdb", "squad")  # these tasks are not in the macro-score
BOOTSTRAP_SAMPLES = 1000


# ---- The summary ----

def summarize(out_dir, data_dir, titles, baseline, all_tasks, seeds, also=()):
    """Everything that the tables and figures show: what results.json holds.

    titles: {name of a model's folder: its heading}, in the report's order.
    baseline: the name of the model that the others are compared with.
    all_tasks: names of tasks. Those that are not finished for all models are left out.
    seeds: the number of seeds.
    also: names of models that were only fine-tuned here. They have rows in the tables of scores
    and changes but, like the teacher, they are not variants of the loss.
    Raises InputError if nothing can be compared yet, or if a run's results are damaged."""
    folders = fine_tuning_folders(out_dir, titles, all_tasks, seeds)
    outcomes = read_outcomes_of_models(folders)
    tasks = tasks_of_all(outcomes, all_tasks)
    if baseline not in outcomes or not tasks:
        raise InputError(f"{out_dir}: nothing to report yet: no task is finished for {baseline} "
                         f"and the other models with {seeds} seed(s); run it without --report_only")
    columns = column_headings(outcomes[baseline], tasks)
    # The column that the conclusion and the change since an edit are about.
    main_column = "macro" if "macro" in columns else next(iter(columns))

    scores = {titles[name]: scores_by_column(columns, found) for name, found in outcomes.items()}
    scores.update(scores_of_trivial_baselines(columns, out_dir, data_dir, tasks))
    change = {name: changes(columns, outcomes[baseline], found, seeds)
              for name, found in outcomes.items() if name != baseline}
    since_edit = changes_since_edit(columns, folders, outcomes, seeds)
    students = [name for name in outcomes if name not in ("teacher", *also)]
    unfinished_tasks = [TASKS[task].title for task in all_tasks if task not in tasks]
    unfinished_models = [title for name, title in titles.items() if name not in outcomes]
    return {
        "seeds": seeds,
        "left_out": unfinished_tasks + unfinished_models,
        "baseline": baseline,
        "titles": titles,
        "also": list(also),
        "columns": columns,
        "macro_of": [columns[task] for task in glue_tasks(columns)],
        "scores": {title: mean_and_deviation(by_column) for title, by_column in scores.items()},
        "change": change,
        "since_edit": {name: found[main_column] for name, found in since_edit.items()},
        "main_column": main_column,
        "heldout": {name: read_heldout(out_dir, name, seeds) for name in students},
        "seconds": measure_seconds(outcomes, folders, also),
        "paper_table_4": PAPER_TABLE_4,
    }


def changes_of_variants(summary):
    """{name: {column: change}} of the variants of the loss: without the teacher and `also`."""
    others = ("teacher", *summary.get("also", ()))
    return {name: change for name, change in summary["change"].items() if name not in others}


def mean_and_deviation(by_column):
    """{column: {"mean", "sd"}} from {column: (seeds,)}; sd is None if there is one seed."""
    shown = {}
    for column, values in by_column.items():
        deviation = float(values.std(ddof=1)) if len(values) > 1 else None
        shown[column] = {"mean": float(values.mean()), "sd": deviation}
    return shown


# ---- Columns: GLUE's tasks, their mean, the other tasks ----

def column_headings(outcomes, tasks):
    """{column: heading}, in the report's order. A column is a task or "macro"."""
    glue = [task for task in tasks if task not in NOT_GLUE]
    headings = {task: outcomes[task]["data"] for task in glue}
    if glue:
        headings["macro"] = "macro"
    for task in tasks:
        headings.setdefault(task, outcomes[task]["data"])
    return headings


def glue_tasks(columns):
    """The columns whose mean is the macro-score."""
    return [column for column in columns if column not in ("macro", *NOT_GLUE)]


def with_macro(columns, by_task):
    """{column: array} of the tasks in by_task, {task: array}, and of their mean over GLUE."""
    arrays = {}
    for column in columns:
        if column == "macro":
            arrays[column] = np.mean([by_task[task] for task in glue_tasks(columns)], axis=0)
        elif column in by_task:
            arrays[column] = by_task[column]
    return arrays


def scores_by_column(columns, outcomes):
    """{column: points, (seeds,)} of one model. outcomes: see read_outcomes."""
    return with_macro(columns, {task: outcome["scores"] for task, outcome in outcomes.items()})


def scores_of_trivial_baselines(columns, out_dir, data_dir, tasks):
    """{heading: {column: points, (1,)}} of what needs no BERT."""
    measured = measure_trivial_baselines(out_dir, data_dir, tasks)
    scores = {}
    for name in ("majority", "TF-IDF"):
        by_task = {task: np.array([points[name]]) for task, points in measured.items()}
        scores[f"({name})"] = with_macro(columns, by_task)
    return scores


# ---- Changes and their intervals ----

def changes(columns, old, new, seeds):
    """{column: interval of the change from old to new}. old, new: see read_outcomes."""
    tasks = [column for column in columns if column != "macro"]
    samples = with_macro(columns, {task: differences(task, new[task], old[task]) for task in tasks})
    old_scores, new_scores = scores_by_column(columns, old), scores_by_column(columns, new)
    intervals = {}
    for column in columns:
        change = np.mean(new_scores[column] - old_scores[column])
        intervals[column] = interval(change, samples[column], seeds)
    return intervals


def differences(task, variant, baseline):
    """Samples of the difference variant - baseline in points, from which `interval` is computed.

    With several seeds: the difference of each seed, (seeds,). With one seed: a paired bootstrap,
    (1000,): dev rows are drawn with replacement, the same rows for both.
    variant, baseline: one task's value in read_outcomes."""
    if len(variant["scores"]) > 1:
        return variant["scores"] - baseline["scores"]
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(BOOTSTRAP_SAMPLES):
        ours, theirs = {}, {}
        for name, (predictions, targets) in variant["sets"][0].items():
            baseline_predictions, _ = baseline["sets"][0][name]
            rows = rng.integers(len(targets), size=len(targets))
            ours[name] = predictions[rows], targets[rows]
            theirs[name] = baseline_predictions[rows], targets[rows]
        samples.append(points(task, ours) - points(task, theirs))
    return np.array(samples)


def points(task, sets):
    """The task's score out of 100. sets: see read_predictions."""
    if task == "squad":
        return 100 * float(np.mean([f1s.mean() for f1s, _ in sets.values()]))
    return score(task, sets)


def interval(difference, samples, seeds):
    """{"difference", "low", "high"}: a 95 % interval.

    With several seeds a t interval of the mean; with one seed the middle 95 % of the samples."""
    if seeds > 1:
        half = student_t.ppf(0.975, seeds - 1) * samples.std(ddof=1) / np.sqrt(seeds)
        low, high = difference - half, difference + half
    else:
        low, high = np.percentile(samples, (2.5, 97.5))
    return {"difference": float(difference), "low": float(low), "high": float(high)}


def changes_since_edit(columns, folders, outcomes, seeds):
    """{name: {column: interval}}: what re-running changed, for models with archived results.

    A model is left out if its archived results are incomplete or of other dev rows."""
    tasks = [column for column in columns if column != "macro"]
    found = {}
    for name, now in outcomes.items():
        current = {task: folders[name][task] for task in tasks}
        previous = {task: list(map(previous_version, current[task])) for task in tasks}
        if previous == current:
            continue
        before = read_outcomes(previous)
        if all(task in before and same_dev_rows(before[task], now[task]) for task in tasks):
            found[name] = changes(columns, before, now, seeds)
    return found


def previous_version(folder):
    """The latest finished archived version of a fine-tuning; the folder itself if there is none.

    It was archived either with its model's folder or alone."""
    versions = [model / folder.name for model in archived_versions(folder.parent)]
    versions += archived_versions(folder)
    finished = [version for version in versions if (version / "run.json").exists()]
    return finished[-1] if finished else folder


def same_dev_rows(before, now):
    """Whether two outcomes of a task have the same targets, in every seed and set."""
    for old, new in zip(before["sets"], now["sets"]):
        if old.keys() != new.keys():
            return False
        if any(not np.array_equal(old[name][1], new[name][1]) for name in new):
            return False
    return True


# ---- Reading run folders ----

def fine_tuning_folders(out_dir, names, tasks, seeds):
    """{model: {task: [folder of each seed]}}, whether they exist or not."""
    folders = {}
    for name in names:
        models = [Path(out_dir, name, f"seed{seed}") for seed in range(seeds)]
        folders[name] = {}
        for task in tasks:
            folders[name][task] = [model / task for model in models]
    return folders


def read_outcomes_of_models(folders):
    """{model: what read_outcomes returns}, without the models of which no task is finished."""
    outcomes = {name: read_outcomes(of_model) for name, of_model in folders.items()}
    return {name: of_model for name, of_model in outcomes.items() if of_model}


def tasks_of_all(outcomes, all_tasks):
    """The tasks that every model in `outcomes` has finished."""
    common = set(all_tasks).intersection(*outcomes.values())
    return [task for task in all_tasks if task in common]


def read_outcomes(folders):
    """{task: outcome} of the tasks that are finished with every seed.

    folders: {task: [folder of each seed's fine-tuning]}.
    An outcome is {"data": name of the data set, "scores": points, (seeds,), "sets": for each seed
    what read_predictions returns}. Raises InputError if a file is damaged."""
    outcomes = {}
    for task, of_seeds in folders.items():
        if not all((folder / "run.json").exists() for folder in of_seeds):
            continue
        try:
            outcomes[task] = read_outcome(task, of_seeds)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"{of_seeds[0].parent}: results.json or predictions.tsv of {task} is damaged "
                f"({error!r}); delete the folder {task} and run the experiment again") from None
    return outcomes


def read_outcome(task, folders):
    """The outcome of one task, from the folders of its fine-tunings, one for each seed."""
    results = [read_json(folder / "results.json") for folder in folders]
    return {
        "data": results[0]["data"],
        "scores": np.array([result["score"] for result in results]),
        "sets": [read_predictions(folder / "predictions.tsv", task) for folder in folders],
    }


def read_predictions(path, task):
    """{name of the set: (predictions, targets)} from predictions.tsv, arrays.

    For squad the predictions are replaced by their F1, and the targets are the gold answers'
    JSON."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, prediction, target = line.split("\t")
        rows.setdefault(name, []).append((prediction, target))
    return {name: parse_predictions(task, *zip(*pairs)) for name, pairs in rows.items()}


def parse_predictions(task, predictions, targets):
    """The two arrays of read_predictions, from the texts in the file."""
    if task == "squad":
        f1s = f1_of_each(map(json.loads, predictions), map(json.loads, targets))
        return f1s, np.array(targets)
    labels = TASKS[task].labels
    parse = float if labels is None else list(labels.values()).index
    return np.array(list(map(parse, predictions))), np.array(list(map(parse, targets)))


def read_heldout(out_dir, name, seeds):
    """{"before" | "after": {figure: mean over seeds}} of a student, on held-out text.

    Before and after its distillation."""
    runs = [read_json(Path(out_dir, name, f"seed{seed}", "run.json")) for seed in range(seeds)]
    means = {"before": {}, "after": {}}
    for when, of_figure in means.items():
        for figure in runs[0]["heldout_after"]:
            values = [run[f"heldout_{when}"][figure] for run in runs]
            of_figure[figure] = float(np.mean(values))
    return means


def measure_seconds(outcomes, folders, also):
    """{part of the experiment: seconds that its runs took}."""
    tuned = {"teacher": [], "students": [], "others": []}
    for name, of_model in outcomes.items():
        kind = "teacher" if name == "teacher" else "others" if name in also else "students"
        for task in of_model:
            tuned[kind] += folders[name][task]
    distilled = dict.fromkeys(folder.parent for folder in tuned["students"])  # each one once
    seconds = {
        "distillation": total_seconds(distilled),
        "fine-tuning the teacher": total_seconds(tuned["teacher"]),
        "fine-tuning the students": total_seconds(tuned["students"]),
    }
    if tuned["others"]:
        seconds["fine-tuning the other models"] = total_seconds(tuned["others"])
    return seconds


def total_seconds(folders):
    return sum(read_json(folder / "run.json")["seconds"] for folder in folders)
