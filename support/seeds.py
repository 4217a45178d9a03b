"""Random numbers from keys, such as (DROPOUT, seed, step).

A key is a purpose, the seed, and a place in the run (step, row, ...). So no generator's state has
to be saved, and no two purposes share their numbers.
"""
import numpy as np
import torch

NEW_WEIGHTS, DROPOUT, ORDER, MASKS, HELDOUT_MASKS = range(1, 6)


def seed_torch(*key):
    """Seed torch, for new weights or for dropout, from a key."""
    word = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word >> np.uint64(1)))
