"""The archives that the tasks come in (GLUE's .zip files, aclImdb_v1.tar.gz), unpacked into --data_dir and nowhere else.

    python unpack.py CoLA.zip aclImdb_v1.tar.gz --data_dir FOLDER

An archive from somewhere may hold paths that lead out of the folder, links, devices, or more than fits on the disk: it is
refused, and leaves nothing behind. Read next: data.py.
"""
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from support.cli import Parser, command_line
from support.errors import InputError

EXPANSION = 100  # text shrinks to a fifth or so: what grows more than this is no text


def unpack(archive, folder):
    """Unpack a .zip or .tar.gz into folder, which gets all of what the archive's top level holds, or nothing.

    Raises InputError: no such archive, or a damaged one; an absolute path, one with .., a link or a device in it; more than
    EXPANSION times its own size; something of that name is there already."""
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise InputError(f"{archive}: no such file")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".unpacking{os.getpid()}"
    try:
        temporary.mkdir()
        for name, opened in members(archive):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened, open(target, "xb") as file:  # x: no name comes twice
                shutil.copyfileobj(opened, file)
        top = sorted(temporary.iterdir())
        if not top:
            raise InputError(f"{archive}: holds no file")
        if there := [path.name for path in top if (folder / path.name).exists()]:
            raise InputError(f"{archive}: {folder} holds {', '.join(there)} already; move it away first")
        for path in top:
            path.rename(folder / path.name)
        return [folder / path.name for path in top]
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError, ValueError, FileExistsError,
            NotADirectoryError, IsADirectoryError, gzip.BadGzipFile) as error:
        raise InputError(f"{archive}: damaged, or no .zip or .tar.gz ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def members(archive):
    """(path inside the archive, opened file) of its files, one after the other. Raises InputError for what no data set needs."""
    budget = Budget(archive)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if of_finder(info.filename):
                    continue
                kind = info.external_attr >> 28  # the Unix mode's file type; 0 if it was not packed on Unix
                budget.check(info.filename, info.file_size, kind in (0, 4, 8))  # 4: a folder, 8: a file
                if not info.is_dir():
                    yield info.filename, opened.open(info)
        return
    with gzip.open(archive) as unzipped, tarfile.open(fileobj=(counted := Counted(unzipped, budget)), mode="r|") as opened:
        for info in opened:
            if of_finder(info.name):
                continue
            budget.check(info.name, 0, info.isfile() or info.isdir())
            if info.isfile():
                yield info.name, opened.extractfile(info)
        while counted.read(1 << 20):  # to the very end, where the checksum stands
            pass


def of_finder(name):
    """Whether macOS put it into the archive beside what was packed: no part of the data."""
    parts = PurePosixPath(name).parts
    return parts[:1] == ("__MACOSX",) or parts[-1:] in ((".DS_Store",), ("Icon\r",))


class Budget:
    """How much an archive may still unpack to."""

    def __init__(self, archive):
        self.archive, self.bytes = archive, EXPANSION * archive.stat().st_size

    def spend(self, size):
        self.bytes -= size
        if self.bytes < 0:
            raise InputError(f"{self.archive}: unpacks to more than {EXPANSION} times its size; refused")

    def check(self, name, size, plain):
        self.spend(size)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name or not name.isprintable():
            raise InputError(f"{self.archive}: the path {name!r} may lead out of the folder; refused")
        if not plain:
            raise InputError(f"{self.archive}: {name!r} is a link or a device, not a file; refused")


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
    parser.add_argument("archives", nargs="+")
    parser.add_argument("--data_dir", required=True, help="folder that gets CoLA/, MNLI/, ... and aclImdb/")
    args = parser.parse_args(arguments)
    for archive in args.archives:
        print(f"{archive}: {', '.join(map(str, unpack(archive, args.data_dir)))}")


if __name__ == "__main__":
    command_line(main)
