"""The tasks' own files: GLUE's tables and aclImdb's folders, read row by row."""
import re
from dataclasses import dataclass
from pathlib import Path

from support.corpus import open_text
from support.errors import InputError


@dataclass(frozen=True)
class Task:
    """Where a task's rows lie: files and columns (by the header's name, or by number where the file has no header)."""
    title: str
    folder: str
    text: tuple        # the columns of the one sentence, or of the two
    label: str | int
    labels: dict | None  # a label as the file writes it -> its name; the class number is its place (Hugging Face's order).
                         # None: a score from 0 to 5; empty: no label, but an answer from the text
    dev: tuple = ("dev.tsv",)    # the labelled files that are not for training
    test: tuple = ("test.tsv",)  # those without labels, whose answers GLUE's server knows
    max_length: int = 128
    train: str = "train.tsv"


NLI = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"}


ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}


TASKS = {
    "cola": Task("CoLA", "CoLA", (3,), 1, {"0": "unacceptable", "1": "acceptable"}),
    "mnli": Task("MNLI", "MNLI", ("sentence1", "sentence2"), "gold_label", NLI,
                 ("dev_matched.tsv", "dev_mismatched.tsv"), ("test_matched.tsv", "test_mismatched.tsv")),
    "mrpc": Task("MRPC", "MRPC", ("#1 String", "#2 String"), "Quality", {"0": "not_equivalent", "1": "equivalent"}),
    "qnli": Task("QNLI", "QNLI", ("question", "sentence"), "label", ENTAILMENT),
    "qqp": Task("QQP", "QQP", ("question1", "question2"), "is_duplicate", {"0": "not_duplicate", "1": "duplicate"}),
    "rte": Task("RTE", "RTE", ("sentence1", "sentence2"), "label", ENTAILMENT),
    "sst2": Task("SST-2", "SST-2", ("sentence",), "label", {"0": "negative", "1": "positive"}),
    "stsb": Task("STS-B", "STS-B", ("sentence1", "sentence2"), "score", None),
    "wnli": Task("WNLI", "WNLI", ("sentence1", "sentence2"), "label", {"0": "not_entailment", "1": "entailment"}),
    "imdb": Task("IMDb", "aclImdb", (), "", {"neg": "negative", "pos": "positive"}, test=(), max_length=256),
    "squad": Task("SQuAD", "squad", (), "", {}, ("dev-v1.1.json",), (), 384, "train-v1.1.json"),  # read by squad.py
}


@dataclass(frozen=True)
class Example:
    text_a: str
    text_b: str | None
    label: int | float  # a class number, or a score


def task_folder(task, data_dir):
    """The folder of a task under data_dir, or under its glue_data/. Raises InputError."""
    for parent in (Path(data_dir), Path(data_dir) / "glue_data"):
        if (parent / TASKS[task].folder).is_dir():
            return parent / TASKS[task].folder
    raise InputError(f"{data_dir}: holds no folder {TASKS[task].folder} or glue_data/{TASKS[task].folder}, for task {task}")


def task_title(task, data_dir):
    """What to call a task's figures: its name, unless the folder holds another data set in the same layout.

    Such a folder says so in the first line of its README or README.txt: "Not MultiNLI: the SICK 2014 corpus (...)"."""
    for name in ("README", "README.txt"):
        readme = task_folder(task, data_dir) / name
        if readme.is_file():
            stand_in = re.match(r"Not [^:\n]+: (?:the )?([^(,;\n]+)", readme.read_text(encoding="utf-8", errors="replace"))
            if stand_in:
                return stand_in[1].strip()
    return TASKS[task].title


def task_files(task, data_dir, train_only=False):
    """The files that a task's rows stand in, and the README that names them. Raises InputError."""
    folder = task_folder(task, data_dir)
    readme = [folder / name for name in ("README", "README.txt") if (folder / name).is_file()]
    if task == "imdb":
        return readme + [path for split in (("train",) if train_only else ("train", "test")) for path in review_files(folder / split)]
    return readme + [folder / name for name in (TASKS[task].train, *(() if train_only else TASKS[task].dev))]


def read_train(task, data_dir):
    """The training set, a list of Examples. Raises InputError."""
    folder = task_folder(task, data_dir)
    return read_reviews(folder / "train") if task == "imdb" else read_tsv(folder / TASKS[task].train, TASKS[task])


def read_dev(task, data_dir):
    """{name of the set: list of Examples}, of the labelled sets that are not for training. Raises InputError."""
    folder = task_folder(task, data_dir)
    if task == "imdb":
        return {"test": read_reviews(folder / "test")}
    return {name.removesuffix(".tsv"): read_tsv(folder / name, TASKS[task]) for name in TASKS[task].dev}


def read_tsv(path, task):
    """The Examples of one of GLUE's labelled files. Raises InputError."""
    examples = []
    for number, (*texts, label) in read_columns(path, (*task.text, task.label)):
        try:
            label = list(task.labels).index(label) if task.labels else score(label)
        except ValueError:
            wrong = f"label {label!r}; known are {', '.join(task.labels)}" if task.labels else f"score {label!r}, no number from 0 to 5"
            raise InputError(f"{path}: line {number} has the {wrong}") from None
        examples.append(Example(texts[0], texts[1] if len(texts) == 2 else None, label))
    return examples


def read_test(task, data_dir):
    """{name of the file: [(index, Example without a label)]} of GLUE's test files. They have a header, CoLA's too; the index stands
    first. Raises InputError."""
    if not TASKS[task].test:
        raise InputError(f"{task} has no test set without labels, whose answers could be sent to GLUE's server")
    text = [column if isinstance(column, str) else "sentence" for column in TASKS[task].text]
    return {name: [(index, Example(texts[0], texts[1] if len(texts) == 2 else None, 0))
                   for _, (index, *texts) in read_columns(task_folder(task, data_dir) / name, (0, *text))] for name in TASKS[task].test}


def read_columns(path, columns):
    """[(line number, the texts of these columns)], a row a line; tabs separate, quotes are mere characters. A column is named as in
    the header, or by its number; without a name among them there is no header. Raises InputError."""
    with open_text(path, newline="") as file:  # only \n ends a row: other separators may stand in the text
        rows = [line.removesuffix("\r").split("\t") for line in file.read().split("\n")]
    if rows[-1] == [""]:
        rows.pop()  # the file's last line ends, as lines do
    first = int(any(isinstance(column, str) for column in columns))
    header = rows[0] if rows and first else []
    if absent := [column for column in columns if isinstance(column, str) and column not in header]:
        raise InputError(f"{path}: line 1 has no column {absent[0]!r}; it has {', '.join(header)}")
    columns = [header.index(column) if isinstance(column, str) else column for column in columns]
    found = []
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) <= max(columns):
            raise InputError(f"{path}: line {number} has {len(row)} columns; {max(columns) + 1} are needed")
        found.append((number, [row[column] for column in columns]))
    if not found:
        raise InputError(f"{path}: no rows in it")
    return found


def score(text):
    """A score of STS-B. Raises ValueError."""
    if not 0 <= float(text) <= 5:  # nor is not-a-number
        raise ValueError
    return float(text)


def review_files(folder):
    """neg/*.txt and then pos/*.txt of aclImdb's train or test folder, sorted by name. Raises InputError."""
    files = []
    for name in TASKS["imdb"].labels:
        found = sorted((folder / name).glob("*.txt"))
        if not found:
            raise InputError(f"{folder / name}: no .txt file there")
        files += found
    return files


def read_reviews(folder):
    """The Examples of aclImdb's train or test folder. Raises InputError."""
    classes, examples = list(TASKS["imdb"].labels), []
    for path in review_files(folder):
        with open_text(path) as file:
            examples.append(Example(file.read().replace("<br />", " "), None, classes.index(path.parent.name)))
    return examples
