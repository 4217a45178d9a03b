"""A command that gets a signal at a moment that is exactly known, on a slow machine and a fast one.

    python signalled.py MOMENT COUNT WHO SIGNAL pretrain.py the command's arguments ...

SIGNAL (a number) is sent the COUNT-th time that MOMENT comes:
    step             a step is done, and its checkpoint not yet written
    half-written     half of a checkpoint's bytes are in its temporary file
    before:NAME      a file is written, and about to get its name, which ends in NAME
    after:NAME       it has just got its name
WHO gets it: 0 or 1, the rank to which this happens; or torchrun, from rank 0.
"""
import io
import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import torch

from support.training_run import Run


def at_moment(moment, count, send):
    """Have send() called when this moment comes for the count-th time."""
    kind, _, name = moment.partition(":")
    if kind == "step":
        at_step(count, send)
    elif kind == "half-written":
        at_half_written(count, send)
    else:
        at_rename(name, count, send, after=kind == "after")


def at_step(count, send):
    should_save = Run.should_save

    def patched(run, steps_done):
        if steps_done == count:
            send()
            while not run.signal_here:  # it may take a while, through torchrun
                time.sleep(0.01)
        return should_save(run, steps_done)
    Run.should_save = patched


def at_half_written(count, send):
    save, left = torch.save, count

    def patched(value, file):
        nonlocal left
        left -= 1
        whole = io.BytesIO()
        save(value, whole)
        data = whole.getvalue()
        if left == 0:
            file.write(data[:len(data) // 2])
            file.flush()
            send()
        else:
            file.write(data)
    torch.save = patched


def at_rename(name, count, send, after):
    replace, left = os.replace, count

    def patched(source, target):
        nonlocal left
        left -= str(target).endswith(name)
        is_now = left == 0 and str(target).endswith(name)
        if is_now and not after:
            send()
        replace(source, target)
        if is_now and after:
            send()
    os.replace = patched


def main(moment, count, who, number, command, *arguments):
    rank = os.environ.get("RANK", "0")
    if rank == {"torchrun": "0"}.get(who, who):
        target = os.getppid() if who == "torchrun" else os.getpid()
        at_moment(moment, int(count), lambda: os.kill(target, int(number)))
    sys.argv = [command, *arguments]
    runpy.run_path(str(ROOT / command), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
