"""The demo on a real experiment: the words and labels that it shows are those of the models."""
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_ablation import arguments

import ablation
from load_hf_weights import load_model, load_tokenizer
from model import Classifier
from support import demo


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    extra = f"extra={world / 'teacher'}"
    more = ("--tasks", "cola,mrpc", "--variants", "full,no_ce", "--also", extra)
    ablation.main(arguments(world, folder, *more))
    return folder


def test_fills_in_each_blank_with_the_likeliest_words_of_each_model(run, world, capsys):
    text = "bas [MASK] film [MASK] ."
    demo.main([text, "--run", str(run), "--best", "3"])
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2
    tokenizer = load_tokenizer(world / "teacher")
    ids = tokenizer.encode(text, add_special_tokens=True).ids
    full = load_model(run / "full" / "seed0").eval()
    for position, table in zip((2, 4), tables):
        header, *lines = table.splitlines()
        assert header.split() == ["teacher", "full", "no_ce"]
        values, words = full(torch.tensor([ids]))[0, position].softmax(-1).topk(3)
        assert len(lines) == 3
        for line, probability, word in zip(lines, values, words):
            assert line.count("%") == 3
            assert f"{100 * probability:.1f} %  {tokenizer.id_to_token(int(word))}" in line


def test_classifies_with_the_fine_tuned_models(run, capsys):
    pair = ("bas film .", "film .")
    demo.main([pair[0], "--text_b", pair[1], "--task", "mrpc", "--run", str(run)])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split() == ["teacher", "full", "extra", "no_ce"] and len(lines) == 3
    folder = run / "full" / "seed0" / "mrpc"
    tokenizer = load_tokenizer(folder)
    a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in pair)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = torch.tensor([[cls, *a, sep, *b, sep]])
    segments = torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])
    model = load_model(folder, Classifier, num_labels=2).eval()
    probability = model(ids, torch.ones_like(ids), segments).softmax(-1)[0, 1]
    assert f"{100 * probability:.1f} %  equivalent" in "\n".join(lines)


def test_one_model_alone(world, capsys):
    demo.main(["bas [MASK] zzz", "--run", str(world / "teacher")])
    printed = capsys.readouterr()
    assert printed.out.split()[0] == "teacher" and len(printed.out.strip().splitlines()) == 6
    assert "read as [UNK]: zzz" in printed.err


def test_finds_models_that_no_table_names_but_no_archived_ones(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copytree(copy / "full", copy / "a_new_variant")
    shutil.copytree(copy / "full", copy / "no_mlm~1")
    shutil.copytree(copy / "no_ce" / "seed0", copy / "no_cos" / "seed0~1")
    (copy / "world" / "seed0").mkdir(parents=True)

    students = demo.find_models(copy, None, 0)
    assert list(students) == ["teacher", "full", "a_new_variant", "no_ce"]
    fine_tuned = demo.find_models(copy, "cola", 0)
    assert list(fine_tuned) == ["teacher", "full", "a_new_variant", "extra", "no_ce"]
    for name, folder in fine_tuned.items():
        assert folder == copy / name / "seed0" / "cola"


def test_its_import_loads_no_plotting_and_no_statistics():
    code = "import sys, support.demo; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "support.demo" in loaded
    assert not loaded & {"matplotlib", "sklearn", "ablation"}


@pytest.mark.parametrize("more, message", [
    (["bas film"], r"the text has no \[MASK\] to fill in"),
    (["bas [MASK] " * 40], "the text has 82 tokens.*64 positions"),
    (["bas", "--task", "mrpc"], "--task mrpc reads two sentences: give --text_b too"),
    (["bas", "--task", "cola", "--text_b", "b"], "--task cola reads one text: leave --text_b out"),
    (["bas", "--task", "imdb"], "holds no model fine-tuned on imdb"),
    (["bas", "--task", "kola"], "--task: unknown task 'kola'; did you mean cola"),
    (["[MASK]", "--run", "nowhere"], "nowhere: holds no student of seed 0"),
    (["[MASK]", "--seed", "5"], "holds no student of seed 5"),
])
def test_nonsense_ends_in_one_line_and_status_2(run, refused, more, message):
    line = refused(demo, *more, *([] if "--run" in more else ["--run", run]))
    assert re.search(message, line), line
