"""Batches: blocks of the corpus and their masks, the readers of GLUE and IMDb, rows of texts.

    python data.py --download cola,mrpc,imdb,wikitext-2 --data_dir FOLDER

fetches the files themselves (download.py). A block and its mask are pure functions of (seed, step, row): no state, so nothing to save
and nothing to lose. Read next: pretrain.py (blocks) and finetune.py (tasks).
"""
import functools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from corpus import open_text
from run import MASKS, ORDER, InputError, Parser, command_line, list_of


def ahead(batches, pin=False):
    """The tuples of an iterator, each made by a thread while the one before it is in use.

    pin: their tensors go into page-locked memory, whose copy to a GPU need not be waited for."""
    batches = iter(batches)

    def following():
        batch = next(batches, None)
        return tuple(x.pin_memory() for x in batch) if pin and batch else batch
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(following)
        while batch := made.result():
            made = thread.submit(following)
            yield batch


# ---- The corpus in blocks ----

class Blocks:
    """A corpus in blocks of max_length tokens: [CLS], max_length - 2 tokens of running text, [SEP]. No padding anywhere.

    Text runs on from line to line, and from a document's [SEP] into the next document ("full sentences" of Liu et al. 2019,
    arXiv:1907.11692, section 4.2). What is left over at the very end, less than a block, is not used.
    first, count: which of the corpus's blocks these are."""

    def __init__(self, tokens, tokenizer, max_length, first=0, count=None):
        self.tokens, self.max_length, self.first = tokens, max_length, first
        self.count = len(tokens) // (max_length - 2) - first if count is None else count
        self.cls, self.sep, self.mask = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
        self.vocab_size = tokenizer.get_vocab_size()

    def rows(self, numbers):
        """(len(numbers), max_length) ids of these blocks, int64."""
        width = self.max_length - 2
        text = self.tokens[(np.asarray(numbers, dtype=np.int64)[:, None] + self.first) * width + np.arange(width)]
        if text.size and text.max() >= self.vocab_size:
            raise InputError(f"{getattr(self.tokens, 'filename', 'the corpus')}: damaged; delete it, and it is made again")
        return np.pad(text.astype(np.int64), ((0, 0), (1, 1)), constant_values=((0, 0), (self.cls, self.sep)))

    def training_batch(self, step, batch_size, mlm_prob, seed, first=0, every=1):
        """Batch `step` of an endless course over the blocks, in a new order and under new masks each time round
        (Liu et al. 2019, "dynamic masking"): (input_ids, labels), each (batch_size, max_length) int64 tensors.
        first, every: only these of the rows, what one of several processes works on."""
        rows = range(first, batch_size, every)
        places = [divmod(step * batch_size + row, self.count) for row in rows]
        return self.masked([shuffled(self.count, seed, epoch)[place] for epoch, place in places],
                           mlm_prob, [(MASKS, seed, step, row) for row in rows])

    def masked(self, numbers, mlm_prob, keys):
        """These blocks, masked, each with the random numbers of its own key: (input_ids, labels)."""
        pairs = [mask_tokens(ids, np.random.default_rng(key), mlm_prob, (self.cls, self.sep), self.mask, self.vocab_size)
                 for ids, key in zip(self.rows(numbers), keys)]
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*pairs))


@functools.lru_cache(maxsize=2)  # a batch may reach over the end of an epoch
def shuffled(count, seed, epoch):
    return np.random.default_rng((ORDER, seed, epoch)).permutation(np.arange(count, dtype=np.uint32))  # 4 bytes a block of the corpus


def mask_tokens(ids, rng, mlm_prob, special, mask, vocab_size):
    """BERT's masking (Devlin et al. 2018, section 3.1): each token but the special ones is chosen with probability mlm_prob;
    of the chosen 80 % become [MASK], 10 % a random token, 10 % stay.

    ids: (length,). Returns (input_ids, labels): labels hold the true id where chosen, -100 elsewhere."""
    chosen = (rng.random(ids.shape) < mlm_prob) & ~np.isin(ids, special)
    fate = rng.random(ids.shape)
    random_ids = rng.integers(vocab_size, size=ids.shape)
    input_ids = np.where(chosen & (fate < 0.8), mask, np.where(chosen & (fate >= 0.9), random_ids, ids))
    return input_ids, np.where(chosen, ids, -100)


# ---- The tasks: GLUE's own files and aclImdb's folders -> examples -> batches ----

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


def encode(examples, tokenizer, max_length):
    """[(input_ids, token_type_ids)], lists of whole numbers: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with b in segment 1.

    A single text is cut at its end; of a pair, tokens go one by one from the end of the longer, at a tie from the second."""
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")

    def ids_of(texts):
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    pairs = ids_of([example.text_a for example in examples]), ids_of([example.text_b or "" for example in examples])
    rows = []
    for example, a, b in zip(examples, *pairs):
        if example.text_b is None:
            rows.append(([cls, *a[:max_length - 2], sep], [0] * (min(len(a), max_length - 2) + 2)))
            continue
        while len(a) + len(b) > max_length - 3:
            (a if len(a) > len(b) else b).pop()
        rows.append(([cls, *a, sep, *b, sep], [0] * (len(a) + 2) + [1] * (len(b) + 1)))
    return rows


def collate(rows, pad):
    """(input_ids, attention_mask, token_type_ids), (batch, length) int64 tensors, padded to the longest row."""
    longest = max(len(ids) for ids, _ in rows)
    batch = torch.zeros(3, len(rows), longest, dtype=torch.int64)
    batch[0] = pad
    for i, (ids, token_type_ids) in enumerate(rows):
        batch[:, i, :len(ids)] = torch.from_numpy(np.array([ids, [1] * len(ids), token_type_ids], dtype=np.int64))
    return batch.unbind()


def shuffled_batches(rows, batch_size, seed, epoch):
    """Lists of row numbers, every row once, grouped by length so that little is padding: shuffle, sort by length within
    stretches of 16 batches, and shuffle the batches."""
    rng = np.random.default_rng((ORDER, seed, epoch))
    order, lengths = rng.permutation(len(rows)), np.array([len(ids) for ids, _ in rows])
    stretches = [order[i:i + 16 * batch_size] for i in range(0, len(rows), 16 * batch_size)]
    order = np.concatenate([stretch[np.argsort(lengths[stretch], kind="stable")] for stretch in stretches])
    batches = [order[i:i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(rows, batch_size):
    """Lists of row numbers, every row once, longest first: for evaluation, and so that too little memory shows at once."""
    order = np.argsort([-len(ids) for ids, _ in rows], kind="stable")
    return [order[i:i + batch_size] for i in range(0, len(rows), batch_size)]


def main(arguments):
    from download import SOURCES, download_tasks  # built upon this file
    parser = Parser(__doc__)
    parser.add_argument("--download", type=list_of(SOURCES, "data set"), required=True, help=f"separated by commas: {', '.join(SOURCES)}")
    parser.add_argument("--data_dir", required=True, help="folder that gets CoLA/, MNLI/, ..., aclImdb/, squad/, wikitext-2-raw/, ...")
    args = parser.parse_args(arguments)
    download_tasks(args.download, args.data_dir)


if __name__ == "__main__":
    command_line(main)
