"""The numbers of an experiment, computed from its run folders: scores, and changes with intervals.

`summarize` returns what results.json holds: plain numbers that the report and the figures show.
The folders are read by support/outcomes.py; the 95 % intervals are those of support/intervals.py.
Read next: support/report.py.
"""
import numpy as np

from support.bootstrap import resampled_scores
from support.errors import InputError
from support.intervals import compare_pair, row_variance
from support.outcomes import (
    PROBE,
    are_repetitions,
    measure_seconds,
    previous_version,
    read_heldout,
    read_outcomes,
    read_outcomes_of_models,
    student_folders,
    task_folders,
    tasks_of_all,
)
from support.tasks import TASKS
from support.trivial_baselines import measure_trivial_baselines

# Sanh et al. 2019, Table 4: the change of GLUE's macro-score against the full loss, in points.
PAPER_TABLE_4 = {"no_ce": -2.96, "no_cos": -1.46, "no_mlm": -0.31, "random_init": -3.69}
NOT_GLUE = ("imdb", "squad")  # these tasks are not in the macro-score
# So large an effect needs no adjustment; the intervals of all other variants hold together.
NOT_ADJUSTED = ("random_init",)


# ---- The summary ----

def summarize(out_dir, data_dir, titles, baseline, all_tasks, seeds, also=()):
    """Everything that the tables and figures show: what results.json holds.

    titles: {name of a model's folder: its heading}, in the report's order.
    baseline: the name of the model that the others are compared with.
    all_tasks: names of tasks. Those that are not finished for all models are left out.
    seeds: a list of the seeds' numbers.
    also: names of models that were only fine-tuned here. They have rows in the tables of scores
    and changes but, like the teacher, they are not variants of the loss.
    Raises InputError if nothing can be compared yet, or if a run's results are damaged."""
    folders = task_folders(out_dir, titles, all_tasks, seeds)
    probe_folders = task_folders(out_dir, titles, all_tasks, seeds, PROBE)
    outcomes = read_outcomes_of_models(folders)
    tasks = tasks_of_all(outcomes, all_tasks)
    if baseline not in outcomes or not tasks:
        raise InputError(
            f"{out_dir}: nothing to report yet: no task is finished for {baseline} and the other "
            f"models with {describe_seeds(seeds)}; run it without --report_only")
    students = [name for name in outcomes if name not in ("teacher", *also)]
    family = [name for name in students if name not in (baseline, *NOT_ADJUSTED)]
    trivial = measure_trivial_baselines(out_dir, data_dir, tasks)
    unfinished_tasks = [TASKS[task].title for task in all_tasks if task not in tasks]
    unfinished_models = [title for name, title in titles.items() if name not in outcomes]
    probed = {name: read_outcomes(probe_folders[name]) for name in outcomes}
    probed_tasks = tasks_of_all(probed, tasks)
    unfinished_probes = ["linear probes"] if any(probed.values()) and not probed_tasks else []
    mixed_fine_tunings = mixed_runs("fine-tunings", folders, outcomes, tasks)
    mixed_probes = mixed_runs("probes", probe_folders, outcomes, probed_tasks)
    mixed_students = [f"distillations of {titles[name]}" for name in students
                      if not are_repetitions(student_folders(out_dir, name, seeds))]
    return {
        "seeds": list(seeds),
        "left_out": unfinished_tasks + unfinished_models + unfinished_probes,
        "mixed": mixed_fine_tunings + mixed_probes + mixed_students,
        "baseline": baseline,
        "titles": titles,
        "also": list(also),
        "family": family,
        **compare_scores(folders, outcomes, tasks, titles, baseline, family, trivial),
        "probe": compare_scores(probe_folders, probed, probed_tasks, titles, baseline, family,
                                trivial),
        **summarize_heldout(out_dir, baseline, family, students, seeds),
        "seconds": measure_seconds(outcomes, folders, probe_folders, also),
        "paper_table_4": PAPER_TABLE_4,
    }


def mixed_runs(kind, folders, names, tasks):
    """["KIND on TASK"] of the tasks on which these models' runs are not all alike."""
    mixed = []
    for task in tasks:
        runs = sum((folders[name][task] for name in names), [])
        if not are_repetitions(runs):
            mixed.append(f"{kind} on {TASKS[task].title}")
    return mixed


def compare_scores(folders, outcomes, tasks, titles, baseline, family, trivial):
    """The part of a summary about the models' scores, after fine-tuning or of their probes.

    tasks: those that all models in `outcomes` have finished; without any, the part is empty.
    trivial: what measure_trivial_baselines returns. The others: see summarize."""
    if not tasks:
        return {}
    columns = column_headings(outcomes[baseline], tasks)
    check_dev_rows(outcomes, folders, tasks, baseline)
    scores = {name: scores_by_column(columns, found) for name, found in outcomes.items()}
    shares = row_shares(columns, outcomes, baseline)
    shown = {titles[name]: by_column for name, by_column in scores.items()}
    shown.update(scores_of_trivial_baselines(columns, trivial))
    return {
        "columns": columns,
        # The column that the conclusion is about.
        "main_column": "macro" if "macro" in columns else next(iter(columns)),
        "macro_of": [columns[task] for task in glue_tasks(columns)],
        "scores": {title: mean_and_deviation(by_column) for title, by_column in shown.items()},
        "covariance": covariances([baseline, *family], scores),
        "row_share": shares,
        "rows": count_rows(outcomes[baseline], tasks),
        "change": changes(baseline, family, scores, shares),
        "since_edit": changes_since_edit(columns, folders, outcomes),
    }


def summary_of_probes(summary):
    """The summary with the probes' scores in place of those of fine-tuning; None without any."""
    return {**summary, **summary["probe"]} if summary["probe"] else None


def count_rows(outcomes, tasks):
    """{task: how many dev rows it has}."""
    rows = {}
    for task in tasks:
        rows[task] = sum(len(targets) for _, targets in outcomes[task]["sets"][0].values())
    return rows


def describe_seeds(seeds):
    """The seeds, in words."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {seeds[0]} to {seeds[-1]}"


def changes_of_variants(summary):
    """{name: {column: change}} of the variants of the loss: without the teacher and `also`."""
    others = ("teacher", *summary["also"])
    return {name: change for name, change in summary["change"].items() if name not in others}


def mean_and_deviation(by_column):
    """{column: {"mean", "sd"}} from {column: (seeds,)}; sd is None if there is one seed."""
    shown = {}
    for column, values in by_column.items():
        shown[column] = {"mean": float(values.mean()), "sd": deviation(values)}
    return shown


def deviation(values):
    """The standard deviation over the seeds; None if there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


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


def scores_of_trivial_baselines(columns, trivial):
    """{heading: {column: points, (1,)}} of what needs no BERT."""
    scores = {}
    for name in ("majority", "TF-IDF"):
        by_task = {task: np.array([trivial[task][name]]) for task in columns if task in trivial}
        scores[f"({name})"] = with_macro(columns, by_task)
    return scores


# ---- Changes and their intervals ----

def changes(baseline, family, values, row_shares):
    """{name: {column: interval}} of every model's change against the baseline.

    values: {name: {column: (seeds,)}}. row_shares: {name: {column: R}}, see intervals.py.
    family: the names whose intervals are adjusted for their number, so that they hold together."""
    found = {}
    for name, by_column in values.items():
        if name == baseline:
            continue
        found[name], comparisons = {}, len(family) if name in family else 1
        for column, of_seeds in by_column.items():
            differences = of_seeds - values[baseline][column]
            of_rows = row_shares[name][column]
            found[name][column] = compare_pair(differences, of_rows, comparisons)
    return found


def covariances(names, values):
    """{column: the covariance of these models' scores over the seeds, a list of rows}.

    Empty with one seed, or one model."""
    found = {}
    for column, of_first in values[names[0]].items():
        if len(names) > 1 and len(of_first) > 1:
            scores = np.array([values[name][column] for name in names])
            found[column] = np.cov(scores).tolist()
    return found


def resample(columns, outcomes):
    """{task: points on resampled dev rows, (seeds, resamples)} of one model."""
    tasks = [column for column in columns if column != "macro"]
    return {task: resampled_scores(task, outcomes[task]["sets"]) for task in tasks}


def row_variances(columns, old, new):
    """{column: R of the change from old to new}, see intervals.py; 0 with one seed.

    old, new: see resample. The macro-score is a mean of tasks, whose rows are independent."""
    by_task = {}
    for task in old:
        differences = new[task] - old[task]
        by_task[task] = row_variance(differences) if len(differences) > 1 else 0.0
    if "macro" in columns:
        of_glue = [by_task[task] for task in glue_tasks(columns)]
        by_task["macro"] = sum(of_glue) / len(of_glue) ** 2
    return by_task


def row_shares(columns, outcomes, baseline):
    """{name: {column: R}} of every other model's change against the baseline."""
    resampled = {name: resample(columns, found) for name, found in outcomes.items()}
    return {name: row_variances(columns, resampled[baseline], found)
            for name, found in resampled.items() if name != baseline}


def changes_since_edit(columns, folders, names):
    """{name: {column: interval}}: what re-running changed, for models with archived results.

    Only seeds with archived results of all tasks count. A model is left out if it has none, or of
    other dev rows. The intervals are not adjusted for their number."""
    tasks, found = [column for column in columns if column != "macro"], {}
    for name in names:
        before, after = before_and_after_edit(folders[name], tasks)
        if not before[tasks[0]]:
            continue
        old, new = read_outcomes(before), read_outcomes(after)
        if old.keys() != new.keys():
            continue
        if not all(same_dev_rows(old[task]["sets"], new[task]["sets"]) for task in tasks):
            continue
        of_rows = row_variances(columns, resample(columns, old), resample(columns, new))
        old_scores, new_scores = scores_by_column(columns, old), scores_by_column(columns, new)
        found[name] = {}
        for column in columns:
            differences = new_scores[column] - old_scores[column]
            found[name][column] = compare_pair(differences, of_rows[column])
    return found


def before_and_after_edit(folders, tasks):
    """Two dictionaries {task: [folder of each seed]}, of the seeds that have archived results."""
    before, after = {task: [] for task in tasks}, {task: [] for task in tasks}
    for of_seed in zip(*(folders[task] for task in tasks)):
        earlier = [previous_version(folder) for folder in of_seed]
        if None not in earlier and earlier != list(of_seed):
            for task, old, new in zip(tasks, earlier, of_seed):
                before[task].append(old)
                after[task].append(new)
    return before, after


def check_dev_rows(outcomes, folders, tasks, baseline):
    """Raise InputError if the runs of a task do not all have the same dev rows."""
    for name, of_model in outcomes.items():
        for task in tasks:
            first, sets = outcomes[baseline][task]["sets"][0], of_model[task]["sets"]
            if not same_dev_rows([first] * len(sets), sets):
                raise InputError(
                    f"{folders[name][task][0].parent.parent}: not all of its dev rows of {task} "
                    f"are those of {baseline}; run the experiment without --report_only")


def same_dev_rows(before, now):
    """Whether two lists of what read_predictions returns have the same targets."""
    for old, new in zip(before, now):
        if old.keys() != new.keys():
            return False
        if any(not np.array_equal(old[name][1], new[name][1]) for name in new):
            return False
    return True


# ---- The students as language models ----

def summarize_heldout(out_dir, baseline, family, students, seeds):
    """The students as language models, on held-out text: three parts of the summary.

    "heldout": {student: {"before" | "after" its distillation: {figure: mean over seeds}}},
    "heldout_sd": {student: {figure: deviation over seeds, after it}},
    "heldout_change": {student: {figure: interval of the change against the baseline, after it}}."""
    means, deviations, after = {}, {}, {}
    for name in students:
        values = read_heldout(out_dir, name, seeds)
        means[name] = {}
        for when, by_figure in values.items():
            means[name][when] = {key: float(of_key.mean()) for key, of_key in by_figure.items()}
        after[name] = values["after"]
        deviations[name] = {key: deviation(of_key) for key, of_key in after[name].items()}
    # No share of the rows: all runs are measured on the same text, with the same masks, and the
    # intervals are about this text.
    no_rows = {name: dict.fromkeys(after[name], 0.0) for name in students}
    return {"heldout": means, "heldout_sd": deviations,
            "heldout_change": changes(baseline, family, after, no_rows)}
