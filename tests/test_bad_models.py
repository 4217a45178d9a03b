"""Model folders that are damaged, too large, hostile or not a BERT: refused in one line.

Nothing is written, no code in a file is run, and no memory is taken that a file only claims.
"""
import io
import json
import pickle
import re
import shutil
import zipfile

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

import ablation
import finetune
import pretrain
from load_hf_weights import count_weights
from model import BertConfig, MaskedLM
from support.errors import InputError
from support.training_run import read_checkpoint

pytest_plugins = ("bad_world",)


# ---- Ways to spoil the folder teacher/ ----

def config(**fields):
    """Other fields in config.json."""
    def change(teacher):
        file = teacher / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return change


def tensors(change_them):
    """Other tensors in model.safetensors."""
    def change(teacher):
        file = teacher / "model.safetensors"
        changed = change_them(load_file(file))
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file)
    return change


def tensor(name, value):
    return tensors(lambda weights: {**weights, name: value})


def overwrite(name, content):
    return lambda teacher: (teacher / name).write_bytes(content)


def rewrite(name, change_content):
    def change(teacher):
        file = teacher / name
        file.write_bytes(change_content(file.read_bytes()))
    return change


def vocab_txt_alone(change_content):
    """Without tokenizer.json, and with another vocab.txt."""
    def change(teacher):
        (teacher / "tokenizer.json").unlink()
        rewrite("vocab.txt", change_content)(teacher)
    return change


def settings_alone(content):
    """Without tokenizer.json, and with another tokenizer_config.json."""
    def change(teacher):
        vocab_txt_alone(bytes)(teacher)
        overwrite("tokenizer_config.json", content)(teacher)
    return change


def write_index(teacher, weight_map):
    index = teacher / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def shards_without_one(teacher):
    (teacher / "model.safetensors").rename(teacher / "model-1.safetensors")
    write_index(teacher, {"a": "model-1.safetensors", "b": "model-2.safetensors"})


def shard_named(name):
    """One shard, of this name; PLACE is the folder that also holds secret.safetensors."""
    def change(teacher):
        (teacher / "model.safetensors").unlink()
        place = teacher.parent
        shutil.copy(place / "corpus.txt", place / "secret.safetensors")
        write_index(teacher, {"a": name.replace("PLACE", str(place))})
    return change


def in_bin(content):
    """pytorch_model.bin in place of model.safetensors."""
    def change(teacher):
        (teacher / "model.safetensors").unlink()
        torch.save(content, teacher / "pytorch_model.bin")
    return change


def with_another_unknown_word(tokenizer):
    return tokenizer.replace(b'"unk_token": "[UNK]"', b'"unk_token": "nope"')


# ---- Models that cannot be loaded ----

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
NORM = "bert.embeddings.LayerNorm"
ENTRIES = TINY.vocab_size
PETABYTES = torch.zeros(1).expand(10 ** 6, 10 ** 7)  # 4 bytes, repeated by a view

TOO_LARGE = r"config.json: asks for 4 layers and [\d,.]+ GiB of weights; this machine has"
NO_WEIGHTS = "model.safetensors: cannot be read as weights"
NO_SETTINGS = ("tokenizer_config.json: do_lower_case, strip_accents and tokenize_chinese_chars "
               "must be true or false")
NO_TABLE = "does not hold a table of names and tensors"
OUTSIDE = "index.json: names a shard outside the folder"

BAD_CONFIGS = {
    "heads that do not divide": (
        config(num_attention_heads=5),
        "hidden_size 32 is not divisible by num_attention_heads 5"),
    "RoBERTa": (config(model_type="roberta"), "model_type is 'roberta'; only BERT"),
    "DistilBERT": (config(model_type="distilbert"), "lacks dim, n_layers, n_heads, hidden_dim"),
    "an odd model_type": (config(model_type=["bert"]), r"model_type is \['bert'\]; only BERT"),
    "not JSON": (overwrite("config.json", b"{nonsense"), "config.json: not JSON"),
    "not an object": (overwrite("config.json", b"[1]"), "config.json: not a JSON object"),
    "too deep": (overwrite("config.json", b"[" * 100_000), "config.json: not JSON"),
    "not text": (overwrite("config.json", b"\xff\xfe"), "config.json: not JSON"),
    "terabytes": (
        config(vocab_size=10 ** 12, hidden_size=1024, num_attention_heads=16), TOO_LARGE),
    "a million layers": (config(num_hidden_layers=10 ** 6), "asks for 1000000 layers"),
    "labels without numbers": (
        config(id2label={"first": "a"}), "id2label must map class numbers to names"),
}
BAD_VOCABULARIES = {
    "too long": (
        vocab_txt_alone(lambda content: content + b"more\n"),
        f"ids of the vocabulary go up to {ENTRIES}, but config.json has a vocab_size of {ENTRIES}"),
    "not text": (
        vocab_txt_alone(lambda content: content + b"\xff"), "vocab.txt: not UTF-8 text"),
    "a tokenizer that is nonsense": (
        overwrite("tokenizer.json", b"{}"), "tokenizer.json: cannot be read"),
    "settings that are nonsense": (settings_alone(b'{"do_lower_case": "x"}'), NO_SETTINGS),
    "a tokenizer without its unknown word": (
        rewrite("tokenizer.json", with_another_unknown_word),
        "its tokenizer cannot read unknown words"),
}
BAD_WEIGHTS = {
    "no folder": (shutil.rmtree, "teacher: no such folder; python load_hf_weights.py NAME"),
    "a pointer of git LFS": (
        overwrite("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid 1\n"),
        "model.safetensors: is a pointer of git LFS"),
    "saved from within DistributedDataParallel": (
        tensors(lambda weights: {f"module.{name}": x for name, x in weights.items()}),
        "every weight's name begins with 'module.': it was saved from within Distributed"),
    "no tensor at all": (tensors(lambda weights: {}), f"teacher: lacks {WORDS}"),
    "saved from within torch.compile": (
        tensors(lambda weights: {f"_orig_mod.{name}": x for name, x in weights.items()}),
        "every weight's name begins with '_orig_mod.': it was saved from within torch.compile"),
    "no weights": (
        lambda teacher: (teacher / "model.safetensors").unlink(),
        "teacher: holds neither model.safetensors nor pytorch_model.bin"),
    "cut off": (rewrite("model.safetensors", lambda content: content[:-50]), NO_WEIGHTS),
    "empty": (overwrite("model.safetensors", b""), NO_WEIGHTS),
    "a web page": (
        overwrite("model.safetensors", b"<!DOCTYPE html><html>404</html>"), NO_WEIGHTS),
    "a tensor of another shape": (
        tensor(f"{NORM}.weight", torch.ones(31)), rf"{NORM}.weight is \(31,\), not \(32,\)"),
    "NaN": (
        tensor(f"{NORM}.bias", torch.full((32,), float("nan"))),
        f"{NORM}.bias: some of its numbers are not finite"),
    "no encoder": (tensors(lambda weights: {"x": torch.ones(1)}), f"teacher: lacks {WORDS}"),
    "a missing shard": (shards_without_one, "model-2.safetensors: no such file"),
    "a shard with an odd name": (
        shard_named("x\0.safetensors"), f"{OUTSIDE}, or one that cannot be a file's name"),
    "a shard elsewhere": (shard_named("../secret.safetensors"), OUTSIDE),
    "a shard at an absolute path": (shard_named("PLACE/secret.safetensors"), OUTSIDE),
    "a .bin with numbers for names": (in_bin({0: torch.ones(1)}), NO_TABLE),
    "a .bin with a sparse tensor": (in_bin({"x": torch.ones(2, 2).to_sparse()}), NO_TABLE),
    "a .bin with a tensor of petabytes": (
        in_bin({WORDS: PETABYTES, DECODER: PETABYTES}), "each number of them stored"),
}


def all_commands_refuse(command, place, case):
    change, message = case
    change(place / "teacher")
    for module in (pretrain, finetune, ablation):
        assert re.search(message, command(module))


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_bad_config_is_refused(command, place, what):
    all_commands_refuse(command, place, BAD_CONFIGS[what])


@pytest.mark.parametrize("what", BAD_VOCABULARIES)
def test_a_bad_vocabulary_is_refused(command, place, what):
    all_commands_refuse(command, place, BAD_VOCABULARIES[what])


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights_are_refused(command, place, what):
    all_commands_refuse(command, place, BAD_WEIGHTS[what])


def test_a_config_to_train_from_may_not_ask_for_terabytes_either(command, place):
    teacher = place / "teacher"
    config(hidden_size=2 ** 20, num_attention_heads=16, intermediate_size=2 ** 22)(teacher)
    line = command(pretrain, "--teacher", "none", "--config", teacher)
    assert re.search(TOO_LARGE + r" [\d.]+ GiB of memory", line)


@pytest.mark.parametrize("sizes", [
    {},
    {"num_hidden_layers": 3, "intermediate_size": 50, "type_vocab_size": 3,
     "max_position_embeddings": 17},
])
def test_the_size_compared_with_the_memory_is_that_of_the_model(sizes):
    small = BertConfig(vocab_size=100, hidden_size=24, num_attention_heads=4, **sizes)
    weights = sum(parameter.numel() for parameter in MaskedLM(small).parameters())
    assert count_weights(small) == weights


# ---- Hostile files ----

class Code:
    """Unpickled, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def torch_file(code, file):
    torch.save({"x": code}, file)


def old_torch_file(code, file):
    torch.save({"x": code}, file, _use_new_zipfile_serialization=False)


def plain_pickle(code, file):
    file.write_bytes(pickle.dumps(code))


@pytest.mark.parametrize("make", [torch_file, old_torch_file, plain_pickle])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(command, place, tmp_path, make):
    code, teacher = Code(tmp_path / "written"), place / "teacher"
    (teacher / "model.safetensors").unlink()
    make(code, teacher / "pytorch_model.bin")
    message = ("pytorch_model.bin: cannot be read as weights: it is not a pickle of tensors and "
               "plain values alone")
    for module in (pretrain, finetune):
        assert message in command(module)

    checkpoint = tmp_path / "checkpoint" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    make(code, checkpoint)
    with pytest.raises(InputError, match="not run"):
        read_checkpoint(checkpoint)
    assert not (tmp_path / "written").exists()


def test_weights_that_would_expand_are_refused(command, place):
    """The records of torch.save, but compressed: 256 MB of zeros in 256 kB."""
    teacher = place / "teacher"
    (teacher / "model.safetensors").unlink()
    plain, packed = io.BytesIO(), teacher / "pytorch_model.bin"
    torch.save({WORDS: torch.zeros(8_000_000, 8)}, plain)
    with zipfile.ZipFile(plain) as source, \
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < 1_000_000
    message = ("pytorch_model.bin: cannot be read as weights: its records are compressed, "
               "which torch.save never does")
    assert message in command(pretrain)
