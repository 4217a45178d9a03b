"""Fetch one file over HTTPS: resumed after a break, and checked before it gets its name.

Plain HTTP is refused, except to this machine, which is what the tests use. What is fetched is
listed in download.py; Hugging Face's hub has a library of its own, see hub.py.
"""
import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from support.errors import InputError
from support.files import write_all

STALL = 30      # seconds without a byte after which a server counts as gone
MOST = 1 << 28  # most bytes of a file of unknown size: several times the largest of them
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ELSEWHERE = "try again later, or use another DOWNLOAD_MIRROR"
RESUME = "the same command resumes where this stopped"


def fetch(url, path, size=None, sha256=None):
    """Fetch url to path. The file grows as PATH.part, and is renamed when complete and checked.

    After an error, another call resumes from PATH.part.
    size: bytes of the file, sha256: its digest, in hexadecimal; both None if unknown.
    Raises InputError for an address that is not https (see check_address), no answer or a bad one,
    a connection that ends or is silent for STALL seconds, more or fewer bytes than `size`, more
    than MOST bytes if the size is unknown, and another sha256."""
    part = Path(f"{path}.part")
    try:
        with open(part, "ab", buffering=0) as file:
            receive(url, file, size)
            os.fsync(file.fileno())
        if sha256 and sha256_of(part) != sha256:
            part.unlink()
            raise InputError(f"{url}: the file has an unexpected sha256, and was deleted; "
                             f"{ELSEWHERE}")
        os.replace(part, path)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def receive(url, file, size=None):
    """Append to a file the bytes of url that it still lacks. Raises InputError.

    file: unbuffered, opened for appending. size: bytes of the whole, None if unknown."""
    start = file.seek(0, os.SEEK_END)
    if size is not None and start > size:
        file.truncate(0)
        start = 0
    if start == size:
        return
    with connection_errors(url), open_url(url, start) as response:
        position = offset_and_total(response, start)
        if position is None and start == 0:
            raise InputError(f"{url}: the server answers {response.status} without a file; "
                             f"{ELSEWHERE}")
        if position is None:  # the server cannot continue from here: start again
            file.truncate(0)
            return receive(url, file, size)
        offset, total = position
        check_headers(url, response.headers, total, size)
        if offset == 0:
            file.truncate(0)
        copy_body(url, response, file, offset, total if size is None else size)


def offset_and_total(response, start):
    """Where in the file the response begins, and the file's bytes (None if unknown).

    None if the response is neither the whole file nor the part from `start` on."""
    if response.status == 200:  # the whole file, whatever was asked for
        return 0, response.length
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(rf"bytes {start}-\d+/(\d+)", content_range)
    if start and response.status == 206 and match:
        return start, int(match[1])
    return None


def check_headers(url, headers, total, size):
    """Raises InputError for a web page, and for a file of another size. total, size: bytes."""
    if headers.get_content_type() == "text/html":
        raise InputError(f"{url}: the server sends a web page in place of the file; {ELSEWHERE}")
    if total is None:
        return
    if size is not None and total != size:
        raise InputError(f"{url}: the server's file has {total} bytes, not {size}; {ELSEWHERE}")
    if size is None and total > MOST:
        raise InputError(f"{url}: the server's file has {total} bytes, not at most {MOST}; "
                         f"{ELSEWHERE}")


def copy_body(url, response, file, offset, expected):
    """Append the body of a response to a file, with a progress bar. Raises InputError.

    offset: bytes that the file has; expected: bytes that it shall have, None if unknown."""
    most = MOST if expected is None else expected
    received = offset
    with tqdm(total=expected, initial=offset, unit="B", unit_scale=True,
              desc=url.split("/")[-1], leave=False) as progress:
        while piece := response.read1(1 << 16):  # whatever has arrived: a break loses nothing
            received += len(piece)
            if received > most:
                file.truncate(0)
                raise InputError(f"{url}: the server sends more than {most} bytes; they were "
                                 f"deleted; {ELSEWHERE}")
            append(file, piece)
            progress.update(len(piece))
    if expected is not None and received != expected:
        raise InputError(f"{url}: the connection ended after {received} of {expected} bytes; "
                         f"{RESUME}")


def append(file, data):
    """Write to an unbuffered file. Raises InputError, as an OSError would blame the connection."""
    try:
        write_all(file, data)
    except OSError as error:
        raise InputError(f"{file.name}: {error.strerror}; {RESUME}") from None


@contextlib.contextmanager
def connection_errors(url):
    """Turn what can go wrong between this machine and a server into an InputError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server answers {error.code} ({error.reason}); "
                         f"{ELSEWHERE}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise InputError(f"{url}: {reason}; {RESUME}") from None


def open_url(url, start):
    """The response to a request for url, from byte `start` on.

    Raises InputError, and the errors of urllib and http.client."""
    check_address(url)
    handlers = [Redirects]
    if url.startswith("http:"):  # only to this machine: not through a proxy
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.build_opener(*handlers).open(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes from `start` on: receive() starts again
            return error
        raise


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the addresses that check_address accepts."""

    def redirect_request(self, request, *answer):
        check_address(answer[-1], request.full_url)
        return super().redirect_request(request, *answer)


def check_address(url, redirected_from=None):
    """Raises InputError unless url is https, or http to this machine.

    An https address may not redirect to http, not even to this machine."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: not an address ({error})") from None
    if parts.scheme == "https":
        return
    from_https = redirected_from is not None and not redirected_from.startswith("http:")
    if parts.scheme == "http" and parts.hostname in LOOPBACK and not from_https:
        return
    origin = "" if redirected_from is None else f", a redirect from {redirected_from},"
    raise InputError(f"{url}{origin} is refused: use https://, or http:// to this machine "
                     "(127.0.0.1)")


def sha256_of(path):
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_size(sizes):
    """The sum of some sizes in bytes as text, None being unknown.

    "0.4 MB", "size unknown", or "0.4 MB and more, of unknown size"."""
    known = f"{sum(size or 0 for size in sizes) / 1e6:.1f} MB"
    if None not in sizes:
        return known
    return f"{known} and more, of unknown size" if any(sizes) else "size unknown"
