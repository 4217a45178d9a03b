"""The command line: arguments, and errors that end in one line on stderr."""
import argparse
import difflib
import os
import shlex
import signal
import sys
from pathlib import Path

from support.device import resolve_device, supports_bf16
from support.distributed import RANK, WORLD_SIZE, ignore_signals_of_torchrun
from support.errors import InputError, Interrupted, interrupt

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def command_line(main, under_torchrun=False):
    """Run main(the command's arguments).

    An error that the user can fix ends in one line on stderr and exit status 2, SIGINT in status
    130, SIGTERM in 143. under_torchrun: whether this command may be started by torchrun."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text
        if hasattr(stream, "reconfigure"):  # not a notebook's
            stream.reconfigure(errors="backslashreplace")
    if RANK:  # rank 0 speaks for all
        sys.stdout = open(os.devnull, "w")
    status = 2
    try:
        if WORLD_SIZE > 1 and not under_torchrun:
            raise InputError("torchrun works with pretrain.py and finetune.py; start this command "
                             "without it")
        main(sys.argv[1:])
        sys.stdout.flush()
        return
    except InputError as error:
        message = f"error: {error}"
    except OSError as error:  # a full disk, a read-only folder, a file that vanished
        message = f"error: {error.filename or 'file error'}: {error.strerror or error}"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = ("error: out of memory: lower --batch_size or --max_length (--max_length alone "
                   "while predicting); pretrain.py also has --grad_accum and --chunk_tokens")
    except Interrupted as stop:
        message, status = str(stop), 128 + stop.number
    name = f"{Path(sys.argv[0]).name}: "
    if WORLD_SIZE > 1:
        ignore_signals_of_torchrun()
        # On a line of its own: another rank's progress bar may be on this one.
        name = f"\n{name}process {RANK} of {WORLD_SIZE}: "
    line = name + " ".join(message.split()) + "\n"
    sys.stderr.write(line)  # in one piece: nobody else's output can get between
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, a closed pipe: else Python would try again, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def is_out_of_memory(error):
    """On a GPU torch has a class for it, on a CPU only a message."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


# ---- Types of arguments ----

def in_range(kind, low, high=None, open_low=False):
    """An argparse type: an int or a float from low (excluded if open_low) to high."""
    largest = high
    if high is None:
        largest = sys.float_info.max if kind is float else 2 ** 31 - 1  # not infinity

    def parse(text):
        value = kind(text)  # argparse reports a ValueError as "invalid number value"
        high_enough = low < value if open_low else low <= value
        if not high_enough or value > largest:
            bounds = f"{'above' if open_low else 'at least'} {low}"
            if high is not None or value > largest:
                bounds += f" and at most {largest}"
            raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
        return value
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def one_of(known, what):
    """An argparse type: one of the `known` names. A wrong one gets the nearest as a suggestion."""
    def parse(text):
        if text in known:
            return text
        near = difflib.get_close_matches(text, known, 1)
        suggestion = f"did you mean {near[0]}? " if near else ""
        raise argparse.ArgumentTypeError(
            f"unknown {what} {text!r}; {suggestion}Known: {', '.join(known)}")
    return parse


def list_of(known, what):
    """An argparse type: some of the `known` names, separated by commas, each one once."""
    parse_one = one_of(known, what)
    return lambda text: list(dict.fromkeys(parse_one(name) for name in text.split(",")))


def shell_words(text):
    """An argparse type: words as a shell would split them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


# ---- The parser ----

class HelpFormatter(argparse.HelpFormatter):
    """Adds each argument's default to its help, unless the help already speaks of it."""

    def _get_help_string(self, action):
        default = action.default
        has_default = default not in (None, [], argparse.SUPPRESS) and default is not False
        if has_default and "default" not in action.help:
            return f"{action.help} (default: %(default)s)"
        return action.help


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line like all others, without the usage before it."""

    def __init__(self, docstring):
        super().__init__(description=docstring.split("\n")[0], allow_abbrev=False,
                         formatter_class=HelpFormatter)

    def error(self, message):
        raise InputError(f"{message.removeprefix('argument ')} (--help lists the arguments)")


def add_common_arguments(parser):
    """The arguments that pretrain.py and finetune.py share."""
    parser.add_argument("--seed", type=in_range(int, 0), default=0,
                        help="of the data's order, masks, dropout and new weights")
    add_device_argument(parser)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the matrix products; auto: bf16 where the hardware has it")
    add_overwrite_argument(parser)
    parser.add_argument("--log_every", type=in_range(int, 1), default=10,
                        help="steps between two lines of log.jsonl")
    parser.add_argument("--checkpoint_minutes", type=in_range(float, 0, open_low=True), default=10,
                        help="minutes between two checkpoints; after an interruption the same "
                             "command resumes from the last one")
    parser.add_argument("--checkpoint_steps", type=in_range(int, 1),
                        help="also write a checkpoint every so many steps; default: by time only")


def add_device_argument(parser):
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto: the fastest that exists here")


def add_overwrite_argument(parser):
    parser.add_argument("--overwrite", action="store_true",
                        help="if --out_dir holds another run: keep that one as OUT_DIR~1")


def resolve(args):
    """args with "auto" made definite, so that run.json says what was used.

    Raises InputError for a device that does not exist."""
    args.device = resolve_device(args.device)
    if args.precision == "auto":
        args.precision = "bf16" if supports_bf16(args.device) else "fp32"
    return args
