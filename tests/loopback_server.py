"""A web server on this machine that holds small stand-ins under the real paths, or misbehaves.

Used by test_download.py and test_hub.py.
"""
import contextlib
import hashlib
import http.server
import io
import re
import socketserver
import threading
import zipfile
from urllib.parse import urlsplit

from support import download


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """pages: {path: bytes, or a function of the request's handler}.

    seen: [(method, path, its Range)] of all requests. sent: bytes of all bodies."""
    daemon_threads = True

    def __init__(self):
        self.pages, self.seen, self.sent = {}, [], 0
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *request):
        pass  # a client that hangs up


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, byte_range = urlsplit(self.path).path, self.headers.get("Range")
        self.server.seen.append((self.command, path, byte_range))
        page = self.server.pages.get(path)
        if callable(page):
            return page(self)
        if page is None:
            return self.answer(404, b"no such page", {"X-Error-Code": "RepoNotFound"})
        if byte_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", byte_range)[1])
            return self.answer(206, page[start:], content_range(start, page))
        return self.answer(200, page)

    do_HEAD = do_GET

    def answer(self, status, body=b"", headers=(), cut=None):
        """headers: {name: value}, None to leave one out. cut: how many bytes of the body are sent
        before the connection ends."""
        all_headers = {
            "Content-Length": len(body),
            "Content-Type": "application/octet-stream",
            "Connection": "close",
            **dict(headers),
        }
        self.send_response(status)
        for name, value in all_headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.server.sent += len(body[:cut])  # before the client can have all of it
            self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *message):
        pass


@contextlib.contextmanager
def running_server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()


# ---- Pages ----

def content_range(start, page):
    return {"Content-Range": f"bytes {start}-{len(page) - 1}/{len(page)}"}


def answer(*arguments, **options):
    """A page that gives this answer, whatever is asked."""
    return lambda handler: handler.answer(*arguments, **options)


def redirect(address):
    return answer(302, headers={"Location": address})


def hang_up(handler):
    handler.close_connection = True


def stall(handler):
    handler.server.over.wait(10)


def stall_in_the_middle(handler):
    handler.answer(200, bytes(5000), cut=100)
    handler.server.over.wait(10)


def chunks(number, end=b""):
    """A page of unknown length: chunks of 2048 bytes, and then `end`."""
    def page(handler):
        handler.answer(200, headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
        for _ in range(number):
            handler.wfile.write(b"800\r\n" + bytes(2048) + b"\r\n")
        handler.wfile.write(end)
    return page


# ---- Data sets ----

def zipped(entries):
    """A .zip of {path: content}, as bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def glue_archive(world, folder):
    """A task of the miniature world in a .zip, with the files that macOS adds."""
    source = world / "data" / "glue_data" / folder
    files = {f"{folder}/{file.name}": file.read_bytes() for file in source.iterdir()}
    extra = {f"__MACOSX/{folder}/._train.tsv": b"x", f"{folder}/Icon\r": b"",
             f"{folder}/.DS_Store": b"x"}
    return zipped({**files, **extra})


def source_of(name, *bodies):
    """The entry of SOURCES for a data set whose files are these bodies.

    Where a size or sha256 was known, it is now that of the body."""
    entry = []
    for (url, size, sha256), body in zip(download.SOURCES[name], bodies):
        digest = hashlib.sha256(body).hexdigest()
        entry.append((url, size and len(body), sha256 and digest))
    return entry
