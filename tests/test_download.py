"""Downloads of the tasks, end to end by the command, from a server on this machine.

The server holds small stand-ins under the real paths, or misbehaves. The hub: test_hub.py.
"""
import re
import shutil
import ssl
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from loopback_server import (
    answer,
    chunks,
    content_range,
    glue_archive,
    hang_up,
    redirect,
    running_server,
    source_of,
    stall,
    stall_in_the_middle,
    zipped,
)
from test_unpack import GOOD_ENTRIES, HOSTILE, can_hold, make_tar, make_zip

from support import download, https
from support.tasks import TASKS, read_dev, read_test, read_train

RESUMES = "the same command resumes"


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def mirror(server, monkeypatch):
    """The server, in place of the real ones."""
    monkeypatch.setenv("DOWNLOAD_MIRROR", server.url)
    return server


@pytest.fixture
def archives(world, tmp_path):
    """{name of a task: its archive's bytes}, of the miniature world."""
    archives = {name: glue_archive(world, task.folder) for name, task in TASKS.items()
                if name not in ("mrpc", "imdb", "squad")}
    reviews = world / "data" / "aclImdb"
    entries = [(f"aclImdb/{file.relative_to(reviews)}", file.read_bytes(), "file")
               for file in sorted(reviews.rglob("*.txt"))]
    make_tar(tmp_path / "reviews", entries)
    archives["imdb"] = (tmp_path / "reviews").read_bytes()
    return archives


@pytest.fixture
def refusal(refused, tmp_path):
    """refusal(name) -> the line with which its download into tmp_path/data is refused."""
    return lambda name: refused(download, name, "--data_dir", tmp_path / "data")


def serve(server, monkeypatch, name, *bodies):
    """Serve these bodies as the files of a data set. Returns their paths on the server."""
    monkeypatch.setitem(download.SOURCES, name, source_of(name, *bodies))
    paths = [urlsplit(url).path for url, _, _ in download.SOURCES[name]]
    server.pages |= dict(zip(paths, bodies))
    return paths


def fetch(names, folder):
    download.main([names, "--data_dir", str(folder)])


def tree(folder):
    """The files under a folder, as texts."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- What is asked for arrives ----

HEADER = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
MRPC = [
    ["1", "11", "12", 'He said "yes.', "So he said."],
    ["0", "13", "14", "A.", "B ."],
    ["1", "15", "16", "C.", "D."],
]
MRPC_DEV_IDS = b"13\t14\n15\t16\n"


def mrpc_source(rows):
    """A file as Microsoft has it: a byte-order mark, and no \\n at the end."""
    return ("\ufeff" + "\r\n".join(map("\t".join, [HEADER, *rows]))).encode()


def table(rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def assert_same_task(name, folder, world):
    assert read_train(name, folder) == read_train(name, world / "data")
    assert read_dev(name, folder) == read_dev(name, world / "data")
    if TASKS[name].test:
        assert read_test(name, folder) == read_test(name, world / "data")


def assert_mrpc_is_as_in_glue(folder):
    expected = {
        "train.tsv": "\ufeff" + table([HEADER, MRPC[0]]),
        "dev.tsv": "\ufeff" + table([HEADER, *MRPC[1:]]),
        "test.tsv": table([["index", *HEADER[1:]], ["0", *MRPC[0][1:]], ["1", *MRPC[1][1:]]]),
    }
    for name, text in expected.items():
        assert (folder / name).read_bytes().decode() == text


def test_all_tasks_arrive_in_the_layout_that_is_read(
        mirror, monkeypatch, archives, world, tmp_path, capsys):
    for name, archive in archives.items():
        serve(mirror, monkeypatch, name, archive)
    serve(mirror, monkeypatch, "squad", b'{"data": []}', b'{"data": [1]}')
    serve(mirror, monkeypatch, "mrpc", mrpc_source(MRPC), mrpc_source(MRPC[:2]), MRPC_DEV_IDS)
    folder, names = tmp_path / "data", ",".join(TASKS)

    fetch(names, folder)
    printed = capsys.readouterr().out
    assert re.search(r"data: fetching cola \(0.0 MB\), .*rte \(size unknown\).*"
                     r": 0.0 MB and more, of unknown size\n", printed)
    for name in archives:
        assert_same_task(name, folder, world)
    assert_mrpc_is_as_in_glue(folder / "MRPC")
    assert (folder / "squad" / "dev-v1.1.json").read_bytes() == b'{"data": [1]}'
    assert {path.name for path in folder.iterdir()} == {task.folder for task in TASKS.values()}
    assert not [path for path in tree(folder) if "Icon" in path or "DS_Store" in path]

    requests, files = len(mirror.seen), tree(folder)
    fetch(names, folder)  # once more: nothing to do
    assert "already there: cola, mnli" in capsys.readouterr().out
    assert len(mirror.seen) == requests
    assert tree(folder) == files


def test_an_unknown_name_is_refused_with_the_nearest_one(refusal):
    assert "unknown data set 'mrcp'; did you mean mrpc" in refusal("cola,mrcp")


# How a server may answer a request for the rest: page(archive) -> page.

def sends_the_rest(archive):
    return archive


def knows_no_ranges(archive):
    return answer(200, archive)


def only_if_asked_for_a_part(archive, page):
    """This page for a request for a part, and the archive for a request for the whole."""
    def choose(handler):
        (page if handler.headers.get("Range") else answer(200, archive))(handler)
    return choose


def sends_another_part(archive):
    wrong = answer(206, archive[5:], content_range(5, archive))
    return only_if_asked_for_a_part(archive, wrong)


def does_not_say_which_part(archive):
    return only_if_asked_for_a_part(archive, answer(206, archive[5:]))


def has_no_such_part(archive):
    return only_if_asked_for_a_part(archive, answer(416))


@pytest.mark.parametrize("rest, sends_all", [
    (sends_the_rest, False),
    (knows_no_ranges, True),
    (sends_another_part, True),
    (does_not_say_which_part, True),
    (has_no_such_part, True),
])
@pytest.mark.parametrize("name", ["cola", "rte"])
def test_a_download_that_was_cut_off_resumes(
        mirror, monkeypatch, archives, world, tmp_path, refusal, name, rest, sends_all):
    archive, folder = archives[name], tmp_path / "data"
    path, = serve(mirror, monkeypatch, name, archive)
    mirror.pages[path] = answer(200, archive, cut=1000)
    expected = f"the connection ended after 1000 of {len(archive)} bytes; {RESUMES}"
    assert expected in refusal(name)
    part, = tree(folder)
    assert part == f".download/{Path(path).name}.part"
    assert (folder / part).read_bytes() == archive[:1000]

    mirror.pages[path], mirror.sent = rest(archive), 0
    fetch(name, folder)
    assert mirror.seen[1] == ("GET", path, "bytes=1000-")
    if sends_all:
        assert mirror.sent >= len(archive)
    else:
        assert mirror.sent == len(archive) - 1000
    assert read_train(name, folder) == read_train(name, world / "data")
    assert not (folder / ".download").exists()


def test_of_two_processes_one_fetches_and_the_other_waits(
        mirror, monkeypatch, archives, world, tmp_path):
    folder = tmp_path / "data"
    path, = serve(mirror, monkeypatch, "rte", archives["rte"])

    def slow(handler):
        time.sleep(0.3)
        handler.answer(200, archives["rte"])
    mirror.pages[path] = slow
    threads = [threading.Thread(target=fetch, args=("rte", folder)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mirror.seen) == 1
    assert read_train("rte", folder) == read_train("rte", world / "data")
    assert [file.name for file in folder.iterdir()] == ["RTE"]


# ---- Servers that misbehave ----

def wrong_bytes(handler):
    """As many bytes as CoLA has, but others."""
    handler.answer(200, bytes(download.SOURCES["cola"][0][1]))


WEB_PAGE = answer(200, b"<html>Busy</html>", {"Content-Type": "text/html; charset=utf-8"})
UNASKED_PART = answer(206, b"x", {"Content-Range": "bytes 0-0/9"})

# What the server does: (task, page, message, bytes that are kept). CoLA's size and sha256 are
# known, RTE's are not.
MISBEHAVIOURS = {
    "cuts off": (
        "rte", answer(200, bytes(5000), cut=100),
        f"the connection ended after 100 of 5000 bytes; {RESUMES}", 100),
    "cuts off between chunks": ("rte", chunks(2), f"IncompleteRead.*{RESUMES}", 4096),
    "stalls": ("rte", stall, f"timed out; {RESUMES}", 0),
    "stalls in the middle": ("rte", stall_in_the_middle, f"timed out; {RESUMES}", 100),
    "hangs up": ("rte", hang_up, "Remote end closed connection", 0),
    "speaks no HTTP": (
        "rte", lambda handler: handler.wfile.write(b"220 mail.example ESMTP\r\n"),
        "220 mail.example ESMTP", 0),
    "redirects to ftp": (
        "rte", redirect("ftp://127.0.0.1/x"),
        "ftp://127.0.0.1/x, a redirect from http://.*, is refused: use https://", 0),
    "redirects to a file": (
        "rte", redirect("file:///etc/passwd"),
        "answers 302 .*'file:///etc/passwd' is not allowed", 0),
    "redirects to plain http elsewhere": (
        "rte", redirect("http://example.com/x"),
        "http://example.com/x, a redirect from .*, is refused: use https://", 0),
    "redirects to itself": (
        "rte", redirect("/glue/data/RTE.zip"), "answers 302 .*infinite loop", 0),
    "has no such page": (
        "rte", answer(404, b"<html>no</html>"),
        "answers 404 .Not Found.; try again later, or use another", 0),
    "is overloaded": ("cola", answer(503), "answers 503", 0),
    "has no content": ("rte", answer(204), "answers 204 without a file", 0),
    "sends a part unasked": ("rte", UNASKED_PART, "answers 206 without a file", 0),
    "sends a web page": ("rte", WEB_PAGE, "sends a web page in place of", 0),
    "sends text": (
        "rte", answer(200, b"Busy"),
        "RTE.zip: damaged, or neither .zip nor .tar.gz .*; nothing was kept", 0),
    "sends nothing": ("rte", answer(200), "RTE.zip: damaged, or neither .zip", 0),
    "has another size": (
        "cola", answer(200, b"Busy"), r"the server's file has 4 bytes, not \d+", 0),
    "has other bytes": ("cola", wrong_bytes, "an unexpected sha256, and was deleted", 0),
    "sends too much": (
        "cola", chunks(40, b"0\r\n\r\n"), r"sends more than \d+ bytes; they were deleted", 0),
    "never ends": ("rte", chunks(40), "sends more than 50000 bytes; they were deleted", 0),
    "promises too much": (
        "rte", answer(200, b"", {"Content-Length": 60000}),
        "has 60000 bytes, not at most 50000", 0),
}


@pytest.mark.parametrize("what", MISBEHAVIOURS)
def test_a_server_that_misbehaves_leaves_at_most_a_part(
        mirror, monkeypatch, archives, tmp_path, refusal, what):
    name, page, message, kept = MISBEHAVIOURS[what]
    if what.startswith("stalls"):  # the others must not fail because this machine is slow
        monkeypatch.setattr(https, "STALL", 0.3)
    monkeypatch.setattr(https, "MOST", 50000)
    path, = serve(mirror, monkeypatch, name, archives[name])
    mirror.pages[path] = page
    line = refusal(name)
    assert re.search(message, line)
    assert f"{mirror.url}{path}" in line
    folder = tmp_path / "data"
    sizes = {file: (folder / file).stat().st_size for file in tree(folder)}
    assert sizes == ({f".download/{Path(path).name}.part": kept} if kept else {})


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_fetched_and_leaves_nothing(
        mirror, monkeypatch, tmp_path, refusal, what):
    entry, message = HOSTILE[what]
    for name, make in (("imdb", make_tar), ("rte", make_zip)):
        if not can_hold(make, what):
            continue
        make(tmp_path / "archive", [*GOOD_ENTRIES, entry])
        serve(mirror, monkeypatch, name, (tmp_path / "archive").read_bytes())
        line = refusal(name)
        assert f"download.py: error: {mirror.url}" in line
        assert message in line
        assert "nothing was kept" in line
        assert tree(tmp_path) == {"archive"}
    assert not Path("/tmp/hostile").exists()


@pytest.mark.parametrize("file", ["other/train.tsv", "RTE/train.tsv"])
def test_an_archive_without_the_task_leaves_nothing(mirror, monkeypatch, tmp_path, refusal, file):
    serve(mirror, monkeypatch, "rte", zipped({file: "x"}))
    assert re.search("holds no RTE/(train|dev).tsv; nothing was kept", refusal("rte"))
    assert not tree(tmp_path)


def test_an_incomplete_folder_does_not_count_as_the_task(tmp_path, refusal):
    (tmp_path / "data" / "CoLA").mkdir(parents=True)
    assert re.search("CoLA: incomplete, .*CoLA/train.tsv is missing", refusal("cola"))


# ---- Addresses ----

@pytest.mark.parametrize("address", [
    "http://example.com",
    "ftp://127.0.0.1",
    "file:///tmp",
    "127.0.0.1",
    "http://127.0.0.1.example.com",
    "http://u@example.com",
])
def test_only_https_and_this_machine_are_fetched_from(monkeypatch, tmp_path, refusal, address):
    monkeypatch.setenv("DOWNLOAD_MIRROR", address)
    assert "is refused: use https://, or http:// to this machine" in refusal("cola")
    assert not tree(tmp_path)


def make_certificate(certificate, key):
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
               "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate,
               "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, to make a certificate")
def test_https_is_verified_and_never_redirects_to_http(
        server, monkeypatch, archives, tmp_path, refusal):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    make_certificate(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    path, = serve(server, monkeypatch, "cola", archives["cola"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DOWNLOAD_MIRROR", server.url.replace("http:", "https:"))
    assert "CERTIFICATE_VERIFY_FAILED" in refusal("cola")

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.pages[path] = redirect(f"{server.url}/x")
    line = refusal("cola")
    assert f"{server.url}/x, a redirect from https://127.0.0.1" in line
    assert "is refused: use https://" in line
    assert not tree(tmp_path / "data")

    server.pages[path] = archives["cola"]
    fetch("cola", tmp_path / "data")
    assert read_train("cola", tmp_path / "data")
