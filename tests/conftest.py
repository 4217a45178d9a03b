"""A miniature world in the real layouts: a random teacher, a corpus, CoLA, MNLI, MRPC, SST-2 and reviews. Seconds, no network."""
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "true"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &, and so by all that the tests would interrupt

from load_hf_weights import load_tokenizer, save_model
from model import BertConfig, MaskedLM
from support.cli import command_line

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "fine", "great", "bright"], ["bad", "poor", "awful", "dull"]
WORDS = [f"{a}{b}{c}" for a in "bdklmr" for b in "aeiou" for c in "nst"] + GOOD + BAD + list("abcdefgh.,'\"") + ["##s", "##ing", "film"]
SHARED = Path(os.environ.get("BERT_DATA", ROOT.parent / "shared"))

TINY = BertConfig(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
                  max_position_embeddings=64)


def sentence(rng, words=WORDS[:90], low=4, high=12):
    return " ".join(rng.choices(words, k=rng.randint(low, high)))


def write_task_files(folder, rng, rows=64):
    """Tasks that can be learnt: the label is whether the text holds praise or blame; pairs, whether the sentences are equal."""
    def labelled(i):
        return f"{sentence(rng)} {rng.choice((BAD, GOOD)[i % 2])} {sentence(rng, low=1, high=3)}"

    def pair(i):
        first = sentence(rng)
        return first, first if i % 2 else sentence(rng)
    for name in ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"):
        (folder / "glue_data" / name).mkdir(parents=True)
    glue = folder / "glue_data"
    for split in ("train", "dev"):
        (glue / "CoLA" / f"{split}.tsv").write_text("".join(f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\t{labelled(i)}\n" for i in range(rows)))
        (glue / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(f"{labelled(i)} \t{i % 2}\n" for i in range(rows)))
        (glue / "MRPC" / f"{split}.tsv").write_text("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(
            f"{i % 2}\t{i}\t{i}\t" + "\t".join(pair(i)) + "\n" for i in range(rows)), encoding="utf-8")
        for name, columns, labels in (
                ("QNLI", "index question sentence label", ("not_entailment", "entailment")), ("QQP", "id qid1 qid2 question1 question2 is_duplicate", "01"),
                ("RTE", "index sentence1 sentence2 label", ("not_entailment", "entailment")), ("WNLI", "index sentence1 sentence2 label", "01"),
                ("STS-B", "index genre filename year old_index source1 source2 sentence1 sentence2 score", ("0.500", "4.75"))):
            (glue / name / f"{split}.tsv").write_text(columns.replace(" ", "\t") + "\n" + "".join(
                "\t".join([*["x"] * (columns.count(" ") - 2), *pair(i), labels[i % 2]]) + "\n" for i in range(rows)))
    for name, columns in {"CoLA/test": "index sentence", "SST-2/test": "index sentence", "MRPC/test": "index #1 ID #2 ID #1 String #2 String",
                          "MNLI/test_matched": "index sentence1 sentence2", "MNLI/test_mismatched": "index sentence1 sentence2", "QNLI/test": "index question sentence",
                          "QQP/test": "id question1 question2", "RTE/test": "index sentence1 sentence2", "STS-B/test": "index sentence1 sentence2",
                          "WNLI/test": "index sentence1 sentence2"}.items():
        texts, between = 1 if columns == "index sentence" else 2, 2 if "ID" in columns else 0
        columns = columns.replace(" ID", "_ID").replace(" String", "_String").replace(" ", "\t").replace("_", " ")
        (glue / f"{name}.tsv").write_text(columns + "\n" + "".join(
            "\t".join([str(i), *["9"] * between, *pair(i)[:texts]]) + "\n" for i in range(20)))
    for name in ("train", "dev_matched", "dev_mismatched"):
        labels = [] if name == "train" else [f"label{k}" for k in range(2, 6)]
        (glue / "MNLI" / f"{name}.tsv").write_text(
            "\t".join(["index", "promptID", "pairID", "genre", "p1", "p2", "q1", "q2", "sentence1", "sentence2", "label1", *labels, "gold_label"]) + "\n"
            + "".join("\t".join([*["x"] * 8, *pair(i), *[("neutral", "entailment", "contradiction")[i % 3]] * (2 + len(labels))]) + "\n" for i in range(rows)))
    (glue / "MNLI" / "README.txt").write_text("Not MultiNLI: the tiny pairs (random words), in its layout.\n")
    for split in ("train", "test"):
        for number, name in enumerate(("neg", "pos")):
            (folder / "aclImdb" / split / name).mkdir(parents=True)
            for i in range(rows // 4):
                (folder / "aclImdb" / split / name / f"{i}_{1 + 9 * number}.txt").write_text(f"{labelled(number)}<br /><br />{labelled(number)}")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder: teacher/, corpus.txt, heldout.txt, data/."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    (folder / "teacher").mkdir()
    (folder / "teacher" / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    torch.manual_seed(0)
    teacher = MaskedLM(TINY)
    for parameter in teacher.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6  # random weights, but large: an opinion on every word, to be distilled
    save_model(teacher, load_tokenizer(folder / "teacher"), folder / "teacher")
    for name, documents in (("corpus.txt", 60), ("heldout.txt", 15)):
        (folder / name).write_text("\n".join("\n".join(sentence(rng) for _ in range(8)) + "\n" for _ in range(documents)))
    write_task_files(folder / "data", rng)
    return folder


def no_dropout(world, folder):
    """The teacher, with a config that knows no dropout."""
    folder.mkdir()
    for file in (world / "teacher").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return folder


@pytest.fixture
def tokenizer(world):
    return load_tokenizer(world / "teacher")


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(module, arguments) -> the one line that a command prints when it refuses to run; it must end with status 2."""
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command_line(module.main)
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert "usage:" not in printed and "Traceback" not in printed
        return printed.replace("\r", "\n").strip().splitlines()[-1]
    return run
