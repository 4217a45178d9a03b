"""Downloads, end to end by the commands, from servers on loopback that hold small stand-ins under the real paths, or misbehave."""
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_bad_input import GOOD_ENTRIES, HOSTILE, make_tar, make_zip

import data
from support import download
from support.tasks import TASKS, read_dev, read_test, read_train

COMMIT = "0123456789" * 4


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """pages: {path: bytes, or a function of the request's handler}. seen: [(method, path, its Range)]. sent: bytes of bodies."""
    daemon_threads = True

    def __init__(self):
        self.pages, self.seen, self.sent, self.over = {}, [], 0, threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *request):
        pass  # a client that hangs up


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, start = urlsplit(self.path).path, self.headers.get("Range")
        self.server.seen.append((self.command, path, start))
        page = self.server.pages.get(path)
        if callable(page):
            return page(self)
        if page is None:
            return self.answer(404, b"no such page", {"X-Error-Code": "RepoNotFound"})
        if start:
            first = int(re.fullmatch(r"bytes=(\d+)-", start)[1])
            return self.answer(206, page[first:], {"Content-Range": f"bytes {first}-{len(page) - 1}/{len(page)}"})
        return self.answer(200, page)

    do_HEAD = do_GET

    def answer(self, status, body=b"", headers=(), cut=None):
        """cut: how many bytes are sent before the connection ends."""
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/octet-stream", "Connection": "close", **dict(headers)}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.server.sent += len(body[:cut])
        self.close_connection = True

    def log_message(self, *message):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


@pytest.fixture
def mirror(server, monkeypatch):
    """The server, in place of the real ones."""
    monkeypatch.setenv("DOWNLOAD_MIRROR", server.url)
    return server


def zipped(entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def serve(server, monkeypatch, name, *bodies):
    """Serve these bodies as the files of a data set; what was known of their sizes and sha256 is now theirs. Returns their paths."""
    known = [(url, size and len(body), sha256 and hashlib.sha256(body).hexdigest()) for (url, size, sha256), body in zip(download.SOURCES[name], bodies)]
    monkeypatch.setitem(download.SOURCES, name, known)
    paths = [urlsplit(url).path for url, _, _ in known]
    server.pages |= dict(zip(paths, bodies))
    return paths


def fetch(name, folder):
    data.main(["--download", name, "--data_dir", str(folder)])


MRPC = [["1", "11", "12", 'He said "yes.', "So he said."], ["0", "13", "14", "A.", "B ."], ["1", "15", "16", "C.", "D."]]
HEADER = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]


@pytest.fixture
def archives(world, tmp_path):
    """{name of a task: its file's bytes}, of the miniature world, with what macOS adds."""
    made = {}
    for name, task in TASKS.items():
        folder = world / "data" / "glue_data" / task.folder
        if name not in ("mrpc", "imdb", "squad"):
            made[name] = zipped({**{f"{task.folder}/{file.name}": file.read_bytes() for file in folder.iterdir()},
                                 f"__MACOSX/{task.folder}/._train.tsv": b"x", f"{task.folder}/Icon\r": b"", f"{task.folder}/.DS_Store": b"x"})
    reviews = world / "data" / "aclImdb"
    make_tar(tmp_path / "reviews", [(f"aclImdb/{file.relative_to(reviews)}", file.read_bytes(), "file") for file in sorted(reviews.rglob("*.txt"))])
    return {**made, "imdb": (tmp_path / "reviews").read_bytes()}


# ---- What should come, comes ----

def test_the_tasks_come_in_the_layout_that_data_py_reads(mirror, monkeypatch, archives, world, tmp_path, capsys):
    for name, archive in archives.items():
        serve(mirror, monkeypatch, name, archive)
    serve(mirror, monkeypatch, "squad", b'{"data": []}', b'{"data": [1]}')
    train, test = ("\ufeff" + "\r\n".join(map("\t".join, [HEADER, *rows])) for rows in (MRPC, MRPC[:2]))
    serve(mirror, monkeypatch, "mrpc", train.encode(), test.encode(), b"13\t14\n15\t16\n")
    folder, names = tmp_path / "data", ",".join(TASKS)
    fetch(names, folder)
    said = capsys.readouterr().out
    assert re.search(r"data: fetching cola \(0.0 MB\), .*rte \(size unknown\).*: 0.0 MB and more, of unknown size\n", said)
    for name, task in TASKS.items():
        if name not in ("mrpc", "squad"):
            assert read_train(name, folder) == read_train(name, world / "data") and read_dev(name, folder) == read_dev(name, world / "data")
            assert not task.test or read_test(name, folder) == read_test(name, world / "data")
    for file, rows in (("train.tsv", MRPC[:1]), ("dev.tsv", MRPC[1:])):
        assert (folder / "MRPC" / file).read_bytes().decode() == "\ufeff" + "".join("\t".join(row) + "\n" for row in [HEADER, *rows])
    assert (folder / "MRPC" / "test.tsv").read_bytes().decode() == "".join(
        "\t".join(row) + "\n" for row in [["index", *HEADER[1:]], ["0", *MRPC[0][1:]], ["1", *MRPC[1][1:]]])
    assert (folder / "squad" / "dev-v1.1.json").read_bytes() == b'{"data": [1]}'
    assert {path.name for path in folder.iterdir()} == {task.folder for task in TASKS.values()}
    assert not [path for path in tree(folder) if "Icon" in path or "DS_Store" in path]

    requests, there = len(mirror.seen), tree(folder)
    fetch(names, folder)
    assert "there before: cola, mnli" in capsys.readouterr().out and len(mirror.seen) == requests and tree(folder) == there


def going_on(handler, archive):
    handler.server.pages[handler.path] = archive
    handler.do_GET()


@pytest.mark.parametrize("then, whole", [
    (going_on, False),
    (lambda handler, archive: handler.answer(200, archive), True),  # a server that knows no Range
    (lambda handler, archive: handler.answer(206, archive[5:], {"Content-Range": f"bytes 5-{len(archive) - 1}/{len(archive)}"})
     if handler.headers.get("Range") else handler.answer(200, archive), True),
    (lambda handler, archive: handler.answer(206, archive[5:]) if handler.headers.get("Range") else handler.answer(200, archive), True),
    (lambda handler, archive: handler.answer(416) if handler.headers.get("Range") else handler.answer(200, archive), True),
])
@pytest.mark.parametrize("name", ["cola", "rte"])
def test_a_download_that_was_cut_off_goes_on(mirror, monkeypatch, archives, world, tmp_path, refused, name, then, whole):
    archive, folder = archives[name], tmp_path / "data"
    path, = serve(mirror, monkeypatch, name, archive)
    mirror.pages[path] = lambda handler: handler.answer(200, archive, cut=1000)
    assert f"the connection ended after 1000 of {len(archive)} bytes; the same command goes on" in refused(data, "--download", name, "--data_dir", folder)
    part, = tree(folder)
    assert part == f".download/{Path(path).name}.part" and (folder / part).read_bytes() == archive[:1000]
    mirror.pages[path], mirror.sent = lambda handler: then(handler, archive), 0
    fetch(name, folder)
    assert mirror.seen[1] == ("GET", path, "bytes=1000-") and (mirror.sent >= len(archive) if whole else mirror.sent == len(archive) - 1000)
    assert read_train(name, folder) == read_train(name, world / "data") and not (folder / ".download").exists()


def test_of_two_processes_one_fetches_and_the_other_waits(mirror, monkeypatch, archives, world, tmp_path):
    path, = serve(mirror, monkeypatch, "rte", archives["rte"])
    mirror.pages[path] = lambda handler: (time.sleep(0.3), handler.answer(200, archives["rte"]))
    both = [threading.Thread(target=fetch, args=("rte", tmp_path / "data")) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(mirror.seen) == 1 and read_train("rte", tmp_path / "data") == read_train("rte", world / "data")
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["RTE"]


# ---- Servers that misbehave ----

def stalls(handler):
    handler.server.over.wait(10)


def hangs_up(handler):
    handler.close_connection = True


def stalls_in_the_middle(handler):
    handler.answer(200, bytes(5000), cut=100)
    handler.server.over.wait(10)


def chunks(handler, number, end=b""):
    handler.answer(200, headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
    for _ in range(number):
        handler.wfile.write(b"800\r\n" + bytes(2048) + b"\r\n")
    handler.wfile.write(end)


def moved(address):
    return lambda handler: handler.answer(302, headers={"Location": address})


MISBEHAVED = {
    "cuts off": ("rte", lambda h: h.answer(200, bytes(5000), cut=100), "the connection ended after 100 of 5000 bytes; the same command goes on", 100),
    "cuts off between chunks": ("rte", lambda h: chunks(h, 2), "IncompleteRead.*the same command goes on", 4096),
    "stalls": ("rte", stalls, "timed out; the same command goes on", 0),
    "stalls in the middle": ("rte", stalls_in_the_middle, "timed out; the same command goes on", 100),
    "hangs up": ("rte", hangs_up, "Remote end closed connection", 0),
    "speaks no HTTP": ("rte", lambda h: h.wfile.write(b"220 mail.example ESMTP\r\n"), "220 mail.example ESMTP", 0),
    "leads to ftp": ("rte", moved("ftp://127.0.0.1/x"), "ftp://127.0.0.1/x, where http://.* leads, is refused: only https://", 0),
    "leads to a file": ("rte", moved("file:///etc/passwd"), "answers 302 .*'file:///etc/passwd' is not allowed", 0),
    "leads to plain http elsewhere": ("rte", moved("http://example.com/x"), "http://example.com/x, where .* is refused: only https://", 0),
    "leads to itself": ("rte", moved("/glue/data/RTE.zip"), "answers 302 .*infinite loop", 0),
    "has no such page": ("rte", lambda h: h.answer(404, b"<html>no</html>"), "answers 404 .Not Found.; try again later, or another", 0),
    "is overloaded": ("cola", lambda h: h.answer(503), "answers 503", 0),
    "has no content": ("rte", lambda h: h.answer(204), "answers 204, which is no file", 0),
    "sends a part unasked": ("rte", lambda h: h.answer(206, b"x", {"Content-Range": "bytes 0-0/9"}), "answers 206, which is no file", 0),
    "sends a web page": ("rte", lambda h: h.answer(200, b"<html>Busy</html>", {"Content-Type": "text/html; charset=utf-8"}), "sends a web page in place of", 0),
    "sends text": ("rte", lambda h: h.answer(200, b"Busy"), "RTE.zip: damaged, or no .zip or .tar.gz .*; nothing of it was kept", 0),
    "sends nothing": ("rte", lambda h: h.answer(200), "RTE.zip: damaged, or no .zip", 0),
    "has another size": ("cola", lambda h: h.answer(200, b"Busy"), r"the server's file has 4 bytes, not \d+", 0),
    "has other bytes": ("cola", lambda h: h.answer(200, bytes(download.SOURCES["cola"][0][1])), "has another sha256 .* deleted", 0),
    "sends too much": ("cola", lambda h: chunks(h, 40, b"0\r\n\r\n"), r"sends more than \d+ bytes; they were deleted", 0),
    "never ends": ("rte", lambda h: chunks(h, 40), "sends more than 50000 bytes; they were deleted", 0),
    "promises too much": ("rte", lambda h: h.answer(200, b"", {"Content-Length": 60000}), "has 60000 bytes, not at most 50000", 0),
}


@pytest.mark.parametrize("what", MISBEHAVED)
def test_a_server_that_misbehaves(mirror, monkeypatch, archives, tmp_path, refused, what):
    name, page, message, kept = MISBEHAVED[what]
    monkeypatch.setattr(download, "STALL", 0.3)
    monkeypatch.setattr(download, "MOST", 50000)
    path, = serve(mirror, monkeypatch, name, archives[name])
    mirror.pages[path] = page
    line = refused(data, "--download", name, "--data_dir", tmp_path / "data")
    assert re.search(message, line) and f"{mirror.url}{path}" in line
    assert {file: (tmp_path / "data" / file).stat().st_size for file in tree(tmp_path / "data")} == ({f".download/{Path(path).name}.part": kept} if kept else {})


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_fetched_and_leaves_nothing(mirror, monkeypatch, tmp_path, refused, what):
    entry, message = HOSTILE[what]
    for name, make in (("imdb", make_tar), ("rte", make_zip)):
        if make is make_tar or what not in ("a hard link", "a pipe"):
            make(tmp_path / "archive", [*GOOD_ENTRIES, entry])
            serve(mirror, monkeypatch, name, (tmp_path / "archive").read_bytes())
            line = refused(data, "--download", name, "--data_dir", tmp_path / "data")
            assert message in line and line.startswith(f"data.py: error: {mirror.url}") and "nothing of it was kept" in line
            assert tree(tmp_path) == {"archive"}
    assert not Path("/tmp/hostile").exists()


def test_an_archive_without_the_task_leaves_nothing(mirror, monkeypatch, tmp_path, refused):
    for entries in ({"other/train.tsv": "x"}, {"RTE/train.tsv": "x"}):
        serve(mirror, monkeypatch, "rte", zipped(entries))
        assert re.search("holds no RTE/(train|dev).tsv; nothing of it was kept", refused(data, "--download", "rte", "--data_dir", tmp_path / "data"))
        assert not tree(tmp_path)


def test_what_is_there_in_part_is_not_taken_for_the_task(tmp_path, refused):
    (tmp_path / "CoLA").mkdir()
    assert "CoLA: there, but without" in refused(data, "--download", "cola", "--data_dir", tmp_path)


@pytest.mark.parametrize("address", ["http://example.com", "ftp://127.0.0.1", "file:///tmp", "127.0.0.1", "http://127.0.0.1.example.com", "http://u@example.com"])
def test_only_https_and_this_machine(monkeypatch, tmp_path, refused, address):
    monkeypatch.setenv("DOWNLOAD_MIRROR", address)
    assert "is refused: only https:// is fetched from" in refused(data, "--download", "cola", "--data_dir", tmp_path)
    assert not tree(tmp_path)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, to make a certificate")
def test_https_is_verified_and_never_led_back_to_http(server, monkeypatch, archives, tmp_path, refused):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate,
                    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    path, = serve(server, monkeypatch, "cola", archives["cola"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DOWNLOAD_MIRROR", server.url.replace("http:", "https:"))
    assert "CERTIFICATE_VERIFY_FAILED" in refused(data, "--download", "cola", "--data_dir", tmp_path / "data")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.pages[path] = moved(f"{server.url}/x")
    line = refused(data, "--download", "cola", "--data_dir", tmp_path / "data")
    assert f"{server.url}/x, where https://127.0.0.1" in line and "is refused: only https://" in line and not tree(tmp_path / "data")
    server.pages[path] = archives["cola"]
    fetch("cola", tmp_path / "data")
    assert read_train("cola", tmp_path / "data")


# ---- The hub ----

COMMANDS = """
import contextlib, importlib, io, json, os, sys
import download
from run import command_line
given = json.load(sys.stdin)
download.SOURCES.update(given["sources"])
done = []
for environment, module, *arguments in given["commands"]:
    os.environ.update(environment)
    sys.argv, status = [module + ".py", *arguments], 0
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out, contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO())) as err:
        try:
            command_line(importlib.import_module(module).main)
        except SystemExit as stop:
            status = stop.code
        said = []
        for stream in (out, err):
            stream.flush()
            said.append(stream.buffer.getvalue().decode())
    done.append([status, *said])
print(json.dumps(done))
"""


def run_commands(server, folder, commands, sources=(), **environment):
    """[(status, stdout, the last line of stderr)] of each (environment, command, its arguments), run in one new process."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", COMMANDS], input=json.dumps({"sources": dict(sources), "commands": commands}), text=True, cwd=folder,
                          capture_output=True, env={**clean, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hub"),
                                                    "DOWNLOAD_MIRROR": server.url, "NO_PROXY": "*", "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == 0, done.stderr
    results = []
    for status, out, err in json.loads(done.stdout):
        assert "Traceback" not in err and "usage:" not in err
        results.append((status, out, err.replace("\r", "\n").strip().split("\n")[-1]))
    return results


def serve_repository(server, name, files, kind="models"):
    """The hub's addresses of a repository: its list of files, its tree, and the files."""
    listing = json.dumps({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file, "size": len(body)} for file, body in files.items()]}).encode()
    oid = {file: hashlib.sha256(body).hexdigest() for file, body in files.items()}
    for path in ("", "/revision/main"):
        server.pages[f"/api/{kind}/{name}{path}"] = listing
    server.pages[f"/api/{kind}/{name}/tree/{COMMIT}"] = json.dumps(
        [{"type": "file", "path": file, "size": len(body), "oid": oid[file]} for file, body in files.items()]).encode()
    for file, body in files.items():
        for revision in ("main", COMMIT):
            server.pages[f"/{'' if kind == 'models' else kind + '/'}{name}/resolve/{revision}/{file}"] = (
                lambda handler, file=file, body=body: handler.answer(200, body, {"ETag": f'"{oid[file]}"', "X-Repo-Commit": COMMIT}))


def test_the_hub(server, world, archives, monkeypatch, tmp_path):
    teacher = {file.name: file.read_bytes() for file in (world / "teacher").iterdir()}
    weights = io.BytesIO()
    torch.save(load_file(world / "teacher" / "model.safetensors"), weights)
    old = {"config.json": teacher["config.json"], "vocab.txt": teacher["vocab.txt"], "pytorch_model.bin": weights.getvalue()}
    for name, files in {"tiny/bert": {**teacher, "pytorch_model.bin": b"x" * 1000, "modeling.py": b"raise SystemExit", "tf_model.h5": b"x"}, "tiny/old": old,
                        "tiny/gpt": {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"x"}, "tiny/gated": teacher, "tiny/cut": teacher,
                        "google-bert/bert-base-uncased": teacher}.items():
        serve_repository(server, name, files)
    for revision in ("main", COMMIT):
        for file in teacher:
            server.pages[f"/tiny/gated/resolve/{revision}/{file}"] = lambda handler: handler.answer(403, headers={"X-Error-Code": "GatedRepo"})
    server.pages["/api/models/tiny/hangs-up"] = hangs_up
    server.pages["/api/models/tiny/page"] = lambda handler: handler.answer(200, b"<html>Busy</html>", {"Content-Type": "text/html"})
    server.pages["/api/models/tiny/down"] = lambda handler: handler.answer(503)
    text = zipped({f"wikitext-2-raw/wiki.{part}.raw": f"some words of {part}\n" for part in ("train", "valid", "test")})
    longer = zipped({f"wikitext-103-raw/wiki.{part}.raw": f"some words of {part}\n" for part in ("train", "valid", "test")})
    serve(server, monkeypatch, "cola", archives["cola"])
    sources = {"cola": download.SOURCES["cola"]}
    for name, body in (("wikitext-2", text), ("wikitext-103", longer)):
        (url, size, _), = download.SOURCES[name]
        owner, repository, file = url.removeprefix("hf://datasets/").split("/")
        serve_repository(server, f"{owner}/{repository}", {file: body}, "datasets")
        sources[name] = [(url, size and len(body), hashlib.sha256(body).hexdigest())]
    sources["rte"] = [(sources["wikitext-2"][0][0], None, "0" * 64)]  # a file with another checksum

    def load(name, out, **environment):
        return environment, "load_hf_weights", name, "--out", out
    fetched, again, old, absent, gated, gpt, no_name, gone, page, down, plain, wikitext, checksum, wrong, base, base_again = run_commands(server, tmp_path, [
        load("tiny/bert", "bert"), load("tiny/bert", "bert"), load("tiny/old", "old"), load("tiny/absent", "x"), load("tiny/gated", "x"), load("tiny/gpt", "x"),
        load("a/b/c", "x"), load("tiny/hangs-up", "x"), load("tiny/page", "x"), load("tiny/down", "x"), load("tiny/bert", "x", HF_ENDPOINT="http://example.com"),
        ({"HF_ENDPOINT": server.url}, "data", "--download", "wikitext-2", "--data_dir", "data"), ({}, "data", "--download", "rte", "--data_dir", "data"),
        ({}, "ablation", "--preset", "base", "--tasks", "cola", "--pretrain_args=--steps 0"),
        ({}, "ablation", "--preset", "base", "--tasks", "cola", "--pretrain_args=--max_length 65"),
        ({}, "ablation", "--preset", "base", "--tasks", "cola", "--pretrain_args=--max_length 65")], sources)
    assert fetched[0] == 0 and re.search(r"tiny/bert: 5 files, 0.\d MB\n.*bert: tiny/bert, 4 layers, hidden size 32", fetched[1], re.S), fetched
    for folder in ("bert", "old", "runs/models/bert-base-uncased"):
        ours, theirs = load_file(tmp_path / folder / "model.safetensors"), load_file(world / "teacher" / "model.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    asked = {path for _, path, _ in server.seen}
    assert not [path for path in asked if path.endswith((".py", ".h5")) or path.startswith("/tiny/bert/") and path.endswith(".bin")
                or path.startswith("/tiny/gpt/") and path.endswith("model.safetensors")]
    for (status, _, line), message in (
            (again, "bert: is there already, and not an empty folder"), (absent, "tiny/absent: no folder here, and no public repository"),
            (gated, "tiny/gated: gated: accept its terms"), (gpt, "config.json: model_type is 'gpt2'"), (no_name, "a/b/c: neither a folder here nor a name on"),
            (gone, "tiny/hangs-up: cannot be fetched from .*Server disconnected.*the same command goes on"), (page, "tiny/page: cannot be fetched from"),
            (down, "tiny/down: cannot be fetched from .*503"), (plain, "http://example.com is refused: only https"),
            (checksum, "wikitext-2-raw-v1.zip: what came has another sha256"), (wrong, "--steps: 0 is not"), (base, "--max_length 65: .* has 64 positions")):
        assert status == 2 and re.search(message, line), (message, line)
    assert wikitext[0] == 0 and (tmp_path / "data/wikitext-2-raw/wiki.valid.raw").read_text() == "some words of valid\n"
    assert re.match(r"To be fetched first: google-bert/bert-base-uncased \(440 MB\) into runs/models/bert-base-uncased; cola \(0.0 MB\), wikitext-103 \(0.0 MB\)"
                    r": 0.0 MB, into runs/data\n", base[1]) and "fetch" not in base_again[1] + wrong[1]
    assert {path.name for path in (tmp_path / "runs/data").iterdir()} == {"CoLA", "wikitext-103-raw"} and not (tmp_path / "x").exists()

    server.seen.clear()
    fetched, absent, wikitext = run_commands(server, tmp_path, [
        load("tiny/bert", "offline"), load("tiny/absent", "x"), ({}, "data", "--download", "wikitext-103", "--data_dir", "data")], sources, HF_HUB_OFFLINE="1")
    assert fetched[0] == 0 and (tmp_path / "offline/model.safetensors").read_bytes() == (tmp_path / "bert/model.safetensors").read_bytes()
    assert absent[0] == 2 and "tiny/absent: not in the hub library's cache, and HF_HUB_OFFLINE is set" in absent[2]
    assert wikitext[0] == 0 and (tmp_path / "data/wikitext-103-raw/wiki.test.raw").exists() and not server.seen
