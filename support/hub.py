"""Fetch from Hugging Face's hub with its own library, whose errors become one line.

The library brings its cache, its mirrors (HF_ENDPOINT) and its offline mode (HF_HUB_OFFLINE=1).
Models are fetched for load_hf_weights.py, data sets for download.py.
"""
import contextlib
import errno
import os
import re
from pathlib import Path

from support.errors import InputError
from support.https import STALL, check_address, describe_size, sha256_of
from support.wordpiece import TOKENIZER_FILES

WEIGHT_FORMATS = (  # of these, the first that a repository has
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def download_model(name, check_config):
    """Fetch config, vocabulary and one format of the weights. Returns the folder in the cache.

    check_config(folder) is called when only the config is there, and may refuse it: before
    hundreds of MB that may not be a BERT. Prints how many files and bytes that is. Offline, the
    folder is what was fetched before. Raises InputError."""
    with hub_library(name) as library:
        sizes = model_files(library, name)
        if sizes:
            print(f"{name}: {len(sizes)} files, {describe_size(sizes.values())}", flush=True)
        folder = Path(library.snapshot_download(name, allow_patterns=["config.json"]))
    check_config(folder)
    if sizes:
        with hub_library(name) as library:
            folder = Path(library.snapshot_download(name, allow_patterns=list(sizes)))
    return folder


def download_dataset_file(url, sha256):
    """Fetch one file of a data set, hf://datasets/OWNER/REPOSITORY/FILE.

    Returns its path in the library's cache. Raises InputError, also for another sha256."""
    owner, repository, file = url.removeprefix("hf://datasets/").split("/")
    name = f"{owner}/{repository}"
    with hub_library(name) as library:
        path = library.hf_hub_download(name, file, repo_type="dataset")
    if sha256_of(path) != sha256:
        os.unlink(os.path.realpath(path))
        raise InputError(f"{url}: the file has an unexpected sha256, and was deleted; "
                         "try again, or use another HF_ENDPOINT")
    return Path(path)


def model_files(library, name):
    """{file: bytes} of a repository's files that make the model; empty when offline.

    These are config, vocabulary and weights, in safetensors if the repository has them."""
    try:
        info = library.model_info(name, files_metadata=True, timeout=STALL)
    except library.errors.OfflineModeIsEnabled:
        return {}
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    wanted = [file for file in ("config.json", *TOKENIZER_FILES) if file in sizes]
    for pattern in WEIGHT_FORMATS:
        weights = [file for file in sizes if re.fullmatch(pattern, file)]
        if weights:
            wanted += weights
            break
    return {file: sizes[file] for file in wanted}


@contextlib.contextmanager
def hub_library(name):
    """The module huggingface_hub, its errors about the repository `name` made InputErrors."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    check_address(endpoint)
    # Imported here: it is needed only on request, and reads its environment when imported.
    import huggingface_hub  # noqa: PLC0415
    import huggingface_hub.errors  # noqa: PLC0415
    try:
        yield huggingface_hub
    except Exception as error:  # it also passes on errors of HTTP, TLS, sockets and JSON
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise InputError(f"{name}: {explain(error, huggingface_hub, name, endpoint)}") from None


def explain(error, library, name, endpoint):
    """What an error of the library means, and what to do about it."""
    errors = library.errors
    if isinstance(error, errors.HFValidationError):
        return ("neither a local folder nor a name on the hub, such as "
                "google-bert/bert-base-uncased")
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return f"gated: accept its terms at {endpoint}/{name}, and log in with hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (f"no local folder, and no public repository at {endpoint}; check the name, "
                "or log in with hf auth login")
    if library.constants.HF_HUB_OFFLINE and isinstance(
            error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return "not in the hub library's cache, and HF_HUB_OFFLINE is set; unset it to fetch"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (f"cannot be fetched from {endpoint} ({reason}); check the connection and HF_ENDPOINT: "
            "the same command resumes; HF_HUB_OFFLINE=1 uses only the library's cache")
