"""demo.py on a real run folder: its words and labels are those of the models."""
import re

import pytest
import torch
from test_ablation import arguments

import ablation
from load_hf_weights import load_model, load_tokenizer
from model import Classifier
from support import demo


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    ablation.main(arguments(world, folder, "--tasks", "cola,mrpc", "--variants", "full,no_ce"))
    return folder


def test_fills_in_each_blank_with_the_likeliest_words_of_each_model(run, world, capsys):
    demo.main(["bas [MASK] film [MASK] .", "--run", str(run), "--best", "3"])
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2
    for place, table in zip((2, 4), tables):
        header, *rows = (re.split(r"  +(?=\D)|  +(?=\d+\.\d %)", line.strip()) for line in table.splitlines())
        assert header == ["teacher", "full", "no_ce"] and len(rows) == 3
    tokenizer = load_tokenizer(world / "teacher")
    ids = tokenizer.encode("bas [MASK] film [MASK] .", add_special_tokens=True).ids
    logits = load_model(run / "full" / "seed0").eval()(torch.tensor([ids]))[0, 4]
    for probability, word in zip(*logits.softmax(-1).topk(3)):
        assert f"{100 * probability:.1f} %  {tokenizer.id_to_token(int(word))}" in tables[1]


def test_classifies_with_the_fine_tuned_models(run, capsys):
    demo.main(["bas film .", "--text_b", "film .", "--task", "mrpc", "--run", str(run)])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split() == ["teacher", "full", "no_ce"] and len(lines) == 3
    tokenizer = load_tokenizer(run / "full" / "seed0" / "mrpc")
    a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("bas film .", "film ."))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = torch.tensor([[cls, *a, sep, *b, sep]])
    model = load_model(run / "full" / "seed0" / "mrpc", Classifier, num_labels=2).eval()
    probability = model(ids, torch.ones_like(ids), torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])).softmax(-1)[0, 1]
    assert f"{100 * probability:.1f} %  equivalent" in "\n".join(lines)


def test_one_model_alone(world, capsys):
    demo.main(["bas [MASK] zzz", "--run", str(world / "teacher")])
    printed = capsys.readouterr()
    assert printed.out.split()[0] == "teacher" and len(printed.out.strip().splitlines()) == 6
    assert "read as [UNK]: zzz" in printed.err


@pytest.mark.parametrize("more, message", [
    (["bas film"], r"the text has no \[MASK\] to fill in"),
    (["bas [MASK] " * 40], "the text has 82 tokens.*64 positions"),
    (["bas", "--task", "mrpc"], "--task mrpc reads two sentences: give --text_b too"),
    (["bas", "--task", "imdb"], "holds no model fine-tuned on imdb"),
    (["bas", "--task", "kola"], "--task: unknown task 'kola'; did you mean cola"),
    (["[MASK]", "--run", "nowhere"], "nowhere: holds no student of seed 0"),
    (["[MASK]", "--seed", "5"], "holds no student of seed 5"),
])
def test_nonsense_ends_in_one_line_and_status_2(run, refused, more, message):
    line = refused(demo, *more, *([] if "--run" in more else ["--run", run]))
    assert re.search(message, line), line
