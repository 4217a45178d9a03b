"""Files of weights from anywhere: read without running code, refused if they expand."""
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from support.errors import InputError
from support.files import read_json


def weight_files(folder):
    """The files that hold a folder's weights, and before them the index of the shards, if there is one. Raises InputError."""
    folder = Path(folder)
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (folder / name).exists():
            break
    else:
        raise InputError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")
    if not name.endswith(".index.json"):
        return [folder / name]
    weight_map = read_json(folder / name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{folder / name}: has no weight_map, the table of weights and their files")
    files = sorted(set(weight_map.values()))
    if any(Path(file).name != file or not file.isprintable() for file in files):
        raise InputError(f"{folder / name}: names a shard outside the folder, or one that cannot be a file's name")
    return [folder / name, *(folder / file for file in files)]


def read_weight_file(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file; this shard is missing")
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except Exception as error:  # the library raises its own error, and torch's for numbers that it does not know
            raise unreadable(path, error) from None
    else:
        weights = read_torch_file(path)
    if not isinstance(weights, dict) or not all(isinstance(name, str) and is_stored(x) for name, x in weights.items()):
        raise InputError(f"{path}: does not hold a table of names and tensors, each number of them stored")
    return weights


def is_stored(x):
    """Whether x is a dense tensor, all of whose numbers are in the file: a view that repeats one of them may be of any size."""
    return (isinstance(x, torch.Tensor) and x.layout == torch.strided and x.device.type == "cpu"
            and x.numel() * x.element_size() <= x.untyped_storage().nbytes())


def read_torch_file(path):
    """What torch.save wrote: tensors and plain values. Raises InputError, also for a file that would run code or unpack to
    more than its own size."""
    try:
        if zipfile.is_zipfile(path):  # as torch.save writes since 1.6: records that are stored, not compressed
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise ValueError("its records are compressed, which torch.save never does")
                if damaged := archive.testzip():
                    raise ValueError(f"its record {damaged} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what follows is tensors or an error: no third
            # weights_only: it is a pickle, and a pickle may hold code
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a pickle can make torch raise anything
        raise unreadable(path, error) from None


def unreadable(path, error):
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Weights only load failed" in reason:
        reason = "it is not a pickle of tensors and plain values alone; what else is in it, even code, is not run"
    return InputError(f"{path}: cannot be read as weights: {reason}")
