"""A run that is killed again and again, for real: python killed.py MODULE SEED its arguments ...

Each attempt to run it is a forked process, which is killed in one of four ways. First come six
kills that leave the run unfinished on any machine: each gets at most six steps further. Then come
four after a random time; on a fast machine the run may end before. The last attempt may end in
peace. Prints how each was killed, a line each.
"""
import importlib
import os
import random
import signal
import sys
import time

from signalled import at_moment

MOMENTS = {"in the middle of a write": ("half-written", 3), "before a rename": ("before:", 4),
           "after a rename": ("after:", 4)}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(module, arguments, way, rng):
    """Run it in a process of its own that is killed this way. Returns its wait status."""
    seconds, moment = rng.uniform(0.2, 1.5), None
    if way in MOMENTS:
        moment, most = MOMENTS[way]
        count = rng.randint(1, most)
    child = os.fork()
    if child == 0:
        if moment:
            at_moment(moment, count, die)
        module.main(arguments)
        os._exit(0)
    if way == "after a time":
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status


def main(module, seed, *arguments):
    module, rng = importlib.import_module(module), random.Random(int(seed))
    ways = list(MOMENTS) * 2
    rng.shuffle(ways)
    for way in (*ways, *["after a time"] * 4, "not"):
        status = attempt(module, list(arguments), way, rng)
        if not os.WIFSIGNALED(status):
            print(f"not killed: it ended with {status}")
            break
        print("killed", way, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
