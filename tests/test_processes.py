"""Two processes under torchrun, on CPUs.

They compute what a single one does; when one is killed, the others say how to resume; and one
process can resume what two have begun.
"""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, no_dropout, output_of, wait_until
from short_runs import log_of

import finetune
import pretrain
from load_hf_weights import load_model
from support.training_run import read_checkpoint


@pytest.fixture
def arguments(world, tmp_path):
    """arguments(name, more) -> those of a distillation in tmp_path / name.

    Without dropout: its random numbers are each process's own."""
    own = ("--teacher", no_dropout(world, tmp_path / "teacher"), "--corpus", world / "corpus.txt",
           "--heldout", world / "heldout.txt", "--cache_dir", world / "cache", "--steps", 20,
           "--batch_size", 6, "--grad_accum", 2, "--lr", "3e-3", "--max_length", 32,
           "--log_every", 1, "--precision", "fp32", "--device", "cpu")

    def make(name, *more):
        return [str(word) for word in (*own, "--out_dir", tmp_path / name, *more)]
    return make


def torchrun(*words):
    """torchrun with two processes, started, on a port that is free."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def torchrun_signalled(moment, count, who, number, *words):
    """The same; `who` gets this signal at an exact moment (see signalled.py)."""
    script = ROOT / "tests" / "signalled.py"
    return torchrun(script, moment, count, who, int(number), *words)


def assert_same_log(folder, other, tolerance):
    """Line by line and number by number."""
    ours, theirs = log_of(folder), log_of(other)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs):
        for line in (one, two):
            line.update(line.pop("heldout", {}))
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance)


# ---- The same numbers ----

def test_two_processes_have_the_losses_of_one(arguments, tmp_path):
    """Micro-batches of 3 rows are 2 and 1 for two processes, whose counts of masked tokens differ:
    the mean over all tokens is not the mean of their means."""
    pretrain.main(arguments("one"))
    job = torchrun("pretrain.py", *arguments("two"))
    printed, errors = output_of(job)
    assert job.returncode == 0, errors
    assert len(log_of(tmp_path / "two")) == 22  # one process logs
    assert_same_log(tmp_path / "two", tmp_path / "one", 1e-5)
    one, two = (load_model(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert printed.count("held out, mlm_loss") == 1
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["made_with"]["processes"] == 2
    # One process finds it done: the number of processes does not define a run.
    assert pretrain.main(arguments("two"))["made_with"]["processes"] == 2


def test_two_processes_fine_tune_as_one_does(world, arguments, tmp_path):
    """64 rows in batches of 7: of the last batch, a single row, the second process gets none."""
    def words(name):
        return [str(word) for word in (
            "--model", tmp_path / "teacher", "--task", "mrpc", "--data_dir", world / "data",
            "--out_dir", tmp_path / name, "--epochs", 2, "--lr", "1e-3", "--batch_size", 7,
            "--max_length", 32, "--log_every", 1, "--predict", "--precision", "fp32",
            "--device", "cpu")]
    results = finetune.main(words("one"))
    job = torchrun("finetune.py", *words("two"))
    printed, errors = output_of(job)
    assert job.returncode == 0, errors
    assert len(log_of(tmp_path / "two")) == 20
    assert_same_log(tmp_path / "two", tmp_path / "one", 1e-5)
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == results
    assert printed.count("MRPC") == 2
    for name in ("predictions.tsv", "submission/MRPC.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- Killed and stopped ----

def assert_one_says(hint, errors, rank):
    """Of the two processes this rank alone speaks, and says what the same command would do.

    It may notice first that the other one is gone, or that torchrun asks it to end."""
    said = [line for line in errors.splitlines() if line.startswith("pretrain.py: ")]
    reason = "error: .*run: another process was killed, .*|.*run: stopped"
    assert len(said) == 1, errors
    assert re.fullmatch(rf"pretrain.py: process {rank} of 2: ({reason}); {hint}", said[0]), errors


RESUMES = "the same command resumes from step 3"
STARTS_AGAIN = "the same command starts the run again"


@pytest.mark.parametrize("rank, moment, count, hint", [
    (0, "step", 5, RESUMES),
    (1, "step", 5, RESUMES),
    (0, "half-written", 1, STARTS_AGAIN),
    (0, "half-written", 2, RESUMES),
    (0, "after:checkpoint.pt", 1, RESUMES),  # of which the other one has not heard
    (0, "after:run.json", 1, "the run is complete: the same command shows its result"),
], ids=["the first in a step", "the second in a step", "in its first checkpoint",
        "in its second checkpoint", "just after its checkpoint", "just after its last file"])
def test_when_a_process_is_killed_the_other_one_says_how_to_resume(arguments, tmp_path, rank,
                                                                   moment, count, hint):
    """And the same command, with one process, ends as a run that was never interrupted."""
    again = arguments("run", "--checkpoint_steps", 3)
    job = torchrun_signalled(moment, count, rank, signal.SIGKILL, "pretrain.py", *again)
    _, errors = output_of(job)
    assert job.returncode != 0
    assert_one_says(hint, errors, 1 - rank)
    record = pretrain.main(again)
    assert [resume["from_step"] for resume in record.get("resumed", [])] == [3] * (hint == RESUMES)
    pretrain.main(arguments("one"))
    assert_same_log(tmp_path / "run", tmp_path / "one", 1e-4)


def workers(job):
    """The pids of torchrun's processes, by rank."""
    found = {}
    for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        found[int(re.search(rb"\0RANK=(\d)\0", environment)[1])] = int(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the ranks from /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_at_any_moment_leaves_a_checkpoint(arguments, tmp_path, rank):
    """The other one names its step."""
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    endless = arguments("run", "--steps", 100_000, "--checkpoint_steps", 3)
    job = torchrun("pretrain.py", *endless)
    wait_until(checkpoint.exists, job)
    os.kill(workers(job)[rank], signal.SIGKILL)
    _, errors = output_of(job)
    assert job.returncode != 0
    step = read_checkpoint(checkpoint)["step"]
    assert step % 3 == 0
    assert_one_says(f"the same command resumes from step {step}", errors, 1 - rank)


def test_one_process_resumes_what_two_have_begun(arguments, tmp_path):
    """The two are asked to end by a signal to torchrun."""
    again = arguments("run")
    job = torchrun_signalled("step", 8, "torchrun", signal.SIGTERM, "pretrain.py", *again)
    _, errors = output_of(job)
    assert job.returncode != 0
    assert "run: stopped; the same command resumes from step 8\n" in errors, errors
    resume, = pretrain.main(again)["resumed"]
    assert resume["from_step"] == 8 and "processes was 2, is now 1" in resume["changed"]
    pretrain.main(arguments("one"))
    assert_same_log(tmp_path / "run", tmp_path / "one", 1e-4)


# ---- Errors ----

def test_a_batch_too_small_for_two_processes_is_refused(arguments, tmp_path):
    job = torchrun("pretrain.py", *arguments("run", "--batch_size", 3))
    _, errors = output_of(job)
    assert job.returncode != 0
    assert ("error: --grad_accum 2 on 2 processes is more micro-batches than --batch_size 3 has "
            "sequences") in errors
    assert not (tmp_path / "run").exists()


def test_a_command_that_torchrun_cannot_start_says_so():
    job = torchrun("-m", "support.bench")
    _, errors = output_of(job)
    assert job.returncode != 0
    assert "error: torchrun works with pretrain.py and finetune.py" in errors
