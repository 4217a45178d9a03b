"""What every command shares: one-line errors, device and precision, seeds, the learning rate, files written whole, digests.

Nothing here is about distillation; skip it on a first reading.
"""
import argparse
import ast
import contextlib
import difflib
import fcntl
import functools
import hashlib
import json
import os
import resource
import shlex
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from tqdm import tqdm

# Of the processes that torchrun started, which one this is; alone, the first of one.
RANK, WORLD_SIZE, LOCAL_RANK = (int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


class InputError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, and where that leaves things."""

    def __init__(self, number, message="interrupted"):
        super().__init__(message)
        self.number = number


def interrupt(number, frame):
    raise Interrupted(number)


def command_line(main, several=False):
    """Run main(arguments); several: under torchrun, too. What the user can mend ends in one line on stderr and exit status 2; SIGINT in 130, SIGTERM in 143."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    for stream in (sys.stdout, sys.stderr):  # file names may be no text
        stream.reconfigure(errors="backslashreplace")
    if RANK:  # the first process speaks for all
        sys.stdout = open(os.devnull, "w")
    status = 2
    try:
        if WORLD_SIZE > 1 and not several:
            raise InputError("torchrun goes with pretrain.py and finetune.py; start this command without it")
        main(sys.argv[1:])
        return
    except InputError as error:
        message = f"error: {error}"
    except OSError as error:  # a full disk, a read-only folder, a file that vanished
        message = f"error: {error.filename or 'file error'}: {error.strerror or error}"
    except (RuntimeError, MemoryError) as error:  # of these torch.OutOfMemoryError is one, on a CPU it has no class of its own
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in ("out of memory", "can't allocate memory")):
            raise
        message = "error: out of memory: lower --batch_size or --max_length; pretrain.py has --grad_accum and --chunk_tokens too"
    except Interrupted as stop:
        message, status = str(stop), 128 + stop.number
    name = f"{Path(sys.argv[0]).name}: "
    if WORLD_SIZE > 1:
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun ends what is ending already
            signal.signal(number, signal.SIG_IGN)
        name = f"\n{name}process {RANK} of {WORLD_SIZE}: "  # not behind another process's progress bar
    print(name + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def number(kind, low, high=None, open_low=False):
    """An argparse type: a number of this kind from low (not low itself, if open_low) to high."""
    def parse(text):
        value = kind(text)  # argparse turns ValueError into "invalid number value"
        most = high if high is not None else sys.float_info.max if kind is float else 2 ** 31 - 1  # no infinity
        if not (low < value if open_low else low <= value) or value > most:
            bounds = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {most}" if high is not None or value > most else "")
            raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
        return value
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def one_of(known, what):
    """An argparse type: a name out of `known`, or the nearest one suggested."""
    def parse(text):
        if text not in known:
            near = difflib.get_close_matches(text, known, 1)
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}; " + (f"did you mean {near[0]}? " if near else "")
                                             + f"Known: {', '.join(known)}")
        return text
    return parse


def words(text):
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def list_of(known, what):
    return lambda text: [one_of(known, what)(name) for name in text.split(",")]


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument is one line like every other error, without the usage in front of it."""

    def __init__(self, docstring):
        super().__init__(description=docstring.split("\n")[0], allow_abbrev=False)

    def error(self, message):
        raise InputError(f"{message.removeprefix('argument ')} (--help lists the arguments)")


def add_common_arguments(parser):
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the data's order, masks, dropout and new weights")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the matrix products; auto: bf16 where the hardware multiplies in it, else fp32")
    parser.add_argument("--overwrite", action="store_true", help="if --out_dir holds another run: set it aside, as OUT_DIR~1")
    parser.add_argument("--log_every", type=number(int, 1), default=10, help="steps between two lines of log.jsonl")
    parser.add_argument("--checkpoint_minutes", type=number(float, 0, open_low=True), default=10,
                        help="between two checkpoints, from which the same command goes on after an interruption")
    parser.add_argument("--checkpoint_steps", type=number(int, 1), help="write one after so many steps, too")


def resolve(args):
    """args with "auto" made definite, so that run.json says what was used. Raises InputError for a device not there."""
    args.device = resolve_device(args.device)
    if args.precision == "auto":
        args.precision = "bf16" if multiplies_in_bf16(args.device) else "fp32"
    return args


def resolve_device(name):
    """"cpu", "cuda" or "mps"; "auto" is the fastest that is there. Raises InputError for one that is not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"--device {name}: torch finds no such device here; use --device cpu")
    return name


@contextlib.contextmanager
def process_pool(count, killed, begin, *arguments):
    """A pool of so many processes, each of which starts with begin(*arguments). If the block fails they are ended (SIGTERM).

    Raises InputError, with the line `killed`, if one of them was killed."""
    with ProcessPoolExecutor(count, get_context("spawn"), begin_in_pool, (begin, *arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(killed) from None
            raise


def begin_in_pool(begin, *arguments):
    """Make this process one of a pool: gone as soon as the process that started it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    begin(*arguments)


# ---- Several processes: torchrun --nproc_per_node=N pretrain.py ... ----

@contextlib.contextmanager
def processes(args):
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
        wait_for_all()  # nobody leaves while another one still has questions
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


def in_parallel(module):
    """The module, whose gradients become the mean over the processes in backward()."""
    return nn.parallel.DistributedDataParallel(module) if WORLD_SIZE > 1 else module


def no_sync(module, last_part):
    """A context for a part of an optimizer step: only after the last one do the processes exchange gradients."""
    return contextlib.nullcontext() if WORLD_SIZE == 1 or last_part else module.no_sync()


def sum_over_processes(x):
    """A tensor, summed over the processes, in place."""
    if WORLD_SIZE > 1:
        distributed.all_reduce(x)
    return x


def agreed(*numbers):
    """[the largest that a process has] of each of these whole numbers."""
    if WORLD_SIZE == 1:
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def wait_for_all():
    """Return when all processes have come here."""
    agreed(0)


def of_the_first(value):
    """What the first process has."""
    values = [value]
    if WORLD_SIZE > 1:
        distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def from_all(items):
    """The lists of all processes, one after the other."""
    lists = [items] * WORLD_SIZE
    if WORLD_SIZE > 1:
        distributed.all_gather_object(lists, items)
    return [item for of_process in lists for item in of_process]


def progress_bar(iterable, **options):
    """tqdm's, of the first process alone."""
    return tqdm(iterable, **options, **({"disable": True} if RANK else {}))


def autocast(device, precision):
    """A context in which matrix products run in bf16, or in fp32; weights, softmax and losses stay in fp32 either way."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def multiplies_in_bf16(device):
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu":
        supported = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check() for check in supported if check)
    return False


def compiler_works(device):
    """Whether torch.compile can be used on this device: it needs a C++ compiler or Triton. If not, says so in one line."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"without torch.compile, which fails here ({reason[0]}): the same result, more slowly", file=sys.stderr)
        return False
    return True


def peak_memory():
    """Of this process so far, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss begins with what the process that started this one held
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2 ** 20
    return peak_memory_of(resource.RUSAGE_SELF)


def peak_memory_of(whom):
    """Of resource.RUSAGE_SELF, or of the largest of RUSAGE_CHILDREN, in GiB."""
    peak = resource.getrusage(whom).ru_maxrss  # kilobytes; on macOS bytes
    return peak / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)


# Random numbers are drawn from keys: a purpose, the seed, and where in the run (step, row, ...). No generator's state
# needs to be kept, and no two purposes share their numbers.
NEW_WEIGHTS, DROPOUT, ORDER, MASKS, HELDOUT_MASKS = range(1, 6)


def seed_torch(*key):
    """Seed new weights or dropout from a key such as (DROPOUT, seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def learning_rate(step, steps, peak, warmup):
    """The rate of step 0 .. steps - 1: linear from 0 to peak over the share `warmup` of the steps, then linear to 0."""
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (steps - step) / max(1, steps - warmup_steps)


@contextlib.contextmanager
def written_whole(path):
    """A binary file to write to. When the block ends it takes its name, and is on the disk for good; if it fails, nothing is there."""
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save makes a RuntimeError of a full disk
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, data):
    """Write a file whole or not at all. data: str (as UTF-8) or bytes."""
    with written_whole(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def hold(path, wait=False):
    """Open a file to append to, unbuffered, locked until it is closed or this process ends, in whatever way.

    wait: for its lock, if another process has it. Else raises InputError."""
    while True:
        file = open(path, "ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise InputError(f"{Path(path).parent}: another process is at work in this folder; wait for it, or choose another "
                             "--out_dir") from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # whoever held it has renamed or removed it


def write_all(file, data):
    """Write bytes to an unbuffered file."""
    while data:
        data = data[file.write(data):]


def write_json(path, value):
    write_file(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """The object in a JSON file. Raises InputError if it is not there or not a JSON object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


@functools.cache  # of the code as it was when this process began to use it
def code_digest(files, without=()):
    """A digest of these files of ours, comments, docstrings, layout and the top-level names in `without` left out."""
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not {getattr(node, "name", None), *(
            getattr(target, "id", None) for target in getattr(node, "targets", ()))} & set(without)]
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def files_digest(files):
    """A digest of what the files hold, one after the other. Raises InputError for one that is not there."""
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        try:
            status = os.stat(file)
        except FileNotFoundError:
            raise InputError(f"{file}: no such file") from None
        digest.update(file_digest(str(file), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@functools.cache  # an experiment asks for the same files again and again; size and time only tell that they were rewritten
def file_digest(file, size, time):
    digest = hashlib.blake2b(digest_size=12)
    with open(file, "rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.digest()
