"""What comes from the internet, and only when it is asked for by name: the tasks, WikiText, and a teacher from Hugging Face's hub.

    python data.py --download cola,mrpc,wikitext-2 --data_dir FOLDER
    python load_hf_weights.py google-bert/bert-base-uncased --out FOLDER

HTTPS alone, checked by size and sha256 where they are known, resumed after a break, unpacked only inside the folder, and named only
when whole. DOWNLOAD_MIRROR=https://HOST takes the place of every address's scheme and host, the path staying the same. What lies on the
hub is fetched by its own library, with its cache, its mirrors (HF_ENDPOINT) and its offline mode (HF_HUB_OFFLINE=1).
"""
import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from load_hf_weights import load_model, load_tokenizer, read_config, save_model
from support.errors import InputError
from support.files import lock_file, write_all, write_file
from support.tasks import TASKS, read_columns
from support.unpack import unpack

STALL = 30      # seconds without a byte after which a server counts as gone
MOST = 1 << 28  # bytes of a file whose size is not known: several times the largest of them
ELSEWHERE = "try again later, or another DOWNLOAD_MIRROR"
GOES_ON = "the same command goes on where this stopped"

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
# What --download knows -> its files: (address, bytes, sha256), None where not known. GLUE's addresses are those of its own script and of
# its nine tasks' present versions (QQP-clean, QNLIv2); WikiText's own are dead, so it comes from the hub, hf://datasets/OWNER/NAME/FILE.
SOURCES = {
    "cola": [(GLUE + "CoLA.zip", 376971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff")],
    "mnli": [(GLUE + "MNLI.zip", 312783507, None)],
    "mrpc": [(SENTEVAL + "msr_paraphrase_train.txt", 1047044, "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
             (SENTEVAL + "msr_paraphrase_test.txt", 441275, "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"),
             (GLUE + "mrpc_dev_ids.tsv", 6222, "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7")],
    "qnli": [(GLUE + "QNLIv2.zip", None, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5")],
    "qqp": [(GLUE + "QQP-clean.zip", None, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0")],
    "rte": [(GLUE + "RTE.zip", None, None)],
    "sst2": [(GLUE + "SST-2.zip", 7439277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa")],
    "stsb": [(GLUE + "STS-B.zip", None, None)],
    "wnli": [(GLUE + "WNLI.zip", None, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46")],
    "imdb": [("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", 84125825,
              "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe")],
    "squad": [(SQUAD + "train-v1.1.json", 30288272, "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
              (SQUAD + "dev-v1.1.json", 4854279, "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9")],
    "wikitext-2": [("hf://datasets/ggml-org/ci/wikitext-2-raw-v1.zip", None,
                    "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11")],
    "wikitext-103": [("hf://datasets/mattdangerw/wikitext-103-raw/wikitext-103-raw-v1.zip", 191984949,
                      "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794")],
}
# The files that each must have brought, by their place under --data_dir.
PARTS = {**{name: [f"{task.folder}/{file}" for file in ("train.tsv", *task.dev)] for name, task in TASKS.items()},
         "imdb": ["aclImdb/train/pos", "aclImdb/train/neg", "aclImdb/test/pos", "aclImdb/test/neg"],
         "squad": ["squad/train-v1.1.json", "squad/dev-v1.1.json"],
         **{name: [f"{name}-raw/wiki.{part}.raw" for part in ("train", "valid", "test")] for name in ("wikitext-2", "wikitext-103")}}


# ---- One file ----

def fetch(url, path, size=None, sha256=None):
    """Fetch url to path, which appears when it is whole and checked. Until then PATH.part grows, and another call goes on with it.

    Raises InputError: another scheme than https (http for this machine alone), no answer or a bad one, a connection that ends or is
    silent for STALL seconds, more or fewer bytes than `size` (or than MOST), another sha256."""
    part = Path(f"{path}.part")
    try:
        with open(part, "ab", buffering=0) as file:
            receive(url, file, size)
            os.fsync(file.fileno())
        if sha256 and sha256_of(part) != sha256:
            part.unlink()
            raise InputError(f"{url}: what came has another sha256 than the data set's, and was deleted; {ELSEWHERE}")
        os.replace(part, path)
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()


def receive(url, file, size):
    """Append to an unbuffered file, opened to append, what it lacks of url. Raises InputError."""
    start = file.seek(0, os.SEEK_END)
    if size is not None and start > size:
        file.truncate(start := 0)
    if start == size:
        return
    with answered(url), open_url(url, start) as response:
        there, total, kind = 0, response.length, response.headers.get_content_type()
        rest = re.fullmatch(rf"bytes {start}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if start and response.status == 206 and rest:
            there, total = start, int(rest[1])
        elif response.status != 200:
            if not start:
                raise InputError(f"{url}: the server answers {response.status}, which is no file; {ELSEWHERE}")
            file.truncate(0)  # its file has no such part: anew
            return receive(url, file, size)
        if kind == "text/html":
            raise InputError(f"{url}: the server sends a web page in place of the file; {ELSEWHERE}")
        expected, most = (total, MOST if total is None else total) if size is None else (size, size)
        if total is not None and (total > MOST if size is None else total != size):
            raise InputError(f"{url}: the server's file has {total} bytes, not {size or f'at most {MOST}'}; {ELSEWHERE}")
        if not there:
            file.truncate(0)
        with tqdm(total=expected, initial=there, unit="B", unit_scale=True, desc=url.split("/")[-1], leave=False) as progress:
            while piece := response.read1(1 << 16):  # what has come so far, so that a break loses nothing
                there += len(piece)
                if there > most:
                    file.truncate(0)
                    raise InputError(f"{url}: the server sends more than {most} bytes; they were deleted; {ELSEWHERE}")
                save(file, piece)
                progress.update(len(piece))
        if expected not in (None, there):
            raise InputError(f"{url}: the connection ended after {there} of {expected} bytes; {GOES_ON}")


def save(file, data):
    """Write to an unbuffered file; an error is the disk's, and no connection's. Raises InputError."""
    try:
        write_all(file, data)
    except OSError as error:
        raise InputError(f"{file.name}: {error.strerror}; {GOES_ON}") from None


@contextlib.contextmanager
def answered(url):
    """What may go wrong between us and a server, as InputError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server answers {error.code} ({error.reason}); {ELSEWHERE}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{url}: {getattr(error, 'reason', None) or str(error) or type(error).__name__}; {GOES_ON}") from None


def open_url(url, start):
    """The response to a request for url, from byte `start` on. Raises InputError, and what urllib and http.client raise."""
    check_address(url)
    direct = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []  # a proxy is not this machine
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.build_opener(Redirects, *direct).open(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there are no bytes from there on
            return error
        raise


class Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, *answer):
        check_address(answer[-1], request.full_url)
        return super().redirect_request(request, *answer)


def check_address(url, coming_from="http:"):
    """Raises InputError unless url is https, or http on this machine, to which no https address may lead."""
    parts = urlsplit(url)
    here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1") and coming_from.startswith("http:")
    if parts.scheme != "https" and not here:
        led = "" if coming_from == "http:" else f", where {coming_from} leads,"
        raise InputError(f"{url}{led} is refused: only https:// is fetched from, and http:// on this machine (127.0.0.1)")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# ---- Tasks and text ----

def missing(names, data_dir):
    """Those of the names that are not under data_dir, or its glue_data/, yet. Raises InputError for one that is there in part."""
    absent = []
    for name in dict.fromkeys(names):
        folder = PARTS[name][0].split("/")[0]
        parent = next((parent for parent in (Path(data_dir), Path(data_dir, "glue_data")) if (parent / folder).exists()), None)
        if parent is None:
            absent.append(name)
        elif lacking := [part for part in PARTS[name] if not (parent / part).exists()]:
            raise InputError(f"{parent / folder}: there, but without {parent / lacking[0]}; move it away, and it is fetched")
    return absent


def amount(sizes):
    """How much that is: "0.4 MB", or that it is not known of each."""
    known = f"{sum(size or 0 for size in sizes) / 1e6:.1f} MB"
    return known if None not in sizes else "size unknown" if not any(sizes) else f"{known} and more, of unknown size"


def what_and_how_much(names):
    """"cola (0.4 MB), rte (size unknown): 0.4 MB and more, of unknown size"."""
    sizes = {name: [size for _, size, _ in SOURCES[name]] for name in names}
    return f"{', '.join(f'{name} ({amount(of)})' for name, of in sizes.items())}: {amount(sum(sizes.values(), []))}"


def download_tasks(names, data_dir):
    """Fetch these of SOURCES into data_dir, in the layout that data.py reads; what is there is left alone. Raises InputError."""
    absent = missing(names, data_dir)
    if there := [name for name in dict.fromkeys(names) if name not in absent]:
        print(f"{data_dir}: there before: {', '.join(there)}", flush=True)
    if not absent:
        return
    print(f"{data_dir}: fetching {what_and_how_much(absent)}", flush=True)
    staging, lock = Path(data_dir, ".download"), Path(data_dir, ".download.lock")
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with lock_file(lock, wait=True):
        staging.mkdir(exist_ok=True)
        try:
            for name in absent:
                if missing([name], data_dir):  # another process may have fetched it meanwhile
                    fetch_task(name, Path(data_dir), staging)
                    print(f"{Path(data_dir, PARTS[name][0]).parent}: fetched", flush=True)
        finally:
            with contextlib.suppress(OSError):
                staging.rmdir()  # it stays if a .part is in it
            lock.unlink(missing_ok=True)


def fetch_task(name, data_dir, staging):
    """One of SOURCES, made ready in the folder `staging` and then renamed. Raises InputError."""
    made, folder, files = staging / name, PARTS[name][0].split("/")[0], []
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    try:
        for url, size, sha256 in SOURCES[name]:
            if url.startswith("hf://"):
                files.append(fetch_from_hub(url, sha256))
                continue
            if mirror := os.environ.get("DOWNLOAD_MIRROR"):
                url = mirror.rstrip("/") + urlsplit(url).path
            files.append(staging / url.split("/")[-1])
            if not sha256 or not files[-1].exists() or sha256_of(files[-1]) != sha256:  # it is there if a later one did not come
                fetch(url, files[-1], size, sha256)
        made.mkdir()
        if name == "mrpc":
            write_mrpc(*files, made / folder)
        elif name == "squad":
            (made / folder).mkdir()
            for file in files:
                file.rename(made / folder / file.name)
        else:
            try:
                unpack(files[0], made)
            except InputError as error:
                remove(files, staging)
                raise InputError(f"{url}: {error}; nothing of it was kept") from None
        if lacking := [part for part in PARTS[name] if not (made / part).exists()]:
            remove(files, staging)
            raise InputError(f"{url}: holds no {lacking[0]}; nothing of it was kept; {ELSEWHERE}")
        os.rename(made / folder, data_dir / folder)
        remove(files, staging)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove(files, staging):
    """Those in the folder `staging`: the hub's cache is the hub's."""
    for file in files:
        if file.parent == staging:
            file.unlink(missing_ok=True)


def write_mrpc(train, test, dev_ids, folder):
    """MRPC as GLUE's own script (download_glue_data.py) makes it of Microsoft's two files: the training rows whose two ids are listed
    become the dev set, and the test set loses its labels. Raises InputError."""
    folder.mkdir()
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rows, dev = [row for _, row in read_columns(train, columns)], {tuple(row) for _, row in read_columns(dev_ids, (0, 1))}
    for file, chosen in (("train.tsv", False), ("dev.tsv", True)):  # both start with a byte-order mark, as GLUE's do
        write_file(folder / file, "\ufeff" + table([columns, *(row for row in rows if ((row[1], row[2]) in dev) == chosen)]))
    write_file(folder / "test.tsv", table([("index", *columns[1:]), *(
        (str(number), *row) for number, (_, row) in enumerate(read_columns(test, columns[1:])))]))


def table(rows):
    return "".join("\t".join(row).rstrip() + "\n" for row in rows)


# ---- Hugging Face's hub ----

@contextlib.contextmanager
def hub(name):
    """The huggingface_hub library, whose errors about the repository `name` become InputErrors."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    check_address(endpoint)
    import huggingface_hub  # not earlier: only who asks for it needs it, and it reads its environment when imported
    from huggingface_hub import errors
    try:
        yield huggingface_hub
    except Exception as error:  # of HTTP, TLS, sockets, JSON too: the library passes on what its own libraries raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):  # the disk's
            raise
        offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) if huggingface_hub.constants.HF_HUB_OFFLINE else ()
        raise InputError(f"{name}: " + next(said for kind, said in (
            (errors.HFValidationError, "neither a folder here nor a name on the hub, such as google-bert/bert-base-uncased"),
            (errors.GatedRepoError, f"gated: accept its terms at {endpoint}/{name}, and log in with hf auth login"),
            (errors.RepositoryNotFoundError, f"no folder here, and no public repository at {endpoint}; check the name, or log in with "
                                             "hf auth login"),
            (offline, "not in the hub library's cache, and HF_HUB_OFFLINE is set; unset it to fetch"),
            (Exception, f"cannot be fetched from {endpoint} ({' '.join(str(error).split())[:300] or type(error).__name__}); check the "
                        "connection and HF_ENDPOINT: the same command goes on; HF_HUB_OFFLINE=1 takes what is in the library's cache"),
        ) if isinstance(error, kind))) from None


def fetch_from_hub(url, sha256):
    """The path in the hub library's cache of a data set's file. Raises InputError."""
    owner, repository, file = url.removeprefix("hf://datasets/").split("/")
    with hub(f"{owner}/{repository}") as library:
        path = library.hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset")
    if sha256_of(path) != sha256:
        os.unlink(os.path.realpath(path))
        raise InputError(f"{url}: what came has another sha256 than the data set's, and was deleted; try again, or another HF_ENDPOINT")
    return Path(path)


def fetch_model(name, out):
    """Fetch a BERT with its MLM head from the hub into the library's cache, and write it to the folder `out` as save_model does.

    Only config, vocabulary and weights are fetched, the config first. Raises InputError."""
    out = Path(out)
    with hub(name) as library:
        try:
            sizes = {file.rfilename: file.size for file in library.model_info(name, files_metadata=True, timeout=STALL).siblings or ()}
            wanted = model_names(sizes)
            print(f"{name}: {len(wanted)} files, {amount([sizes[file] for file in wanted])}", flush=True)
        except library.errors.OfflineModeIsEnabled:
            wanted = []  # the cache holds what was fetched before
        folder = library.snapshot_download(name, allow_patterns=["config.json"])
    read_config(folder)  # before hundreds of MB that may be no BERT
    if wanted:
        with hub(name) as library:
            folder = library.snapshot_download(name, allow_patterns=wanted)
    model, tokenizer, temporary = load_model(folder), load_tokenizer(folder), Path(f"{out}.tmp{os.getpid()}")
    try:
        save_model(model, tokenizer, temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: {name}, {len(model.bert.layers)} layers, hidden size {model.config.hidden_size}")


def model_names(names):
    """Of a repository's files those that make the model: one format of the weights, safetensors if it is there."""
    words = [name for name in ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json") if name in names]
    for weights in (r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"):
        if found := [name for name in names if re.fullmatch(weights, name)]:
            return words + found
    return words
