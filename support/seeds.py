"""Random numbers are drawn from keys (purpose, seed, step, ...): no generator's state needs to be saved."""
import numpy as np
import torch

# Random numbers are drawn from keys: a purpose, the seed, and where in the run (step, row, ...). No generator's state
# needs to be kept, and no two purposes share their numbers.
NEW_WEIGHTS, DROPOUT, ORDER, MASKS, HELDOUT_MASKS = range(1, 6)


def seed_torch(*key):
    """Seed new weights or dropout from a key such as (DROPOUT, seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
