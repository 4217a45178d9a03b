"""Hugging Face's hub: models and WikiText through its own library, from a server on this machine.

The library reads its environment when it is imported. So all commands run in one new process,
once, and then in another one that is offline; the tests look at what they left.
"""
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from loopback_server import answer, glue_archive, hang_up, running_server, source_of, zipped
from safetensors.torch import load_file, save

from load_hf_weights import load_model
from model import Classifier

COMMIT = "0123456789" * 4
BASE = "google-bert/bert-base-uncased"

# Runs each (environment, module, *arguments) as a command, and prints [status, stdout, stderr].
RUN_COMMANDS = """
import contextlib, importlib, io, json, os, sys
from unittest import mock
from support import download
from support.cli import command_line

def captured():
    return io.TextIOWrapper(io.BytesIO())

def text_of(stream):
    stream.flush()
    return stream.buffer.getvalue().decode()

def run(environment, module, *arguments):
    status, out, err = 0, captured(), captured()
    with (mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", [module, *arguments])):
        try:
            command_line(importlib.import_module(module).main)
        except SystemExit as stop:
            status = stop.code
    return [status, text_of(out), text_of(err)]

given = json.load(sys.stdin)
download.SOURCES.update(given["sources"])
print(json.dumps([run(*command) for command in given["commands"]]))
"""


def run_commands(folder, server, sources, commands, **environment):
    """Run {name: (environment, module, *arguments)} in one new process, in this folder.

    Returns {name: (status, stdout, the last line of stderr)}."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
    own = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hub"),
           "DOWNLOAD_MIRROR": server.url, "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    given = json.dumps({"sources": sources, "commands": list(commands.values())})
    done = subprocess.run([sys.executable, "-c", RUN_COMMANDS], input=given, text=True, cwd=folder,
                          capture_output=True, env={**inherited, **own, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    results = {}
    for name, (status, out, err) in zip(commands, json.loads(done.stdout)):
        assert "Traceback" not in err
        assert "usage:" not in err
        results[name] = (status, out, err.replace("\r", "\n").strip().split("\n")[-1])
    return results


# ---- A stand-in for the hub ----

def serve_repository(server, name, files, kind="models"):
    """The hub's addresses of a repository: its list of files, its tree, and the files."""
    siblings = [{"rfilename": file, "size": len(body)} for file, body in files.items()]
    listing = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
    for path in ("", "/revision/main"):
        server.pages[f"/api/{kind}/{name}{path}"] = listing
    entries = []
    prefix = "" if kind == "models" else f"{kind}/"
    for file, body in files.items():
        digest = hashlib.sha256(body).hexdigest()
        entries.append({"type": "file", "path": file, "size": len(body), "oid": digest})
        for revision in ("main", COMMIT):
            server.pages[f"/{prefix}{name}/resolve/{revision}/{file}"] = answer(
                200, body, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
    server.pages[f"/api/{kind}/{name}/tree/{COMMIT}"] = json.dumps(entries).encode()


def serve_models(server, teacher):
    """teacher: {file: bytes} of a model that can be loaded."""
    weights = io.BytesIO()
    torch.save(load_file(teacher / "model.safetensors"), weights)
    files = {file.name: file.read_bytes() for file in teacher.iterdir()}
    other_files = {"pytorch_model.bin": b"x" * 1000, "modeling.py": b"raise SystemExit",
                   "tf_model.h5": b"x"}
    old = {"config.json": files["config.json"], "vocab.txt": files["vocab.txt"],
           "pytorch_model.bin": weights.getvalue()}
    pooled = load_file(teacher / "model.safetensors")
    pooled["bert.pooler.dense.weight"] = torch.full((32, 32), 0.25)
    pooled["bert.pooler.dense.bias"] = torch.full((32,), 0.5)
    gpt = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"x"}

    serve_repository(server, "tiny/bert", {**files, **other_files})
    serve_repository(server, "tiny/old", old)
    serve_repository(server, "tiny/gpt", gpt)
    serve_repository(server, "tiny/pooled", {**files, "model.safetensors": save(pooled)})
    serve_repository(server, "tiny/added", {**files, "added_tokens.json": b'{"later": 9999}'})
    serve_repository(server, "tiny/gated", files)
    serve_repository(server, BASE, files)
    for revision in ("main", COMMIT):
        for file in files:
            server.pages[f"/tiny/gated/resolve/{revision}/{file}"] = answer(
                403, headers={"X-Error-Code": "GatedRepo"})
    server.pages["/api/models/tiny/hangs-up"] = hang_up
    server.pages["/api/models/tiny/page"] = answer(
        200, b"<html>Busy</html>", {"Content-Type": "text/html"})
    server.pages["/api/models/tiny/down"] = answer(503)


def serve_wikitext(server, name):
    """The entry of SOURCES for a miniature WikiText, which is then on the hub."""
    body = zipped({f"{name}-raw/wiki.{split}.raw": f"some words of {split}\n"
                   for split in ("train", "valid", "test")})
    entry = source_of(name, body)
    owner, repository, file = entry[0][0].removeprefix("hf://datasets/").split("/")
    serve_repository(server, f"{owner}/{repository}", {file: body}, "datasets")
    return entry


def serve_everything(server, world):
    """Models, CoLA and WikiText. Returns the entries of SOURCES."""
    serve_models(server, world / "teacher")
    cola = glue_archive(world, "CoLA")
    sources = {"cola": source_of("cola", cola)}
    server.pages["/glue/data/CoLA.zip"] = cola
    for name in ("wikitext-2", "wikitext-103"):
        sources[name] = serve_wikitext(server, name)
    url, _, _ = sources["wikitext-2"][0]
    sources["rte"] = [(url, None, "0" * 64)]  # a file with another sha256
    return sources


# ---- The commands ----

def fetch_model(name, out, **environment):
    return environment, "load_hf_weights", name, "--out", out


def fetch_data_set(name):
    return {}, "support.download", name, "--data_dir", "data"


def preset_base(pretrain_args):
    return ({}, "ablation", "--preset", "base", "--tasks", "cola",
            f"--pretrain_args={pretrain_args}", "--finetune_args=--max_length 32")


COMMANDS = {  # in this order
    "bert":       fetch_model("tiny/bert", "bert"),
    "again":      fetch_model("tiny/bert", "bert"),
    "old":        fetch_model("tiny/old", "old/"),
    "pooled":     fetch_model("tiny/pooled", "pooled"),
    "here":       fetch_model("tiny/bert", "."),
    "absent":     fetch_model("tiny/absent", "x"),
    "gated":      fetch_model("tiny/gated", "x"),
    "gpt":        fetch_model("tiny/gpt", "x"),
    "added":      fetch_model("tiny/added", "x"),
    "no name":    fetch_model("a/b/c", "x"),
    "hangs up":   fetch_model("tiny/hangs-up", "x"),
    "page":       fetch_model("tiny/page", "x"),
    "down":       fetch_model("tiny/down", "x"),
    "plain http": fetch_model("tiny/bert", "x", HF_ENDPOINT="http://example.com"),
    "no address": fetch_model("tiny/bert", "x", HF_ENDPOINT="https://["),
    "wikitext":   fetch_data_set("wikitext-2"),
    "sha256":     fetch_data_set("rte"),
    "base, wrong": preset_base("--steps -1"),
    "base":        preset_base("--max_length 65"),  # refused, but only after the downloads
    "base, again": preset_base("--max_length 65"),
}
OFFLINE_COMMANDS = {
    "bert":     fetch_model("tiny/bert", "offline"),
    "absent":   fetch_model("tiny/absent", "x"),
    "wikitext": fetch_data_set("wikitext-103"),
}


@pytest.fixture(scope="module")
def hub(world, tmp_path_factory):
    """What all commands left: the folder in which they ran, what run_commands returned online and
    offline, and the paths that were requested (asked, asked_offline)."""
    folder = tmp_path_factory.mktemp("hub")
    with running_server() as server:
        sources = serve_everything(server, world)
        online = run_commands(folder, server, sources, COMMANDS)
        asked = {path for _, path, _ in server.seen}
        server.seen.clear()
        offline = run_commands(folder, server, sources, OFFLINE_COMMANDS, HF_HUB_OFFLINE="1")
        asked_offline = {path for _, path, _ in server.seen}
    return SimpleNamespace(folder=folder, online=online, asked=asked, offline=offline,
                           asked_offline=asked_offline)


# ---- Models ----

def test_a_model_arrives_after_its_size_was_printed(hub):
    status, out, line = hub.online["bert"]
    assert status == 0, line
    assert re.search(r"tiny/bert: 5 files, 0.\d MB\n.*bert: tiny/bert, 4 layers, hidden size 32",
                     out, re.DOTALL)


@pytest.mark.parametrize("folder", ["bert", "old", "runs/models/bert-base-uncased"])
def test_the_weights_are_those_on_the_hub(hub, world, folder):
    ours = load_file(hub.folder / folder / "model.safetensors")
    theirs = load_file(world / "teacher" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])


def test_a_pooler_is_kept_for_fine_tuning(hub):
    assert hub.online["pooled"][0] == 0, hub.online["pooled"]
    model = load_model(hub.folder / "pooled", Classifier, new=("pooler", "classifier"),
                       num_labels=2)
    assert (model.pooler.dense.weight == 0.25).all() and (model.pooler.dense.bias == 0.5).all()


def test_only_config_vocabulary_and_one_format_of_the_weights_are_fetched(hub):
    assert not [path for path in hub.asked if path.endswith((".py", ".h5"))]
    of_bert = [path for path in hub.asked if path.startswith("/tiny/bert/")]
    assert of_bert
    assert not [path for path in of_bert if path.endswith(".bin")]


def test_the_weights_of_another_architecture_are_not_fetched(hub):
    of_gpt = [path for path in hub.asked if path.startswith("/tiny/gpt/")]
    assert of_gpt
    assert not [path for path in of_gpt if path.endswith("model.safetensors")]


@pytest.mark.parametrize("command, message", [
    ("here", "--out .: is the current folder; name a new one in it"),
    ("again", "bert: is there already, and not an empty folder"),
    ("absent", "tiny/absent: no local folder, and no public repository"),
    ("gated", "tiny/gated: gated: accept its terms"),
    ("gpt", "config.json: model_type is 'gpt2'"),
    ("added", "'later' has the id 9999, .*there is a gap in its ids"),  # so that file is read
    ("no name", "a/b/c: neither a local folder nor a name on"),
    ("hangs up", "tiny/hangs-up: cannot be fetched .*Server disconnected.*same command resumes"),
    ("page", "tiny/page: cannot be fetched from"),
    ("down", "tiny/down: cannot be fetched from .*503"),
    ("plain http", "http://example.com is refused: use https"),
    ("no address", r"https://\[: not an address .Invalid IPv6 URL"),
    ("sha256", "wikitext-2-raw-v1.zip: the file has an unexpected sha256"),
    ("base, wrong", "--steps: -1 is not"),
    ("base", "--max_length 65: .* has 64 positions"),
    ("base, again", "--max_length 65: .* has 64 positions"),
])
def test_what_cannot_be_fetched_is_refused_in_one_line(hub, command, message):
    status, _, line = hub.online[command]
    assert status == 2
    assert re.search(message, line)
    assert not (hub.folder / "x").exists()


# ---- Data sets ----

def test_wikitext_arrives(hub):
    assert hub.online["wikitext"][0] == 0
    text = (hub.folder / "data/wikitext-2-raw/wiki.valid.raw").read_text()
    assert text == "some words of valid\n"


# ---- The preset that fetches what it needs ----

def test_preset_base_says_what_it_fetches_and_fetches_it_once(hub):
    expected = (f"To be fetched first: {BASE} (440 MB) into runs/models/bert-base-uncased; "
                "cola (0.0 MB), wikitext-103 (0.0 MB): 0.0 MB, into runs/data\n")
    assert hub.online["base"][1].startswith(expected)
    assert "fetch" not in hub.online["base, again"][1]
    folders = {path.name for path in (hub.folder / "runs/data").iterdir()}
    assert folders == {"CoLA", "wikitext-103-raw"}


def test_preset_base_checks_the_arguments_before_it_fetches(hub):
    assert "fetch" not in hub.online["base, wrong"][1]


# ---- Offline ----

def test_offline_the_cache_is_used_and_nothing_requested(hub):
    assert hub.offline["bert"][0] == 0
    offline, online = (hub.folder / folder / "model.safetensors" for folder in ("offline", "bert"))
    assert offline.read_bytes() == online.read_bytes()
    assert hub.offline["wikitext"][0] == 0
    assert (hub.folder / "data/wikitext-103-raw/wiki.test.raw").exists()
    assert not hub.asked_offline


def test_offline_a_model_that_is_not_in_the_cache_is_refused(hub):
    status, _, line = hub.offline["absent"]
    assert status == 2
    assert "tiny/absent: not in the hub library's cache, and HF_HUB_OFFLINE is set" in line
