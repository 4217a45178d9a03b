"""A pool of processes that end with the process that started them."""
import contextlib
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process

from support.errors import InputError


@contextlib.contextmanager
def process_pool(count, killed, initializer, *arguments):
    """A pool of `count` processes, each of which starts with initializer(*arguments).

    If the block fails, they get SIGTERM. Raises InputError with the message `killed` if one of
    them was killed."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(count, spawn, join_pool, (initializer, *arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(killed) from None
            raise


def join_pool(initializer, *arguments):
    """Make this process one of a pool: it ends as soon as its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    threading.Thread(target=exit_with_parent, daemon=True).start()
    initializer(*arguments)


def exit_with_parent():
    parent_process().join()
    os._exit(1)
