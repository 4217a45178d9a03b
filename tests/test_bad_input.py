"""Wrong arguments, texts and task files: one line, exit status 2, and nothing written.

Models that cannot be loaded: test_bad_models.py. Archives: test_unpack.py. Random bytes in place of
any file: test_random_bytes.py.
"""
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY

import ablation
import finetune
import pretrain
from data import PackedBlocks
from support.corpus import corpus_tokens
from support.errors import InputError
from support.tasks import read_dev, read_train

pytest_plugins = ("bad_world",)


def run(module, *arguments):
    return module.main([str(argument) for argument in arguments])


# ---- Arguments ----

WRONG_ARGUMENTS = [
    (pretrain, "--steps -1", "--steps: -1 is not a number at least 0"),
    (pretrain, "--lr -1", "--lr: -1 is not a number above 0"),
    (finetune, "--lr -1", "--lr: -1 is not a number above 0"),
    (pretrain, "--lr inf", "--lr: inf is not a number above 0 and at most"),
    (pretrain, "--temperature 0", "--temperature: 0 is not a number above 0"),
    (pretrain, "--temperature 1e200",
     "--temperature: 1e200 is not a number above 0 and at most 10000"),
    (pretrain, "--mlm_prob 0 --use_ce 0 --use_cos 0",
     "--mlm_prob 0 masks nothing, so the MLM loss has nothing to learn from"),
    (pretrain, "--mlm_prob 1.01", "--mlm_prob: 1.01 is not a number at least 0 and at most 1"),
    (pretrain, "--use_ce 0 --use_mlm 0 --use_cos 0", "all losses are off"),
    (pretrain, "--max_length 65", "--max_length 65: .* has 64 positions"),
    (finetune, "--max_length 65", "--max_length 65: .* has 64 positions"),
    (pretrain, "--max_length 2", "--max_length: 2 is not a number at least 3"),
    (finetune, "--max_length 2", "--max_length: 2 is not a number at least 5"),
    (pretrain, "--layers 0,4", "--layers: the teacher has layers 0 to 3, not 4"),
    (pretrain, "--layers -1", "--layers: the teacher has layers 0 to 3, not -1"),
    (pretrain, f"--chunk_tokens {'9' * 20}",
     "--chunk_tokens: 9+ is not a number at least 0 and at most 2147483647"),
    (finetune, f"--epochs 1{'0' * 310}",
     "--epochs: 10+ is not a number at least 1 and at most 2147483647"),
    (pretrain, "--checkpoint_steps 0", "--checkpoint_steps: 0 is not a number at least 1"),
    (pretrain, "--checkpoint_minutes 0", "--checkpoint_minutes: 0 is not a number above 0"),
    (finetune, "--task mrcp", "--task: unknown task 'mrcp'; did you mean mrpc"),
    (ablation, "--variants full,no_coss", "unknown variant 'no_coss'; did you mean no_cos"),
    (ablation, "--preset bass", "unknown preset 'bass'; did you mean base"),
    (ablation, "--seeds x", "--seeds: invalid whole number value: 'x'"),
]


@pytest.mark.parametrize("module, arguments, message", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused(command, module, arguments, message):
    assert re.search(message, command(module, *arguments.split()))


@pytest.mark.parametrize("probability", ["0", "1"])
def test_masking_nothing_or_everything_works_with_all_losses(place, tmp_path, probability):
    run(pretrain, "--teacher", place / "teacher", "--corpus", place / "corpus.txt", "--steps", 2,
        "--max_length", 32, "--mlm_prob", probability, "--device", "cpu",
        "--out_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache")


# ---- Text ----

@pytest.mark.parametrize("text, message", [
    (None, "corpus.txt: no such file or folder"),
    (b"", "corpus.txt: no text in it"),
    (b"\n \r\n\t\n", "corpus.txt: no text in it"),
    (b"bad good\n", ("--corpus: 3 tokens are too few for blocks of --max_length 32, one of which "
                     "is held out; give --heldout")),
    (b"good\nnot \xff text\n", r"corpus.txt: line 2 is not UTF-8 text \(byte 0xff\)"),
    ("good\n".encode("utf-16"), r"corpus.txt: line 1 is not UTF-8 text \(byte 0xff\)"),
])
def test_a_corpus_that_cannot_be_used_is_refused(command, place, text, message):
    (place / "corpus.txt").unlink()
    if text is not None:
        (place / "corpus.txt").write_bytes(text)
    assert re.search(message, command(pretrain))


def test_byte_order_marks_line_ends_and_nul_bytes_do_not_matter(place, tokenizer, tmp_path):
    plain, odd = place / "corpus.txt", place / "odd.txt"
    changed = plain.read_bytes().replace(b"\n", b"\r\n").replace(b" ", b" \0 ")
    odd.write_bytes(b"\xef\xbb\xbf" + changed)
    expected = corpus_tokens([plain], tokenizer, tmp_path)
    assert np.array_equal(corpus_tokens([odd], tokenizer, tmp_path), expected)


def test_a_damaged_token_cache_is_detected(place, tokenizer, tmp_path):
    def tokens():
        return corpus_tokens([place / "corpus.txt"], tokenizer, tmp_path)
    expected = np.array(tokens())
    file, = tmp_path.glob("tokens-*.bin")
    file.write_bytes(file.read_bytes()[:1000])  # cut short: made again
    assert np.array_equal(tokens(), expected)

    file.write_bytes(b"\xff" * (2 * len(expected)))
    with pytest.raises(InputError, match="tokens-.*.bin: damaged; delete it, and it is made again"):
        PackedBlocks(tokens(), tokenizer, 16).training_batch(0, 4, 0.15, 0)


COUNT_TOKENS_AND_MEMORY = """
import sys
from load_hf_weights import load_tokenizer
from support.corpus import corpus_tokens
from support.device import peak_memory
corpus, model, cache = sys.argv[1:]
tokenizer = load_tokenizer(model)
before = peak_memory()
tokens = corpus_tokens([corpus], tokenizer, cache)
print(len(tokens), peak_memory() - before)
"""


def test_a_line_of_100_MB_is_read_in_bounded_memory(place, tokenizer, tmp_path):
    words, repeats = "banbins good bad, ", 100_000_000 // 18
    (place / "line.txt").write_text(words * repeats)
    command = [sys.executable, "-c", COUNT_TOKENS_AND_MEMORY,
               place / "line.txt", place / "teacher", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tokens, more_memory = done.stdout.split()
    tokens_per_repeat = len(tokenizer.encode(words, add_special_tokens=False).ids)
    assert int(tokens) == repeats * tokens_per_repeat + 1
    assert float(more_memory) < 0.4  # GiB; the line's tokens as objects would take 3


# ---- The tasks' files ----

def replace(old, new, name="MRPC/train.tsv"):
    """A change of a task's file: the first `old` becomes `new`."""
    def change(place):
        file = place / "data" / "glue_data" / name
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return change


def remove(name):
    """A change: this file or folder is gone."""
    def change(place):
        path = place / "data" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return change


def overwrite(name, content):
    return lambda place: (place / "data" / name).write_bytes(content)


def change_rows_of_mrpc(change_rows):
    def change(place):
        file = place / "data" / "glue_data" / "MRPC" / "train.tsv"
        rows = file.read_text(encoding="utf-8").split("\n")
        file.write_text("\n".join(change_rows(rows)), encoding="utf-8")
    return change


def truncate_row(rows):
    short = "\t".join(rows[4].split("\t")[:3])
    return [*rows[:4], short, *rows[5:]]


def one_class(rows):
    return [row for row in rows if not row.startswith("0")]


MRPC = "glue_data/MRPC"
ONE_CLASS = "the training rows of mrpc all have the same label; nothing can be learned from them"
WRONG_TASK_FILES = [
    ("mrpc", replace("#2 String", "#2 Text"),
     "MRPC/train.tsv: line 1 has no column '#2 String'; it has Quality, #1 ID"),
    ("mrpc", change_rows_of_mrpc(truncate_row),
     "MRPC/train.tsv: line 5 has 3 columns; 5 are needed"),
    ("mrpc", replace("\n1\t", "\nyes\t"),
     "MRPC/train.tsv: line 3 has the label 'yes'; known are 0, 1"),
    ("mrpc", replace("\n1\t", "\n2\t"),
     "MRPC/train.tsv: line 3 has the label '2'; known are 0, 1"),
    ("mrpc", replace("\n0\t", "\n0.5\t", "MRPC/dev.tsv"),
     "MRPC/dev.tsv: line 2 has the label '0.5'; known are 0, 1"),
    ("mnli", replace("contradiction\n", "-\n", "MNLI/dev_mismatched.tsv"),
     r"MNLI/dev_mismatched.tsv: line \d+ has the label '-'; known are entailment"),
    ("stsb", replace("\t4.75\n", "\tmany\n", "STS-B/train.tsv"),
     "STS-B/train.tsv: line 3 has the score 'many', no number from 0 to 5"),
    ("stsb", replace("\t4.75\n", "\tnan\n", "STS-B/dev.tsv"),
     "STS-B/dev.tsv: line 3 has the score 'nan', no number from 0 to 5"),
    ("stsb", replace("\t0.500\n", "\t5.01\n", "STS-B/dev.tsv"),
     "STS-B/dev.tsv: line 2 has the score '5.01', no number from 0 to 5"),
    ("mrpc", change_rows_of_mrpc(one_class), ONE_CLASS),
    ("mrpc", remove(f"{MRPC}/dev.tsv"), "MRPC/dev.tsv: no such file"),
    ("mrpc", remove(f"{MRPC}/train.tsv"), "MRPC/train.tsv: no such file"),
    ("mrpc", overwrite(f"{MRPC}/train.tsv", b""), "MRPC/train.tsv: line 1 has no column"),
    ("mrpc", remove(MRPC), "data: holds no folder MRPC or glue_data/MRPC, for task mrpc"),
    ("imdb", remove("aclImdb/train/neg"), "train/neg: no .txt file there"),
    ("imdb", overwrite("aclImdb/test/pos/3_10.txt", b"caf\xe9"),
     r"test/pos/3_10.txt: line 1 is not UTF-8 text \(byte 0xe9\)"),
]


@pytest.mark.parametrize("task, change, message", WRONG_TASK_FILES)
def test_a_wrong_task_file_is_named_with_the_line(command, place, task, change, message):
    change(place)
    assert re.search(message, command(finetune, "--task", task))
    if task in ("mrpc", "imdb") and message != ONE_CLASS:
        assert re.search(message, command(ablation, "--tasks", task))  # before any run begins


def test_odd_texts_are_read_and_no_row_is_lost(place, tmp_path):
    """Open quotes, empty texts, and more tokens than the model has positions."""
    texts = ['"an open quote', 'and "another', "", " ", "good " * 500, "\0", "\N{BRAIN}",
             "x" * 5000]
    table = "".join(f"x\t{i % 2}\t\t{text}\n" for i, text in enumerate(texts))
    for split in ("train", "dev"):
        (place / "data/glue_data/CoLA" / f"{split}.tsv").write_text(table, encoding="utf-8")
    assert len(read_train("cola", place / "data")) == 8
    assert len(read_dev("cola", place / "data")["dev"]) == 8

    results = run(finetune, "--model", place / "teacher", "--task", "cola",
                  "--data_dir", place / "data", "--epochs", 1, "--device", "cpu",
                  "--max_length", TINY.max_position_embeddings, "--out_dir", tmp_path / "out")
    assert results["train_rows"] == results["sets"]["dev"]["rows"] == 8
