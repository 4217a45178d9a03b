"""A corpus of any size as one array of token ids on disk.

What is special: the text is cut into parts at line ends, and the parts are tokenized side by side, each in a process of its own;
one that is done stays done, so that what was interrupted goes on. Memory does not grow with the corpus: nothing of it is held, the
array is mapped. Nothing here is about distillation; read next: data.py, which makes blocks of it.
"""
import contextlib
import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np

from support.distributed import progress_bar
from support.errors import InputError
from support.files import atomic_write, lock_file
from support.fingerprint import code_fingerprint, files_fingerprint
from support.process_pool import process_pool

GROUP = 1 << 20          # characters tokenized at once
LONGEST_PIECE = 1 << 16  # characters of a line tokenized at once
PART = 1 << 25           # bytes of text that one process tokenizes: what an interruption can cost
CODE = code_fingerprint(__file__, imports=False)  # as it was when it was loaded; an edit makes the tokens anew


def text_files(paths):
    """The files named, and those under the folders named that end in .txt, .raw or .tokens, sorted. Raises InputError."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        found = [path] if path.is_file() else sorted(
            f for f in path.rglob("*") if f.suffix in (".txt", ".raw", ".tokens") and f.is_file())
        if not found:
            raise InputError(f"{path}: this folder holds no .txt, .raw or .tokens file")
        files += found
    return files


@contextlib.contextmanager
def open_text(path, newline=None, start=0, end=None):
    """A text file, or its bytes from start to end, read as UTF-8 without its byte-order mark. Raises InputError, with the line that is
    not UTF-8."""
    try:
        with open(path, "rb") as file:
            yield io.TextIOWrapper(io.BufferedReader(Stretch(file, start, end)), "utf-8" if start else "utf-8-sig", newline=newline)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}: line {number} is not UTF-8 text (byte {line[error.start]:#04x}); convert the "
                                     "file first, for example with iconv") from None
        raise


class Stretch(io.RawIOBase):
    """The bytes of an open file from start to end (None: its end)."""

    def __init__(self, file, start, end):
        file.seek(start)
        self.file, self.end = file, end

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.file.read(len(buffer) if self.end is None else min(len(buffer), self.end - self.file.tell()))
        buffer[:len(data)] = data
        return len(data)


def parts_of(file):
    """[(file, start, end)] of some PART bytes each; they end where lines end."""
    parts, start, size = [], 0, os.path.getsize(file)
    with open(file, "rb") as text:
        while start < size:
            text.seek(start + PART)
            while (line := text.readline(1 << 20)) and not line.endswith(b"\n"):
                pass
            parts.append((file, start, min(text.tell(), size)))
            start = text.tell()
    return parts


def follows_a_document(file, start):
    """Whether a document ends before this byte, where a line starts: so it is at the file's start, and after an empty line."""
    with open(file, "rb") as text:
        text.seek(max(0, start - (1 << 16)))
        before = text.read(min(start, 1 << 16))
    return not before.removesuffix(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace").strip()


def lines(file, start, end):
    """The lines of a part, "" where a document ends; a very long line comes in pieces, cut at spaces. Raises InputError."""
    carried, starts_line = "", True
    with open_text(file, start=start, end=end) as text:
        while piece := text.readline(LONGEST_PIECE):
            ends_line = piece.endswith("\n")
            piece, carried = carried + piece, ""
            if not ends_line:  # cut in mid-line, or the file's end: the last word waits for its other half
                cut = piece.rfind(" ") + 1 or len(piece)
                piece, carried = piece[:cut], piece[cut:]
            if piece.strip() or (starts_line and ends_line):
                yield piece.strip()
            starts_line = ends_line
    if carried:
        yield carried.strip()
    if end == os.path.getsize(file):
        yield ""


def tokenize(part, tokenizer, path):
    """Write the ids of a part's lines, one after the other, with [SEP] behind each document. Returns how many bytes the part has."""
    file, start, end = part
    dtype, sep, ended = token_dtype(tokenizer), tokenizer.token_to_id("[SEP]"), follows_a_document(file, start)
    with atomic_write(path) as out:
        for group in groups(lines(file, start, end)):
            ids = []
            for line, encoding in zip(group, tokenizer.encode_batch_fast(group, add_special_tokens=False)):
                if found := encoding.ids:
                    ids += found
                    ended = False
                elif not line and not ended:  # none at the start, and none behind another
                    ids.append(sep)
                    ended = True
            out.write(np.asarray(ids, dtype=dtype).tobytes())
    return end - start


def groups(lines):
    """Lists of lines, of some GROUP characters."""
    group, size = [], 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size > GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def tokenize_all(parts, paths, tokenizer):
    """Write those of the paths that are not there: little text in this process, which uses all cores too; much in several side by side."""
    missing = [(part, path) for part, path in zip(parts, paths) if not path.exists()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    size = sum(end - start for (_, start, end), _ in missing)
    with progress_bar(None, total=size, unit="B", unit_scale=True, desc="tokenizing", leave=False) as progress:
        if size <= PART:
            for part, path in missing:
                progress.update(tokenize(part, tokenizer, path))
            return
        killed = "a process that tokenized was killed, perhaps for want of memory; the same command goes on with the rest"
        with process_pool(min(cores, len(missing)), killed, begin_tokenizing) as pool:
            for done in [pool.submit(tokenize, part, tokenizer, path) for part, path in missing]:
                progress.update(done.result())


def begin_tokenizing():
    """Make this process one of several that tokenize, each on one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def token_dtype(tokenizer):
    return np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32


def corpus_tokens(paths, tokenizer, cache_dir):
    """All token ids of the text in `paths`, a read-only memory map: (tokens,), uint16 or uint32.

    Made once and kept in cache_dir under a name that follows from the text, the tokenizer and the code. Raises InputError."""
    files = text_files(paths)
    digest = hashlib.blake2b(f"{files_fingerprint(files)} {tokenizer.to_str()} {CODE}".encode(), digest_size=12).hexdigest()
    cache, dtype = Path(cache_dir), token_dtype(tokenizer)

    def made():  # its name ends in the number of tokens, so that a file cut short does not pass for it
        return next((path for path in cache.glob(f"tokens-{digest}-*.bin")
                     if path.name == f"tokens-{digest}-{path.stat().st_size // dtype().itemsize}.bin"), None)
    if not made():
        cache.mkdir(parents=True, exist_ok=True)
        lock = cache / f"tokens-{digest}.tmp"
        with lock_file(lock, wait=True):  # several runs may want it: the first one makes it, the others wait
            try:
                if not made():
                    parts = [part for file in files for part in parts_of(file)]
                    made_parts = [cache / f"tokens-{digest}.{number}.{start}-{end}.part" for number, (_, start, end) in enumerate(parts)]
                    tokenize_all(parts, made_parts, tokenizer)
                    count = sum(path.stat().st_size for path in made_parts) // dtype().itemsize
                    with atomic_write(cache / f"tokens-{digest}-{count}.bin") as whole:
                        for path in made_parts:
                            with open(path, "rb") as part:
                                shutil.copyfileobj(part, whole, 1 << 20)
                for path in (*cache.glob(f"tokens-{digest}.*.part*"), *cache.glob(f"tokens-{digest}-*.bin.tmp*")):  # also what killed processes left
                    path.unlink(missing_ok=True)
            finally:
                lock.unlink(missing_ok=True)
    if made().stat().st_size == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no text in it")
    return np.memmap(made(), dtype=dtype, mode="r")
