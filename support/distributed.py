"""Several processes under torchrun: what they exchange. With one process every function does nothing."""
import contextlib
import os

import torch
from torch import distributed, nn
from tqdm import tqdm

from support.errors import InputError

# Of the processes that torchrun started, which one this is; alone, the first of one.
RANK, WORLD_SIZE, LOCAL_RANK = (int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


@contextlib.contextmanager
def process_group(args):
    """Within, the processes that torchrun started are connected: nccl between GPUs, gloo between CPUs. Alone, nothing happens.

    Raises InputError if there is no device for this process, or another process ends before its time."""
    if WORLD_SIZE == 1:
        yield
        return
    if args.device == "mps" or (args.device == "cuda" and LOCAL_RANK >= torch.cuda.device_count()):
        raise InputError(f"--device {args.device}: there is none for process {LOCAL_RANK} of this machine; start fewer processes")
    if args.device == "cuda":
        torch.cuda.set_device(LOCAL_RANK)
    try:  # what is no tensor of a GPU goes through gloo, which needs no GPU to be waited for
        distributed.init_process_group("cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo")
        yield
        barrier()  # nobody leaves while another one still has questions
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise InputError(f"{LOST_CONNECTION}; see above") from None
    distributed.destroy_process_group()  # not after an error: nccl would wait for what the others never send


LOST_CONNECTION = "another process was killed, or ended with an error of its own"


def is_lost_connection(error):
    """Whether it is the transport's error about a process that is gone."""
    return WORLD_SIZE > 1 and isinstance(error, RuntimeError) and (
        isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection" in str(error))


def wrap_ddp(module):
    """The module, whose gradients become the mean over the processes in backward()."""
    return nn.parallel.DistributedDataParallel(module) if WORLD_SIZE > 1 else module


def no_sync(module, last_part):
    """A context for a part of an optimizer step: only after the last one do the processes exchange gradients."""
    return contextlib.nullcontext() if WORLD_SIZE == 1 or last_part else module.no_sync()


def all_reduce_sum(x):
    """A tensor, summed over the processes, in place."""
    if WORLD_SIZE > 1:
        distributed.all_reduce(x)
    return x


def all_reduce_max(*numbers):
    """[the largest that a process has] of each of these whole numbers."""
    if WORLD_SIZE == 1:
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def barrier():
    """Return when all processes have come here."""
    all_reduce_max(0)


def broadcast(value):
    """What the first process has."""
    values = [value]
    if WORLD_SIZE > 1:
        distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def all_gather(items):
    """The lists of all processes, one after the other."""
    lists = [items] * WORLD_SIZE
    if WORLD_SIZE > 1:
        distributed.all_gather_object(lists, items)
    return [item for of_process in lists for item in of_process]


def shard(batch):
    """(row numbers, share): of a batch, this process's rows, every WORLD_SIZE-th, and their share of it. A process that would get none
    takes one with share 0, for the others wait for its gradient."""
    own = batch[RANK::WORLD_SIZE]
    return (own, len(own) / len(batch)) if len(own) else (batch[:1], 0.0)


def progress_bar(iterable, **options):
    """tqdm's, of the first process alone."""
    return tqdm(iterable, **options, **({"disable": True} if RANK else {}))
