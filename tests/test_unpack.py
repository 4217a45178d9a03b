"""Archives: unpacked whole or refused, whatever is in them; nothing outside the folder is written.

test_download.py fetches the same hostile archives from a server.
"""
import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from support import unpack

ZIP_MODES = {"file": 0o100644, "link": 0o120777, "device": 0o020644}
TAR_TYPES = {
    "file": tarfile.REGTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
}

GOOD_ENTRIES = [  # (path, content, kind)
    ("CoLA/train.tsv", os.urandom(3000).hex().encode(), "file"),
    ("CoLA/original/raw.txt", b"x" * 50, "file"),
]

LEADS_OUT = "may lead out of the folder; refused"
NO_FILE = "is a link or a device, not a file; refused"
TOO_LARGE = "unpacks to more than 100 times its size; refused"
DAMAGED = "damaged, or neither .zip nor .tar.gz"
HOSTILE = {  # name: (entry, message)
    "an absolute path":   (("/tmp/hostile", b"x", "file"), LEADS_OUT),
    "a path upwards":     (("CoLA/../../hostile", b"x", "file"), LEADS_OUT),
    "a backslash":        (("..\\hostile", b"x", "file"), LEADS_OUT),
    "a link":             (("CoLA/link", b"/etc/passwd", "link"), NO_FILE),
    "a device":           (("CoLA/null", b"", "device"), NO_FILE),
    "a hard link":        (("CoLA/link", b"CoLA/train.tsv", "hard link"), NO_FILE),
    "a pipe":             (("CoLA/pipe", b"", "pipe"), NO_FILE),
    "a bomb":             (("CoLA/dev.tsv", bytes(30_000_000), "file"), TOO_LARGE),
    "a name twice":       (("CoLA/train.tsv", b"x", "file"), DAMAGED),
    "a file as a folder": (("CoLA/train.tsv/x", b"x", "file"), DAMAGED),
}


def make_zip(file, entries):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, kind in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = ZIP_MODES[kind] << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def make_tar(file, entries):
    with tarfile.open(file, "w:gz") as archive:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = TAR_TYPES[kind]
            info.size = len(content) if kind == "file" else 0
            info.linkname = content.decode() if "link" in kind else ""
            archive.addfile(info, io.BytesIO(content))


def can_hold(make, what):
    """Whether such an archive can have this hostile entry: a .zip has no hard links and pipes."""
    return make is make_tar or HOSTILE[what][0][2] in ZIP_MODES


def names_in(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_is_unpacked_whole_and_only_once(tmp_path, make, refused):
    archive, folder = tmp_path / "archive", tmp_path / "data"
    make(archive, GOOD_ENTRIES)
    unpack.main([str(archive), "--data_dir", str(folder)])
    for name, content, _ in GOOD_ENTRIES:
        assert (folder / name).read_bytes() == content
    assert names_in(folder) == ["CoLA"]

    message = refused(unpack, archive, "--data_dir", folder)
    assert "data already holds CoLA; move it away first" in message
    assert names_in(folder) == ["CoLA"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, what", [
    *((make_zip, what) for what in HOSTILE if can_hold(make_zip, what)),
    *((make_tar, what) for what in HOSTILE),
])
def test_a_hostile_archive_leaves_nothing(tmp_path, make, what, refused):
    archive, folder = tmp_path / "archive", tmp_path / "a" / "b" / "data"
    entry, message = HOSTILE[what]
    make(archive, [*GOOD_ENTRIES, entry])
    assert message in refused(unpack, archive, "--data_dir", folder)
    assert names_in(folder) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "archive", "b", "data"]
    assert not Path("/tmp/hostile").exists()


def test_a_header_that_is_a_bomb_is_refused(tmp_path, refused):
    """A .tar.gz whose extended header alone is 200 MB of zeros."""
    archive = tmp_path / "archive.tar.gz"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 200_000_000
    with gzip.open(archive, "wb", compresslevel=9) as file:
        file.write(header.tobuf())
        for _ in range(200):
            file.write(bytes(1_000_000))
    assert TOO_LARGE in refused(unpack, archive, "--data_dir", tmp_path / "data")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_damaged_archive_is_refused(tmp_path, make, refused):
    archive, folder = tmp_path / "archive", tmp_path / "data"
    make(archive, GOOD_ENTRIES)
    whole = archive.read_bytes()
    wrong_byte = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
    for content in (b"", b"<html>404</html>", whole[:len(whole) // 2], wrong_byte):
        archive.write_bytes(content)
        assert f"archive: {DAMAGED}" in refused(unpack, archive, "--data_dir", folder)
        assert names_in(folder) == []


def test_an_archive_that_does_not_exist_is_refused(tmp_path, refused):
    message = refused(unpack, tmp_path / "absent", "--data_dir", tmp_path / "data")
    assert "absent: no such file" in message
