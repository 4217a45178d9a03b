"""The tasks: where their files are, and how their rows are read.

A task is one of GLUE's, IMDb's reviews, or SQuAD. `TASKS` is the table of them. This module reads
GLUE's tables and aclImdb's folders of reviews into Examples; squad.py reads SQuAD's files.
Read next: data.py, which turns Examples into batches.
"""
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from support.corpus import open_text
from support.errors import InputError


@dataclass(frozen=True)
class Task:
    """A task: its folder and files, the columns of a row, and its labels.

    A column is given by its name in the file's header, or by its number if there is no header."""
    title: str
    folder: str
    text: tuple       # the columns of the text, or of the two texts
    label: str | int  # the column of the label
    # {label as the file writes it: its name}, in the order of the class numbers (Hugging Face's).
    # None: the label is a score from 0 to 5. Empty: the answer is a part of the text.
    labels: dict | None
    dev: tuple = ("dev.tsv",)    # the labelled files that are not for training
    test: tuple = ("test.tsv",)  # the files without labels: only GLUE's server has the answers
    max_length: int = 128        # default of --max_length, in tokens
    train: str = "train.tsv"


THREE_WAY = {name: name for name in ("entailment", "neutral", "contradiction")}
TWO_WAY = {name: name for name in ("entailment", "not_entailment")}
SENTENCES = ("sentence1", "sentence2")

TASKS = {
    "cola": Task("CoLA", "CoLA", (3,), 1, {"0": "unacceptable", "1": "acceptable"}),
    "mnli": Task("MNLI", "MNLI", SENTENCES, "gold_label", THREE_WAY,
                 dev=("dev_matched.tsv", "dev_mismatched.tsv"),
                 test=("test_matched.tsv", "test_mismatched.tsv")),
    "mrpc": Task("MRPC", "MRPC", ("#1 String", "#2 String"), "Quality",
                 {"0": "not_equivalent", "1": "equivalent"}),
    "qnli": Task("QNLI", "QNLI", ("question", "sentence"), "label", TWO_WAY),
    "qqp": Task("QQP", "QQP", ("question1", "question2"), "is_duplicate",
                {"0": "not_duplicate", "1": "duplicate"}),
    "rte": Task("RTE", "RTE", SENTENCES, "label", TWO_WAY),
    "sst2": Task("SST-2", "SST-2", ("sentence",), "label", {"0": "negative", "1": "positive"}),
    "stsb": Task("STS-B", "STS-B", SENTENCES, "score", None),
    "wnli": Task("WNLI", "WNLI", SENTENCES, "label", {"0": "not_entailment", "1": "entailment"}),
    "imdb": Task("IMDb", "aclImdb", (), "", {"neg": "negative", "pos": "positive"},
                 test=(), max_length=256),
    "squad": Task("SQuAD", "squad", (), "", {}, dev=("dev-v1.1.json",), test=(), max_length=384,
                  train="train-v1.1.json"),
}


@dataclass(frozen=True)
class Example:
    text_a: str
    text_b: str | None
    label: int | float  # a class number, or a score


# ---- Folders and files ----

def task_folder(task, data_dir):
    """The folder of a task in data_dir, or in its glue_data/. Raises InputError."""
    name = TASKS[task].folder
    for parent in (Path(data_dir), Path(data_dir) / "glue_data"):
        if (parent / name).is_dir():
            return parent / name
    raise InputError(f"{data_dir}: holds no folder {name} or glue_data/{name}, for task {task}")


def task_title(task, data_dir):
    """What reports call the task: its title, unless its folder holds another data set.

    Such a stand-in, in the same layout, says what it is in the first line of its README:
    "Not MultiNLI: the SICK 2014 corpus (...)"."""
    for readme in readme_files(task_folder(task, data_dir)):
        text = readme.read_text(encoding="utf-8", errors="replace")
        stand_in = re.match(r"Not [^:\n]+: (?:the )?([^(,;\n]+)", text)
        if stand_in:
            return stand_in[1].strip()
    return TASKS[task].title


def task_files(task, data_dir, train_only=False):
    """The files with a task's labelled rows, and its README, if any. Raises InputError.

    train_only: leave out those that are not for training."""
    folder = task_folder(task, data_dir)
    files = readme_files(folder)
    if task == "imdb":
        for split in ("train",) if train_only else ("train", "test"):
            files += review_files(folder / split)
        return files
    names = [TASKS[task].train] if train_only else [TASKS[task].train, *TASKS[task].dev]
    return files + [folder / name for name in names]


def readme_files(folder):
    """A list of the README files in a folder."""
    files = [folder / name for name in ("README", "README.txt")]
    return [file for file in files if file.is_file()]


# ---- Sets of Examples ----

def read_train(task, data_dir):
    """The training set, a list of Examples. Raises InputError."""
    folder = task_folder(task, data_dir)
    if task == "imdb":
        return read_reviews(folder / "train")
    return read_tsv(folder / TASKS[task].train, TASKS[task])


def read_dev(task, data_dir):
    """The labelled sets that are not for training: {name: list of Examples}. Raises InputError."""
    folder = task_folder(task, data_dir)
    if task == "imdb":
        return {"test": read_reviews(folder / "test")}
    names = TASKS[task].dev
    return {name.removesuffix(".tsv"): read_tsv(folder / name, TASKS[task]) for name in names}


def read_test(task, data_dir):
    """GLUE's test files: {file name: list of (index, Example)}, each label 0. Raises InputError.

    The index is the first column. All test files have a header, CoLA's too."""
    if not TASKS[task].test:
        raise InputError(f"{task} has no test set without labels, "
                         "whose answers could be sent to GLUE's server")
    folder = task_folder(task, data_dir)
    text = [column if isinstance(column, str) else "sentence" for column in TASKS[task].text]
    sets = {}
    for name in TASKS[task].test:
        rows = read_columns(folder / name, (0, *text))
        sets[name] = [(index, make_example(texts, 0)) for _, (index, *texts) in rows]
    return sets


# ---- Tables ----

def read_tsv(path, task):
    """The Examples of one of GLUE's labelled files. task: a Task. Raises InputError."""
    examples = []
    columns = (*task.text, task.label)
    for number, (*texts, label) in read_columns(path, columns, leave_out=True):
        label = parse_label(label, task, f"{path}: line {number}")
        examples.append(make_example(texts, label))
    return examples


def make_example(texts, label):
    """An Example of one text or two."""
    return Example(texts[0], texts[1] if len(texts) == 2 else None, label)


def parse_label(text, task, where):
    """The class number of a label, or its score if the task has no classes. Raises InputError."""
    if task.labels is None:
        try:
            return parse_score(text)
        except ValueError:
            message = f"{where} has the score {text!r}, no number from 0 to 5"
            raise InputError(message) from None
    known = list(task.labels)
    if text not in known:
        raise InputError(f"{where} has the label {text!r}; known are {', '.join(known)}")
    return known.index(text)


def parse_score(text):
    """A score of STS-B, from 0 to 5. Raises ValueError."""
    score = float(text)
    if not 0 <= score <= 5:  # false for not-a-number, too
        raise ValueError
    return score


def read_columns(path, columns, leave_out=False):
    """Some columns of a table: a list of (line number, list of texts), one per row.

    Tabs separate columns; quotes have no meaning. Each column is given by its name in the header,
    or by its number. The file has no header if all are given by number; then the last column asked
    for is the row's last.
    leave_out: whether a few rows with too many columns or too few may be left out: one in 1,000.
    Raises InputError."""
    rows = list(enumerate(split_rows(path), 1))
    if any(isinstance(column, str) for column in columns):
        header = rows[0][1] if rows else []
        rows = rows[1:]
        columns = [column_number(column, header, path) for column in columns]
        width = len(header)
    else:
        width = max(columns) + 1
    found, odd = [], []
    for number, row in rows:
        if len(row) == width:
            found.append((number, [row[column] for column in columns]))
        else:
            odd.append((number, len(row)))
    if odd:
        report_odd_rows(path, odd, width, len(rows), leave_out)
    if not found:
        raise InputError(f"{path}: no rows in it")
    return found


def report_odd_rows(path, odd, width, count, leave_out):
    """Say which rows are left out, as in old archives of QQP; raise InputError if it is too many.

    odd: [(line number, its columns)] of a table of `count` rows."""
    number, columns = odd[0]
    if not leave_out or len(odd) * 1000 > count:
        raise InputError(f"{path}: line {number} has {columns} columns; {width} are needed "
                         f"({len(odd)} of {count} rows have another number)")
    lines = ", ".join(str(number) for number, _ in odd[:20])
    more = f" and {len(odd) - 20} more" if len(odd) > 20 else ""
    print(f"{path}: {len(odd)} of {count} rows left out, which do not have {width} columns: "
          f"lines {lines}{more}", file=sys.stderr)


def split_rows(path):
    """All cells of a table: a list of rows, each a list of texts. Raises InputError."""
    with open_text(path, newline="") as file:  # texts may hold \r and other line separators
        lines = file.read().split("\n")
    while lines and lines[-1] in ("", "\r"):
        lines.pop()  # what follows the last line end, and empty lines there
    return [line.removesuffix("\r").split("\t") for line in lines]


def column_number(column, header, path):
    """The number of a column, given by its name or its number. Raises InputError."""
    if not isinstance(column, str):
        return column
    if column not in header:
        raise InputError(f"{path}: line 1 has no column {column!r}; it has {', '.join(header)}")
    return header.index(column)


# ---- Reviews ----

def review_files(folder):
    """The reviews in aclImdb's train or test folder: neg/*.txt, then pos/*.txt, sorted by name.

    Raises InputError."""
    files = []
    for name in TASKS["imdb"].labels:
        found = sorted(file for file in (folder / name).glob("*.txt")
                       if not file.name.startswith("."))  # macOS adds a ._name.txt for each file
        if not found:
            raise InputError(f"{folder / name}: no .txt file there")
        files += found
    return files


def read_reviews(folder):
    """The Examples in aclImdb's train or test folder. Raises InputError."""
    classes = list(TASKS["imdb"].labels)
    examples = []
    for path in review_files(folder):
        with open_text(path) as file:
            text = file.read().replace("<br />", " ")
        examples.append(Example(text, None, classes.index(path.parent.name)))
    return examples
