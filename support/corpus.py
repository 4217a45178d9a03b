"""A text corpus of any size as one array of token ids on disk.

The text is cut at line ends into parts. A pool of processes tokenizes the parts, each into a file
of its own, and the files are then joined. A part that is finished is kept, so an interrupted run
resumes with the parts that are missing. Memory does not grow with the corpus: text is read piece by
piece, and the array is mapped from its file. Read next: data.py, which makes blocks of the array.
"""
import contextlib
import hashlib
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from support.distributed import RANK, progress_bar
from support.errors import InputError
from support.files import atomic_write, lock_file
from support.fingerprint import code_fingerprint, files_fingerprint
from support.process_pool import process_pool
from support.wordpiece import id_count

GROUP = 1 << 20          # characters tokenized in one call
LONGEST_PIECE = 1 << 16  # characters of a line; longer lines are tokenized in pieces
PART = 1 << 25           # bytes of text in a part, the most that an interruption can cost a process
CODE = code_fingerprint(__file__, imports=False)  # an edit of this file makes the tokens anew
TEXT_SUFFIXES = (".txt", ".raw", ".tokens", ".md")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip",
              b"\x28\xb5\x2f\xfd": "zstd"}  # the first bytes of a file
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zip", ".zst")


# ---- Text files ----

def text_files(paths):
    """The given files, and those in the given folders that end in TEXT_SUFFIXES, sorted.

    Folders below them are read too, also linked ones; hidden files and folders are not.
    Raises InputError if a path does not exist, or a folder holds no such file."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_file():
            files.append(path)
            continue
        if not path.is_dir():
            raise InputError(f"{path}: neither a file nor a folder; a pipe cannot be read twice: "
                             "write it to a file first")
        found = sorted(file for file in files_below(path)
                       if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
        if not found:
            packed = [file.name for file in files_below(path) if file.suffix in PACKED_SUFFIXES]
            hint = f"; {packed[0]} is compressed: unpack it first" if packed else ""
            raise InputError(f"{path}: this folder holds no {', '.join(TEXT_SUFFIXES)} file{hint}")
        files += found
    return files


def files_below(folder):
    """Yield the paths of all files in a folder and below that are not hidden.

    A linked folder is entered, unless it was entered before: links may form a circle."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(place, name)


def describe_files(files):
    """How much was found: "3 files, 1,234,567 bytes"."""
    size = sum(os.path.getsize(file) for file in files)
    return f"{len(files):,} file{'s' * (len(files) != 1)}, {size:,} bytes"


@contextlib.contextmanager
def open_text(path, newline=None, start=0, end=None):
    """Open a file, or its bytes from start to end, as UTF-8 text without a byte-order mark.

    Raises InputError if it does not exist, or on reading, with the line that is not UTF-8."""
    encoding = "utf-8" if start else "utf-8-sig"
    try:
        with open(path, "rb") as file:
            buffered = io.BufferedReader(ByteRange(file, start, end))
            yield io.TextIOWrapper(buffered, encoding, newline=newline)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        check_lines_are_utf8(path)
        raise


def check_lines_are_utf8(path):
    """Raises InputError with the first line of a file that is not UTF-8."""
    with open(path, "rb") as file:
        start = file.read(8)
        for mark, kind in COMPRESSED.items():
            if start.startswith(mark):
                raise InputError(f"{path}: is compressed ({kind}); unpack it first")
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"{line[error.start]:#04x}"
                raise InputError(f"{path}: line {number} is not UTF-8 text (byte {byte}); "
                                 "convert the file first, for example with iconv") from None


class ByteRange(io.RawIOBase):
    """The bytes of an open file from start to end, as a file. end=None: the end of the file."""

    def __init__(self, file, start, end):
        file.seek(start)
        self.file, self.end = file, end

    def readable(self):
        return True

    def readinto(self, buffer):
        size = len(buffer)
        if self.end is not None:
            size = min(size, self.end - self.file.tell())
        data = self.file.read(size)
        buffer[:len(data)] = data
        return len(data)


# ---- Parts of a file ----

def parts_of(file):
    """A list of parts (file, start, end), in bytes: each about PART long, ending at a line end."""
    parts, start, size = [], 0, os.path.getsize(file)
    with open(file, "rb") as text:
        while start < size:
            text.seek(start + PART)
            skip_line(text)
            parts.append((file, start, min(text.tell(), size)))
            start = text.tell()
    return parts


def skip_line(text):
    """Move to the end of the current line; a very long line is read in pieces."""
    while (piece := text.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def starts_document(file, start):
    """Whether the line at this byte starts a document: it is first, or follows an empty line."""
    with open(file, "rb") as text:
        text.seek(max(0, start - (1 << 16)))
        before = text.read(min(start, 1 << 16))
    line_before = before.removesuffix(b"\n").rpartition(b"\n")[2]
    return not line_before.decode("utf-8", "replace").strip()


def lines(file, start, end):
    """Yield the lines of a part, without white space around them, and "" where a document ends.

    A very long line comes in several pieces, cut at spaces. Raises InputError."""
    carried, starts_line = "", True
    with open_text(file, start=start, end=end) as text:
        while piece := text.readline(LONGEST_PIECE):
            ends_line = piece.endswith("\n")
            piece, carried = carried + piece, ""
            if not ends_line:  # the piece may end inside a word: carry what follows the last space
                cut = piece.rfind(" ") + 1 or len(piece)
                piece, carried = piece[:cut], piece[cut:]
            whole_line = starts_line and ends_line
            if piece.strip() or whole_line:
                yield piece.strip()
            starts_line = ends_line
    if carried:
        yield carried.strip()
    if end == os.path.getsize(file):
        yield ""


# ---- Tokenizing ----

def tokenize(part, tokenizer, path):
    """Write the token ids of a part to `path`, with [SEP] after each document, as token_dtype.

    Returns the part's size in bytes."""
    file, start, end = part
    dtype, sep = token_dtype(tokenizer), tokenizer.token_to_id("[SEP]")
    after_sep = starts_document(file, start)
    with atomic_write(path) as out:
        for group in groups(lines(file, start, end)):
            ids = []
            encodings = tokenizer.encode_batch_fast(group, add_special_tokens=False)
            for line, encoding in zip(group, encodings):
                line_ids = encoding.ids
                if line_ids:
                    ids += line_ids
                    after_sep = False
                elif not line and not after_sep:  # never two, and none at the start
                    ids.append(sep)
                    after_sep = True
            out.write(np.asarray(ids, dtype=dtype).tobytes())
    return end - start


def groups(lines):
    """Yield lists of consecutive lines, each of about GROUP characters."""
    group, size = [], 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size > GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def token_dtype(tokenizer):
    """The smallest type that holds the tokenizer's ids: uint16 or uint32."""
    return np.dtype(np.uint16 if id_count(tokenizer) <= 1 << 16 else np.uint32)


def tokenize_all(parts, paths, tokenizer):
    """Tokenize each part to its path, unless that file exists.

    A corpus of up to one part's size is tokenized in this process, since the tokenizer itself uses
    all cores. For a larger one, a pool of processes, one per core, is faster."""
    missing = [(part, path) for part, path in zip(parts, paths) if not path.exists()]
    size = sum(end - start for (_, start, end), _ in missing)
    with progress_bar(None, total=size, unit="B", unit_scale=True, desc="tokenizing",
                      leave=False) as progress:
        if size <= PART:
            for part, path in missing:
                progress.update(tokenize(part, tokenizer, path))
            return
        killed = ("a process that tokenized was killed, perhaps because memory ran out; "
                  "the same command resumes with the missing parts")
        with process_pool(min(available_cores(), len(missing)), killed, use_one_core) as pool:
            jobs = [pool.submit(tokenize, part, tokenizer, path) for part, path in missing]
            for job in jobs:
                progress.update(job.result())


def available_cores():
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def use_one_core():
    """Let the tokenizer of this process, one of a pool, use one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


# ---- The array ----

def corpus_tokens(paths, tokenizer, cache_dir):
    """The token ids of all text in `paths`: a read-only memory map, (tokens,), uint16 or uint32.

    The array is made once. It is kept in cache_dir, under a name that follows from the text, the
    tokenizer and the code of this file. Raises InputError if there is no text."""
    files, dtype, cache = text_files(paths), token_dtype(tokenizer), Path(cache_dir)
    made_from = f"{files_fingerprint(files)} {tokenizer.to_str()} {CODE}"
    digest = hashlib.blake2b(made_from.encode(), digest_size=12).hexdigest()
    path = find_array(cache, digest, dtype)
    if path is None:
        cache.mkdir(parents=True, exist_ok=True)
        lock = cache / f"tokens-{digest}.tmp"
        with lock_file(lock, wait=True):  # of several runs, the first makes it; the others wait
            try:
                path = find_array(cache, digest, dtype)
                if path is None:
                    path = make_array(files, tokenizer, cache, digest)
                delete_leftovers(cache, digest)
            finally:
                lock.unlink(missing_ok=True)
    if path.stat().st_size == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no text in it")
    return np.memmap(path, dtype=dtype, mode="r")


def describe_corpus(paths, tokens, tokenizer):
    """Print how much text was read, and which share of its words the vocabulary does not know.

    The share is that of the first ten million tokens; above a twentieth, a warning says so."""
    unknown = (tokens[:10_000_000] == tokenizer.token_to_id("[UNK]")).mean()
    names = " ".join(map(str, paths))
    print(f"{names}: {describe_files(text_files(paths))}, {len(tokens):,} tokens, "
          f"{100 * unknown:.2g} % of them [UNK]", flush=True)
    if unknown > 0.05 and RANK == 0:
        print(f"warning: {100 * unknown:.0f} % of the tokens of {names} are [UNK], words that the "
              "vocabulary does not have; is it for another language?", file=sys.stderr)


def find_array(cache, digest, dtype):
    """The finished array's file, or None.

    Its name ends in the number of tokens, so that a truncated file does not pass for it."""
    for path in cache.glob(f"tokens-{digest}-*.bin"):
        count = path.stat().st_size // dtype.itemsize
        if path.name == f"tokens-{digest}-{count}.bin":
            return path
    return None


def make_array(files, tokenizer, cache, digest):
    """Tokenize the files, part by part, and join the parts. Returns the array's file."""
    parts, part_paths = [], []
    for file in files:
        parts += parts_of(file)
    for number, (_, start, end) in enumerate(parts):
        part_paths.append(cache / f"tokens-{digest}.{number}.{start}-{end}.part")
    tokenize_all(parts, part_paths, tokenizer)

    size = sum(path.stat().st_size for path in part_paths)
    whole_path = cache / f"tokens-{digest}-{size // token_dtype(tokenizer).itemsize}.bin"
    with atomic_write(whole_path) as whole:
        for path in part_paths:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
    return whole_path


def delete_leftovers(cache, digest):
    """Delete the parts, and the temporary files that killed processes left behind."""
    for pattern in (f"tokens-{digest}.*.part*", f"tokens-{digest}-*.bin.tmp*"):
        for path in list(cache.glob(pattern)):
            path.unlink(missing_ok=True)
