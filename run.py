"""What every command shares: one-line errors, device and precision, seeds, the learning rate, the record of a run.

Nothing here is about distillation; skip it on a first reading.
"""
import argparse
import ast
import contextlib
import difflib
import functools
import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch


class InputError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do."""


def command_line(main):
    """Run main(arguments). What the user can mend ends in one line on stderr and exit status 2, Ctrl-C in 130."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        message = str(error)
    except OSError as error:  # a full disk, a read-only folder, a file that vanished
        message = f"{error.filename or 'file error'}: {error.strerror or error}"
    except RuntimeError as error:  # of these torch.OutOfMemoryError is one, on a CPU it has no class of its own
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        message = "out of memory: lower --batch_size or --max_length; pretrain.py has --grad_accum and --chunk_tokens too"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    else:
        return
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def number(kind, low, high=None, open_low=False):
    """An argparse type: a number of this kind from low (not low itself, if open_low) to high."""
    def parse(text):
        value = kind(text)  # argparse turns ValueError into "invalid number value"
        if not (low < value if open_low else low <= value) or (high is not None and value > high):
            bounds = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high is not None else "")
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; on macOS bytes
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


def write_file(path, data):
    """Write a file whole or not at all: under a temporary name, then renamed. data: str (as UTF-8) or bytes."""
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_file(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """The object in a JSON file. Raises InputError if it is not there or not a JSON object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


class Log:
    """log.jsonl: one JSON object a line."""

    def __init__(self, folder):
        self.file = open(Path(folder) / "log.jsonl", "w", encoding="utf-8")

    def write(self, **values):
        print(json.dumps(values), file=self.file, flush=True)


ELSEWHERE = ("out_dir", "cache_dir", "log_every", "overwrite")  # arguments that do not change what a run computes


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


def outdated(args, made_of):
    """Why args.out_dir does not hold this very run, finished: a list of reasons, empty if it does; None if it holds no run.

    made_of: {"code" or the name of an argument that names files: digest of what the run depends on}; the other arguments are
    compared as they are."""
    path = Path(args.out_dir) / "run.json"
    if not path.exists():
        return None
    record = read_json(path)
    old, new, old_made_of = record.get("arguments", {}), json.loads(json.dumps(vars(args))), record.get("made_of", {})
    return [f"{key} was {old.get(key)!r}, is now {new.get(key)!r}" for key in sorted(old.keys() | new.keys())
            if key not in (*ELSEWHERE, *made_of) and old.get(key) != new.get(key)] + [
        f"the {key} has changed" for key in sorted(old_made_of.keys() | made_of) if old_made_of.get(key) != made_of.get(key)]


def finished_run(args, made_of, reads=()):
    """The record of the run in args.out_dir, or None if it is not there, or was outdated and has been set aside.

    made_of: see outdated. reads: folders that the run reads models from.
    Raises InputError if out_dir holds another run and args.overwrite is not set, or is one of `reads`: nothing is lost."""
    git_commit()  # now, not at the end: the code may have been edited by then
    out_dir = Path(args.out_dir)
    if any(folder and Path(folder).resolve() == out_dir.resolve() for folder in reads):
        raise InputError(f"--out_dir {out_dir} is the folder of the model that is read; choose another")
    reasons = outdated(args, made_of)
    if reasons == []:
        print(f"{out_dir}: done before", flush=True)
        return read_json(out_dir / "run.json")
    if reasons and not args.overwrite:
        raise InputError(f"{out_dir} holds another run ({'; '.join(reasons)}); choose another --out_dir, or add --overwrite "
                         "to set that run aside")
    if reasons:
        aside = out_dir.rename(f"{out_dir}~{len(set_aside(out_dir)) + 1}")
        print(f"{out_dir}: out of date ({'; '.join(reasons)}); kept as {aside}", flush=True)
    return None


def set_aside(folder):
    """The outdated versions of a run's folder, oldest first: FOLDER~1, FOLDER~2, ..."""
    found = []
    while (aside := Path(f"{folder}~{len(found) + 1}")).exists():
        found.append(aside)
    return found


def finish_run(args, made_of, started, **figures):
    """Write run.json, the last file of a run: its presence says that the run is complete. Returns what it holds.

    started: time.monotonic() at its beginning."""
    record = {
        "arguments": vars(args), "made_of": made_of, **figures, "seconds": round(time.monotonic() - started, 1),
        "made_with": {"commit": git_commit(), "python": platform.python_version(), "torch": torch.__version__,
                      "device": torch.cuda.get_device_name() if vars(args).get("device") == "cuda" else vars(args).get("device", "cpu"),
                      "threads": torch.get_num_threads()}}
    write_json(Path(args.out_dir) / "run.json", record)
    return record


@functools.cache
def git_commit():
    """The commit of the code, "+" behind it if files differ from it; None outside a git checkout."""
    def git(*words):
        command = ("git", "-C", Path(__file__).parent, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
