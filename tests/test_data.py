"""data.py, blocks, masks and batches; support/tasks.py, the files of GLUE and IMDb."""
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, sentence

from data import PackedBlocks, collate, encode, length_bucketed_batches, mask_tokens, sorted_batches
from support.corpus import corpus_tokens
from support.errors import InputError
from support.tasks import TASKS, Example, read_dev, read_train, read_tsv, task_title

# ---- Masking ----

def test_masking_is_80_10_10_of_15_percent():
    ids = np.random.default_rng(1).integers(5, 1000, 200_000)
    ids[:1000] = 2  # special
    rng = np.random.default_rng(0)
    input_ids, labels = mask_tokens(ids, rng, 0.15, (2, 3), mask=4, vocab_size=100_000)
    chosen = labels != -100
    assert not chosen[:1000].any()
    assert chosen[1000:].mean() == pytest.approx(0.15, abs=0.004)
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(input_ids[~chosen], ids[~chosen])

    masked, kept = input_ids[chosen] == 4, input_ids[chosen] == ids[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    random_ids = input_ids[chosen][~masked & ~kept]
    assert random_ids.min() < 2000 and random_ids.max() > 98_000
    assert np.median(random_ids) == pytest.approx(50_000, rel=0.1)


def test_a_probability_of_zero_masks_nothing_and_one_masks_all():
    ids = np.array([2, *range(5, 105)])
    for mlm_prob, expected in ((0.0, 0), (1.0, 100)):
        _, labels = mask_tokens(ids, np.random.default_rng(0), mlm_prob, (2,), 4, 9)
        assert (labels != -100).sum() == expected and labels[0] == -100


# ---- Packed blocks ----

@pytest.fixture
def blocks(world, tokenizer, tmp_path):
    tokens = corpus_tokens([world / "corpus.txt"], tokenizer, tmp_path)
    return PackedBlocks(tokens, tokenizer, 16)


def unmasked(input_ids, labels):
    return torch.where(labels == -100, input_ids, labels)


def test_blocks_hold_all_the_text_in_order(blocks, tokenizer):
    rows = blocks.rows(range(blocks.count))
    assert (rows[:, 0] == tokenizer.token_to_id("[CLS]")).all()
    assert (rows[:, -1] == tokenizer.token_to_id("[SEP]")).all()
    assert np.array_equal(rows[:, 1:-1].ravel(), blocks.tokens[:blocks.count * 14])
    assert len(blocks.tokens) - blocks.count * 14 < 14
    later = PackedBlocks(blocks.tokens, tokenizer, 16, first=5)
    assert later.count == blocks.count - 5
    assert np.array_equal(later.rows([0, 3]), rows[[5, 8]])


def test_a_corpus_may_have_more_than_four_billion_tokens(tokenizer):
    class Tokens:
        def __len__(self):
            return 4_400_000_000

        def __getitem__(self, positions):
            return (positions % 89).astype(np.uint16)

    blocks = PackedBlocks(Tokens(), tokenizer, 128)
    numbers = np.array([34_563_174, blocks.count - 1], dtype=np.uint32)  # as in an epoch's order
    rows = blocks.rows(numbers)[:, 1:-1].tolist()
    for row, number in zip(rows, numbers.tolist()):
        assert row == [(number * 126 + i) % 89 for i in range(126)]


def test_every_epoch_sees_every_block_once_in_its_own_order(blocks):
    batch_size = 7  # does not divide the number of blocks
    seen = []
    for step in range(-(-2 * blocks.count // batch_size)):
        rows = unmasked(*blocks.training_batch(step, batch_size, 0.15, seed=3))
        seen += [row.tobytes() for row in rows.numpy()]
    first, second = seen[:blocks.count], seen[blocks.count:2 * blocks.count]
    assert set(first) == set(second) == {row.tobytes() for row in blocks.rows(range(blocks.count))}
    assert first != second


def test_a_batch_follows_from_seed_and_step_alone(blocks):
    first = blocks.training_batch(5, 4, 0.15, seed=1)
    blocks.training_batch(900, 4, 0.15, seed=2)  # must leave no trace
    again = blocks.training_batch(5, 4, 0.15, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(first, again))
    assert not torch.equal(first[0], blocks.training_batch(5, 4, 0.15, seed=2)[0])


def test_the_order_of_blocks_does_not_depend_on_the_batch_size(blocks):
    halves = [blocks.training_batch(step, 2, 0.0, seed=1)[0] for step in (10, 11)]
    assert torch.equal(torch.cat(halves), blocks.training_batch(5, 4, 0.0, seed=1)[0])


def test_processes_share_the_rows_of_a_batch(blocks):
    whole = blocks.training_batch(5, 8, 0.15, seed=1)
    for rank in range(3):
        own = blocks.training_batch(5, 8, 0.15, 1, rank, 3)
        assert all(torch.equal(part, x[rank::3]) for part, x in zip(own, whole))


def test_masks_are_drawn_anew_in_each_epoch(blocks):
    def masks_of_epoch(epoch):
        masks = {}
        for step in range(epoch * blocks.count, (epoch + 1) * blocks.count):
            input_ids, labels = blocks.training_batch(step, 1, 0.5, seed=0)
            row = unmasked(input_ids, labels).numpy().tobytes()
            masks[row] = (labels != -100).numpy().tobytes()
        return masks

    first, second = masks_of_epoch(0), masks_of_epoch(1)
    assert first.keys() == second.keys()
    assert sum(first[row] == second[row] for row in first) < 0.1 * len(first)


# ---- Rows and batches ----

@pytest.mark.parametrize("text_a, text_b, max_length, tokens, segments", [
    ("a b", None, 12, "[CLS] a b [SEP]", "0000"),
    ("a b", "c", 12, "[CLS] a b [SEP] c [SEP]", "000011"),
    ("", None, 12, "[CLS] [SEP]", "00"),
    ("", "", 12, "[CLS] [SEP] [SEP]", "001"),
    ("a b c d e", None, 5, "[CLS] a b c [SEP]", "00000"),
    # From the longer text, or from the second of equal ones: 4 + 2 -> 3 + 2 -> 2 + 2 -> 2 + 1
    ("a b c d", "e f", 6, "[CLS] a b [SEP] e [SEP]", "000011"),
    ("a", "b c d e f", 6, "[CLS] a [SEP] b c [SEP]", "000111"),
])
def test_encoding_a_single_text_and_a_pair(
        tokenizer, text_a, text_b, max_length, tokens, segments):
    (input_ids, token_type_ids), = encode([Example(text_a, text_b, 0)], tokenizer, max_length)
    assert " ".join(map(tokenizer.id_to_token, input_ids)) == tokens
    assert "".join(map(str, token_type_ids)) == segments


@pytest.fixture
def rows(tokenizer):
    rng = random.Random(5)
    examples = [Example(sentence(rng, low=1, high=30), None, 0) for _ in range(203)]
    return encode(examples, tokenizer, 64)


def test_collate_pads_to_the_longest_row(rows):
    rows = rows[:5]
    input_ids, attention_mask, token_type_ids = collate(rows, pad=0)
    assert input_ids.shape == (5, max(len(ids) for ids, _ in rows))
    for i, (ids, _) in enumerate(rows):
        assert input_ids[i, attention_mask[i].bool()].tolist() == ids
    assert (input_ids[attention_mask == 0] == 0).all() and token_type_ids.sum() == 0


def test_batches_hold_every_row_once_and_little_padding(rows):
    lengths = np.array([len(ids) for ids, _ in rows])

    def padding(batches):
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        return padded / lengths.sum() - 1

    assert padding([np.arange(203)]) > 0.5
    for batches in (length_bucketed_batches(rows, 8, seed=0, epoch=0), sorted_batches(rows, 8)):
        assert sorted(np.concatenate(batches)) == list(range(203))
        assert max(map(len, batches)) == 8
        assert padding(batches) < 0.15


def test_training_batches_follow_from_seed_and_epoch(rows):
    def batches(epoch):
        return [batch.tolist() for batch in length_bucketed_batches(rows, 8, 0, epoch)]
    assert batches(0) == batches(0) != batches(1)


def test_evaluation_batches_start_with_the_longest_row(rows):
    lengths = [len(ids) for ids, _ in rows]
    assert lengths[sorted_batches(rows, 8)[0][0]] == max(lengths)


# ---- Files of the tasks ----

EQUAL_PAIR = {"mrpc": 1, "qnli": 0, "qqp": 1, "rte": 0, "stsb": 4.75, "wnli": 1}  # its label


@pytest.mark.parametrize("task", [task for task in TASKS if task != "squad"])  # test_squad.py
def test_every_layout_is_read(world, task):
    train, dev = read_train(task, world / "data"), read_dev(task, world / "data")
    assert len(train) == (32 if task == "imdb" else 64)
    dev_names = {"mnli": ["dev_matched", "dev_mismatched"], "imdb": ["test"]}
    assert list(dev) == dev_names.get(task, ["dev"])
    labels = {0.5, 4.75} if task == "stsb" else set(range(len(TASKS[task].labels)))
    assert {example.label for example in train} == labels
    assert (train[0].text_b is None) == (task in ("cola", "sst2", "imdb"))
    if task in EQUAL_PAIR:
        for example in train:
            is_equal = example.text_a == example.text_b
            assert is_equal == (example.label == EQUAL_PAIR[task])


def test_reviews_are_read_without_line_breaks_in_html(world):
    first = read_train("imdb", world / "data")[0].text_a
    assert "<br" not in first
    assert any(word in first for word in ("bad", "poor", "awful", "dull"))


def test_mnlis_classes_have_hugging_faces_numbers(world):
    train = read_train("mnli", world / "data")
    assert [example.label for example in train[:3]] == [1, 0, 2]  # the first is neutral


def test_data_dir_may_be_glue_data_itself(world):
    train = read_train("mnli", world / "data")
    assert read_train("mnli", world / "data" / "glue_data") == train


def test_quotes_and_line_separators_swallow_no_row(tmp_path):
    path, cola = tmp_path / "train.tsv", TASKS["cola"]
    texts = ['"an open quote', 'next"', "line\u2028separator \x85 and \x0c", "",
             "no newline at the end"]
    rows = [f"x\t{i % 2}\t*\t{text}" for i, text in enumerate(texts)]
    path.write_text("\n".join(rows), encoding="utf-8", newline="")
    examples = read_tsv(path, cola)
    assert [example.text_a for example in examples] == texts
    path.write_text("\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")
    assert read_tsv(path, cola) == examples


MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


@pytest.mark.parametrize("task, text, message", [
    ("mrpc", MRPC.replace("Quality", "Label"), "line 1 has no column 'Quality'; it has Label"),
    ("mrpc", MRPC + "1\t2\t3\ta\tb\n1\t2\t3\ta\n", "line 3 has 4 columns; 5 are needed"),
    ("mrpc", MRPC + "2\t2\t3\ta\tb\n", "line 2 has the label '2'; known are 0, 1"),
    ("mrpc", MRPC, "no rows in it"),
    ("mrpc", "", "line 1 has no column"),
    ("cola", "x\tyes\t\ta\n", "line 1 has the label 'yes'"),
    ("cola", "x\t1\t\ta\n\nx\t1\t\tb\n", "line 2 has 1 columns"),
    ("cola", "x\t1\t\ta\tb\n", "line 1 has 5 columns; 4 are needed"),
    ("mrpc", MRPC + 997 * "1\t2\t3\ta\tb\n" + 2 * "1\t2\t3\ta\n",
     r"line 999 has 4 columns; 5 are needed .2 of 999 rows have another number"),
])
def test_a_malformed_table_is_refused_with_the_line(tmp_path, task, text, message):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(InputError, match=f"train.tsv: {message}"):
        read_tsv(tmp_path / "train.tsv", TASKS[task])


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_a_row_broken_over_two_lines_is_left_out_and_named(tmp_path, capsys):
    """As older archives of QQP have them."""
    rows = [f"{i}\t1\t2\ta{i}\tb{i}\t{i % 2}" for i in range(2500)]
    rows[1000] = "1000\t1\t2\ta question that\ngoes on\tb1000\t0"
    (tmp_path / "train.tsv").write_text(QQP + "\n".join(rows) + "\n")
    examples = read_tsv(tmp_path / "train.tsv", TASKS["qqp"])
    assert [example.text_a for example in examples] == [f"a{i}" for i in range(2500) if i != 1000]
    assert capsys.readouterr().err == (
        f"{tmp_path}/train.tsv: 2 of 2501 rows left out, which do not have 6 columns: lines 1002, "
        "1003\n")


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n\r\n\r\n", ""])
def test_empty_lines_at_the_end_of_a_table_are_no_rows(tmp_path, end):
    (tmp_path / "train.tsv").write_bytes((MRPC + "1\t2\t3\ta\tb" + end).encode())
    assert len(read_tsv(tmp_path / "train.tsv", TASKS["mrpc"])) == 1


def test_hidden_reviews_are_no_reviews(world, tmp_path):
    """An archive that was made on a Mac has a ._name.txt for each file."""
    shutil.copytree(world / "data" / "aclImdb", tmp_path / "aclImdb")
    expected = read_train("imdb", tmp_path)
    hidden = tmp_path / "aclImdb" / "train" / "pos" / "._0_9.txt"
    hidden.write_bytes(b"\0\5\x16\7 Mac OS X")
    assert read_train("imdb", tmp_path) == expected


def test_missing_and_unreadable_files_are_named(world, tmp_path):
    with pytest.raises(InputError, match="holds no folder CoLA"):
        read_train("cola", tmp_path)
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(InputError, match="train.tsv: no such file"):
        read_train("cola", tmp_path)
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"x\t1\t\tcaf\xe9\n")
    with pytest.raises(InputError, match="train.tsv: line 1 is not UTF-8"):
        read_train("cola", tmp_path)
    shutil.copytree(world / "data" / "aclImdb", tmp_path / "aclImdb")
    shutil.rmtree(tmp_path / "aclImdb" / "test" / "pos")
    with pytest.raises(InputError, match="pos: no .txt file there"):
        read_dev("imdb", tmp_path)


def test_a_stand_in_carries_its_own_name(world):
    assert task_title("mnli", world / "data") == "tiny pairs"
    assert task_title("cola", world / "data") == "CoLA"


# ---- The real files ----

REAL = SHARED / "data"
needs_real_files = pytest.mark.skipif(not REAL.is_dir(),
                                      reason="the real data sets are not beside the project")


@needs_real_files
@pytest.mark.parametrize("task, train, dev", [
    ("cola", 8551, 1043),
    ("mrpc", 3668, 408),
    ("sst2", 67349, 872),
])
def test_no_row_of_the_real_files_is_lost(task, train, dev):
    assert len(read_train(task, REAL)) == train
    assert [len(examples) for examples in read_dev(task, REAL).values()] == [dev]


@needs_real_files
def test_no_row_of_the_stand_in_for_mnli_is_lost():
    sets = [read_train("mnli", REAL), *read_dev("mnli", REAL).values()]
    names = "train", "dev_matched", "dev_mismatched"
    files = [Path(REAL, "glue_data/MNLI", f"{name}.tsv") for name in names]
    lines = [file.read_bytes().count(b"\n") for file in files]
    assert [len(examples) for examples in sets] == [count - 1 for count in lines]


@needs_real_files
def test_the_real_stand_ins_carry_their_own_names():
    assert task_title("mnli", REAL) == "SICK 2014 corpus"
    assert task_title("imdb", REAL) == "Pang & Lee's polarity v2.0"
