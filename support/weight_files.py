"""Weight files from anywhere: read without running code, refused if damaged or too large.

A folder holds safetensors or torch's .bin files, whole or in shards. A .bin is a pickle, which
may hold code or expand to any size: neither is allowed here.
"""
import os
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from support.errors import InputError
from support.files import read_json

SINGLE_FILES_AND_INDEXES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_LAYERS = 1000
LFS_POINTER = b"version https://git-lfs"
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
# The decoder's weight is the word embeddings and it has one bias. A checkpoint may repeat them.
DECODER_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
}


def weight_files(folder):
    """The paths of a folder's weight files; if they are shards, their index first.

    Raises InputError."""
    folder = Path(folder)
    present = [name for name in SINGLE_FILES_AND_INDEXES if (folder / name).exists()]
    if not present:
        raise InputError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")
    first = folder / present[0]
    if first.suffix != ".json":
        return [first]
    return [first, *(folder / name for name in shard_names(first))]


def shard_names(index):
    """The file names in the index of a sharded model, sorted. Raises InputError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{index}: has no weight_map, the table of weights and their files")
    names = sorted(set(weight_map.values()))
    if any(Path(name).name != name or not name.isprintable() for name in names):
        raise InputError(f"{index}: names a shard outside the folder, or one that cannot be a "
                         "file's name")
    return names


def read_weights(folder, layout="bert"):
    """{Hugging Face's name: tensor} from all weight files of a folder. Raises InputError."""
    stored = {}
    for file in weight_files(folder):
        if file.suffix != ".json":
            stored.update(read_weight_file(file))
    weights = {modern_name(name, stored, layout): tensor for name, tensor in stored.items()}
    for copy, original in DECODER_COPIES.items():
        if copy in weights:
            weights.setdefault(original, weights[copy])
            if not torch.equal(weights[copy], weights[original]):
                raise InputError(f"{folder}: {copy} differs from {original}; a decoder that is not "
                                 "tied is not implemented")
    return weights


def modern_name(name, stored, layout):
    """Old files say gamma and beta; an encoder saved alone lacks the prefix `bert.`."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    is_encoder_alone = "embeddings.word_embeddings.weight" in stored
    if is_encoder_alone and name.startswith(("embeddings.", "encoder.", "transformer.", "pooler.")):
        name = f"{layout}.{name}"
    return name


def read_weight_file(path):
    """{name: tensor} of a .safetensors or .bin file. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; this shard is missing")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: is a pointer of git LFS, not the weights; fetch them with "
                             "git lfs pull")
    weights = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and is_stored_in_full(value) for name, value in weights.items()):
        raise InputError(f"{path}: does not hold a table of names and tensors, each number of "
                         "them stored")
    return weights


def is_stored_in_full(value):
    """Whether value is a dense CPU tensor with each of its numbers in the file.

    A view that repeats a stored number may claim any size."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    bytes_claimed = value.numel() * value.element_size()
    return value.device.type == "cpu" and bytes_claimed <= value.untyped_storage().nbytes()


def read_safetensors(path):
    try:
        return load_file(path)
    except Exception as error:  # the library's own error, or torch's for an unknown dtype
        raise unreadable(path, error) from None


def read_torch_file(path):
    """What torch.save wrote, if that is tensors and plain values.

    Raises InputError for anything else, such as a file that would run code or that would unpack
    to more than its own size."""
    try:
        if zipfile.is_zipfile(path):  # the format of torch.save since 1.6
            check_zip_records(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the result is tensors or an error; no third case
            # weights_only: a pickle may hold code, which must not run
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a pickle can make torch raise anything
        raise unreadable(path, error) from None


def check_zip_records(path):
    """Raises ValueError for a zip file with a compressed or damaged record."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("its records are compressed, which torch.save never does")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"its record {damaged} is damaged")


def unreadable(path, error):
    """The InputError for a file that a library could not read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Weights only load failed" in reason:
        reason = ("it is not a pickle of tensors and plain values alone; anything else in it, "
                  "even code, was not run")
    return InputError(f"{path}: cannot be read as weights: {reason}")


# ---- Checks of the weights against a model ----

def count_weights(config):
    """How many weights a MaskedLM has: embeddings, layers, head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    embeddings = (rows + 2) * hidden
    layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
    head = hidden * hidden + 3 * hidden + config.vocab_size
    return embeddings + config.num_hidden_layers * layer + head


def check_size(path, layers, weights):
    """Raises InputError if a config asks for more fp32 weights than this machine has memory for.

    path: the config's file, for the message; weights: how many numbers."""
    size = 4 * weights
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory or layers > MAX_LAYERS:
        raise InputError(f"{path}: asks for {layers} layers and {size / 2 ** 30:,.1f} GiB of "
                         f"weights; this machine has {memory / 2 ** 30:,.1f} GiB of memory")


def check_weights(folder, weights, expected, layout, architecture):
    """Raises InputError unless the folder has each expected tensor, in its shape, and no others.

    weights: {name: tensor} of the folder; expected: {name: shape}, what the model is made from."""
    missing = [name for name in expected if name not in weights]
    if missing:
        for prefix, wrapper in WRAPPERS.items():
            if weights and all(name.startswith(prefix) for name in weights):
                raise InputError(f"{folder}: every weight's name begins with {prefix!r}: it was "
                                 f"saved from within {wrapper}; save the model inside, or cut the "
                                 "prefix off")
        raise InputError(f"{folder}: lacks {', '.join(missing)}, which {architecture} needs")
    wrong = [f"{name} is {tuple(weights[name].shape)}, not {shape}"
             for name, shape in expected.items() if weights[name].shape != shape]
    if wrong:
        raise InputError(f"{folder}: does not fit its config.json: {', '.join(wrong)}")
    # Other heads may be ignored, but without a part of its encoder this would be another model.
    encoder = tuple(f"{layout}.{part}." for part in ("embeddings", "encoder", "transformer"))
    extra = [name for name in weights if name.startswith(encoder)
             and name not in expected and not name.endswith("position_ids")]
    if extra:
        raise InputError(f"{folder}: config.json has no place for {', '.join(extra)}")
