"""Unpack the archives of the tasks (.zip, .tar.gz) into --data_dir, and nowhere else.

    python -m support.unpack CoLA.zip aclImdb_v1.tar.gz --data_dir FOLDER

An archive may hold paths that lead out of the folder, links, devices, or more than fits on the
disk. Such an archive is refused, and nothing of it is kept. Read next: tasks.py.
"""
import contextlib
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from support.cli import Parser, command_line
from support.errors import InputError

EXPANSION = 100  # text shrinks to about a fifth: a higher ratio suggests a zip bomb

DAMAGED = (  # what zipfile, gzip and tarfile raise, and open(..., "x") for a name that comes twice
    zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    RuntimeError, NotImplementedError, ValueError,
    FileExistsError, NotADirectoryError, IsADirectoryError,
)


def unpack(archive, folder):
    """Unpack a .zip or .tar.gz into folder: either everything or nothing. Returns the new paths.

    Raises InputError if the archive is missing or damaged, holds an absolute path, a path with ..,
    a link or a device, or more than EXPANSION times its own size, and if the folder already has
    something of the same name."""
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise InputError(f"{archive}: no such file")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking", dir=folder))
    try:
        extract(archive, temporary)
        return move_contents(archive, temporary, folder)
    except DAMAGED as error:
        raise InputError(f"{archive}: damaged, or neither .zip nor .tar.gz ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def extract(archive, folder):
    """Write all files of an archive into an empty folder."""
    budget = Budget(archive)
    members = zip_members if zipfile.is_zipfile(archive) else tar_members
    for name, source in members(archive, budget):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, open(target, "xb") as file:  # x: fails if the name comes twice
            shutil.copyfileobj(source, file)


def move_contents(archive, temporary, folder):
    """Move what is in `temporary` to `folder`. Returns the new paths. Raises InputError."""
    paths = sorted(temporary.iterdir())
    if not paths:
        raise InputError(f"{archive}: holds no file")
    present = [path.name for path in paths if (folder / path.name).exists()]
    if present:
        raise InputError(f"{archive}: {folder} already holds {', '.join(present)}; "
                         "move it away first")
    return [path.rename(folder / path.name) for path in paths]


def zip_members(archive, budget):
    """(path, open file) of each file in a .zip. Raises InputError."""
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if is_from_macos(info.filename):
                continue
            # The file type in the Unix mode: 4 a folder, 8 a file, 0 if not packed on Unix.
            file_type = info.external_attr >> 28
            budget.spend(info.file_size)
            check_member(archive, info.filename, plain=file_type in (0, 4, 8))
            if not info.is_dir():
                yield info.filename, opened.open(info)


def tar_members(archive, budget):
    """(path, open file) of each file in a .tar.gz. Raises InputError."""
    with contextlib.ExitStack() as stack:
        stream = Counted(stack.enter_context(gzip.open(archive)), budget)
        opened = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        for info in opened:
            if is_from_macos(info.name):
                continue
            check_member(archive, info.name, plain=info.isfile() or info.isdir())
            if info.isfile():
                yield info.name, opened.extractfile(info)
        while stream.read(1 << 20):  # to the end, where gzip's checksum is
            pass


def check_member(archive, name, plain):
    """Raises InputError for a path that could lead out of the folder, and for a link or device."""
    path = PurePosixPath(name)
    odd_characters = "\\" in name or ":" in name or not name.isprintable()
    if path.is_absolute() or ".." in path.parts or odd_characters:
        raise InputError(f"{archive}: the path {name!r} may lead out of the folder; refused")
    if not plain:
        raise InputError(f"{archive}: {name!r} is a link or a device, not a file; refused")


def is_from_macos(name):
    """Whether macOS added this file to the archive: not a part of the data."""
    parts = PurePosixPath(name).parts
    return parts[:1] == ("__MACOSX",) or parts[-1:] in ((".DS_Store",), ("Icon\r",))


class Budget:
    """How many more bytes an archive may unpack to."""

    def __init__(self, archive):
        self.archive = archive
        self.bytes = EXPANSION * archive.stat().st_size

    def spend(self, size):
        self.bytes -= size
        if self.bytes < 0:
            raise InputError(f"{self.archive}: unpacks to more than {EXPANSION} times its size; "
                             "refused")


class Counted:
    """A file that is read within a budget: in a .tar.gz even a header may be a bomb."""

    def __init__(self, file, budget):
        self.file, self.budget = file, budget

    def read(self, size):
        data = self.file.read(size)
        self.budget.spend(len(data))
        return data


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("archives", nargs="+", help="files that end in .zip or .tar.gz")
    parser.add_argument("--data_dir", required=True,
                        help="folder that gets CoLA/, MNLI/, ... and aclImdb/")
    args = parser.parse_args(arguments)
    for archive in args.archives:
        print(f"{archive}: {', '.join(map(str, unpack(archive, args.data_dir)))}")


if __name__ == "__main__":
    command_line(main)
