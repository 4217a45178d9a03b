"""pretrain.py, run for real on the miniature world."""
import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, no_dropout
from short_runs import largest_difference, log_of, pretrain_arguments, weights_of

import pretrain
from ablation import EXTENDED
from load_hf_weights import load_model, load_tokenizer, read_config
from losses import LOSSES
from model import chosen_layers, make_student
from support.errors import InputError
from support.files import read_json
from support.heldout import HELDOUT_BLOCKS, MLM_PROB
from support.seeds import HELDOUT_MASKS
from support.training_run import learning_rate

FILES = ["config.json", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json",
         "tokenizer_config.json", "vocab.txt"]


@pytest.fixture
def distil(world, tmp_path):
    """distil(name, more arguments) -> the record; the run's folder is tmp_path / name."""
    def run(name, *more, teacher=None):
        return pretrain.main(pretrain_arguments(world, tmp_path / name, *more, teacher=teacher))
    return run


# ---- What a run does ----

@pytest.mark.check
def test_distillation_brings_the_student_nearer_to_its_teacher(distil, tmp_path):
    record = distil("run", "--steps", 60, "--lr", "3e-3")
    before, after = record["heldout_before"], record["heldout_after"]
    assert after["kl"] < 0.7 * before["kl"]
    assert after["cosine_distance"] < 0.7 * before["cosine_distance"]
    assert after["mlm_loss"] < before["mlm_loss"]
    assert before["teacher_mlm_accuracy"] == after["teacher_mlm_accuracy"]

    first, *_, last = [line for line in log_of(tmp_path / "run") if "ce" in line]
    assert all(first[name] > 0 for name in ("ce", "mlm", "cos"))
    assert first["cos"] > last["cos"]


def test_a_run_leaves_a_model_its_record_and_its_log(distil, tmp_path):
    record = distil("run", "--steps", 31)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert record == read_json(folder / "run.json")
    assert record["arguments"]["steps"] == 31
    assert record["made_with"]["torch"] == torch.__version__
    assert read_config(folder).num_hidden_layers == TINY.num_hidden_layers // 2
    heldout_before, *steps, heldout_after = log_of(folder)
    assert heldout_before == {"step": 0, "heldout": record["heldout_before"]}
    assert heldout_after == {"step": 31, "heldout": record["heldout_after"]}
    assert [line["step"] for line in steps] == [0, 10, 20, 30]
    assert list(steps[0]) == ["step", "lr", "cos", "ce", "mlm"]


def test_from_scratch_learns_the_language(distil, world, tmp_path):
    record = distil("scratch", "--config", world / "teacher", "--steps", 60, "--lr", "3e-3",
                    teacher="none")
    before, after = record["heldout_before"], record["heldout_after"]
    assert after["mlm_loss"] < before["mlm_loss"] - 0.1
    assert set(after) == {"mlm_loss", "mlm_accuracy"}
    assert read_config(tmp_path / "scratch").num_hidden_layers == TINY.num_hidden_layers


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(distil, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distil(name, "--seed", seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_micro_batches_and_chunks_change_nothing(distil, world, tmp_path):
    """With few masks: micro-batches and chunks have unequal numbers of them, some none."""
    teacher = no_dropout(world, tmp_path / "teacher")
    more = ("--mlm_prob", 0.05, "--log_every", 1)
    distil("whole", *more, "--chunk_tokens", 0, teacher=teacher)
    distil("parts", *more, "--grad_accum", 3, teacher=teacher)
    for whole, parts in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts")):
        for name in whole.keys() & {"ce", "mlm", "cos"}:
            assert whole[name] == pytest.approx(parts[name], rel=1e-4)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert largest_difference(whole, parts) <= 2e-5
    at_start = make_student(load_model(teacher)).state_dict()
    assert largest_difference(whole, at_start) > 1e-3  # it has moved at all


def test_bf16_follows_fp32(distil, tmp_path):
    curves = {}
    for precision in ("fp32", "bf16"):
        distil(precision, "--steps", 30, "--lr", "2e-3", "--precision", precision,
               "--log_every", 1)
        steps = [line for line in log_of(tmp_path / precision) if "ce" in line]
        curves[precision] = torch.tensor([[line["ce"], line["mlm"], line["cos"]]
                                          for line in steps])
    assert curves["bf16"].allclose(curves["fp32"], rtol=0.05, atol=0.01)
    assert not curves["bf16"].equal(curves["fp32"])


def test_a_step_without_a_masked_token_is_no_error(distil, tmp_path):
    distil("none", "--mlm_prob", 0, "--log_every", 1)
    first_step = log_of(tmp_path / "none")[1]
    assert first_step["mlm"] == 0 and first_step["ce"] > 0
    distil("all", "--mlm_prob", 1)


def test_a_loss_that_is_not_finite_stops_the_run(distil, tmp_path):
    with pytest.raises(InputError, match="not a finite number"):
        distil("run", "--lr", "1e30", "--steps", 40, "--clip", "1e30", "--log_every", 1)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_zero_steps_leave_the_student_as_it_is_made(distil, world, tmp_path):
    record = distil("run", "--steps", 0)
    assert record["heldout_before"] == record["heldout_after"]
    made = make_student(load_model(world / "teacher"))
    kept = load_model(tmp_path / "run").state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in made.state_dict().items())


def test_a_run_never_overwrites_the_model_it_reads(distil, world):
    before = (world / "teacher" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="teacher, which is read; choose another"):
        distil(world / "teacher")
    assert (world / "teacher" / "model.safetensors").read_bytes() == before


def test_learning_rate():
    rates = [learning_rate(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and max(rates) == 2.0
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] == pytest.approx(2 / 95)
    assert learning_rate(0, 1, 2.0, 0.0) == 2.0


# ---- The held-out measures ----

def test_the_heldout_measures_against_numpy(distil, world):
    """From the full logits of every block at once."""
    record = distil("run", "--steps", 20, "--lr", "3e-3")
    args = argparse.Namespace(**record["arguments"])
    _, blocks = pretrain.load_blocks(args, load_tokenizer(world / "teacher"))
    numbers = np.unique(np.linspace(0, blocks.count - 1, HELDOUT_BLOCKS, dtype=int))
    keys = [(HELDOUT_MASKS, number) for number in numbers]
    input_ids, labels = blocks.masked(numbers, MLM_PROB, keys)
    s, h_s = log_probabilities_and_hidden(Path(args.out_dir), input_ids)
    t, h_t = log_probabilities_and_hidden(world / "teacher", input_ids)

    masked = labels.numpy() != -100
    words = labels.numpy()[masked]
    guesses, teacher_guesses = s[masked].argmax(-1), t[masked].argmax(-1)
    norms = np.linalg.norm(h_s, axis=-1) * np.linalg.norm(h_t, axis=-1)
    expected = {
        "mlm_loss": -np.mean(s[masked, words]),
        "mlm_accuracy": np.mean(guesses == words),
        "teacher_mlm_accuracy": np.mean(teacher_guesses == words),
        "teacher_agreement": np.mean(guesses == teacher_guesses),
        "kl": np.mean((np.exp(t) * (t - s)).sum(-1)),
        "cosine_distance": np.mean(1 - (h_s * h_t).sum(-1) / norms),
    }
    assert record["heldout_after"] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def log_probabilities_and_hidden(folder, input_ids):
    """((batch, length, vocab), (batch, length, hidden)), in numpy, in double precision."""
    model = load_model(folder).eval()
    log_probabilities = model(input_ids).double().log_softmax(-1)
    return log_probabilities.numpy(), model.bert(input_ids).double().numpy()


# ---- Losses and layers ----

@pytest.mark.parametrize("choice, layers", [
    (None,       [0, 2, 4, 7, 9, 11]),
    ("even",     [0, 2, 4, 6, 8, 10]),
    ("odd",      [1, 3, 5, 7, 9, 11]),
    ("first",    [0, 1, 2, 3, 4, 5]),
    ("last",     [6, 7, 8, 9, 10, 11]),
    ("evenly:6", [0, 2, 4, 7, 9, 11]),
    ("evenly:4", [0, 4, 7, 11]),
    ("evenly:3", [0, 6, 11]),
    ("evenly:1", [0]),
    ("3,3",      [3, 3]),
])
def test_which_layers_a_choice_means(choice, layers):
    assert chosen_layers(choice and pretrain.layer_choice(choice), 12) == layers


@pytest.mark.parametrize("name", EXTENDED)
def test_every_extended_variant_can_be_trained(distil, name):
    changes = EXTENDED[name][1]
    if name == "depth_6":  # the teacher has 4 layers
        changes = ["--layers", "evenly:4"]
    record = distil(name, *changes, "--steps", 2)
    assert np.isfinite(record["heldout_after"]["kl"])
    weights = {"ce": 5.0, "mlm": 2.0, "cos": 1.0}
    if name == "weights_111":
        weights = {"ce": 1.0, "mlm": 1.0, "cos": 1.0}
    assert record["arguments"]["weights"] == weights


@pytest.mark.parametrize("flags, weights", [
    ([],                                   {"ce": 5.0, "mlm": 2.0, "cos": 1.0}),
    (["--use_cos", 0],                     {"ce": 5.0, "mlm": 2.0}),
    (["--alpha_cos", 0],                   {"ce": 5.0, "mlm": 2.0}),
    (["--use_cos", 0, "--alpha_cos", 9],   {"ce": 5.0, "mlm": 2.0}),
    (["--alpha_mlm", 0.5, "--use_ce", 0],  {"mlm": 0.5, "cos": 1.0}),
    (["--teacher", "none", "--config", "x"], {"mlm": 2.0}),
])
def test_the_flags_of_a_loss_become_its_weight(world, tmp_path, flags, weights):
    args = pretrain.read_arguments(pretrain_arguments(world, tmp_path / "run", *flags))
    assert args.weights == weights
    assert not any(name.startswith(("use_", "alpha_")) for name in vars(args))


def couples_student_and_teacher(student_logits, teacher_logits):
    return 100 * (student_logits.mean(0) - teacher_logits.mean(0)).square().sum()


def couples_masked_tokens(student_logits, labels):
    return student_logits.mean(0).square().sum()


@pytest.mark.parametrize("name, formula, more", [
    ("ce",  couples_student_and_teacher, []),
    ("mlm", couples_masked_tokens,       ["--use_ce", 0, "--chunk_tokens", 256]),
])
def test_a_formula_that_couples_tokens_is_refused_in_chunks_and_allowed_without(
        distil, monkeypatch, name, formula, more):
    monkeypatch.setitem(LOSSES, name, (formula, 5.0))
    with pytest.raises(InputError, match=f"the loss {name} is .*--chunk_tokens 0"):
        distil("coupled", *more)
    distil("unchunked", *more, "--chunk_tokens", 0)


def test_a_formula_of_the_student_alone_needs_no_teacher(distil, world, tmp_path, monkeypatch):
    def norm(student_hidden):
        return student_hidden.square().mean()
    monkeypatch.setitem(LOSSES, "norm", (norm, 0.1))
    distil("scratch", "--config", world / "teacher", "--log_every", 1, teacher="none")
    assert {"mlm", "norm"} <= log_of(tmp_path / "scratch")[1].keys()


@pytest.mark.parametrize("formula, message", [
    (lambda student_logits, student_hidden: 0, "a formula can take student_logits"),
    (lambda logits: 0, "takes logits; a formula can take student_logits"),
])
def test_a_formula_that_asks_for_what_it_cannot_have_is_refused(
        distil, monkeypatch, tmp_path, formula, message):
    monkeypatch.setitem(LOSSES, "odd", (formula, 1.0))
    with pytest.raises(InputError, match=message):
        distil("run")
    assert not (tmp_path / "run").exists()


# ---- The command ----

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize("more, message", [
    ("--teacher nowhere",     "nowhere: no such folder"),
    ("--corpus nowhere.txt",  "nowhere.txt: no such file or folder"),
    ("--heldout short.txt",   "--heldout: 2 tokens are too few for blocks of --max_length 32"),
    ("--max_length 65",       "--max_length 65: .*teacher has 64 positions"),
    ("--max_length 2",        "--max_length: 2 is not a number at least 3"),
    ("--steps -3",            "--steps: -3 is not a number at least 0"),
    ("--steps many",          "--steps: invalid whole number value: 'many'"),
    ("--lr -1",               "--lr: -1 is not a number above 0"),
    ("--lr nan",              "--lr: nan is not a number above 0"),
    ("--temperature 0",       "--temperature: 0 is not a number above 0"),
    ("--mlm_prob 1.5",        "--mlm_prob: 1.5 is not a number at least 0 and at most 1"),
    ("--mlm_prob 0 --use_ce 0 --use_cos 0", "--mlm_prob 0 masks nothing"),
    ("--use_mlm 0 --use_ce 0 --use_cos 0",
     (r"all losses are off: one needs a weight above 0 \(--alpha_ce or --alpha_mlm or "
      r"--alpha_cos\), and --use_X 1")),
    ("--layers evenly:5",     "--layers: the teacher has 4 layers, too few for evenly:5"),
    ("--layers 0,4",          "--layers: the teacher has layers 0 to 3, not 4"),
    ("--layers a",            "--layers: a is neither even, .* nor a list of layers"),
    ("--grad_accum 99 --batch_size 8",
     "--grad_accum 99 is more micro-batches than --batch_size 8 has sequences"),
    ("--config x",            "--config works with --teacher none only"),
    ("--teacher none",        "--teacher none needs --config"),
    ("--teacher none --config x --layers 0,1", "--layers chooses a teacher's layers; with"),
    pytest.param("--device cuda", "--device cuda: torch finds no such device", marks=NO_CUDA),
])
def test_wrong_arguments_end_in_one_line_and_status_2(
        world, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("good\n")
    line = refused(pretrain, "--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                   "--out_dir", "out", "--max_length", 32, "--steps", 2, *more.split())
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_the_command_itself(world, tmp_path):
    def command(*more):
        return subprocess.run(
            [sys.executable, ROOT / "pretrain.py", "--teacher", world / "teacher",
             "--corpus", world / "corpus.txt", "--out_dir", "out", "--max_length", "32",
             "--steps", "2", *more],
            cwd=tmp_path, capture_output=True, text=True)
    bad = command("--layers", "0,9")
    assert bad.returncode == 2
    assert bad.stderr == "pretrain.py: error: --layers: the teacher has layers 0 to 3, not 9\n"
    good = command()
    assert good.returncode == 0 and "held out, mlm_loss" in good.stdout
    assert (tmp_path / "out" / "run.json").exists()
