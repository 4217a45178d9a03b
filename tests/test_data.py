"""data.py: blocks and masks; the tasks' files as they really are, and as they should not be."""
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, sentence

from data import (
    PackedBlocks,
    collate,
    encode,
    length_bucketed_batches,
    mask_tokens,
    sorted_batches,
)
from support.corpus import corpus_tokens
from support.errors import InputError
from support.tasks import TASKS, Example, read_dev, read_train, read_tsv, task_title


@pytest.fixture
def blocks(world, tokenizer, tmp_path):
    return PackedBlocks(corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path), tokenizer, 16)


def test_blocks_of_a_corpus_of_more_than_four_billion_tokens(tokenizer):
    class Tokens:
        def __len__(self):
            return 4_400_000_000

        def __getitem__(self, places):
            return (places % 89).astype(np.uint16)
    blocks = PackedBlocks(Tokens(), tokenizer, 128)
    numbers = np.array([34_563_174, blocks.count - 1], dtype=np.uint32)  # as shuffled gives them
    assert blocks.rows(numbers)[:, 1:-1].tolist() == [[(int(number) * 126 + i) % 89 for i in range(126)] for number in numbers]


def test_blocks_hold_all_the_text_in_order(blocks, tokenizer):
    rows = blocks.rows(range(blocks.count))
    assert (rows[:, 0] == tokenizer.token_to_id("[CLS]")).all() and (rows[:, -1] == tokenizer.token_to_id("[SEP]")).all()
    assert np.array_equal(rows[:, 1:-1].ravel(), blocks.tokens[:blocks.count * 14])
    assert len(blocks.tokens) - blocks.count * 14 < 14
    part = PackedBlocks(blocks.tokens, tokenizer, 16, first=5)
    assert part.count == blocks.count - 5 and np.array_equal(part.rows([0, 3]), rows[[5, 8]])


def test_every_epoch_sees_every_block_once_in_an_order_of_its_own(blocks):
    size = 7  # does not divide the number of blocks
    wanted = {row.tobytes() for row in blocks.rows(range(blocks.count))}
    seen = []
    for step in range(-(-2 * blocks.count // size)):
        ids, labels = blocks.training_batch(step, size, 0.15, seed=3)
        seen += [row.tobytes() for row in torch.where(labels == -100, ids, labels).numpy()]
    first, second = seen[:blocks.count], seen[blocks.count:2 * blocks.count]
    assert set(first) == set(second) == wanted and first != second


def test_a_batch_follows_from_seed_and_step_alone(blocks):
    first = blocks.training_batch(5, 4, 0.15, seed=1)
    blocks.training_batch(900, 4, 0.15, seed=2)  # leaves no trace
    assert all(torch.equal(x, y) for x, y in zip(first, blocks.training_batch(5, 4, 0.15, seed=1)))
    assert not torch.equal(first[0], blocks.training_batch(5, 4, 0.15, seed=2)[0])
    halves = [blocks.training_batch(step, 2, 0.0, seed=1)[0] for step in (10, 11)]
    assert torch.equal(torch.cat(halves), blocks.training_batch(5, 4, 0.0, seed=1)[0])  # the order does not depend on the batch size


def test_masks_are_drawn_anew_each_epoch(blocks):
    def masks_of_epoch(epoch):
        return {torch.where(labels == -100, ids, labels).numpy().tobytes(): (labels != -100).numpy().tobytes()
                for step in range(epoch * blocks.count, (epoch + 1) * blocks.count)
                for ids, labels in [tuple(x[0] for x in blocks.training_batch(step, 1, 0.5, seed=0))]}
    first, second = masks_of_epoch(0), masks_of_epoch(1)
    assert first.keys() == second.keys()
    assert sum(first[key] == second[key] for key in first) < 0.1 * len(first)


def test_masking_is_80_10_10_of_15_percent():
    ids = np.random.default_rng(1).integers(5, 1000, 200_000)
    ids[:1000] = 2
    masked, labels = mask_tokens(ids, np.random.default_rng(0), 0.15, (2, 3), mask=4, vocab_size=100_000)
    chosen = labels != -100
    assert not chosen[:1000].any() and np.array_equal(labels[chosen], ids[chosen]) and np.array_equal(masked[~chosen], ids[~chosen])
    assert chosen[1000:].mean() == pytest.approx(0.15, abs=0.004)
    fates = masked[chosen]
    assert (fates == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (fates == ids[chosen]).mean() == pytest.approx(0.1, abs=0.01)
    random_ids = fates[(fates != 4) & (fates != ids[chosen])]
    assert random_ids.min() < 2000 and random_ids.max() > 98_000 and np.median(random_ids) == pytest.approx(50_000, rel=0.1)
    assert (mask_tokens(ids, np.random.default_rng(0), 0.0, (2,), 4, 9)[1] == -100).all()
    assert (mask_tokens(ids, np.random.default_rng(0), 1.0, (2,), 4, 9)[1][1000:] != -100).all()


@pytest.mark.parametrize("task", [task for task in TASKS if task != "squad"])  # test_squad.py
def test_every_layout_is_read(world, task):
    train, dev = read_train(task, world / "data"), read_dev(task, world / "data")
    assert len(train) == (32 if task == "imdb" else 64)
    assert list(dev) == {"mnli": ["dev_matched", "dev_mismatched"], "imdb": ["test"]}.get(task, ["dev"])
    assert {example.label for example in train} == ({0.5, 4.75} if task == "stsb" else set(range(len(TASKS[task].labels))))
    assert (train[0].text_b is None) == (task in ("cola", "sst2", "imdb"))
    equal = {"mrpc": 1, "qnli": 0, "qqp": 1, "rte": 0, "stsb": 4.75, "wnli": 1}  # the label of a pair of equal sentences
    if task in equal:
        assert all((example.text_a == example.text_b) == (example.label == equal[task]) for example in train)
    if task == "imdb":
        assert "<br" not in train[0].text_a and any(word in train[0].text_a for word in ("bad", "poor", "awful", "dull"))
    if task == "mnli":  # neutral is the first row's
        assert [example.label for example in train[:3]] == [1, 0, 2]
        assert read_train(task, world / "data" / "glue_data") == train


def test_quotes_and_odd_white_space_swallow_no_row(tmp_path):
    rows = ['x\t1\t\t"an open quote', 'x\t0\t*\tnext"', "x\t1\t\tline\u2028separator \x85 and \x0c", "x\t0\t*\t", "x\t1\t\tno newline at the end"]
    (tmp_path / "train.tsv").write_text("\n".join(rows), encoding="utf-8", newline="")
    examples = read_tsv(tmp_path / "train.tsv", TASKS["cola"])
    assert [example.text_a for example in examples] == [row.split("\t")[3] for row in rows]
    (tmp_path / "train.tsv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")
    assert read_tsv(tmp_path / "train.tsv", TASKS["cola"]) == examples


MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


@pytest.mark.parametrize("task, text, message", [
    ("mrpc", MRPC.replace("Quality", "Label"), "line 1 has no column 'Quality'; it has Label"),
    ("mrpc", MRPC + "1\t2\t3\ta\tb\n1\t2\t3\ta\n", "line 3 has 4 columns; 5 are needed"),
    ("mrpc", MRPC + "2\t2\t3\ta\tb\n", "line 2 has the label '2'; known are 0, 1"),
    ("mrpc", MRPC, "no rows in it"),
    ("mrpc", "", "line 1 has no column"),
    ("cola", "x\tyes\t\ta\n", "line 1 has the label 'yes'"),
    ("cola", "x\t1\t\ta\n\nx\t1\t\tb\n", "line 2 has 1 columns"),
])
def test_files_that_are_wrong_are_named_with_the_line(tmp_path, task, text, message):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(InputError, match=f"train.tsv: {message}"):
        read_tsv(tmp_path / "train.tsv", TASKS[task])


def test_files_that_are_not_there(world, tmp_path):
    with pytest.raises(InputError, match="holds no folder CoLA"):
        read_train("cola", tmp_path)
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(InputError, match="train.tsv: no such file"):
        read_train("cola", tmp_path)
    shutil.copytree(world / "data" / "aclImdb", tmp_path / "aclImdb")
    shutil.rmtree(tmp_path / "aclImdb" / "test" / "pos")
    with pytest.raises(InputError, match="pos: no .txt file there"):
        read_dev("imdb", tmp_path)
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"x\t1\t\tcaf\xe9\n")
    with pytest.raises(InputError, match="train.tsv: line 1 is not UTF-8"):
        read_train("cola", tmp_path)


def test_a_stand_in_carries_its_own_name(world):
    assert task_title("mnli", world / "data") == "tiny pairs"
    assert task_title("cola", world / "data") == "CoLA"


def test_encoding_a_single_text_and_a_pair(tokenizer):
    def decoded(text_a, text_b=None, max_length=12):
        (ids, types), = encode([Example(text_a, text_b, 0)], tokenizer, max_length)
        return " ".join(tokenizer.id_to_token(i) for i in ids), types
    assert decoded("a b") == ("[CLS] a b [SEP]", [0] * 4)
    assert decoded("a b", "c") == ("[CLS] a b [SEP] c [SEP]", [0, 0, 0, 0, 1, 1])
    assert decoded("") == ("[CLS] [SEP]", [0, 0])
    assert decoded("", "") == ("[CLS] [SEP] [SEP]", [0, 0, 1])
    assert decoded("a b c d e", max_length=5) == ("[CLS] a b c [SEP]", [0] * 5)
    # From the longer side, at a tie from the second: 4 + 2 -> 3 + 2 -> 2 + 2 -> 2 + 1
    assert decoded("a b c d", "e f", max_length=6) == ("[CLS] a b [SEP] e [SEP]", [0, 0, 0, 0, 1, 1])
    assert decoded("a", "b c d e f", max_length=6) == ("[CLS] a [SEP] b c [SEP]", [0, 0, 0, 1, 1, 1])


@pytest.fixture
def rows(tokenizer):
    rng = random.Random(5)
    return encode([Example(sentence(rng, low=1, high=30), None, 0) for _ in range(203)], tokenizer, 64)


def test_collate_pads_to_the_longest(rows):
    input_ids, attention_mask, token_type_ids = collate(rows[:5], pad=0)
    assert input_ids.shape == (5, max(len(ids) for ids, _ in rows[:5]))
    assert [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask)] == [ids for ids, _ in rows[:5]]
    assert (input_ids[attention_mask == 0] == 0).all() and token_type_ids.sum() == 0


def test_batches_hold_every_row_once_and_little_padding(rows):
    lengths = np.array([len(ids) for ids, _ in rows])

    def padding(batches):
        return sum(lengths[b].max() * len(b) for b in batches) / lengths.sum() - 1
    training = length_bucketed_batches(rows, 8, seed=0, epoch=0)
    evaluation = sorted_batches(rows, 8)
    for batches in (training, evaluation):
        assert sorted(np.concatenate(batches)) == list(range(203)) and max(map(len, batches)) == 8
        assert padding(batches) < 0.15 < 0.5 < padding([np.arange(203)])
    assert [b.tolist() for b in training] == [b.tolist() for b in length_bucketed_batches(rows, 8, 0, 0)]
    assert [b.tolist() for b in training] != [b.tolist() for b in length_bucketed_batches(rows, 8, 0, 1)]
    assert lengths[evaluation[0][0]] == lengths.max()


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the real data do not lie beside the project")
def test_real_files_lose_no_row():
    for task, (train, dev) in {"cola": (8551, [1043]), "mrpc": (3668, [408]), "sst2": (67349, [872])}.items():
        assert len(read_train(task, SHARED / "data")) == train
        assert [len(examples) for examples in read_dev(task, SHARED / "data").values()] == dev
    train, dev = read_train("mnli", SHARED / "data"), read_dev("mnli", SHARED / "data")
    files = [Path(SHARED, "data/glue_data/MNLI", f"{name}.tsv") for name in ("train", "dev_matched", "dev_mismatched")]
    assert [len(train), *map(len, dev.values())] == [file.read_bytes().count(b"\n") - 1 for file in files]
    assert task_title("mnli", SHARED / "data") == "SICK 2014 corpus"
    assert task_title("imdb", SHARED / "data") == "Pang & Lee's polarity v2.0"
