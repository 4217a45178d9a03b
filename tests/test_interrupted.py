"""Runs that are killed, stopped, starved of disk or memory, started twice, or go wrong by themselves: nothing is lost or mixed."""
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import finetune
import pretrain
from losses import LOSSES
from support.errors import InputError, Interrupted
from support.training_run import Run, read_checkpoint
from support.weight_files import read_torch_file


@pytest.fixture
def arguments(world, tmp_path):
    """arguments(module, name, more arguments) -> those of a run in the folder tmp_path / name."""
    def make(module, name, *more):
        own = {pretrain: ("--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--heldout", world / "heldout.txt",
                          "--cache_dir", world / "cache", "--steps", 14, "--grad_accum", 2),
               finetune: ("--model", world / "teacher", "--task", "mrpc", "--data_dir", world / "data", "--epochs", 2)}[module]
        return [str(x) for x in (*own, "--out_dir", tmp_path / name, "--max_length", 32, "--batch_size", 8, "--log_every", 3,
                                 "--precision", "fp32", "--device", "cpu", *more)]
    return make


def command(module, arguments, **options):
    return subprocess.run([sys.executable, ROOT / f"{module.__name__}.py", *arguments], capture_output=True, text=True, **options)


def last_line(done):
    assert "Traceback" not in done.stderr
    return done.stderr.replace("\r", "\n").strip().splitlines()[-1]


def same_run(one, other):
    """Whether two runs left the same bytes. run.json has times in it."""
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir()) and "run.json" in names and "checkpoint.pt" not in names
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names if name != "run.json")


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): a run in this process gets a real SIGTERM in its n-th step."""
    should_save = Run.should_save

    def stop_at(step, number=signal.SIGTERM):
        def signalled(run, steps_done):
            if steps_done == step:
                os.kill(os.getpid(), number)
            return should_save(run, steps_done)
        monkeypatch.setattr(Run, "must_save", signalled)
    return stop_at


@pytest.fixture
def stopped(arguments, stop_at, tmp_path, monkeypatch):
    """stopped(module, name, step) -> the arguments of a run in tmp_path / name that has a checkpoint of so many steps."""
    def make(module, name, step=5):
        stop_at(step)
        with pytest.raises(Interrupted, match=f"{name}: stopped; the same command goes on from step {step}$"):
            module.main(arguments(module, name))
        monkeypatch.undo()
        return arguments(module, name)
    return make


# ---- Killed and stopped ----

@pytest.mark.parametrize("module, seed", [(pretrain, 1), (pretrain, 2), (finetune, 3)])
def test_killed_at_any_moment_the_run_ends_in_the_same_bytes(arguments, tmp_path, module, seed):
    module.main(arguments(module, "whole"))
    done = subprocess.run([sys.executable, ROOT / "tests" / "killed.py", module.__name__, str(seed), "10",
                           *arguments(module, "killed", "--checkpoint_steps", "2")], capture_output=True, text=True)
    kills = [line for line in done.stdout.splitlines() if line.startswith("killed") and "not" not in line]
    assert "killed not: it ended with 0" in done.stdout, done.stdout + done.stderr
    assert len(kills) >= 5 and len(set(kills)) >= 3, done.stdout  # in several ways
    assert same_run(tmp_path / "whole", tmp_path / "killed")
    resumed = json.loads((tmp_path / "killed" / "run.json").read_text())["resumed"]
    assert all(sitting["changed"] == [] for sitting in resumed) and len({sitting["from_step"] for sitting in resumed}) >= 2


@pytest.mark.parametrize("module, number, status", [(pretrain, signal.SIGTERM, 143), (pretrain, signal.SIGINT, 130), (finetune, signal.SIGINT, 130)])
def test_a_signal_lets_the_step_end_and_a_checkpoint_be_written(arguments, tmp_path, module, number, status):
    longer = {pretrain: ("--steps", 60), finetune: ("--epochs", 8)}[module]
    module.main(arguments(module, "whole", *longer))
    process = subprocess.Popen([sys.executable, ROOT / f"{module.__name__}.py", *arguments(module, "stopped", *longer)], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "stopped" / "log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 4:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, printed = process.communicate()
    step = read_checkpoint(tmp_path / "stopped" / "checkpoint.pt")["step"]
    assert process.returncode == status and "Traceback" not in printed
    assert printed.replace("\r", "\n").strip().splitlines()[-1] == (
        f"{module.__name__}.py: {tmp_path / 'stopped'}: stopped; the same command goes on from step {step}")
    assert not (tmp_path / "stopped" / "run.json").exists()
    done = command(module, arguments(module, "stopped", *longer))
    assert done.returncode == 0 and f"stopped: goes on from step {step}\n" in done.stdout
    assert same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_signal_around_the_first_step_ends_the_run_too(arguments, tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "pretrain.py", *arguments(pretrain, "run", "--steps", 10 ** 6)], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or not log.stat().st_size:  # the held-out figures before the first step
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate()
    assert process.returncode == 143 and "Traceback" not in printed
    assert re.search(r"pretrain.py: .*run: stopped; the same command (starts the run again|goes on from step \d+)\n$", printed)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_experiment_that_is_stopped_leaves_checkpoints_of_all_runs_in_progress(world, tmp_path, number, status):
    process = subprocess.Popen(
        [sys.executable, ROOT / "ablation.py", "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--data_dir", world / "data",
         "--out_dir", tmp_path / "runs", "--tasks", "cola,mrpc", "--variants", "full", "--jobs", "2", "--device", "cpu",
         f"--pretrain_args=--steps 2 --max_length 32 --cache_dir {world / 'cache'}", "--finetune_args=--epochs 100000 --max_length 32 --log_every 1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def in_progress():
        return [log.parent for log in (tmp_path / "runs").glob("*/seed0/*/log.jsonl") if log.read_text().count("\n") > 3 and not (log.parent / "run.json").exists()]
    while len(in_progress()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
    _, printed = process.communicate()
    assert process.returncode == status and "Traceback" not in printed
    assert printed.strip().splitlines()[-1] == "ablation.py: interrupted; the same command goes on where the runs stopped"
    assert all(read_checkpoint(folder / "checkpoint.pt")["step"] > 3 for folder in in_progress())


# ---- What a folder holds ----

def test_a_folder_with_an_unfinished_run_is_refused_to_another_one(stopped, arguments, tmp_path, refused):
    stopped(pretrain, "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    line = refused(pretrain, *arguments(pretrain, "run", "--lr", "1e-3", "--seed", 7))
    assert re.search(r"run holds another run \(lr was 0.0005, is now 0.001; seed was 0, is now 7\); .*--overwrite", line)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    record = pretrain.main(arguments(pretrain, "run", "--lr", "1e-3", "--seed", 7, "--overwrite"))
    assert "resumed" not in record
    assert {file.name: file.read_bytes() for file in (tmp_path / "run~1").iterdir()} == before


def test_two_processes_on_one_folder(arguments, tmp_path):
    first = subprocess.Popen([sys.executable, ROOT / "pretrain.py", *arguments(pretrain, "run", "--steps", 10 ** 6, "--checkpoint_steps", 1)], stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert first.poll() is None
        time.sleep(0.01)
    for more in ((), ("--overwrite", "--seed", 1)):
        second = command(pretrain, arguments(pretrain, "run", "--steps", 10 ** 6, *more))
        assert second.returncode == 2 and last_line(second).endswith("run: another process is at work in this folder; wait for it, or choose another --out_dir")
    first.kill()
    first.wait()
    third = subprocess.Popen([sys.executable, ROOT / "pretrain.py", *arguments(pretrain, "run", "--steps", 10 ** 6)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "goes on from step" in third.stdout.readline()
    third.kill()
    third.wait()


def test_two_experiments_in_one_folder(world, tmp_path):
    words = [sys.executable, ROOT / "ablation.py", "--preset", "mini", "--teacher", world / "teacher", "--corpus", world / "corpus.txt", "--data_dir", world / "data",
             "--out_dir", tmp_path / "runs", "--tasks", "cola", "--variants", "full", "--jobs", "1", "--finetune_args=--epochs 100000 --max_length 32",
             f"--pretrain_args=--steps 2 --max_length 32 --cache_dir {world / 'cache'}"]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while "finetune.py" not in first.stdout.readline():
        pass
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 2 and "runs: another process is at work in this folder" in last_line(second)
    first.kill()
    first.wait()


def test_a_folder_with_somebody_elses_model_is_left_alone(world, arguments, tmp_path, refused):
    shutil.copytree(world / "teacher", tmp_path / "downloaded")
    before = (tmp_path / "downloaded" / "model.safetensors").read_bytes()
    assert "downloaded: holds what no run of this program made (config.json, model.safetensors" in refused(finetune, *arguments(finetune, "downloaded", "--overwrite"))
    assert (tmp_path / "downloaded" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"", lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
                                    lambda data: b"nonsense"])
def test_a_damaged_checkpoint_is_noticed(stopped, tmp_path, refused, damage):
    again = stopped(pretrain, "run")
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    assert re.search(r"run/checkpoint.pt: cannot be read as weights: .*; delete it, or add --overwrite, to start the run again", refused(pretrain, *again))
    assert "resumed" not in pretrain.main([*again, "--overwrite"]) and (tmp_path / "run~1" / "checkpoint.pt").exists()


def flat(value):
    """The plain values and tensors in nested tables and lists, in order."""
    if isinstance(value, dict):
        return [x for key in value for x in (key, *flat(value[key]))]
    return [x for y in value for x in flat(y)] if isinstance(value, (list, tuple)) else [value]


def test_a_bit_that_turns_anywhere_in_a_checkpoint_is_noticed_or_without_effect(stopped, tmp_path):
    stopped(finetune, "run")
    file = tmp_path / "run" / "checkpoint.pt"
    data, whole, rng, noticed = file.read_bytes(), flat(read_torch_file(file)), random.Random(0), 0
    for place in rng.sample(range(len(data)), 100) + list(range(len(data) - 50, len(data))):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:])
        try:
            read = flat(read_torch_file(file))
        except InputError:
            noticed += 1
        else:
            assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(read, whole, strict=True))
    assert noticed > 90


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="this machine has one core")
def test_going_on_under_other_conditions_says_so(stopped, tmp_path):
    again = stopped(pretrain, "run")
    done = command(pretrain, again, env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    changed = f"threads was {torch.get_num_threads()}, is now 1"
    assert done.returncode == 0 and f"run: goes on from step 5 under other conditions ({changed}): no longer exactly the uninterrupted run\n" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"] == [{"from_step": 5, "changed": [changed]}]


@pytest.mark.parametrize("module", [pretrain, finetune])
def test_a_run_killed_before_its_first_checkpoint_starts_again_and_is_nobody_elses(arguments, tmp_path, module, refused):
    """Killed between its last files, and then again before it could log anything."""
    module.main(arguments(module, "whole"))
    script = ("import os, sys; sys.path.insert(0, sys.argv[1]); import run, {module}; replace = os.replace\n"
              "def die(source, target): replace(source, target); os.kill(os.getpid(), 9) if str(target).endswith(sys.argv[2]) else None\n"
              "os.replace = die; {module}.main(sys.argv[3:])").format(module=module.__name__)
    for last in ("model.safetensors", "started.json"):
        done = subprocess.run([sys.executable, "-c", script, ROOT, last, *arguments(module, "run")], capture_output=True)
        assert done.returncode == -signal.SIGKILL and (tmp_path / "run" / "model.safetensors").exists()
    other = {pretrain: "--steps", finetune: "--epochs"}[module]
    line = refused(module, *arguments(module, "run", other, 1))
    assert re.search(rf"run holds another run \({other[2:]} was \d+, is now 1\); choose another --out_dir, or add --overwrite", line)
    module.main(arguments(module, "run"))
    assert same_run(tmp_path / "whole", tmp_path / "run")


def test_what_somebody_else_put_there_is_left_alone(arguments, world, tmp_path, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vocab.txt").write_text("mine")
    assert "run: holds what no run of this program made (vocab.txt)" in refused(pretrain, *arguments(pretrain, "run", "--overwrite"))
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").iterdir()] == [("vocab.txt", "mine")]
    shutil.copytree(world, tmp_path / "world")
    for out, corpus in (("world", "world/corpus.txt"), ("world/x", "world"), ("world", "world")):
        line = refused(pretrain, *arguments(pretrain, out, "--corpus", tmp_path / corpus))
        assert re.search(rf"--out_dir .*{out} holds, or lies in, .*{corpus}, which is read; choose another", line)
    assert not (tmp_path / "world" / "x").exists()
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in refused(pretrain, *arguments(pretrain, "loop"))
    assert "--out_dir: no name given" in refused(pretrain, *arguments(pretrain, "x", "--out_dir", ""))


# ---- Disks and memory ----

def test_a_full_disk_leaves_the_checkpoint_before(stopped, arguments, tmp_path):
    pretrain.main(arguments(pretrain, "whole"))
    again = stopped(pretrain, "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    done = command(pretrain, [*again, "--checkpoint_steps", "3"], preexec_fn=no_large_files)
    assert done.returncode == 2
    assert last_line(done) == f"pretrain.py: error: {tmp_path}/run/checkpoint.pt: File too large; mend that, and the same command goes on from step 5"
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before and not list((tmp_path / "run").glob("*.tmp*"))
    assert command(pretrain, again).returncode == 0 and same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, which is full soon."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk(stopped, arguments, world, tmp_path, small_disk):
    for module, full in ((pretrain, "checkpoint.pt"), (finetune, "checkpoint.pt")):
        done = command(module, arguments(module, f"disk/{module.__name__}", "--checkpoint_steps", 3))
        assert done.returncode == 2 and re.search(rf"disk/\w+/{full}: No space left on device; mend that, and the same command starts the run again", last_line(done))
    done = command(pretrain, arguments(pretrain, "run", "--cache_dir", small_disk, "--corpus", *[world / "corpus.txt"] * 40))
    assert done.returncode == 2 and re.search(r"disk/tokens-[\w.-]+: No space left on device", last_line(done))
    assert {path.suffix for path in small_disk.glob("tokens*")} == {".part"}  # what is done, and nothing half
    assert not (tmp_path / "run").exists()


def unprivileged():
    """Root may write anywhere: give that right up."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        os._exit(77)


def test_a_read_only_folder(arguments, tmp_path):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(0o555)
    done = command(pretrain, arguments(pretrain, "sealed/run"), preexec_fn=unprivileged)
    if done.returncode == 77:
        pytest.skip("root may write anywhere, and cannot give that up here")
    assert done.returncode == 2 and last_line(done) == f"pretrain.py: error: {tmp_path}/sealed/run: Permission denied"


def test_a_vanished_folder(arguments, tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "pretrain.py", *arguments(pretrain, "run", "--steps", 10 ** 6, "--checkpoint_steps", 50)], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in printed
    assert printed.strip().splitlines()[-1] == (f"pretrain.py: error: {tmp_path}/run/checkpoint.pt: No such file or directory; mend that, and "
                                                "the same command starts the run again")
    assert read_checkpoint(tmp_path / "elsewhere" / "checkpoint.pt")["step"] % 50 == 0


def test_too_little_memory_names_the_flags(arguments, tmp_path):
    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    done = command(pretrain, arguments(pretrain, "run", "--batch_size", 30_000), preexec_fn=little_memory)
    assert done.returncode == 2
    assert last_line(done) == "pretrain.py: error: out of memory: lower --batch_size or --max_length; pretrain.py has --grad_accum and --chunk_tokens too"


# ---- Losses that are no numbers ----

def ruin(monkeypatch, step):
    """From this step on the cosine loss is not a number."""
    monkeypatch.setitem(LOSSES, "cos", (lambda student_hidden: student_hidden.square().mean() * (float("nan") if ruin.steps_done >= step else 1.0), 1.0))
    should_save = Run.should_save

    def counted(run, steps_done):
        ruin.steps_done = steps_done
        return should_save(run, steps_done)
    monkeypatch.setattr(Run, "must_save", counted)


def test_a_loss_that_is_not_finite_names_step_terms_and_the_last_good_checkpoint(arguments, tmp_path, monkeypatch):
    ruin(monkeypatch, 7)
    for _ in range(2):  # going on from the checkpoint, it is the same
        ruin.steps_done = 0
        with pytest.raises(InputError, match=r"^step 7: the loss is not a finite number any more \(cos nan, ce [\d.]+, mlm [\d.]+\); the last good checkpoint "
                                             r"is that of 6 steps; lower --lr, with --overwrite or another --out_dir"):
            pretrain.main(arguments(pretrain, "run", "--checkpoint_steps", 2, "--log_every", 1000))
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 6
    assert all(x.isfinite().all() for x in read_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"].values())
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_that_are_not_finite_never_enter_a_checkpoint(arguments, tmp_path):
    """The last step of three before a checkpoint ruins them: no loss has been taken of them yet."""
    for more in (("--lr", "1e38", "--clip", "1e38"),):
        with pytest.raises(InputError, match="the weights are not .*there is no checkpoint yet; lower --lr"):
            pretrain.main(arguments(pretrain, "run", "--checkpoint_steps", 1, *more))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
