"""A miniature world in the real layouts: a random teacher, a corpus, GLUE's tasks and reviews.

It takes seconds to make and needs no network. Also here: what several test files need.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "true"
# What a shell starts with & ignores SIGINT, and so would all processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

from load_hf_weights import load_tokenizer, save_model
from model import BertConfig, MaskedLM
from support.cli import command_line

SHARED = Path(os.environ.get("BERT_DATA", ROOT.parent / "shared"))

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "fine", "great", "bright"], ["bad", "poor", "awful", "dull"]
SYLLABLES = [f"{a}{b}{c}" for a in "bdklmr" for b in "aeiou" for c in "nst"]
WORDS = [*SYLLABLES, *GOOD, *BAD, *"abcdefgh.,'\"", "##s", "##ing", "film"]

TINY = BertConfig(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=4,
                  num_attention_heads=4, intermediate_size=64, max_position_embeddings=64)


# ---- Text ----

def sentence(rng, words=WORDS[:90], low=4, high=12):
    return " ".join(rng.choices(words, k=rng.randint(low, high)))


def praise_or_blame(rng, label):
    """A sentence with a word of blame (label 0) or of praise (label 1)."""
    word = (BAD, GOOD)[label]
    return f"{sentence(rng)} {rng.choice(word)} {sentence(rng, low=1, high=3)}"


def pair(rng, label):
    """Two sentences: different ones (label 0) or twice the same (label 1)."""
    first = sentence(rng)
    return first, first if label else sentence(rng)


# ---- Tasks ----

# Tasks on pairs: their folder, the columns of train.tsv and dev.tsv, the two labels.
PAIR_TASKS = {
    "QNLI": ("index question sentence label", ("not_entailment", "entailment")),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", "01"),
    "RTE": ("index sentence1 sentence2 label", ("not_entailment", "entailment")),
    "WNLI": ("index sentence1 sentence2 label", "01"),
    "STS-B": ("index genre filename year old_index source1 source2 sentence1 sentence2 score",
              ("0.500", "4.75")),
}
MRPC_TEXTS = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
TEST_FILES = {
    "CoLA/test": ["index", "sentence"],
    "SST-2/test": ["index", "sentence"],
    "MRPC/test": ["index", *MRPC_TEXTS],
    "MNLI/test_matched": ["index", "sentence1", "sentence2"],
    "MNLI/test_mismatched": ["index", "sentence1", "sentence2"],
    "QNLI/test": ["index", "question", "sentence"],
    "QQP/test": ["id", "question1", "question2"],
    "RTE/test": ["index", "sentence1", "sentence2"],
    "STS-B/test": ["index", "sentence1", "sentence2"],
    "WNLI/test": ["index", "sentence1", "sentence2"],
}
MNLI_LABELS = ("neutral", "entailment", "contradiction")


def write_table(path, header, rows):
    """A file of columns with tabs between them. header: a list of names, empty for none."""
    lines = [header] if header else []
    lines += rows
    text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
    path.with_suffix(".tsv").write_text(text, encoding="utf-8")


def write_task_files(folder, rng, rows=64):
    """Tasks that can be learnt: praise or blame in one text; whether two texts are equal."""
    glue = folder / "glue_data"
    for name in ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"):
        (glue / name).mkdir(parents=True)
    for split in ("train", "dev"):
        write_single_sentences(glue, split, rng, rows)
        write_pairs(glue, split, rng, rows)
    for name, columns in TEST_FILES.items():
        texts = 1 if len(columns) == 2 else 2
        between = ["9"] * (len(columns) - 1 - texts)
        write_table(glue / name, columns,
                    [[i, *between, *pair(rng, i % 2)[:texts]] for i in range(20)])
    write_mnli(glue / "MNLI", rng, rows)
    write_reviews(folder / "aclImdb", rng, rows // 4)


def write_single_sentences(glue, split, rng, rows):
    write_table(glue / "CoLA" / split, [],
                [["gj04", i % 2, "" if i % 2 else "*", praise_or_blame(rng, i % 2)]
                 for i in range(rows)])
    write_table(glue / "SST-2" / split, ["sentence", "label"],
                [[praise_or_blame(rng, i % 2) + " ", i % 2] for i in range(rows)])


def write_pairs(glue, split, rng, rows):
    write_table(glue / "MRPC" / split, ["\ufeffQuality", *MRPC_TEXTS],
                [[i % 2, i, i, *pair(rng, i % 2)] for i in range(rows)])
    for name, (columns, labels) in PAIR_TASKS.items():
        columns = columns.split()
        before = ["x"] * (len(columns) - 3)
        write_table(glue / name / split, columns,
                    [[*before, *pair(rng, i % 2), labels[i % 2]] for i in range(rows)])


def write_mnli(folder, rng, rows):
    """With README.txt, which says that this is a stand-in."""
    before = ["index", "promptID", "pairID", "genre", "p1", "p2", "q1", "q2"]
    for split in ("train", "dev_matched", "dev_mismatched"):
        annotators = 1 if split == "train" else 5
        labels = [*(f"label{k}" for k in range(1, annotators + 1)), "gold_label"]
        write_table(folder / split, [*before, "sentence1", "sentence2", *labels],
                    [["x"] * len(before) + list(pair(rng, i % 2))
                     + [MNLI_LABELS[i % 3]] * len(labels) for i in range(rows)])
    (folder / "README.txt").write_text(
        "Not MultiNLI: the tiny pairs (random words), in its layout.\n")


def write_reviews(folder, rng, count):
    for split in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                text = f"{praise_or_blame(rng, label)}<br /><br />{praise_or_blame(rng, label)}"
                (folder / split / name / f"{i}_{1 + 9 * label}.txt").write_text(text)


# ---- The world ----

@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder: teacher/, corpus.txt, heldout.txt, data/."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    (folder / "teacher").mkdir()
    (folder / "teacher" / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    torch.manual_seed(0)
    teacher = MaskedLM(TINY)
    for parameter in teacher.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6  # random, but large: the teacher has an opinion on every word
    save_model(teacher, load_tokenizer(folder / "teacher"), folder / "teacher")
    for name, count in (("corpus.txt", 60), ("heldout.txt", 15)):
        documents = []
        for _ in range(count):
            documents.append("\n".join(sentence(rng) for _ in range(8)) + "\n")
        (folder / name).write_text("\n".join(documents))
    write_task_files(folder / "data", rng)
    return folder


def no_dropout(world, folder):
    """The teacher, with a config that knows no dropout."""
    folder.mkdir()
    for file in (world / "teacher").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def tokenizer(world):
    return load_tokenizer(world / "teacher")


# ---- Commands ----

@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(module, arguments) -> the one line that a command prints when it refuses to run.

    It must end with status 2."""
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command_line(module.main)
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert "usage:" not in printed and "Traceback" not in printed
        return last_line(printed)
    return run


def last_line(printed):
    """The last line on stderr; a progress bar may be before it."""
    return printed.replace("\r", "\n").strip().splitlines()[-1]


def wait_until(condition, process):
    """Return as soon as condition() is true; fail if the process ends first.

    Long enough for a busy machine: five minutes."""
    started = time.monotonic()
    while not condition():
        has_ended = process.poll() is not None
        if has_ended and not condition():
            pytest.fail(f"the process ended too early: {process.communicate(timeout=60)}")
        if time.monotonic() - started > 300:
            process.kill()
            pytest.fail("it has not happened within five minutes")
        time.sleep(0.005)


def output_of(process):
    """(stdout, stderr) of a process, which must end by itself within ten minutes."""
    try:
        return process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
