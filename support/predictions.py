"""The files of predictions: predictions.tsv of every fine-tuning, and GLUE's submission."""
from pathlib import Path

from support.files import write_file
from support.tasks import TASKS

SUFFIXES = {"test_matched.tsv": "-m", "test_mismatched.tsv": "-mm"}  # of MNLI's two test files


def write_predictions(out_dir, rows):
    """predictions.tsv. rows: (set, index, prediction, label)."""
    write_table(Path(out_dir) / "predictions.tsv", ("set", "index", "prediction", "label"), rows)


def table_of_predictions(sets, names):
    """The rows of predictions.tsv: (set, index, prediction, label), by name where there is one."""
    table = []
    for dev_set, pair in sets.items():
        for index, values in enumerate(zip(*pair)):
            shown = values if names is None else [names[number] for number in values]
            table.append((dev_set, index, *shown))
    return table


def write_submission(out_dir, task, test_file, indices, predictions):
    """A test file's predictions as GLUE's server takes them: index and prediction.

    Labels are the task's own words, scores lie within 0 and 5."""
    task = TASKS[task]
    if task.labels is None:
        shown = [f"{min(5.0, max(0.0, score)):.3f}" for score in predictions]
    else:
        words = list(task.labels)
        shown = [words[number] for number in predictions]
    path = Path(out_dir, "submission", f"{task.title}{SUFFIXES.get(test_file, '')}.tsv")
    path.parent.mkdir(exist_ok=True)
    write_table(path, ("index", "prediction"), zip(indices, shown))
    print(f"{path}: {len(predictions)} predictions")


def write_table(path, header, rows):
    """Tab-separated lines."""
    lines = ["\t".join(map(str, row)) for row in (header, *rows)]
    write_file(path, "".join(f"{line}\n" for line in lines))
