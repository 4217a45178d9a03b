"""What a training step reads: masked blocks of a corpus, or padded rows of a task.

From top to bottom: BERT's masking, the corpus as packed blocks, the rows of a task as batches, and
`prefetch`, which makes the next batch while the current one is in use. A batch depends only on the
data, the arguments, the seed and the step. So no random state is saved, and a resumed run sees the
same batches.

Blocks are used by pretrain.py, rows by finetune.py. The files themselves are read in support/:
corpus.py, tasks.py and squad.py. Read next: load_hf_weights.py.
"""
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from support.errors import InputError
from support.seeds import MASKS, ORDER
from support.wordpiece import id_count

# ---- Masking ----

def mask_tokens(ids, rng, mlm_prob, special, mask, vocab_size):
    """BERT's masking (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

    Each token that is not special is chosen with probability mlm_prob. Of the chosen tokens, 80 %
    become [MASK], 10 % become a random token, and 10 % stay as they are. Fine-tuning never sees a
    [MASK], so the model must not learn that only [MASK] is worth predicting.

    ids: (length,) token ids. special: the ids that are never chosen. mask: the id of [MASK].
    Returns (input_ids, labels), each (length,). labels hold the true id of each chosen token, and
    -100, which the loss ignores, everywhere else.
    """
    chosen = (rng.random(ids.shape) < mlm_prob) & ~np.isin(ids, special)
    draw = rng.random(ids.shape)
    random_ids = rng.integers(vocab_size, size=ids.shape)

    input_ids = np.where(chosen & (draw < 0.8), mask, ids)
    input_ids = np.where(chosen & (draw >= 0.9), random_ids, input_ids)
    labels = np.where(chosen, ids, -100)
    return input_ids, labels


# ---- The corpus as packed blocks ----

class PackedBlocks:
    """A corpus as blocks of equal length: [CLS], max_length - 2 tokens of text, [SEP]. No padding.

    The text continues from line to line, and from the [SEP] of one document into the next document
    (as "full sentences" of Liu et al. 2019, arXiv:1907.11692, section 4.2, but a block may end
    within a sentence). A remainder at the very end that does not fill a block is not used.

    tokens: (tokens,) token ids, the array that support/corpus.py makes.
    first, count: use `count` blocks of the corpus, from block `first` on. count=None: all the rest.
    """

    def __init__(self, tokens, tokenizer, max_length, first=0, count=None):
        self.tokens, self.max_length, self.first = tokens, max_length, first
        self.count = len(tokens) // (max_length - 2) - first if count is None else count
        self.cls = tokenizer.token_to_id("[CLS]")
        self.sep = tokenizer.token_to_id("[SEP]")
        self.mask = tokenizer.token_to_id("[MASK]")
        self.vocab_size = id_count(tokenizer)

    def rows(self, numbers):
        """The blocks with these numbers: (len(numbers), max_length) token ids, int64.

        Raises InputError if the array holds ids that the tokenizer does not have.
        """
        width = self.max_length - 2
        # int64, because positions in a corpus of over 4 billion tokens do not fit into 32 bits.
        blocks = np.asarray(numbers, dtype=np.int64) + self.first
        text = self.tokens[blocks[:, None] * width + np.arange(width)]  # (blocks, width)
        if text.size and text.max() >= self.vocab_size:
            name = getattr(self.tokens, "filename", "the corpus")
            raise InputError(f"{name}: damaged; delete it, and it is made again")

        ids = np.empty((len(text), self.max_length), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = self.cls, text, self.sep
        return ids

    def training_batch(self, step, batch_size, mlm_prob, seed, rank=0, world_size=1):
        """Batch number `step`: (input_ids, labels), each (rows, max_length), int64 tensors.

        Batches run through the blocks without end. Every epoch has a new order and new masks
        ("dynamic masking", Liu et al. 2019, section 4.1).
        rank, world_size: process `rank` of `world_size` gets every world_size-th of the batch_size
        rows. Together, the processes see the same rows and masks as one process alone.
        """
        own_rows = range(rank, batch_size, world_size)
        numbers = []
        for row in own_rows:
            epoch, place = divmod(step * batch_size + row, self.count)
            numbers.append(block_order(self.count, seed, epoch)[place])
        return self.masked(numbers, mlm_prob, [(MASKS, seed, step, row) for row in own_rows])

    def masked(self, numbers, mlm_prob, keys):
        """The blocks with these numbers, masked: (input_ids, labels), int64 tensors.

        keys: for each block, the seed of its random numbers, a tuple of integers.
        """
        special = (self.cls, self.sep)
        input_ids, labels = [], []
        for ids, key in zip(self.rows(numbers), keys):
            rng = np.random.default_rng(key)
            pair = mask_tokens(ids, rng, mlm_prob, special, self.mask, self.vocab_size)
            input_ids.append(pair[0])
            labels.append(pair[1])
        return torch.from_numpy(np.stack(input_ids)), torch.from_numpy(np.stack(labels))


@functools.lru_cache(maxsize=2)  # two: a batch may cross the end of an epoch
def block_order(count, seed, epoch):
    """The order of the blocks in an epoch: (count,), uint32 to save memory on a large corpus."""
    numbers = np.arange(count, dtype=np.uint32)
    return np.random.default_rng((ORDER, seed, epoch)).permutation(numbers)


# ---- The rows of a task as batches ----

def encode(examples, tokenizer, max_length):
    """Token ids of examples: a list of (input_ids, token_type_ids), each a list of ints.

    A single text becomes [CLS] a [SEP], in segment 0. A pair becomes [CLS] a [SEP] b [SEP], with
    b [SEP] in segment 1. A row has at most max_length tokens: a single text is cut at its end, and
    a pair as in `truncate_pair`.
    """
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")

    def encodings(texts):
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    first_texts = encodings([example.text_a for example in examples])
    second_texts = encodings([example.text_b or "" for example in examples])
    rows = []
    for example, first, second in zip(examples, first_texts, second_texts):
        a, b = first.ids, second.ids
        if example.text_b is None:
            input_ids = [cls, *a[:max_length - 2], sep]
            token_type_ids = [0] * len(input_ids)
        else:
            truncate_pair(a, b, max_length - 3)
            input_ids = [cls, *a, sep, *b, sep]
            token_type_ids = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        rows.append((input_ids, token_type_ids))
    return rows


def truncate_pair(a, b, most):
    """Shorten two lists, in place, to `most` tokens together: from the end of the longer one, token
    by token; from the second if both are equally long."""
    while len(a) + len(b) > most:
        longer = a if len(a) > len(b) else b
        longer.pop()


def collate(rows, pad):
    """Rows as one batch: (input_ids, attention_mask, token_type_ids), each (batch, length), int64.

    length is that of the longest row. Shorter rows are filled with the id `pad`, with 0 in the
    attention mask.
    """
    longest = max(len(ids) for ids, _ in rows)
    batch = np.zeros((3, len(rows), longest), dtype=np.int64)
    input_ids, attention_mask, token_type_ids = batch
    input_ids[:] = pad
    for i, (ids, types) in enumerate(rows):
        input_ids[i, :len(ids)] = ids
        attention_mask[i, :len(ids)] = 1
        token_type_ids[i, :len(ids)] = types
    return torch.from_numpy(batch).unbind()


def length_bucketed_batches(rows, batch_size, seed, epoch):
    """The training batches of an epoch: a list of arrays of row numbers, each row once.

    Rows of similar length share a batch, so that little of it is padding: shuffle the rows, sort
    every 16 batches' worth of them by length, cut them into batches, shuffle the batches.
    """
    rng = np.random.default_rng((ORDER, seed, epoch))
    order = rng.permutation(len(rows))
    lengths = np.array([len(ids) for ids, _ in rows])
    buckets = []
    for bucket in in_slices(order, 16 * batch_size):
        buckets.append(bucket[np.argsort(lengths[bucket], kind="stable")])
    batches = in_slices(np.concatenate(buckets), batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(rows, batch_size):
    """The evaluation batches: a list of arrays of row numbers, each row once.

    The longest rows come first, so that a batch too large for the memory fails at once.
    """
    order = np.argsort([-len(ids) for ids, _ in rows], kind="stable")
    return in_slices(order, batch_size)


def in_slices(array, size):
    """The array cut into slices of this size; the last one may be shorter."""
    return [array[start:start + size] for start in range(0, len(array), size)]


# ---- Batches ahead of time ----

def prefetch(batches, pin=False):
    """Yield the tuples of an iterator, while a thread already makes the next one.

    pin: put their tensors into page-locked memory, from which a GPU can copy asynchronously.
    """
    batches = iter(batches)

    def next_batch():
        batch = next(batches, None)
        if batch and pin:
            return tuple(tensor.pin_memory() for tensor in batch)
        return batch

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next_batch)
        while batch := upcoming.result():
            upcoming = thread.submit(next_batch)
            yield batch
