"""Files that are written whole or not at all; locks; JSON."""
import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from support.errors import InputError


@contextlib.contextmanager
def atomic_write(path):
    """A binary file to write to. When the block ends it is synced and gets its name.

    If the block fails, no file is left."""
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save turns the OSError of a full disk into a RuntimeError.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(out):
    """A temporary folder to write to, which gets the name `out` when the block ends.

    `out` must not exist, or be empty. If the block fails, nothing is left."""
    out = Path(os.path.abspath(out))
    temporary = Path(f"{out}.tmp{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path, data):
    """Write a file whole or not at all. data: str (as UTF-8) or bytes."""
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path, value):
    write_file(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """The object in a JSON file. Raises InputError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def write_all(file, data):
    """Write bytes to an unbuffered file, whose write may take only some of them."""
    while data:
        data = data[file.write(data):]


@contextlib.contextmanager
def kept_if_used(folder):
    """The folder exists within the block. Folders that were made for it and are empty at the end
    are removed again."""
    folder = Path(folder)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in new_folders:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextlib.contextmanager
def locked_folder(folder):
    """The folder is locked for this process within the block: an experiment's, of many runs."""
    lock = Path(folder, ".lock")
    with kept_if_used(folder), lock_file(lock):
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # the folder vanished
                if os.listdir(folder) == [lock.name]:
                    lock.unlink()


def lock_file(path, wait=False):
    """Open a file for appending, unbuffered, and lock it.

    The lock lasts until the file is closed or this process ends, however it ends. If another
    process has it: wait for it, or raise InputError."""
    mode = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = open(path, "ab", buffering=0)
        try:
            fcntl.flock(file, mode)
        except BlockingIOError:
            file.close()
            raise InputError(f"{Path(path).parent}: another process is at work in this folder; "
                             "wait for it, or choose another --out_dir") from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # its previous owner has renamed or removed it: try again
