"""Fast is still right: in double precision, in chunks, compiled, made ahead, in bf16, and spread over processes."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from conftest import ROOT, TINY, no_dropout
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import losses
import pretrain
from data import prefetch
from load_hf_weights import load_model
from losses import LOSSES, cosine_loss, distillation_loss, mlm_loss
from model import BertConfig, Classifier, MaskedLM, make_student
from pretrain import TripleLoss
from support import bench
from support.errors import InputError

CPU = torch.device("cpu")
SUBSETS = ["ce mlm cos", "ce mlm", "mlm cos", "ce cos", "mlm", "ce", "cos", "mse mlm", "ce mlm cos mse"]


def squared_error(student_logits, teacher_logits):
    """A formula that somebody adds."""
    return (student_logits - teacher_logits).square().mean(-1).mean()


def batch(masks="some"):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, TINY.vocab_size, (4, 16), generator=generator)
    labels = torch.where(torch.rand(4, 16, generator=generator) < 0.2, input_ids, -100)
    if masks == "none":
        labels[:] = -100
    if masks == "one":
        labels[:] = -100
        labels[3, 15] = 7
    return input_ids, labels


@pytest.mark.parametrize("terms", SUBSETS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 0])
@pytest.mark.parametrize("masks", ["some", "none", "one"])
def test_in_double_precision_chunks_give_the_plain_loss_and_gradient(world, monkeypatch, terms, chunk_tokens, masks):
    """The oracle: the formulas on full logits of both models, under autograd alone."""
    monkeypatch.setitem(LOSSES, "mse", (squared_error, 0.5))
    weights = {term: LOSSES[term][1] for term in terms.split()}
    teacher = load_model(world / "teacher").requires_grad_(False).double()
    student = make_student(teacher).double().eval()
    input_ids, labels = batch(masks)
    masked = int((labels != -100).sum())
    total, logged = TripleLoss(student, teacher, weights, 2.0, chunk_tokens).double()(input_ids, labels, labels.numel(), masked)

    student_logits, teacher_logits = (model(input_ids).flatten(0, 1) for model in (student, teacher))
    plain = {"ce": distillation_loss(student_logits, teacher_logits, 2.0), "mse": squared_error(student_logits, teacher_logits),
             "mlm": mlm_loss(student_logits, labels.flatten()) if masked else 0.0 * student_logits.sum(),
             "cos": cosine_loss(student.bert(input_ids).flatten(0, 1), teacher.bert(input_ids).flatten(0, 1))}
    expected = sum(weight * plain[term] for term, weight in weights.items())
    assert abs(total.item() - expected.item()) < 1e-10
    assert {name: value.item() for name, value in logged.items()} == pytest.approx({term: plain[term].item() for term in weights}, abs=1e-10)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    assert len(parameters) < len(list(student.parameters())) if terms == "cos" else len(parameters) == len(list(student.parameters()))
    for grad, wanted in zip(*(torch.autograd.grad(x, parameters) for x in (total, expected))):
        assert (grad - wanted).abs().max() < 1e-10


def test_the_default_chunk_keeps_the_logits_small():
    for vocab_size, tokens in ((30522, 256), (492, 16384), (1 << 25, 1)):
        with torch.device("meta"):
            model = MaskedLM(BertConfig(vocab_size=vocab_size, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4))
        model.head.bias = torch.nn.Parameter(torch.zeros(1))  # on the CPU, where the default depends on the device
        assert TripleLoss(model, None, {"mlm": 1.0}).chunk_tokens == tokens


def run_pretrain(world, out_dir, *more, **environment):
    """As a user runs it, in a process of its own: (exit status, stderr)."""
    command = [sys.executable, ROOT / "pretrain.py", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt",
               "--out_dir", out_dir, "--cache_dir", world / "cache", "--max_length", 32, "--batch_size", 8, "--steps", 6, "--chunk_tokens", 100,
               "--precision", "fp32", "--device", "cpu", "--log_every", 1, *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1", **environment})
    return done.returncode, done.stderr


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_without_a_compiler_the_run_is_eager_and_says_so_in_one_line(world, tmp_path):
    status, said = run_pretrain(world, tmp_path / "asked", "--compile", 1, CXX="/nonexistent")
    assert status == 0 and len(said.strip().splitlines()) == 1 and "without torch.compile" in said
    assert run_pretrain(world, tmp_path / "eager", "--compile", 0) == (0, "")
    assert (tmp_path / "asked" / "model.safetensors").read_bytes() == (tmp_path / "eager" / "model.safetensors").read_bytes()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler to compile with")
def test_compiled_is_the_same_as_eager(world, tmp_path):
    teacher = no_dropout(world, tmp_path / "teacher")  # whose random numbers would be others
    for compiled in (0, 1):  # chunks of 100 tokens: two whole ones, and a ragged one that stays eager
        assert run_pretrain(world, tmp_path / str(compiled), "--teacher", teacher, "--compile", compiled) == (0, "")
    for one, other in zip(log_of(tmp_path / "0"), log_of(tmp_path / "1")):
        assert all(one[term] == pytest.approx(other[term], rel=2e-3) for term in ("ce", "mlm", "cos") if term in one)
    assert log_of(tmp_path / "0")[1] != log_of(tmp_path / "1")[1]  # fused arithmetic rounds otherwise: it was compiled


def test_when_compiling_pays():
    class Args:
        steps, batch_size, max_length = 200, 16, 128
    with torch.device("meta"):
        base, toy = (MaskedLM(BertConfig(vocab_size=size, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)) for size in (30522, 492))
    assert pretrain.compiling_pays(Args, base, CPU) and not pretrain.compiling_pays(Args, toy, CPU)
    assert pretrain.compiling_pays(Args, toy, torch.device("cuda")) and not pretrain.compiling_pays(Args, base, torch.device("mps"))


def test_batches_are_made_ahead_in_order_and_errors_arrive():
    made = []

    def batches():
        for i in range(4):
            made.append((i, threading.current_thread() is threading.main_thread()))
            yield torch.tensor(i), torch.tensor(10 * i)
        raise InputError("no more")
    seen = []
    with pytest.raises(InputError, match="no more"):
        for i, ten in prefetch(batches()):
            seen.append((int(i), int(ten)))
    assert seen == [(i, 10 * i) for i in range(4)] and made == [(i, False) for i in range(4)]
    assert list(prefetch(())) == []


def test_the_step_whose_loss_was_not_finite_is_named_though_it_was_not_logged(world, tmp_path, monkeypatch):
    calls = []

    def ruined(student_hidden):
        calls.append(0)
        return student_hidden.square().mean() * (float("nan") if len(calls) == 2 + 4 else 1.0)  # two calls check the chunks
    monkeypatch.setitem(LOSSES, "cos", (ruined, 1.0))
    with pytest.raises(InputError, match="^step 3: the loss is not a finite number any more"):
        pretrain.main([str(x) for x in (
            "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--out_dir", tmp_path / "run", "--cache_dir", world / "cache",
            "--max_length", 32, "--batch_size", 4, "--steps", 12, "--log_every", 10, "--precision", "fp32", "--device", "cpu")])
    assert not (tmp_path / "run" / "run.json").exists()


def test_in_bf16_the_teachers_matrices_are_cast_once_and_the_student_stays_fp32(world):
    args = pretrain.read_arguments(["--teacher", str(world / "teacher"), "--corpus", "x", "--out_dir", "y", "--precision", "bf16", "--device", "cpu", "--max_length", "32"])
    student, teacher, _ = pretrain.load_models(args)
    student.eval()
    matrices = {name for name, parameter in teacher.named_parameters() if parameter.dtype == torch.bfloat16}
    assert matrices == {name for name, parameter in teacher.named_parameters()
                        if parameter.dim() == 2 and "position" not in name and "token_type" not in name}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    seen = {}
    teacher.bert.layers[0].ffn_in.register_forward_hook(lambda module, inputs, output: seen.update(out=output.dtype))
    input_ids, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        total, logged = TripleLoss(student, teacher, losses.WEIGHTS, 2.0, 7)(input_ids, labels, labels.numel(), int((labels != -100).sum()))
    assert seen["out"] == torch.bfloat16 and total.dtype == torch.float32
    plain = TripleLoss(student, load_model(world / "teacher"), losses.WEIGHTS, 2.0, 7)(input_ids, labels, labels.numel(), int((labels != -100).sum()))[1]
    assert {name: value.item() for name, value in logged.items()} == pytest.approx({name: value.item() for name, value in plain.items()}, rel=0.05)


def gradients_of_half(rank, folder, terms, port):
    """A process of two: the gradients on its half of the batch, averaged by DistributedDataParallel, to a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
    teacher = load_model(folder / "teacher").requires_grad_(False)
    student = make_student(teacher).eval()
    loss = DistributedDataParallel(TripleLoss(student, teacher, {term: losses.WEIGHTS[term] for term in terms.split()}, 2.0, 7))
    input_ids, labels = batch()
    masked = int((labels != -100).sum())
    for half in (slice(rank, 4, 2),) * 2:  # twice: a second backward pass shows a gradient that somebody still waits for
        loss(input_ids[half], labels[half], labels.numel(), masked)[0].backward()
    torch.save({name: parameter.grad for name, parameter in student.named_parameters()}, f"{port}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("terms", ["ce mlm cos", "mlm cos", "cos"])
def test_two_processes_have_the_gradient_of_one(world, tmp_path, terms):
    mp.spawn(gradients_of_half, (world, terms, tmp_path / "meet"), nprocs=2)
    teacher = load_model(world / "teacher").requires_grad_(False)
    student = make_student(teacher).eval()
    input_ids, labels = batch()
    weights = {term: losses.WEIGHTS[term] for term in terms.split()}
    TripleLoss(student, teacher, weights, 2.0, 7)(input_ids, labels, labels.numel(), int((labels != -100).sum()))[0].backward()
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"meet-{rank}")
        for name, parameter in student.named_parameters():
            if parameter.grad is None:
                assert theirs[name] is None and name.startswith("head")
            else:  # an average over two processes, of two passes each: once the sum over all rows
                assert (theirs[name] - parameter.grad).abs().max() < 1e-5 * max(1.0, parameter.grad.abs().max())


@pytest.mark.parametrize("terms", ["ce mlm cos", "mlm cos", "ce", "cos", "mlm"])
def test_the_benchs_arithmetic_against_torchs_own_count(terms):
    config = BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, max_position_embeddings=64,
                        attention_probs_dropout_prob=0.0)
    teacher = MaskedLM(config).requires_grad_(False).eval()
    student = make_student(teacher)
    input_ids = torch.randint(1000, (4, 64))
    labels = torch.where(torch.rand(4, 64) < 0.15, input_ids, -100)
    loss = TripleLoss(student, teacher, {term: 1.0 for term in terms.split()}, 2.0, 50)
    # torch's count knows neither a CPU's fused attention nor products that are added in place, as they are in fp32
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        loss(input_ids, labels, labels.numel(), int((labels != -100).sum()))[0].backward()
    masked_share = (labels != -100).float().mean().item() * 64 / 62
    expected = sum(bench.distillation_flops(config, 64, terms.split(), masked_share).values()) * input_ids.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_the_benchs_arithmetic_at_bert_bases_size():
    assert sum(bench.distillation_flops(BertConfig(), 128).values()) / 1e6 == pytest.approx(620, rel=0.03)


def test_bench_measures_on_the_miniature_world(world, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "bench.py", "--config", world / "teacher", "--corpus", world / "corpus.txt", "--data_dir", world / "data",
                           "--out_dir", tmp_path, "--batch_size", "4", "--max_length", "32", "--rounds", "2", "--device", "cpu", "--precision", "fp32",
                           "--only", "distillation,profile,finetuning,inference"], capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr
    assert "One pass over the dev set of STS-B, 64 rows, one at a time, on cpu in fp32." in done.stdout
    parameters = [sum(p.numel() for p in Classifier(replace(TINY, num_hidden_layers=layers), num_labels=1).parameters()) for layers in (4, 2)]
    assert re.findall(r"\| (?:teacher|student) \| ([\d,]+) \|", done.stdout) == [f"{count:,}" for count in parameters]
    assert done.stdout.count("| ratio | **") == 2 and done.stdout.count("| heads and losses |") == 1 and "Fine-tuning on CoLA" in done.stdout


@pytest.mark.parametrize("more, message", [
    (["--config", "x"], "--config, --corpus and --data_dir go together"),
    (["--only", "profle"], "--only: unknown measurement 'profle'; did you mean profile"),
    (["--config", "nowhere", "--corpus", "x", "--data_dir", "y"], "nowhere/config.json: no such file")])
def test_wrong_arguments_of_bench(refused, tmp_path, more, message):
    assert message in refused(bench, "--out_dir", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
