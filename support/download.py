"""Fetch the tasks and WikiText by name, into the folders that tasks.py and corpus.py read.

    python -m support.download cola,mrpc,wikitext-2 --data_dir FOLDER

Each file is checked by size and sha256 where they are known, and resumed after a break; an archive
is unpacked inside the folder only. With DOWNLOAD_MIRROR=https://HOST, every address keeps its path,
and HOST replaces the rest. How one file is fetched: https.py, and hub.py for what is on Hugging
Face's hub.
"""
import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from support.cli import Parser, command_line, list_of
from support.errors import InputError
from support.files import lock_file, write_file
from support.https import ELSEWHERE, describe_size, fetch, sha256_of
from support.hub import download_dataset_file
from support.tasks import TASKS, read_columns
from support.unpack import unpack

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
STANFORD = "https://ai.stanford.edu/~amaas/data/sentiment/"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
HUB = "hf://datasets/"  # OWNER/REPOSITORY/FILE on Hugging Face's hub

# Name -> its files: (address, bytes, sha256), None where unknown. GLUE's addresses are those of its
# own script, in today's versions (QQP-clean, QNLIv2). WikiText's own addresses are dead, so it
# comes from the hub.
SOURCES = {
    "cola": [
        (GLUE + "CoLA.zip", 376971,
         "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    ],
    "mnli": [(GLUE + "MNLI.zip", 312783507, None)],
    "mrpc": [
        (SENTEVAL + "msr_paraphrase_train.txt", 1047044,
         "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
        (SENTEVAL + "msr_paraphrase_test.txt", 441275,
         "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"),
        (GLUE + "mrpc_dev_ids.tsv", 6222,
         "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"),
    ],
    "qnli": [
        (GLUE + "QNLIv2.zip", None,
         "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
    ],
    "qqp": [
        (GLUE + "QQP-clean.zip", None,
         "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
    ],
    "rte": [(GLUE + "RTE.zip", None, None)],
    "sst2": [
        (GLUE + "SST-2.zip", 7439277,
         "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    ],
    "stsb": [(GLUE + "STS-B.zip", None, None)],
    "wnli": [
        (GLUE + "WNLI.zip", None,
         "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
    ],
    "imdb": [
        (STANFORD + "aclImdb_v1.tar.gz", 84125825,
         "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"),
    ],
    "squad": [
        (SQUAD + "train-v1.1.json", 30288272,
         "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
        (SQUAD + "dev-v1.1.json", 4854279,
         "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"),
    ],
    "wikitext-2": [
        (HUB + "ggml-org/ci/wikitext-2-raw-v1.zip", None,
         "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    ],
    "wikitext-103": [
        (HUB + "mattdangerw/wikitext-103-raw/wikitext-103-raw-v1.zip", 191984949,
         "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    ],
}


# ---- What is missing, and how much that is ----

def expected_files(name):
    """The files that must be in --data_dir once this data set is complete."""
    if name.startswith("wikitext"):
        return [f"{name}-raw/wiki.{split}.raw" for split in ("train", "valid", "test")]
    if name == "imdb":
        return ["aclImdb/train/pos", "aclImdb/train/neg", "aclImdb/test/pos", "aclImdb/test/neg"]
    task = TASKS[name]
    return [f"{task.folder}/{file}" for file in (task.train, *task.dev)]


def folder_of(name):
    return expected_files(name)[0].split("/")[0]


def pending(names, data_dir):
    """Those of the names that are not in data_dir, or in its glue_data/, yet.

    Raises InputError for a data set of which only a part is there."""
    absent = []
    for name in dict.fromkeys(names):
        parents = [parent for parent in (Path(data_dir), Path(data_dir, "glue_data"))
                   if (parent / folder_of(name)).exists()]
        if parents:
            check_complete(name, parents[0])
        else:
            absent.append(name)
    return absent


def check_complete(name, parent):
    for file in expected_files(name):
        if not (parent / file).exists():
            raise InputError(f"{parent / folder_of(name)}: incomplete, {parent / file} is missing; "
                             "move the folder away, and it is fetched again")


def what_and_how_much(names):
    """"cola (0.4 MB), rte (size unknown): 0.4 MB and more, of unknown size"."""
    sizes, described = [], []
    for name in names:
        own = [size for _, size, _ in SOURCES[name]]
        described.append(f"{name} ({describe_size(own)})")
        sizes += own
    return f"{', '.join(described)}: {describe_size(sizes)}"


# ---- Fetching ----

def download_tasks(names, data_dir):
    """Fetch these of SOURCES into data_dir; those that are there are left alone.

    Of several processes, one fetches and the others wait. Raises InputError."""
    absent = pending(names, data_dir)
    present = [name for name in dict.fromkeys(names) if name not in absent]
    if present:
        print(f"{data_dir}: already there: {', '.join(present)}", flush=True)
    if not absent:
        return
    print(f"{data_dir}: fetching {what_and_how_much(absent)}", flush=True)
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    staging, lock = data_dir / ".download", data_dir / ".download.lock"
    with lock_file(lock, wait=True):
        staging.mkdir(exist_ok=True)
        try:
            for name in absent:
                if pending([name], data_dir):  # another process may have fetched it meanwhile
                    fetch_data_set(name, data_dir, staging)
                    print(f"{data_dir / folder_of(name)}: fetched", flush=True)
        finally:
            with contextlib.suppress(OSError):
                staging.rmdir()  # unless it holds a .part
            lock.unlink(missing_ok=True)


def fetch_data_set(name, data_dir, staging):
    """Prepare one of SOURCES in the folder `staging`, then move it to data_dir.

    Raises InputError."""
    prepared = staging / name
    shutil.rmtree(prepared, ignore_errors=True)  # left by a process that was killed
    try:
        files = [fetch_file(*source, staging) for source in SOURCES[name]]
        prepared.mkdir()
        folder = prepared / folder_of(name)
        if name == "mrpc":
            write_mrpc(*files, folder)
        elif name == "squad":
            folder.mkdir()
            for file in files:
                file.rename(folder / file.name)
        else:
            unpack_archive(name, files[0], prepared)
        os.rename(folder, data_dir / folder.name)
        delete_fetched(files, staging)
    finally:
        shutil.rmtree(prepared, ignore_errors=True)


def fetch_file(url, size, sha256, staging):
    """Fetch one file into the folder `staging`, or into the hub library's cache. Its path."""
    if url.startswith(HUB):
        return download_dataset_file(url, sha256)
    path = staging / url.split("/")[-1]
    # It is complete already if the command stopped at a later file of the same data set.
    if not (sha256 and path.exists() and sha256_of(path) == sha256):
        fetch(mirrored(url), path, size, sha256)
    return path


def mirrored(url):
    """The address that a file is fetched from: on DOWNLOAD_MIRROR, if that is set."""
    mirror = os.environ.get("DOWNLOAD_MIRROR")
    if not mirror or url.startswith(HUB):
        return url
    return mirror.rstrip("/") + urlsplit(url).path


def unpack_archive(name, archive, prepared):
    """Unpack a fetched archive into the folder `prepared`, or delete it and raise InputError."""
    url = mirrored(SOURCES[name][0][0])
    try:
        unpack(archive, prepared)
    except InputError as error:
        delete_fetched([archive], prepared.parent)
        raise InputError(f"{url}: {error}; nothing was kept") from None
    absent = [file for file in expected_files(name) if not (prepared / file).exists()]
    if absent:
        delete_fetched([archive], prepared.parent)
        raise InputError(f"{url}: holds no {absent[0]}; nothing was kept; {ELSEWHERE}")


def delete_fetched(files, staging):
    """Delete those in the folder `staging`: the others are in the hub library's cache."""
    for file in files:
        if file.parent == staging:
            file.unlink(missing_ok=True)


# ---- MRPC, which is put together from three files ----

def write_mrpc(train, test, dev_ids, folder):
    """MRPC as GLUE's own script (download_glue_data.py) makes it from Microsoft's two files.

    The training rows whose two ids are listed in dev_ids become the dev set, and the test set
    loses its labels. Raises InputError."""
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    ids_of_dev = {tuple(ids) for _, ids in read_columns(dev_ids, (0, 1))}
    train_rows, dev_rows = [columns], [columns]
    for _, row in read_columns(train, columns):
        rows = dev_rows if (row[1], row[2]) in ids_of_dev else train_rows
        rows.append(row)
    test_rows = [("index", *columns[1:])]
    for number, (_, row) in enumerate(read_columns(test, columns[1:])):
        test_rows.append((str(number), *row))

    folder.mkdir()
    write_file(folder / "train.tsv", "\ufeff" + table(train_rows))  # a byte-order mark, as in GLUE
    write_file(folder / "dev.tsv", "\ufeff" + table(dev_rows))
    write_file(folder / "test.tsv", table(test_rows))


def table(rows):
    """Rows of texts as tab-separated lines."""
    return "".join("\t".join(row).rstrip() + "\n" for row in rows)


# ---- The command ----

def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("names", type=list_of(SOURCES, "data set"), metavar="NAMES",
                        help=f"separated by commas: {', '.join(SOURCES)}")
    parser.add_argument("--data_dir", required=True, help="folder that gets CoLA/, MNLI/, ..., "
                                                          "aclImdb/, squad/, wikitext-2-raw/, ...")
    args = parser.parse_args(arguments)
    download_tasks(args.names, args.data_dir)


if __name__ == "__main__":
    command_line(main)
