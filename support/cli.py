"""The command line: arguments, and errors in one line."""
import argparse
import difflib
import os
import shlex
import signal
import sys
from pathlib import Path

from support.device import resolve_device, supports_bf16
from support.distributed import RANK, WORLD_SIZE
from support.errors import InputError, Interrupted, interrupt


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


def in_range(kind, low, high=None, open_low=False):
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


def shell_words(text):
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
    parser.add_argument("--seed", type=in_range(int, 0), default=0, help="of the data's order, masks, dropout and new weights")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the matrix products; auto: bf16 where the hardware multiplies in it, else fp32")
    parser.add_argument("--overwrite", action="store_true", help="if --out_dir holds another run: set it aside, as OUT_DIR~1")
    parser.add_argument("--log_every", type=in_range(int, 1), default=10, help="steps between two lines of log.jsonl")
    parser.add_argument("--checkpoint_minutes", type=in_range(float, 0, open_low=True), default=10,
                        help="between two checkpoints, from which the same command goes on after an interruption")
    parser.add_argument("--checkpoint_steps", type=in_range(int, 1), help="write one after so many steps, too")


def resolve(args):
    """args with "auto" made definite, so that run.json says what was used. Raises InputError for a device not there."""
    args.device = resolve_device(args.device)
    if args.precision == "auto":
        args.precision = "bf16" if supports_bf16(args.device) else "fp32"
    return args
