"""pretrain.py, run for real on the miniature world."""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, TINY, no_dropout

import pretrain
from ablation import EXTENDED
from load_hf_weights import load_model, load_tokenizer, read_config, save_model
from losses import LOSSES, WEIGHTS, distillation_loss
from model import chosen_layers, make_student
from pretrain import TripleLoss
from support.errors import InputError, Interrupted
from support.fingerprint import code_fingerprint
from support.seeds import HELDOUT_MASKS
from support.training_run import Run, learning_rate


@pytest.fixture
def distil(world, tmp_path):
    """distil(name, more arguments) -> the record; the run's folder is tmp_path / name."""
    def run(name, *more, teacher=world / "teacher"):
        return pretrain.main([str(x) for x in (
            "--teacher", teacher, "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt", "--out_dir", tmp_path / name,
            "--cache_dir", world / "cache", "--max_length", 32, "--batch_size", 8, "--steps", 4, "--chunk_tokens", 50,
            "--precision", "fp32", "--device", "cpu", *more)])
    return run


def weights(folder):
    return load_model(folder).state_dict()


def same(a, b, tolerance=0.0):
    return all((a[name] - b[name]).abs().max() <= tolerance for name in a)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_distillation_brings_the_student_nearer_to_its_teacher(distil, world, tmp_path):
    record = distil("run", "--steps", 60, "--lr", "3e-3")
    before, after = record["heldout_before"], record["heldout_after"]
    assert after["kl"] < 0.7 * before["kl"] and after["cosine_distance"] < 0.7 * before["cosine_distance"]
    assert after["mlm_loss"] < before["mlm_loss"]
    assert before["teacher_mlm_accuracy"] == after["teacher_mlm_accuracy"]
    assert record == json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["arguments"]["steps"] == 60 and record["made_with"]["torch"] == torch.__version__
    assert read_config(tmp_path / "run").num_hidden_layers == 2
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, *range(0, 60, 10), 59, 60]
    assert lines[1]["cos"] > lines[-2]["cos"] and all(lines[1][term] > 0 for term in ("ce", "mlm", "cos"))
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == [
        "config.json", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def test_from_scratch_learns_the_language(distil, world, tmp_path):
    record = distil("scratch", "--config", world / "teacher", "--steps", 60, "--lr", "3e-3", teacher="none")
    assert record["heldout_after"]["mlm_loss"] < record["heldout_before"]["mlm_loss"] - 0.1
    assert set(record["heldout_after"]) == {"mlm_loss", "mlm_accuracy"}
    assert read_config(tmp_path / "scratch").num_hidden_layers == TINY.num_hidden_layers


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(distil, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distil(name, "--seed", seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_accumulation_and_chunks_change_nothing(distil, world, tmp_path):
    teacher = no_dropout(world, tmp_path / "teacher")
    more = ("--mlm_prob", 0.05, "--log_every", 1)  # few masks: parts and chunks have unequal counts, some none
    distil("whole", *more, "--chunk_tokens", 0, teacher=teacher)
    distil("parts", *more, "--grad_accum", 3, teacher=teacher)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts")):
        assert all(one[term] == pytest.approx(other[term], rel=1e-4) for term in ("ce", "mlm", "cos") if term in one)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"), 2e-5)
    assert not same(weights(tmp_path / "whole"), make_student(load_model(teacher)).state_dict(), 1e-3)  # it has moved at all


def batch():
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, TINY.vocab_size, (4, 16), generator=generator)
    return input_ids, torch.where(torch.rand(4, 16, generator=generator) < 0.2, input_ids, -100)


@pytest.mark.parametrize("terms, teacher_body, teacher_head, student_rows", [
    ("ce mlm cos", 1, 1, "all"), ("mlm cos", 1, 0, "masked"), ("ce", 1, 1, "all"), ("mlm", 0, 0, "masked"), ("cos", 1, 0, None)])
def test_only_what_is_needed_is_computed(world, terms, teacher_body, teacher_head, student_rows):
    teacher = load_model(world / "teacher").requires_grad_(False)
    student, ran = make_student(teacher), {"body": 0, "head": 0, "rows": None}
    teacher.bert.layers[0].register_forward_hook(lambda *_: ran.update(body=ran["body"] + 1))
    teacher.head.dense.register_forward_hook(lambda *_: ran.update(head=ran["head"] + 1))
    student.head.dense.register_forward_hook(lambda _, inputs, __: ran.update(rows=len(inputs[0])))
    input_ids, labels = batch()
    masked = int((labels != -100).sum())
    TripleLoss(student, teacher, {term: 1.0 for term in terms.split()}, 2.0, 7)(input_ids, labels, labels.numel(), masked)
    assert ran == {"body": teacher_body, "head": teacher_head, "rows": {"all": labels.numel(), "masked": masked, None: None}[student_rows]}


def test_states_of_all_layers_are_compared_with_the_layers_they_were_copied_from(world):
    """Against transformers' hidden states, in numpy."""
    reference, (input_ids, labels) = transformers.BertModel.from_pretrained(world / "teacher").eval(), batch()
    teacher = load_model(world / "teacher").requires_grad_(False)
    student = make_student(teacher, layers=[1, 3]).eval()
    values = TripleLoss(student, teacher, {"cos_all": 1.0, "ce_masked": 1.0}, 2.0, 7, layers=[1, 3])(input_ids, labels, labels.numel(), int((labels != -100).sum()))[1]
    with torch.no_grad():
        ours = [x.double().numpy() for x in student.bert.hidden_states(input_ids)[1:]]
        theirs = [reference(input_ids, output_hidden_states=True).hidden_states[layer + 1].double().numpy() for layer in (1, 3)]
    cosines = [(x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1) for x, y in zip(ours, theirs)]
    assert float(values["cos_all"]) == pytest.approx(1 - np.mean(cosines), rel=1e-4) and values["ce_masked"] > 0


@pytest.mark.parametrize("choice, layers", [
    ("even", [0, 2, 4, 6, 8, 10]), ("odd", [1, 3, 5, 7, 9, 11]), ("first", [0, 1, 2, 3, 4, 5]), ("last", [6, 7, 8, 9, 10, 11]),
    ("evenly:6", [0, 2, 4, 7, 9, 11]), ("evenly:3", [0, 6, 11]), ("evenly:4", [0, 4, 7, 11]), ("evenly:1", [0]), ("3,3", [3, 3])])
def test_which_layers_a_word_means(choice, layers):
    assert chosen_layers(pretrain.layer_choice(choice), 12) == layers
    assert chosen_layers(None, 12) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("name", list(EXTENDED))
def test_every_extended_variant_can_be_trained(distil, tmp_path, name):
    record = distil(name, *EXTENDED[name][1], *(("--layers", "evenly:4") if name == "depth_6" else ()), "--steps", 2)  # the teacher has 4 layers
    assert np.isfinite(record["heldout_after"]["kl"])
    args = record["arguments"]
    assert args["weights"] == {"ce_masked": {"ce_masked": 5.0, "mlm": 2.0, "cos": 1.0}, "cos_all": {"ce": 5.0, "mlm": 2.0, "cos_all": 1.0},
                               "weights_111": {"ce": 1.0, "mlm": 1.0, "cos": 1.0}}.get(name, {"ce": 5.0, "mlm": 2.0, "cos": 1.0})


def test_the_teacher_is_never_trained_nor_given_dropout(world):
    teacher = load_model(world / "teacher").requires_grad_(False)
    student = make_student(teacher)
    loss = TripleLoss(student, teacher, WEIGHTS, 2.0, 7).train()
    assert student.training and not teacher.training and not set(map(id, teacher.parameters())) & set(map(id, loss.parameters()))


def test_a_step_without_a_masked_token_is_no_error(distil, tmp_path):
    distil("run", "--mlm_prob", 0, "--log_every", 1)
    assert log_of(tmp_path / "run")[1].get("mlm", 0) == 0 and log_of(tmp_path / "run")[1]["ce"] > 0
    distil("all", "--mlm_prob", 1)


def test_a_formula_that_couples_tokens_is_refused_in_chunks_and_allowed_without(distil, monkeypatch):
    def couples(student_logits, teacher_logits, temperature):
        return (student_logits.mean(0) - teacher_logits.mean(0)).square().sum() * 100
    monkeypatch.setitem(LOSSES, "ce", (couples, 5.0))
    with pytest.raises(InputError, match="--chunk_tokens 0"):
        distil("coupled")
    distil("unchunked", "--chunk_tokens", 0)


def test_a_coupled_mlm_loss_is_noticed_where_only_masked_positions_count(distil, monkeypatch):
    monkeypatch.setitem(LOSSES, "mlm", (lambda student_logits, labels: student_logits.mean(0).square().sum(), 2.0))
    with pytest.raises(InputError, match="the loss mlm is .*--chunk_tokens 0"):
        distil("coupled", "--use_ce", 0, "--chunk_tokens", 256)


def test_bf16_follows_fp32(distil, tmp_path):
    for precision in ("fp32", "bf16"):
        distil(precision, "--steps", 30, "--lr", "2e-3", "--precision", precision, "--log_every", 1)
    curves = [[(line["ce"], line["mlm"], line["cos"]) for line in log_of(tmp_path / p) if "ce" in line] for p in ("fp32", "bf16")]
    assert torch.tensor(curves[1]).allclose(torch.tensor(curves[0]), rtol=0.05, atol=0.01) and curves[0] != curves[1]


def test_a_finished_run_is_kept_and_another_one_refused(distil, tmp_path, capsys):
    record = distil("run")
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert distil("run") == record and "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"holds another run \(steps was 4, is now 5; temperature was 2.0, is now 3.0\)"):
        distil("run", "--steps", 5, "--temperature", 3)
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == written


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """edited(file, old, new): from here on the code that a run depends on is that of a copy in which this was replaced."""
    for file in pretrain.CODE:
        (tmp_path / file).write_text((ROOT / file).read_text())
    monkeypatch.setattr("run.__file__", str(tmp_path / "run.py"))  # where the code is looked for

    def edit(file, old, new):
        assert (tmp_path / file).read_text().count(old) == 1
        (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
        code_fingerprint.cache_clear()
    yield edit
    code_fingerprint.cache_clear()


def test_what_is_up_to_date_is_decided_by_content(distil, tmp_path, edited, capsys):
    first = distil("run")
    weights_file = tmp_path / "run" / "model.safetensors"
    written = weights_file.stat().st_mtime_ns
    edited("losses.py", "kl * temperature ** 2", "kl * temperature ** 2  # as Hinton has it")
    edited("losses.py", '"""Aligns the directions', '"""Makes equal the directions')
    for file in ("losses.py", "model.py"):
        os.utime(tmp_path / file)
    assert distil("run") == first and weights_file.stat().st_mtime_ns == written  # comments, docstrings and times are no code
    edited("losses.py", "temperature ** 2  #", "temperature ** 3  #")
    with pytest.raises(InputError, match=r"run holds another run \(the code has changed\); .*--overwrite"):
        distil("run")
    assert weights_file.stat().st_mtime_ns == written and not (tmp_path / "run~1").exists()
    second = distil("run", "--overwrite")
    assert (tmp_path / "run~1" / "model.safetensors").stat().st_mtime_ns == written and second["made_of"] != first["made_of"]
    assert json.loads((tmp_path / "run~1" / "run.json").read_text()) == first and "kept as" in capsys.readouterr().out
    assert distil("run", "--overwrite") == second  # it is up to date: nothing is set aside
    distil("run", "--overwrite", "--steps", 2)
    assert json.loads((tmp_path / "run~2" / "run.json").read_text()) == second and not (tmp_path / "run~3").exists()


def test_going_on_with_edited_code_is_marked(distil, tmp_path, edited, monkeypatch, capsys):
    """Of neither code, the run is up to date for none; an experiment, which says --overwrite, starts it anew."""
    should_save = Run.should_save
    monkeypatch.setattr(Run, "must_save", lambda run, step: (step == 2 and os.kill(os.getpid(), signal.SIGTERM)) or should_save(run, step))
    for name in ("run", "anew"):
        with pytest.raises(Interrupted, match="goes on from step 2"):
            distil(name)
    monkeypatch.setattr(Run, "must_save", should_save)
    edited("losses.py", "kl * temperature ** 2", "kl * temperature ** 3")
    mixed = distil("run")
    assert "run: goes on from step 2 under other conditions (the code has changed): no longer exactly" in capsys.readouterr().out
    assert mixed["resumed"] == [{"from_step": 2, "changed": ["the code has changed"]}]
    for code in ("3", "2"):  # the new one, the old one
        edited("losses.py", "temperature ** 3", f"temperature ** {code}")
        with pytest.raises(InputError, match="the code has changed"):
            distil("run")
        edited("losses.py", f"kl * temperature ** {code}", "kl * temperature ** 3")
    assert "resumed" not in distil("anew", "--overwrite") and (tmp_path / "anew~1" / "checkpoint.pt").exists()


def test_a_formula_concerns_only_the_students_that_use_it(distil, edited):
    runs = {name: distil(name, *more) for name, more in {"full": [], "no_cos": ["--use_cos", 0], "off": ["--alpha_cos", 0]}.items()}
    assert runs["off"]["arguments"]["weights"] == runs["no_cos"]["arguments"]["weights"] == {"ce": 5.0, "mlm": 2.0}
    edited("losses.py", "return (1 - F.cosine_similarity(student_hidden", "return 2 * (1 - F.cosine_similarity(student_hidden")
    assert distil("no_cos", "--use_cos", 0) == runs["no_cos"]
    with pytest.raises(InputError, match="the code has changed"):
        distil("full")


def test_another_text_or_teacher_in_the_same_place_is_noticed_and_the_same_elsewhere_is_not(distil, world, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(world / "teacher", copy)
    record = distil("run", "--corpus", world / "heldout.txt")
    assert distil("run", "--corpus", world / "heldout.txt", teacher=copy) == record
    model = load_model(copy)
    model.head.bias.data[7] += 1
    save_model(model, load_tokenizer(copy), copy)
    with pytest.raises(InputError, match=r"\(the teacher has changed\)"):
        distil("run", "--corpus", world / "heldout.txt", teacher=copy)
    (tmp_path / "longer.txt").write_text((world / "heldout.txt").read_text() + "good\n")
    with pytest.raises(InputError, match=r"\(the corpus has changed\)"):
        distil("run", "--corpus", tmp_path / "longer.txt")


def test_held_out_figures_by_another_road(distil, world):
    """Against the full logits of every block at once, in numpy."""
    record = distil("run", "--steps", 20, "--lr", "3e-3")
    args = argparse.Namespace(**{**record["arguments"], "precision": "fp32"})
    _, blocks = pretrain.load_blocks(args, load_tokenizer(world / "teacher"))
    student, teacher = load_model(Path(args.out_dir)).eval(), load_model(world / "teacher").eval()
    numbers = np.unique(np.linspace(0, blocks.count - 1, pretrain.HELDOUT_BLOCKS, dtype=int))
    input_ids, labels = blocks.masked(numbers, 0.15, [(HELDOUT_MASKS, number) for number in numbers])
    with torch.no_grad():
        s, t = (model(input_ids).double().log_softmax(-1).numpy() for model in (student, teacher))
        hidden = [model.bert(input_ids).double().numpy() for model in (student, teacher)]
    chosen = labels.numpy() != -100
    true = labels.numpy()[chosen]
    expected = {
        "mlm_loss": -np.mean([row[word] for row, word in zip(s[chosen], true)]), "mlm_accuracy": np.mean(s[chosen].argmax(-1) == true),
        "teacher_mlm_accuracy": np.mean(t[chosen].argmax(-1) == true), "teacher_agreement": np.mean(s[chosen].argmax(-1) == t[chosen].argmax(-1)),
        "kl": np.mean((np.exp(t) * (t - s)).sum(-1)),
        "cosine_distance": np.mean(1 - (hidden[0] * hidden[1]).sum(-1) / np.sqrt((hidden[0] ** 2).sum(-1) * (hidden[1] ** 2).sum(-1)))}
    assert record["heldout_after"] == pytest.approx(expected, rel=1e-4)


def test_a_formula_of_the_student_alone_needs_no_teacher(distil, world, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "norm", (lambda student_hidden: student_hidden.square().mean(), 0.1))
    distil("scratch", "--config", world / "teacher", "--log_every", 1, teacher="none")
    assert {"mlm", "norm"} <= log_of(tmp_path / "scratch")[1].keys()


def test_a_term_over_masked_positions_alone_sees_the_teachers_logits_there(world):
    teacher = load_model(world / "teacher").requires_grad_(False)
    student = make_student(teacher).eval()
    input_ids, labels = batch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "ce", (lambda student_logits, teacher_logits, labels: distillation_loss(
            student_logits[labels != -100], teacher_logits[labels != -100], 2.0), 1.0))
        _, logged = TripleLoss(student, teacher, {"ce": 1.0}, 2.0, 7)(input_ids, labels, labels.numel(), int((labels != -100).sum()))
    chosen = labels != -100
    assert logged["ce"].item() == pytest.approx(distillation_loss(student(input_ids)[chosen], teacher(input_ids)[chosen], 2.0).item(), rel=1e-5)


@pytest.mark.parametrize("wants, message", [
    (["student_logits", "student_hidden"], "a formula can have"), (["logits"], "odd wants logits; a formula can have student_logits")])
def test_a_formula_that_wants_what_there_is_not_is_refused(distil, monkeypatch, wants, message):
    exec(f"def odd({', '.join(wants)}): return 0", names := {})
    monkeypatch.setitem(LOSSES, "odd", (names["odd"], 1.0))
    with pytest.raises(InputError, match=message):
        distil("run")


def test_a_run_never_overwrites_the_model_it_reads(distil, world):
    before = (world / "teacher" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="teacher, which is read; choose another"):
        distil(world / "teacher")
    assert (world / "teacher" / "model.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(distil, tmp_path):
    with pytest.raises(InputError, match="not a finite number"):
        distil("run", "--lr", "1e30", "--steps", 40, "--clip", "1e30", "--log_every", 1)
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "model.safetensors").exists()


def test_learning_rate():
    rates = [learning_rate(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and max(rates) == 2.0
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] == pytest.approx(2 / 95)
    assert learning_rate(0, 1, 2.0, 0.0) == 2.0


@pytest.mark.parametrize("more, message", [
    (["--teacher", "nowhere"], "nowhere/config.json: no such file"),
    (["--corpus", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    (["--max_length", "65"], "--max_length 65: .*teacher has 64 positions"),
    (["--max_length", "2"], "--max_length: 2 is not a number at least 3"),
    (["--steps", "0"], "--steps: 0 is not a number at least 1"),
    (["--steps", "many"], "--steps: invalid whole number value: 'many'"),
    (["--lr", "-1"], "--lr: -1 is not a number above 0"),
    (["--lr", "nan"], "--lr: nan is not a number above 0"),
    (["--temperature", "0"], "--temperature: 0 is not a number above 0"),
    (["--mlm_prob", "1.5"], "--mlm_prob: 1.5 is not a number at least 0 and at most 1"),
    (["--use_mlm", "0", "--use_ce", "0", "--use_cos", "0"], "all losses are off: set --use_ce or --use_mlm or --use_cos to 1"),
    (["--layers", "evenly:5"], "--layers: the teacher has 4 layers, too few for evenly:5"),
    (["--layers", "0,4"], "--layers: the teacher has layers 0 to 3, not 4"),
    (["--layers", "a"], "--layers: a is neither even, .* nor a list of layers"),
    (["--grad_accum", "99", "--batch_size", "8"], "--grad_accum 99 is more parts"),
    (["--config", "x"], "--config goes with --teacher none"),
    (["--teacher", "none"], "--teacher none needs --config"),
    (["--heldout", "short.txt"], "--heldout: 2 tokens are too few for blocks of --max_length 32"),
    (["--device", "cuda"], "--device cuda: torch finds no such device") if not torch.cuda.is_available() else (["--steps", "-3"], "-3"),
])
def test_wrong_arguments_end_in_one_line_and_status_2(world, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("good\n")
    line = refused(pretrain, "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--out_dir", "out", "--max_length", 32,
                   "--steps", 2, *more)
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_the_command_itself(world, tmp_path):
    def command(*more):
        return subprocess.run([sys.executable, ROOT / "pretrain.py", "--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                               "--out_dir", "out", "--max_length", "32", "--steps", "2", *more], cwd=tmp_path, capture_output=True, text=True)
    bad = command("--layers", "0,9")
    assert bad.returncode == 2 and bad.stderr == "pretrain.py: error: --layers: the teacher has layers 0 to 3, not 9\n"
    good = command()
    assert good.returncode == 0 and "held out, mlm_loss" in good.stdout and (tmp_path / "out" / "run.json").exists()
