"""What an experiment's run folders hold: scores, predictions, held-out measures, seconds.

OUT_DIR/MODEL/seedN is a student's distillation, OUT_DIR/MODEL/seedN/TASK a fine-tuning, and
OUT_DIR/MODEL/seedN/TASK-probe a probe.
Read next: support/statistics.py, which compares them.
"""
import contextlib
import json
from pathlib import Path

import numpy as np

from support.errors import InputError
from support.files import read_json
from support.run_folder import NOT_COMPARED, archived_versions
from support.squad import f1_of_each
from support.tasks import TASKS

PROBE = "-probe"  # after the task, in the name of a probe's folder


def student_folders(out_dir, name, seeds):
    """A model's folder of each seed; a student's holds its distillation. seeds: their numbers."""
    return [Path(out_dir, name, f"seed{seed}") for seed in seeds]


def task_folders(out_dir, names, tasks, seeds, suffix=""):
    """{model: {task: [folder of each seed]}}, whether they exist or not. seeds: their numbers.

    suffix: "" for the fine-tunings, PROBE for the probes."""
    folders = {}
    for name in names:
        models = student_folders(out_dir, name, seeds)
        folders[name] = {}
        for task in tasks:
            folders[name][task] = [model / f"{task}{suffix}" for model in models]
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

    folders: {task: [folder of each seed's fine-tuning or probe]}.
    An outcome is {"data": name of the data set, "scores": points, (seeds,), "sets": for each seed
    what read_predictions returns}. Raises InputError if a file is damaged."""
    outcomes = {}
    for task, of_seeds in folders.items():
        if all((folder / "run.json").exists() for folder in of_seeds):
            outcomes[task] = read_outcome(task, of_seeds)
    return outcomes


def read_outcome(task, folders):
    """The outcome of one task, from the folders of its fine-tunings or probes, one a seed."""
    names, scores, sets = [], [], []
    for folder in folders:
        with damage_explained(folder, "results.json or predictions.tsv"):
            result = read_json(folder / "results.json")
            names.append(result["data"])
            scores.append(float(result["score"]))
            sets.append(read_predictions(folder / "predictions.tsv", task))
    return {"data": names[0], "scores": np.array(scores), "sets": sets}


@contextlib.contextmanager
def damage_explained(folder, files):
    """Whatever is wrong with these files of a run's folder becomes an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{folder}: {files} is damaged ({error!r}); delete this folder and run "
                         "the experiment again") from None


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


def are_repetitions(folders):
    """Whether these runs have the same arguments, code and files, but for the model and the seed.

    They have not if code was edited, and some of them were not run again."""
    settings = []
    for folder in folders:
        with damage_explained(folder, "run.json"):
            record = read_json(folder / "run.json")
            arguments, made_of = (dict(record.get(key, {})) for key in ("arguments", "made_of"))
        for name in ("model", "seed", *NOT_COMPARED):
            arguments.pop(name, None)
            made_of.pop(name, None)
        settings.append((arguments, made_of))
    return all(each == settings[0] for each in settings)


def read_heldout(out_dir, name, seeds):
    """{"before" | "after": {figure: (seeds,)}} of a student, on held-out text."""
    found = {"before": {}, "after": {}}
    with damage_explained(Path(out_dir, name), "one of its seeds' run.json"):
        runs = [read_json(folder / "run.json") for folder in student_folders(out_dir, name, seeds)]
        for when, by_figure in found.items():
            for figure in runs[0]["heldout_after"]:
                by_figure[figure] = np.array([float(run[f"heldout_{when}"][figure])
                                              for run in runs])
    return found


def previous_version(folder):
    """The latest finished archived version of a fine-tuning or probe, archived alone or with its
    model; the folder itself if neither was archived.

    None if its model was archived before this task was finished."""
    of_task, of_model = map(finished_versions, (folder, folder.parent))
    if of_task:
        return of_task[-1]
    if not of_model:
        return folder
    version = of_model[-1] / folder.name
    return version if (version / "run.json").exists() else None


def finished_versions(folder):
    return [version for version in archived_versions(folder) if (version / "run.json").exists()]


def measure_seconds(outcomes, folders, probe_folders, also):
    """{part of the experiment: seconds that its runs took}. The probes are those that are done."""
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
    probes = []
    for of_model in probe_folders.values():
        for of_seeds in of_model.values():
            probes += [folder for folder in of_seeds if (folder / "run.json").exists()]
    if probes:
        seconds["probes"] = total_seconds(probes)
    return seconds


def total_seconds(folders):
    total = 0.0
    for folder in folders:
        with damage_explained(folder, "run.json"):
            total += read_json(folder / "run.json")["seconds"]
    return total
