"""A run that is killed again and again, for real: python killed.py MODULE SEED KILLS the command's arguments ...

Each sitting is a forked process that gets SIGKILL after a random time, or in the middle of writing a file, or right after a
file got its name. When KILLS of them are dead the next one may end in peace. Prints how each was killed, a line each.
"""
import importlib
import io
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_a_write(countdown):
    """Of the countdown-th checkpoint: half of its bytes are in the file."""
    save = torch.save

    def half(value, file):
        nonlocal countdown
        countdown -= 1
        whole = io.BytesIO()
        save(value, whole)
        file.write(whole.getvalue() if countdown else whole.getvalue()[:whole.tell() // 2])
        if not countdown:
            file.flush()
            die()
    torch.save = half


def die_at_a_rename(countdown, after):
    replace = os.replace

    def renamed(source, target):
        nonlocal countdown
        countdown -= 1
        if countdown or after:
            replace(source, target)
        if not countdown:
            die()
    os.replace = renamed


def main(module, seed, kills, *arguments):
    module, rng = importlib.import_module(module), random.Random(int(seed))
    for sitting in range(int(kills) + 1):
        how = "not" if sitting == int(kills) else rng.choice(("after a time", "in a write", "before a rename", "after a rename"))
        seconds, countdown = rng.uniform(0.2, 1.5), rng.randint(1, 5)
        child = os.fork()
        if child == 0:
            if how == "in a write":
                die_in_the_middle_of_a_write(countdown)
            if how.endswith("rename"):
                die_at_a_rename(countdown, after=how.startswith("after"))
            module.main(list(arguments))
            os._exit(0)
        if how == "after a time":
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed", how if os.WIFSIGNALED(status) else f"not: it ended with {status}", flush=True)
        if not os.WIFSIGNALED(status):
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
