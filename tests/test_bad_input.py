"""What the commands do with files and arguments that are wrong, odd, damaged or hostile: one line, status 2, and nothing written;
and, by hypothesis, with random bytes in place of any file that they read."""
import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ablation
import finetune
import pretrain
from data import PackedBlocks
from load_hf_weights import count_weights, load_model, load_tokenizer, read_config
from model import BertConfig, Classifier, MaskedLM
from support import unpack
from support.corpus import corpus_tokens
from support.errors import InputError
from support.run_folder import find_run
from support.tasks import TASKS, read_dev, read_train, read_tsv
from support.training_run import read_checkpoint


@pytest.fixture
def place(world, tmp_path):
    """A copy of the miniature world, to spoil."""
    shutil.copytree(world, tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def command(place, refused):
    """command(module, more) -> the one line in which it refuses; nothing may be written."""
    def run(module, *more):
        own = {pretrain: ("--teacher", place / "teacher", "--corpus", place / "corpus.txt", "--steps", 2, "--max_length", 32),
               finetune: ("--model", place / "teacher", "--task", "cola", "--data_dir", place / "data", "--max_length", 32, "--epochs", 1),
               ablation: ("--preset", "mini", "--teacher", place / "teacher", "--corpus", place / "corpus.txt", "--data_dir", place / "data",
                          "--finetune_args=--max_length 32", "--pretrain_args=--max_length 32")}[module]
        out = place.parent / "out"
        line = refused(module, *own, "--out_dir", out, *(["--cache_dir", place.parent / "cache"] if module is pretrain else []), "--device", "cpu", *more)
        assert not out.exists() and not list(place.parent.glob("cache/*.tmp*"))
        return line
    return run


# ---- Arguments ----

@pytest.mark.parametrize("module, more, message", [
    (pretrain, ["--steps", "0"], "--steps: 0 is not a number at least 1"),
    (pretrain, ["--lr", "-1"], "--lr: -1 is not a number above 0"),
    (finetune, ["--lr", "-1"], "--lr: -1 is not a number above 0"),
    (pretrain, ["--temperature", "0"], "--temperature: 0 is not a number above 0"),
    (pretrain, ["--mlm_prob", "0", "--use_ce", "0", "--use_cos", "0"], "--mlm_prob 0 masks nothing, so the MLM loss has nothing to learn from"),
    (pretrain, ["--mlm_prob", "1.01"], "--mlm_prob: 1.01 is not a number at least 0 and at most 1"),
    (pretrain, ["--use_ce", "0", "--use_mlm", "0", "--use_cos", "0"], "all losses are off"),
    (pretrain, ["--max_length", "65"], "--max_length 65: .* has 64 positions"),
    (finetune, ["--max_length", "65"], "--max_length 65: .* has 64 positions"),
    (pretrain, ["--max_length", "2"], "--max_length: 2 is not a number at least 3"),
    (finetune, ["--max_length", "2"], "--max_length: 2 is not a number at least 5"),
    (finetune, ["--task", "mrcp"], "--task: unknown task 'mrcp'; did you mean mrpc"),
    (ablation, ["--variants", "full,no_coss"], "unknown variant 'no_coss'; did you mean no_cos"),
    (ablation, ["--preset", "bass"], "unknown preset 'bass'; did you mean base"),
    (ablation, ["--seeds", "x"], "--seeds: invalid whole number value: 'x'"),
    (pretrain, ["--layers", "0,4"], "--layers: the teacher has layers 0 to 3, not 4"),
    (pretrain, ["--layers", "-1"], "--layers: the teacher has layers 0 to 3, not -1"),
    (pretrain, ["--temperature", "1e200"], "--temperature: 1e200 is not a number above 0 and at most 10000"),
    (pretrain, ["--lr", "inf"], "--lr: inf is not a number above 0 and at most"),
    (pretrain, ["--chunk_tokens", "9" * 20], "--chunk_tokens: 9+ is not a number at least 0 and at most 2147483647"),
    (finetune, ["--epochs", "1" + "0" * 310], "--epochs: 10+ is not a number at least 1 and at most 2147483647"),
    (pretrain, ["--checkpoint_steps", "0"], "--checkpoint_steps: 0 is not a number at least 1"),
    (pretrain, ["--checkpoint_minutes", "0"], "--checkpoint_minutes: 0 is not a number above 0"),
])
def test_arguments(command, module, more, message):
    assert re.search(message, command(module, *more))


def test_masking_nothing_or_everything_works_where_it_can(place, tmp_path):
    for probability in ("0", "1"):
        pretrain.main([str(x) for x in ("--teacher", place / "teacher", "--corpus", place / "corpus.txt", "--steps", 2, "--max_length", 32, "--device", "cpu",
                                        "--mlm_prob", probability, "--out_dir", tmp_path / probability, "--cache_dir", tmp_path / "cache")])


# ---- Text ----

@pytest.mark.parametrize("text, message", [
    (None, "corpus.txt: no such file or folder"),
    (b"", "corpus.txt: no text in it"),
    (b"\n \r\n\t\n", "corpus.txt: no text in it"),
    (b"bad good\n", "--corpus: 3 tokens are too few for blocks of --max_length 32"),
    (b"good\nnot \xff text\n", r"corpus.txt: line 2 is not UTF-8 text \(byte 0xff\)"),
    ("good\n".encode("utf-16"), r"corpus.txt: line 1 is not UTF-8 text \(byte 0xff\)"),
])
def test_a_corpus_that_cannot_be(command, place, text, message):
    (place / "corpus.txt").unlink()
    if text is not None:
        (place / "corpus.txt").write_bytes(text)
    assert re.search(message, command(pretrain))


def test_byte_order_marks_line_ends_and_nul_bytes_are_read_over(place, tokenizer, tmp_path):
    odd = b"\xef\xbb\xbf" + (place / "corpus.txt").read_bytes().replace(b"\n", b"\r\n").replace(b" ", b" \0 ")
    (place / "odd.txt").write_bytes(odd)
    assert np.array_equal(corpus_tokens([place / "odd.txt"], tokenizer, tmp_path), corpus_tokens([place / "corpus.txt"], tokenizer, tmp_path))


def test_damaged_token_caches_are_noticed(place, tokenizer, tmp_path):
    tokens = np.array(corpus_tokens([place / "corpus.txt"], tokenizer, tmp_path))
    file, = tmp_path.glob("tokens-*.bin")
    file.write_bytes(file.read_bytes()[:1000])  # cut short: made again
    assert np.array_equal(corpus_tokens([place / "corpus.txt"], tokenizer, tmp_path), tokens)
    file.write_bytes(b"\xff" * (2 * len(tokens)))
    with pytest.raises(InputError, match="tokens-.*.bin: damaged; delete it, and it is made again"):
        PackedBlocks(corpus_tokens([place / "corpus.txt"], tokenizer, tmp_path), tokenizer, 16).training_batch(0, 4, 0.15, 0)


def test_a_line_of_100_MB_in_bounded_memory(place, tokenizer, tmp_path):
    line = b"banbins good bad, " * (100_000_000 // 18)
    (place / "line.txt").write_bytes(line)
    script = ("import sys; from corpus import corpus_tokens; from load_hf_weights import load_tokenizer; from run import peak_memory\n"
              "before = peak_memory(); tokens = corpus_tokens([sys.argv[1]], load_tokenizer(sys.argv[2]), sys.argv[3]); print(len(tokens), peak_memory() - before)")
    done = subprocess.run([sys.executable, "-c", script, place / "line.txt", place / "teacher", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    tokens, more_memory = done.stdout.split()
    of_a_group = len(tokenizer.encode("banbins good bad, ", add_special_tokens=False).ids)
    assert int(tokens) == 100_000_000 // 18 * of_a_group + 1 and float(more_memory) < 0.4  # GiB; the line's tokens as objects would be 3


# ---- The tasks' files ----

def tsv(old, new, name="MRPC/train.tsv"):
    def change(place):
        file = place / "data" / "glue_data" / name
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return change


def truncate_row(place):
    file = place / "data" / "glue_data" / "MRPC" / "train.tsv"
    rows = file.read_text(encoding="utf-8").split("\n")
    rows[4] = "\t".join(rows[4].split("\t")[:3])
    file.write_text("\n".join(rows), encoding="utf-8")


def one_class(place):
    file = place / "data" / "glue_data" / "MRPC" / "train.tsv"
    rows = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join(row for row in rows if not row.startswith("0")), encoding="utf-8")


@pytest.mark.parametrize("task, change, message", [
    ("mrpc", tsv("#2 String", "#2 Text"), r"MRPC/train.tsv: line 1 has no column '#2 String'; it has Quality, #1 ID"),
    ("mrpc", truncate_row, "MRPC/train.tsv: line 5 has 3 columns; 5 are needed"),
    ("mrpc", tsv("\n1\t", "\nyes\t"), "MRPC/train.tsv: line 3 has the label 'yes'; known are 0, 1"),
    ("mrpc", tsv("\n1\t", "\n2\t"), "MRPC/train.tsv: line 3 has the label '2'; known are 0, 1"),
    ("mrpc", tsv("\n0\t", "\n0.5\t", "MRPC/dev.tsv"), "MRPC/dev.tsv: line 2 has the label '0.5'; known are 0, 1"),
    ("mnli", tsv("contradiction\n", "-\n", "MNLI/dev_mismatched.tsv"), r"MNLI/dev_mismatched.tsv: line \d+ has the label '-'; known are entailment"),
    ("stsb", tsv("\t4.75\n", "\tmany\n", "STS-B/train.tsv"), "STS-B/train.tsv: line 3 has the score 'many', no number from 0 to 5"),
    ("stsb", tsv("\t4.75\n", "\tnan\n", "STS-B/dev.tsv"), "STS-B/dev.tsv: line 3 has the score 'nan', no number from 0 to 5"),
    ("stsb", tsv("\t0.500\n", "\t5.01\n", "STS-B/dev.tsv"), "STS-B/dev.tsv: line 2 has the score '5.01', no number from 0 to 5"),
    ("mrpc", one_class, "the training rows of mrpc all have the same label; nothing can be learnt"),
    ("mrpc", lambda place: (place / "data/glue_data/MRPC/dev.tsv").unlink(), "MRPC/dev.tsv: no such file"),
    ("mrpc", lambda place: (place / "data/glue_data/MRPC/train.tsv").unlink(), "MRPC/train.tsv: no such file"),
    ("mrpc", lambda place: (place / "data/glue_data/MRPC/train.tsv").write_bytes(b""), "MRPC/train.tsv: line 1 has no column"),
    ("mrpc", lambda place: shutil.rmtree(place / "data/glue_data/MRPC"), "data: holds no folder MRPC or glue_data/MRPC, for task mrpc"),
    ("imdb", lambda place: shutil.rmtree(place / "data/aclImdb/train/neg"), "train/neg: no .txt file there"),
    ("imdb", lambda place: (place / "data/aclImdb/test/pos/3_10.txt").write_bytes(b"caf\xe9"), r"test/pos/3_10.txt: line 1 is not UTF-8 text \(byte 0xe9\)"),
])
def test_task_files_that_are_wrong_are_named_with_the_line(command, place, task, change, message):
    change(place)
    assert re.search(message, command(finetune, "--task", task))
    if task in ("mrpc", "imdb") and "same label" not in message:
        assert re.search(message, command(ablation, "--tasks", task))  # before any run has begun


def test_odd_texts_are_read_and_no_row_is_lost(place, tmp_path):
    """Quotes, nothing at all, and more than the model has positions for."""
    for split in ("train", "dev"):
        texts = ['"an open quote', 'and "another', "", " ", "good " * 500, "\0", "\N{BRAIN}", "x" * 5000]
        (place / "data/glue_data/CoLA" / f"{split}.tsv").write_text("".join(f"x\t{i % 2}\t\t{text}\n" for i, text in enumerate(texts)), encoding="utf-8")
    assert len(read_train("cola", place / "data")) == len(read_dev("cola", place / "data")["dev"]) == 8
    results = finetune.main([str(x) for x in ("--model", place / "teacher", "--task", "cola", "--data_dir", place / "data", "--max_length", TINY.max_position_embeddings,
                                              "--epochs", 1, "--out_dir", tmp_path / "out", "--device", "cpu")])
    assert results["train_rows"] == results["sets"]["dev"]["rows"] == 8


# ---- Models ----

def config(**changes):
    def change(place):
        file = place / "teacher" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return change


def tensors(change_them):
    def change(place):
        file = place / "teacher" / "model.safetensors"
        save_file({name: x.contiguous() for name, x in change_them(load_file(file)).items()}, file)
    return change


def write(name, data):
    return lambda place: (place / "teacher" / name).write_bytes(data)


def damaged(name, damage):
    return lambda place: (place / "teacher" / name).write_bytes(damage((place / "teacher" / name).read_bytes()))


def vocab_txt_alone(change_it):
    def change(place):
        (place / "teacher" / "tokenizer.json").unlink()
        damaged("vocab.txt", change_it)(place)
    return change


def shards_without_one(place):
    (place / "teacher" / "model.safetensors").rename(place / "teacher" / "model-1.safetensors")
    write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode())(place)


def shard_named(path):
    def change(place):
        (place / "teacher" / "model.safetensors").unlink()
        shutil.copy(place / "corpus.txt", place / "secret.safetensors")
        write("model.safetensors.index.json", json.dumps({"weight_map": {"a": path.replace("WORLD", str(place))}}).encode())(place)
    return change


def in_bin(content):
    def change(place):
        (place / "teacher" / "model.safetensors").unlink()
        torch.save(content, place / "teacher" / "pytorch_model.bin")
    return change


MODELS = {
    "no folder": (lambda place: shutil.rmtree(place / "teacher"), "teacher/config.json: no such file"),
    "no weights": (lambda place: (place / "teacher/model.safetensors").unlink(), "teacher: holds neither model.safetensors nor pytorch_model.bin"),
    "heads that do not divide": (config(num_attention_heads=5), "hidden_size 32 is not divisible by num_attention_heads 5"),
    "RoBERTa": (config(model_type="roberta"), "model_type is 'roberta'; only BERT"),
    "DistilBERT": (config(model_type="distilbert"), "lacks dim, n_layers, n_heads, hidden_dim"),
    "an odd model_type": (config(model_type=["bert"]), r"model_type is \['bert'\]; only BERT"),
    "config is no JSON": (write("config.json", b"{nonsense"), "config.json: not JSON"),
    "config is no object": (write("config.json", b"[1]"), "config.json: not a JSON object"),
    "config is too deep": (write("config.json", b"[" * 100_000), "config.json: not JSON"),
    "config is no text": (write("config.json", b"\xff\xfe"), "config.json: not JSON"),
    "config asks for terabytes": (config(vocab_size=10 ** 12, hidden_size=1024, num_attention_heads=16), r"config.json: asks for 4 layers and [\d,.]+ GiB of weights; this machine has"),
    "config asks for a million layers": (config(num_hidden_layers=10 ** 6), "asks for 1000000 layers"),
    "labels without numbers": (config(id2label={"first": "a"}), "id2label must be a table of class numbers and their names"),
    "a vocabulary too long": (vocab_txt_alone(lambda data: data + b"more\n"), f"the vocabulary has {TINY.vocab_size + 1} entries, config.json says {TINY.vocab_size}"),
    "a vocabulary too short": (vocab_txt_alone(lambda data: b"\n".join(data.split(b"\n")[:-5]) + b"\n"), f"entries, config.json says {TINY.vocab_size}"),
    "a vocabulary that is no text": (vocab_txt_alone(lambda data: data + b"\xff"), "vocab.txt: not UTF-8 text"),
    "a tokenizer that is nonsense": (write("tokenizer.json", b"{}"), "tokenizer.json: cannot be read"),
    "tokenizer settings that are nonsense": (lambda place: (vocab_txt_alone(bytes)(place), write("tokenizer_config.json", b'{"do_lower_case": "x"}')(place)),
                                             "tokenizer_config.json: do_lower_case, strip_accents and tokenize_chinese_chars must be true or false"),
    "weights cut off": (damaged("model.safetensors", lambda data: data[:-50]), "model.safetensors: cannot be read as weights"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors: cannot be read as weights"),
    "a web page for weights": (write("model.safetensors", b"<!DOCTYPE html><html>404</html>"), "model.safetensors: cannot be read as weights"),
    "a tensor of another shape": (tensors(lambda w: {**w, "bert.embeddings.LayerNorm.weight": torch.ones(31)}), r"bert.embeddings.LayerNorm.weight is \(31,\), not \(32,\)"),
    "NaN": (tensors(lambda w: {**w, "bert.embeddings.LayerNorm.bias": torch.full((32,), float("nan"))}), "bert.embeddings.LayerNorm.bias: some of its numbers are not finite"),
    "no encoder": (tensors(lambda w: {"x": torch.ones(1)}), "teacher: lacks bert.embeddings.word_embeddings.weight"),
    "a missing shard": (shards_without_one, "model-2.safetensors: no such file"),
    "a shard with an odd name": (shard_named("x\0.safetensors"), "index.json: names a shard outside the folder, or one that cannot be a file's name"),
    "a tokenizer without its unknown word": (damaged("tokenizer.json", lambda data: data.replace(b'"unk_token": "[UNK]"', b'"unk_token": "nope"')), "its tokenizer cannot read unknown words"),
    "a .bin with numbers for names": (in_bin({0: torch.ones(1)}), "does not hold a table of names and tensors"),
    "a .bin with a sparse tensor": (in_bin({"x": torch.ones(2, 2).to_sparse()}), "does not hold a table of names and tensors"),
    "a .bin with a tensor of petabytes": (in_bin({name: torch.zeros(1).expand(10 ** 6, 10 ** 7) for name in
                                                  ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")}), "each number of them stored"),
    "a shard elsewhere": (shard_named("../secret.safetensors"), "index.json: names a shard outside the folder"),
    "a shard at an absolute path": (shard_named("WORLD/secret.safetensors"), "index.json: names a shard outside the folder"),
}


@pytest.mark.parametrize("what", MODELS)
def test_models_that_cannot_be_loaded(command, place, what):
    change, message = MODELS[what]
    change(place)
    for module in (pretrain, finetune, ablation):
        assert re.search(message, command(module))


def test_a_config_from_which_to_train_may_not_ask_for_terabytes_either(command, place):
    config(hidden_size=2 ** 20, num_attention_heads=16, intermediate_size=2 ** 22)(place)
    line = command(pretrain, "--teacher", "none", "--config", place / "teacher")
    assert re.search(r"config.json: asks for 4 layers and [\d,.]+ GiB of weights; this machine has [\d.]+ GiB of memory", line)


@pytest.mark.parametrize("sizes", [{}, {"num_hidden_layers": 3, "intermediate_size": 50, "type_vocab_size": 3, "max_position_embeddings": 17}])
def test_the_size_that_is_compared_is_that_of_the_model(sizes):
    small = BertConfig(**{"vocab_size": 100, "hidden_size": 24, "num_attention_heads": 4, **sizes})
    assert count_weights(small) == sum(parameter.numel() for parameter in MaskedLM(small).parameters())


def test_a_padded_vocabulary_is_no_mistake(place):
    """As some models have it: the matrix is rounded up to a multiple of 64."""
    padded = -(-TINY.vocab_size // 64) * 64

    def grow(weights):
        return {name: torch.cat([x, torch.zeros(padded - len(x), *x.shape[1:])]) if len(x) == TINY.vocab_size else x for name, x in weights.items()}
    config(vocab_size=padded)(place), tensors(grow)(place)
    assert load_model(place / "teacher").head.bias.shape == (padded,) and load_tokenizer(place / "teacher").get_vocab_size() == TINY.vocab_size


# ---- Hostile files ----

class Code:
    """Unpickled, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("make", [lambda code, file: torch.save({"x": code}, file), lambda code, file: file.write_bytes(pickle.dumps(code)),
                                  lambda code, file: torch.save({"x": code}, file, _use_new_zipfile_serialization=False)])
def test_a_pickle_with_code_is_refused_and_its_code_not_run(command, place, tmp_path, make):
    (place / "teacher" / "model.safetensors").unlink()
    make(Code(tmp_path / "written"), place / "teacher" / "pytorch_model.bin")
    for module in (pretrain, finetune):
        assert "pytorch_model.bin: cannot be read as weights: it is not a pickle of tensors and plain values alone" in command(module)
    (tmp_path / "checkpoint").mkdir()
    make(Code(tmp_path / "written"), tmp_path / "checkpoint" / "checkpoint.pt")
    with pytest.raises(InputError, match="not run"):
        read_checkpoint(tmp_path / "checkpoint" / "checkpoint.pt")
    assert not (tmp_path / "written").exists()


def test_weights_that_would_expand_are_refused(command, place):
    """As torch.save lays it out, but compressed: 256 MB of zeros in 256 kB."""
    (place / "teacher" / "model.safetensors").unlink()
    plain, packed = io.BytesIO(), place / "teacher" / "pytorch_model.bin"
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(8_000_000, 8)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < 1_000_000
    assert "pytorch_model.bin: cannot be read as weights: its records are compressed, which torch.save never does" in command(pretrain)


def make_zip(file, entries):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, kind in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = {"file": 0o100644, "link": 0o120777, "device": 0o020644}[kind] << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


def make_tar(file, entries):
    with tarfile.open(file, "w:gz") as archive:
        for name, data, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}[kind]
            info.size, info.linkname = len(data) if kind == "file" else 0, data.decode() if "link" in kind else ""
            archive.addfile(info, io.BytesIO(data))


GOOD_ENTRIES = [("CoLA/train.tsv", os.urandom(3000).hex().encode(), "file"), ("CoLA/original/raw.txt", b"x" * 50, "file")]
HOSTILE = {
    "an absolute path": (("/tmp/hostile", b"x", "file"), "may lead out of the folder; refused"),
    "a path upwards": (("CoLA/../../hostile", b"x", "file"), "may lead out of the folder; refused"),
    "a backslash": (("..\\hostile", b"x", "file"), "may lead out of the folder; refused"),
    "a link": (("CoLA/link", b"/etc/passwd", "link"), "is a link or a device, not a file; refused"),
    "a device": (("CoLA/null", b"", "device"), "is a link or a device, not a file; refused"),
    "a bomb": (("CoLA/dev.tsv", bytes(30_000_000), "file"), "unpacks to more than 100 times its size; refused"),
    "a hard link": (("CoLA/link", b"CoLA/train.tsv", "hard link"), "is a link or a device, not a file; refused"),
    "a pipe": (("CoLA/pipe", b"", "pipe"), "is a link or a device, not a file; refused"),
    "a name twice": (("CoLA/train.tsv", b"x", "file"), "damaged, or no .zip or .tar.gz"),
    "a file as a folder": (("CoLA/train.tsv/x", b"x", "file"), "damaged, or no .zip or .tar.gz"),
}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_is_unpacked_whole_and_only_once(tmp_path, make, refused, capsys):
    archive, folder = tmp_path / "archive", tmp_path / "data"
    make(archive, GOOD_ENTRIES)
    unpack.main([str(archive), "--data_dir", str(folder)])
    for name, data, _ in GOOD_ENTRIES:
        assert (folder / name).read_bytes() == data
    assert [path.name for path in folder.iterdir()] == ["CoLA"]
    assert "data holds CoLA already; move it away first" in refused(unpack, archive, "--data_dir", folder)
    assert [path.name for path in folder.iterdir()] == ["CoLA"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, what", [(make, what) for what in HOSTILE for make in (make_zip, make_tar) if make is make_tar or what not in ("a hard link", "a pipe")])
def test_a_hostile_archive_leaves_nothing(tmp_path, make, what, refused):
    archive, folder = tmp_path / "archive", tmp_path / "a" / "b" / "data"
    entry, message = HOSTILE[what]
    make(archive, [*GOOD_ENTRIES, entry])
    assert message in refused(unpack, archive, "--data_dir", folder)
    assert list(folder.iterdir()) == [] and sorted(path.name for path in tmp_path.rglob("*")) == ["a", "archive", "b", "data"]
    assert not Path("/tmp/hostile").exists()


def test_a_header_that_is_a_bomb(tmp_path, refused):
    """A .tar.gz whose extended header alone is 200 MB of nothing."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 200_000_000
    with gzip.open(tmp_path / "archive.tar.gz", "wb", compresslevel=9) as file:
        file.write(header.tobuf())
        for _ in range(200):
            file.write(bytes(1_000_000))
    assert "unpacks to more than 100 times its size" in refused(unpack, tmp_path / "archive.tar.gz", "--data_dir", tmp_path / "data")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_damaged_archive_is_refused(tmp_path, make, refused):
    archive = tmp_path / "archive"
    make(archive, GOOD_ENTRIES)
    whole = archive.read_bytes()
    for data in (b"", b"<html>404</html>", whole[:len(whole) // 2], whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]):
        archive.write_bytes(data)
        assert "archive: damaged, or no .zip or .tar.gz" in refused(unpack, archive, "--data_dir", tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []
    assert "absent: no such file" in refused(unpack, tmp_path / "absent", "--data_dir", tmp_path / "data")


# ---- Random bytes ----

anything = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TABLE_LIKE = st.text(alphabet="01\t\n\r\"' abé\0\ufeff\u2028", max_size=200).map(lambda text: text.encode("utf-8"))


def read_or_refuse(read):
    try:
        return read()
    except InputError as error:
        assert str(error)
        return None


@anything
@given(st.one_of(st.binary(max_size=300), TABLE_LIKE), st.sampled_from(["cola", "mrpc", "mnli", "sst2", "stsb"]), st.booleans())
def test_tables_of_random_bytes(tmp_path, data, task, with_header):
    header = "\t".join([*map(str, TASKS[task].text), str(TASKS[task].label)]).encode() + b"\n" if with_header else b""
    file = tmp_path / "train.tsv"
    file.write_bytes(header + data)
    examples = read_or_refuse(lambda: read_tsv(file, TASKS[task]))
    if examples is not None:  # a row a line
        text = (header + data).decode("utf-8-sig")
        assert len(examples) == len(text.removesuffix("\n").split("\n")) - (task != "cola")


@anything
@given(st.one_of(st.binary(max_size=400), st.text(alphabet="ab \n\r\0\ufeff\u2028", max_size=300).map(str.encode)))
def test_text_of_random_bytes(tmp_path, tokenizer, data):
    (tmp_path / "text.txt").write_bytes(data)
    tokens = read_or_refuse(lambda: corpus_tokens([tmp_path / "text.txt"], tokenizer, tmp_path / "cache"))
    if tokens is not None:
        assert tokens.max() < tokenizer.get_vocab_size() and tokens[-1] == tokenizer.token_to_id("[SEP]")
    assert not list((tmp_path / "cache").glob("*.tmp*"))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
FILES = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]


@anything
@given(st.data())
def test_model_folders_with_random_files(world, tmp_path_factory, data):
    """Random bytes, random JSON, a field of random JSON, or one bit turned, in place of any file of a model."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(world / "teacher", folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(FILES))
    if name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (folder / "model.safetensors").unlink()
    if name in ("vocab.txt", "tokenizer_config.json"):
        (folder / "tokenizer.json").unlink()
    before = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
    how = data.draw(st.sampled_from(["bytes", "json", "field", "bit"]))
    if how == "bytes":
        new = data.draw(st.binary(max_size=200))
    elif how == "json":
        new = json.dumps(data.draw(JSON)).encode()
    elif how == "field" and name.endswith(".json"):
        fields = json.loads(before)
        key = data.draw(st.sampled_from(sorted(fields) or ["weight_map"]))
        new = json.dumps({**fields, key: data.draw(JSON)}).encode()
    else:
        place = data.draw(st.integers(0, len(before) - 1))
        new = before[:place] + bytes([before[place] ^ 1 << data.draw(st.integers(0, 7))]) + before[place + 1:]
    (folder / name).write_bytes(new)
    for read in (lambda: load_model(folder), lambda: load_model(folder, Classifier, new=("pooler", "classifier")),
                 lambda: load_tokenizer(folder).encode_batch(["good film", ""]), lambda: read_config(folder)):
        read_or_refuse(read)


@anything
@given(st.data())
def test_run_folders_with_random_records(world, tmp_path_factory, data):
    """In place of run.json, checkpoint.pt and log.jsonl: the command goes on, or refuses, and never shows the run as done."""
    folder = tmp_path_factory.mktemp("run")
    content = st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode()),
                        st.dictionaries(st.sampled_from(["arguments", "made_of", "step", "seconds"]), JSON).map(lambda value: json.dumps(value).encode()),
                        JSON.map(saved), st.dictionaries(st.sampled_from(["arguments", "made_of", "step", "model", "made_with"]), JSON).map(saved))
    for name in data.draw(st.sets(st.sampled_from(["run.json", "checkpoint.pt", "started.json", "log.jsonl"]), min_size=1)):
        (folder / name).write_bytes(data.draw(content))
    args = finetune.read_arguments([str(x) for x in ("--model", world / "teacher", "--task", "cola", "--data_dir", world / "data", "--out_dir", folder, "--device", "cpu")])
    assert read_or_refuse(lambda: finetune.finished_run(args, {"code": "x"})) is None
    read_or_refuse(lambda: find_run(folder, args, {"code": "x"}))


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()
