"""Batches: blocks of the corpus and their masks, the readers of GLUE and IMDb, rows of texts.

    python data.py --download cola,mrpc,imdb,wikitext-2 --data_dir FOLDER

fetches the files themselves (download.py). A block and its mask are pure functions of (seed, step, row): no state, so nothing to save
and nothing to lose. Read next: pretrain.py (blocks) and finetune.py (tasks).
"""
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from support.errors import InputError
from support.seeds import MASKS, ORDER


def prefetch(batches, pin=False):
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

class PackedBlocks:
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

    def training_batch(self, step, batch_size, mlm_prob, seed, rank=0, world_size=1):
        """Batch `step` of an endless course over the blocks, in a new order and under new masks each time round
        (Liu et al. 2019, "dynamic masking"): (input_ids, labels), each (batch_size, max_length) int64 tensors.
        first, every: only these of the rows, what one of several processes works on."""
        rows = range(rank, batch_size, world_size)
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


def length_bucketed_batches(rows, batch_size, seed, epoch):
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
