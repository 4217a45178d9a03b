"""Two processes under torchrun, on CPUs: the single process's losses; one that is killed; another number of them goes on."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, no_dropout

import finetune
import pretrain
from load_hf_weights import load_model
from support.training_run import read_checkpoint


@pytest.fixture
def arguments(world, tmp_path):
    """arguments(name, more) -> those of a distillation in tmp_path / name; without dropout, whose random numbers are each process's own."""
    teacher = no_dropout(world, tmp_path / "teacher")

    def make(name, *more):
        return [str(x) for x in ("--teacher", teacher, "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt", "--cache_dir",
                                 world / "cache", "--out_dir", tmp_path / name, "--steps", 20, "--batch_size", 6, "--grad_accum", 2, "--lr", "3e-3",
                                 "--max_length", 32, "--log_every", 1, "--precision", "fp32", "--device", "cpu", *more)]
    return make


def torchrun(processes, module, arguments, **options):
    """The command, started; its processes on a port that is free."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                             ROOT / f"{module}.py", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_log(folder, other, tolerance):
    """Line by line and figure by figure."""
    def flat(line):
        return {**line.pop("heldout", {}), **line}
    ours, theirs = (list(map(flat, logged(path))) for path in (folder, other))
    assert len(ours) == len(theirs) and all(one == pytest.approx(two, rel=tolerance, abs=tolerance) for one, two in zip(ours, theirs))


def test_two_processes_have_the_losses_of_one(arguments, tmp_path):
    """Parts of 3 rows are 2 and 1 for two processes, and their counts of masked tokens differ; what each exchanges is not a mean of means."""
    pretrain.main(arguments("one"))
    two = torchrun(2, "pretrain", arguments("two"))
    printed, errors = two.communicate(timeout=120)
    assert two.returncode == 0, errors
    assert len(logged(tmp_path / "two")) == 22  # one process logs
    assert_same_log(tmp_path / "two", tmp_path / "one", 1e-5)
    weights = [load_model(tmp_path / name).state_dict() for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])
    assert printed.count("held out, mlm_loss") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["made_with"]["processes"] == 2
    assert pretrain.main(arguments("two"))["made_with"]["processes"] == 2  # done before: how many processes is no part of what a run is


def test_finetuning_on_two_processes_is_that_on_one(world, arguments, tmp_path):
    """64 rows in batches of 7: of the last one, a single row, the second process gets none."""
    def of(name):
        return [str(x) for x in ("--model", tmp_path / "teacher", "--task", "mrpc", "--data_dir", world / "data", "--out_dir", tmp_path / name, "--epochs", 2,
                                 "--lr", "1e-3", "--batch_size", 7, "--max_length", 32, "--log_every", 1, "--predict", "--precision", "fp32", "--device", "cpu")]
    results = finetune.main(of("one"))
    two = torchrun(2, "finetune", of("two"))
    printed, errors = two.communicate(timeout=120)
    assert two.returncode == 0, errors
    assert len(logged(tmp_path / "two")) == 20
    assert_same_log(tmp_path / "two", tmp_path / "one", 1e-5)
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == results and printed.count("MRPC") == 2
    for name in ("predictions.tsv", "submission/MRPC.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def wait_for(path, process):
    started = time.monotonic()
    while not path.exists() and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.05)
    assert path.exists(), process.communicate()[1]


def workers(process):
    """The pids of torchrun's processes, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {re.search(rb"\0RANK=(\d)\0", Path(f"/proc/{pid}/environ").read_bytes())[1].decode(): int(pid) for pid in children}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="which process is which is read from /proc")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_ends_the_job_and_leaves_a_checkpoint(arguments, tmp_path, rank):
    """One process then goes on with it, to the losses of a run that was not interrupted."""
    endless = arguments("run", "--steps", 100_000, "--checkpoint_steps", 3)
    job = torchrun(2, "pretrain", endless)
    wait_for(tmp_path / "run" / "checkpoint.pt", job)
    os.kill(workers(job)[rank], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("pretrain.py: ")]
    assert len(said) == 1 and re.search(rf"process {1 - int(rank)} of 2: error: .*run: another process was killed.*; the same command goes on from "
                                        r"step \d+|process \d of 2: .*run: stopped; the same command goes on from step", said[0]), errors
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] % 3 == 0


def test_another_number_of_processes_goes_on(arguments, tmp_path, capsys):
    """Two are asked to end by a signal to torchrun; one goes on."""
    job = torchrun(2, "pretrain", arguments("run", "--steps", 40))
    wait_for(tmp_path / "run" / "log.jsonl", job)
    while sum(1 for _ in open(tmp_path / "run" / "log.jsonl")) < 8:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0 and "run: stopped; the same command goes on from step" in errors, errors
    step = read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    record = pretrain.main(arguments("run", "--steps", 40))
    assert record["resumed"] == [{"from_step": step, "changed": ["processes was 2, is now 1"]}] or "threads" in str(record["resumed"])
    pretrain.main(arguments("one", "--steps", 40))
    assert_same_log(tmp_path / "run", tmp_path / "one", 1e-4)


def test_what_several_processes_cannot_do(arguments, tmp_path):
    job = torchrun(2, "pretrain", arguments("run", "--batch_size", 3))
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0 and "error: --grad_accum 2 on 2 processes is more parts than --batch_size 3 has sequences" in errors
    assert not (tmp_path / "run").exists()
    job = torchrun(2, "bench", [])
    assert "error: torchrun goes with pretrain.py and finetune.py" in job.communicate(timeout=60)[1]
