"""Fast is still right: in chunks, compiled, prefetched, in bf16, and spread over processes."""
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
from short_runs import log_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import pretrain
from data import prefetch
from load_hf_weights import load_model
from losses import LOSSES, WEIGHTS
from model import BertConfig, Classifier, MaskedLM, make_student
from support import bench
from support.chunked_loss import ChunkedLoss, compiling_pays
from support.errors import InputError


def batch(masks="some"):
    """(input_ids, labels), (4, 16), with some masked tokens, with none or with one."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, TINY.vocab_size, (4, 16), generator=generator)
    is_masked = torch.rand(4, 16, generator=generator) < 0.2
    labels = torch.where(is_masked, input_ids, -100)
    if masks == "none":
        labels[:] = -100
    if masks == "one":
        labels[:] = -100
        labels[3, 15] = 7
    return input_ids, labels


def evaluate(objective, input_ids, labels):
    """(weighted sum, {name: loss}) by a ChunkedLoss, of a step that is one micro-batch."""
    return objective(input_ids, labels, labels.numel(), int((labels != -100).sum()))


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


# ---- In chunks ----

def model_without_weights(vocab_size):
    config = BertConfig(vocab_size=vocab_size, hidden_size=4, num_hidden_layers=1,
                        num_attention_heads=1, intermediate_size=4)
    with torch.device("meta"):
        return MaskedLM(config)


@pytest.mark.parametrize("vocab_size, tokens", [(30522, 256), (492, 16384), (1 << 25, 1)])
def test_the_default_chunk_keeps_the_logits_small(vocab_size, tokens):
    model = model_without_weights(vocab_size)
    # On the CPU: the default depends on the device.
    model.head.bias = torch.nn.Parameter(torch.zeros(1))
    assert ChunkedLoss(model, None, {"mlm": 1.0}).chunk_tokens == tokens


# ---- Compiled ----

def run_pretrain(world, out_dir, *more, **environment):
    """As a user runs it, in a process of its own: (exit status, stderr)."""
    command = [sys.executable, ROOT / "pretrain.py", "--teacher", world / "teacher",
               "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt",
               "--out_dir", out_dir, "--cache_dir", world / "cache",
               "--max_length", 32, "--batch_size", 8, "--steps", 6, "--chunk_tokens", 100,
               "--precision", "fp32", "--device", "cpu", "--log_every", 1, *more]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          env={**os.environ, "TQDM_DISABLE": "1", **environment})
    return done.returncode, done.stderr


def test_without_a_compiler_the_run_is_eager_and_says_so_in_one_line(world, tmp_path):
    asked, eager = tmp_path / "asked", tmp_path / "eager"
    status, errors = run_pretrain(world, asked, "--compile", 1, CXX="/nonexistent")
    assert status == 0
    assert len(errors.strip().splitlines()) == 1 and "torch.compile fails here" in errors
    assert run_pretrain(world, eager, "--compile", 0) == (0, "")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (asked, eager)]
    assert weights[0] == weights[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler to compile with")
def test_compiled_is_the_same_as_eager(world, tmp_path):
    teacher = no_dropout(world, tmp_path / "teacher")  # compiled dropout draws other numbers
    eager, compiled = tmp_path / "eager", tmp_path / "compiled"
    for folder, flag in ((eager, 0), (compiled, 1)):
        # In chunks of 100 tokens: two whole ones, and a smaller one that stays eager.
        status = run_pretrain(world, folder, "--teacher", teacher, "--compile", flag)
        assert status == (0, "")
    for one, other in zip(log_of(eager), log_of(compiled)):
        for name in WEIGHTS:
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=2e-3)
    # Fused arithmetic rounds otherwise, so it was compiled.
    assert log_of(eager)[1] != log_of(compiled)[1]


@pytest.mark.parametrize("vocab_size, device, pays", [
    (30522, "cpu",  True),
    (492,   "cpu",  False),
    (492,   "cuda", True),
    (30522, "mps",  False),
])
def test_when_compiling_pays(vocab_size, device, pays):
    assert compiling_pays(200, 16 * 128, vocab_size, torch.device(device)) == pays


# ---- Prefetched, logged later, in bf16 ----

def test_batches_are_prefetched_in_order_and_errors_arrive():
    made = []

    def batches():
        for i in range(4):
            in_main_thread = threading.current_thread() is threading.main_thread()
            made.append((i, in_main_thread))
            yield torch.tensor(i), torch.tensor(10 * i)
        raise InputError("no more")
    seen = []
    with pytest.raises(InputError, match="no more"):
        for i, ten in prefetch(batches()):
            seen.append((int(i), int(ten)))
    assert seen == [(i, 10 * i) for i in range(4)]
    assert made == [(i, False) for i in range(4)]
    assert list(prefetch(())) == []


def test_a_step_with_a_loss_that_is_not_finite_is_named_even_if_it_was_not_logged(
        world, tmp_path, monkeypatch):
    calls = []

    def ruined(student_hidden):
        calls.append(0)
        at_step_3 = len(calls) == 2 + 4  # two calls check the chunks
        return student_hidden.square().mean() * (float("nan") if at_step_3 else 1.0)
    monkeypatch.setitem(LOSSES, "cos", (ruined, 1.0))
    arguments = ["--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                 "--out_dir", tmp_path / "run", "--cache_dir", world / "cache",
                 "--max_length", 32, "--batch_size", 4, "--steps", 12, "--log_every", 10,
                 "--precision", "fp32", "--device", "cpu"]
    message = "^step 3: the loss is not a finite number any more"
    with pytest.raises(InputError, match=message):
        pretrain.main([str(word) for word in arguments])
    assert not (tmp_path / "run" / "run.json").exists()


def is_matrix_of_a_product(name, parameter):
    """Whether a teacher's parameter is cast to bf16."""
    return parameter.dim() == 2 and "position" not in name and "token_type" not in name


def test_in_bf16_the_teachers_matrices_are_cast_once_and_the_student_stays_fp32(world):
    args = pretrain.read_arguments([
        "--teacher", str(world / "teacher"), "--corpus", "x", "--out_dir", "y",
        "--precision", "bf16", "--device", "cpu", "--max_length", "32"])
    student, teacher, _ = pretrain.load_models(args)
    student.eval()
    for name, parameter in teacher.named_parameters():
        is_cast = parameter.dtype == torch.bfloat16
        assert is_cast == is_matrix_of_a_product(name, parameter), name
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}

    output_types = []
    teacher.bert.layers[0].ffn_in.register_forward_hook(
        lambda module, inputs, output: output_types.append(output.dtype))
    objective = ChunkedLoss(student, teacher, WEIGHTS, 2.0, 7, "bf16")
    total, losses = evaluate(objective, *batch())
    assert output_types == [torch.bfloat16] and total.dtype == torch.float32
    _, in_fp32 = evaluate(ChunkedLoss(student, load_model(world / "teacher"), WEIGHTS, 2.0, 7),
                          *batch())
    assert values(losses) == pytest.approx(values(in_fp32), rel=0.05)


# ---- Over processes ----

def new_objective(world, names):
    """A ChunkedLoss without dropout of these losses."""
    teacher = load_model(world / "teacher").requires_grad_(False)
    student = make_student(teacher).eval()
    return ChunkedLoss(student, teacher, {name: WEIGHTS[name] for name in names.split()}, 2.0, 7)


def gradients_of_half(rank, world, names, meeting_point):
    """One process of two: write the gradients on its half of the batch, averaged by DDP."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}",
                                         rank=rank, world_size=2)
    objective = new_objective(world, names)
    parallel = DistributedDataParallel(objective)
    input_ids, labels = batch()
    masked = int((labels != -100).sum())
    half = slice(rank, 4, 2)
    for _ in range(2):  # a second backward pass fails if DDP still waits for a gradient
        loss, _ = parallel(input_ids[half], labels[half], labels.numel(), masked)
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in objective.student.named_parameters()}
    torch.save(gradients, f"{meeting_point}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("names", ["ce mlm cos", "mlm cos", "cos"])
def test_two_processes_have_the_gradient_of_one(world, tmp_path, names):
    mp.spawn(gradients_of_half, (world, names, tmp_path / "meet"), nprocs=2)
    objective = new_objective(world, names)
    total, _ = evaluate(objective, *batch())
    total.backward()
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"meet-{rank}")
        for name, parameter in objective.student.named_parameters():
            if parameter.grad is None:
                assert theirs[name] is None and name.startswith("head")
                continue
            # The mean over two processes, of two passes each: once the sum over all rows.
            scale = max(1.0, parameter.grad.abs().max())
            assert (theirs[name] - parameter.grad).abs().max() < 1e-5 * scale


# ---- The bench ----

@pytest.mark.parametrize("names", ["ce mlm cos", "mlm cos", "ce", "cos", "mlm"])
def test_the_benchs_arithmetic_against_torchs_own_count(names):
    config = BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=4,
                        num_attention_heads=4, intermediate_size=256,
                        max_position_embeddings=64, attention_probs_dropout_prob=0.0)
    teacher = MaskedLM(config).requires_grad_(False).eval()
    student = make_student(teacher)
    input_ids = torch.randint(1000, (4, 64))
    labels = torch.where(torch.rand(4, 64) < 0.15, input_ids, -100)
    names = names.split()
    # Torch's count includes neither a CPU's fused attention nor products that are added in
    # place, as they are in fp32.
    objective = ChunkedLoss(student, teacher, dict.fromkeys(names, 1.0), 2.0, 50, "bf16")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        total, _ = evaluate(objective, input_ids, labels)
        total.backward()
    masked_share = (labels != -100).float().mean().item() * 64 / 62
    flops = bench.distillation_flops(config, 64, names, masked_share)
    expected = sum(flops.values()) * input_ids.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_the_benchs_arithmetic_at_bert_bases_size():
    flops = bench.distillation_flops(BertConfig(), 128)
    assert sum(flops.values()) / 1e6 == pytest.approx(620, rel=0.03)


def test_bench_measures_on_the_miniature_world(world, tmp_path):
    command = [sys.executable, "-m", "support.bench", "--config", world / "teacher",
               "--corpus", world / "corpus.txt", "--data_dir", world / "data",
               "--out_dir", tmp_path, "--batch_size", "4", "--max_length", "32",
               "--rounds", "2", "--device", "cpu", "--precision", "fp32",
               "--only", "distillation,profile,finetuning,inference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert printed.count("| ratio | **") == 2 and printed.count("| heads and losses |") == 1
    assert "Fine-tuning on CoLA" in printed
    title = "One pass over the dev set of STS-B, 64 rows, one at a time, on cpu in fp32."
    assert title in printed
    sizes = []
    for layers in (4, 2):
        model = Classifier(replace(TINY, num_hidden_layers=layers), num_labels=1)
        sizes.append(f"{sum(p.numel() for p in model.parameters()):,}")
    assert re.findall(r"\| (?:teacher|student) \| ([\d,]+) \|", printed) == sizes


def test_the_processes_of_the_benchs_loops_hold_no_plotting_libraries():
    """A spawned process loads the main module under the name __mp_main__."""
    load = "runpy.run_module('support.bench', run_name='__mp_main__')"
    code = f"import runpy, sys; {load}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = done.stdout.split()
    assert "support.bench_loops" in modules, done.stderr
    assert not {"ablation", "matplotlib", "sklearn"} & set(modules)


@pytest.mark.parametrize("arguments, message", [
    (["--config", "x"],
     "--config, --corpus and --data_dir go together"),
    (["--only", "profle"],
     "--only: unknown measurement 'profle'; did you mean profile"),
    (["--config", "nowhere", "--corpus", "x", "--data_dir", "y"],
     "nowhere: no such folder"),
])
def test_wrong_arguments_of_bench_are_refused(refused, tmp_path, arguments, message):
    assert message in refused(bench, "--out_dir", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
