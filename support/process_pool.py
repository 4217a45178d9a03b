"""A pool of processes that end with the one that started them."""
import contextlib
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process

from support.errors import InputError


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
