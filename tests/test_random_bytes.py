"""Random bytes in place of any file that the commands read: it is read, or refused in one line.

Written with hypothesis. Mistakes that people make have their own tests: test_bad_input.py.
"""
import io
import json
import shutil

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import finetune
from load_hf_weights import load_model, load_tokenizer, read_config
from model import Classifier
from support.corpus import corpus_tokens
from support.errors import InputError
from support.run_folder import find_run
from support.tasks import TASKS, read_tsv

anything = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

TABLES = st.text(alphabet="01\t\n\r\"' abé\0\ufeff\u2028", max_size=200).map(str.encode)
TEXTS = st.text(alphabet="ab \n\r\0\ufeff\u2028", max_size=300).map(str.encode)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


def containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


JSON = st.recursive(SCALARS, containers, max_leaves=6)


def json_bytes(value):
    return json.dumps(value).encode()


def torch_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def records_with(keys):
    """Objects that have some of these keys, as a strategy."""
    return st.dictionaries(st.sampled_from(keys), JSON)


RUN_KEYS = ["arguments", "made_of", "step", "seconds"]
CHECKPOINT_KEYS = ["arguments", "made_of", "step", "model", "made_with"]
RECORDS = st.one_of(
    st.binary(max_size=200),
    JSON.map(json_bytes),
    records_with(RUN_KEYS).map(json_bytes),
    JSON.map(torch_bytes),
    records_with(CHECKPOINT_KEYS).map(torch_bytes),
)
RECORD_FILES = ["run.json", "checkpoint.pt", "started.json", "log.jsonl"]

MODEL_FILES = [
    "config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
]
OTHER_WEIGHTS = ("pytorch_model.bin", "model.safetensors.index.json")
OTHER_VOCABULARY = ("vocab.txt", "tokenizer_config.json")


def read_or_refuse(read):
    """What read() returns; None if it raises InputError. Anything else it raises is a failure."""
    try:
        return read()
    except InputError as error:
        assert str(error)
        return None


@anything
@given(st.one_of(st.binary(max_size=300), TABLES),
       st.sampled_from(["cola", "mrpc", "mnli", "sst2", "stsb"]), st.booleans())
def test_a_table_of_random_bytes_is_refused_or_has_an_example_per_line(
        tmp_path, content, task, with_header):
    if with_header:
        columns = [*TASKS[task].text, TASKS[task].label]
        content = "\t".join(map(str, columns)).encode() + b"\n" + content
    file = tmp_path / "train.tsv"
    file.write_bytes(content)
    examples = read_or_refuse(lambda: read_tsv(file, TASKS[task]))
    if examples is not None:
        lines = content.decode("utf-8-sig").split("\n")
        while lines and lines[-1] in ("", "\r"):
            lines.pop()
        header_lines = 0 if task == "cola" else 1
        assert len(examples) == len(lines) - header_lines


@anything
@given(st.one_of(st.binary(max_size=400), TEXTS))
def test_a_corpus_of_random_bytes_is_refused_or_becomes_tokens(tmp_path, tokenizer, content):
    corpus, cache = tmp_path / "text.txt", tmp_path / "cache"
    corpus.write_bytes(content)
    tokens = read_or_refuse(lambda: corpus_tokens([corpus], tokenizer, cache))
    if tokens is not None:
        assert tokens.max() < tokenizer.get_vocab_size()
        assert tokens[-1] == tokenizer.token_to_id("[SEP]")
    assert not list(cache.glob("*.tmp*"))


def random_content(data, name, before):
    """Random bytes, random JSON, one field of random JSON, or one bit flipped."""
    how = data.draw(st.sampled_from(["bytes", "json", "field", "bit"]))
    if how == "bytes":
        return data.draw(st.binary(max_size=200))
    if how == "json":
        return json_bytes(data.draw(JSON))
    if how == "field" and name.endswith(".json"):
        fields = json.loads(before)
        key = data.draw(st.sampled_from(sorted(fields) or ["weight_map"]))
        return json_bytes({**fields, key: data.draw(JSON)})
    place = data.draw(st.integers(0, len(before) - 1))
    flipped = before[place] ^ 1 << data.draw(st.integers(0, 7))
    return before[:place] + bytes([flipped]) + before[place + 1:]


@anything
@given(st.data())
def test_a_model_folder_with_a_random_file_is_read_or_refused(world, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(world / "teacher", folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(MODEL_FILES))
    if name in OTHER_WEIGHTS:
        (folder / "model.safetensors").unlink()
    if name in OTHER_VOCABULARY:
        (folder / "tokenizer.json").unlink()
    file = folder / name
    before = file.read_bytes() if file.exists() else b"{}"
    file.write_bytes(random_content(data, name, before))

    read_or_refuse(lambda: load_model(folder))
    read_or_refuse(lambda: load_model(folder, Classifier, new=("pooler", "classifier")))
    read_or_refuse(lambda: load_tokenizer(folder).encode_batch(["good film", ""]))
    read_or_refuse(lambda: read_config(folder))


@anything
@given(st.data())
def test_a_run_folder_with_random_records_never_counts_as_finished(world, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    for name in data.draw(st.sets(st.sampled_from(RECORD_FILES), min_size=1)):
        (folder / name).write_bytes(data.draw(RECORDS))
    arguments = ("--model", world / "teacher", "--task", "cola", "--data_dir", world / "data",
                 "--out_dir", folder, "--device", "cpu")
    args = finetune.read_arguments([str(argument) for argument in arguments])
    code = {"code": "x"}
    assert read_or_refuse(lambda: finetune.finished_run(args, code)) is None
    read_or_refuse(lambda: find_run(folder, args, code))
