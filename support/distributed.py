"""Several processes under torchrun: what they exchange. Alone, every function here does nothing.

    torchrun --nproc_per_node=8 pretrain.py ...

Each rank works on its shard of a batch's rows; rank 0 alone writes files and speaks.
"""
import contextlib
import os
import signal
from multiprocessing import parent_process

import torch
from torch import distributed, nn
from tqdm import tqdm

from support.errors import InputError

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0)) if WORLD_SIZE > 1 else 0
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0)) if WORLD_SIZE > 1 else 0

LOST_CONNECTION = "another process was killed, or ended with an error of its own"


@contextlib.contextmanager
def process_group(args):
    """Within the block torchrun's processes are connected: by nccl on GPUs, by gloo on CPUs.

    Raises InputError if this process has no device, or if another process ends too early."""
    if WORLD_SIZE == 1:
        yield
        return
    too_few_gpus = args.device == "cuda" and LOCAL_RANK >= torch.cuda.device_count()
    if args.device == "mps" or too_few_gpus:
        raise InputError(f"--device {args.device}: there is none for process {LOCAL_RANK} of this "
                         "machine; start fewer processes")
    if args.device == "cuda":
        torch.cuda.set_device(LOCAL_RANK)
    # Python objects and counts go through gloo, which does not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend)
        yield
        barrier()  # no rank exits while another still communicates
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise InputError(f"{LOST_CONNECTION}; see above") from None
    # Not after an error: nccl would wait for what the other ranks never send.
    distributed.destroy_process_group()


def is_lost_connection(error):
    """Whether an error is the transport's, about a rank that has ended."""
    if WORLD_SIZE == 1 or not isinstance(error, RuntimeError):
        return False
    about_connection = "gloo" in str(error) or "Connection" in str(error)
    return isinstance(error, distributed.DistError) or about_connection


def ignore_signals_of_torchrun():
    """torchrun ends the other ranks when one has failed. One that is ending ignores that.

    Without torchrun this does nothing."""
    if WORLD_SIZE > 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def wrap_ddp(module):
    """The module, whose gradients backward() turns into their mean over the ranks."""
    return nn.parallel.DistributedDataParallel(module) if WORLD_SIZE > 1 else module


def no_sync(module, last):
    """A context for one micro-batch: ranks exchange gradients after the last one only."""
    return contextlib.nullcontext() if WORLD_SIZE == 1 or last else module.no_sync()


def shard(batch):
    """(this rank's rows of a batch, their weight): every WORLD_SIZE-th row.

    The weight makes the mean over ranks of weight * mean(rows) the mean over the batch; alone it
    is 1. A rank that would have no row takes one with weight 0: the others wait for it."""
    rows = batch[RANK::WORLD_SIZE]
    if not len(rows):
        return batch[:1], 0.0
    return rows, len(rows) * WORLD_SIZE / len(batch)


def all_reduce_mean(x):
    """The mean over the ranks of a tensor, as Python numbers."""
    if WORLD_SIZE == 1:
        return x.tolist()
    total = x.double()
    distributed.all_reduce(total)
    return (total / WORLD_SIZE).tolist()


def all_reduce_max(*numbers):
    """[the largest value that any rank has] of each of these whole numbers."""
    if WORLD_SIZE == 1:
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def barrier():
    """Return once all ranks have come here."""
    all_reduce_max(0)


def broadcast(value):
    """Rank 0's value, any Python object."""
    values = [value]
    if WORLD_SIZE > 1:
        distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def all_gather(items):
    """The lists of all ranks, one after the other."""
    lists = [items] * WORLD_SIZE
    if WORLD_SIZE > 1:
        distributed.all_gather_object(lists, items)
    return [item for of_rank in lists for item in of_rank]


def progress_bar(iterable, **options):
    """tqdm's, on rank 0 alone, and not in a process of a pool: its bar would write over others."""
    disable = {"disable": True} if RANK or parent_process() else {}
    return tqdm(iterable, **options, **disable)
