"""Runs that are killed, stopped, starved of disk or memory, started twice, or that diverge.

Nothing is lost, nothing is mixed, and every run says how to resume it.
"""
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
from conftest import ROOT, last_line, output_of, wait_until

import finetune
import pretrain
from losses import LOSSES
from support import toy
from support.errors import InputError, Interrupted
from support.training_run import Run, read_checkpoint
from support.weight_files import read_torch_file

ENDLESS = ("--steps", 10 ** 6)


# ---- Helpers ----

@pytest.fixture
def arguments(world, tmp_path):
    """arguments(module, name, more arguments) -> those of a run in the folder tmp_path / name."""
    own = {pretrain: ("--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                      "--heldout", world / "heldout.txt", "--cache_dir", world / "cache",
                      "--steps", 14, "--grad_accum", 2),
           finetune: ("--model", world / "teacher", "--task", "mrpc",
                      "--data_dir", world / "data", "--epochs", 2)}
    common = ("--max_length", 32, "--batch_size", 8, "--log_every", 3,
              "--precision", "fp32", "--device", "cpu")

    def make(module, name, *more):
        words = (*own[module], "--out_dir", tmp_path / name, *common, *more)
        return [str(word) for word in words]
    return make


@pytest.fixture
def experiment(world, tmp_path):
    """experiment(more arguments) -> ablation.py in tmp_path / "runs", whose fine-tunings never
    end, as a command."""
    def make(*more):
        words = (sys.executable, ROOT / "ablation.py", "--preset", "mini",
                 "--teacher", world / "teacher", "--corpus", world / "corpus.txt",
                 "--data_dir", world / "data", "--out_dir", tmp_path / "runs",
                 "--variants", "full", "--seeds", 1, "--device", "cpu",
                 f"--pretrain_args=--steps 2 --max_length 32 --cache_dir {world / 'cache'}",
                 "--finetune_args=--epochs 100000 --max_length 32 --log_every 1", *more)
        return [str(word) for word in words]
    return make


def command(module, arguments):
    return [sys.executable, ROOT / f"{module.__name__}.py", *arguments]


def run_command(module, arguments, **options):
    """The command in a process of its own, when it has ended."""
    done = subprocess.run(command(module, arguments), capture_output=True, text=True, **options)
    assert "Traceback" not in done.stderr
    return done


def start_command(module, arguments, **options):
    return subprocess.Popen(command(module, arguments), stderr=subprocess.PIPE, text=True,
                            **options)


def run_signalled(moment, count, number, module, arguments):
    """The command, which gets this signal at an exact moment (see signalled.py)."""
    script = ROOT / "tests" / "signalled.py"
    words = [sys.executable, script, moment, str(count), "0", str(int(number)),
             f"{module.__name__}.py", *arguments]
    return subprocess.run(words, capture_output=True, text=True)


def lines_in(path):
    return path.read_text().count("\n") if path.exists() else 0


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def same_run(one, other):
    """Whether two runs left the same bytes. run.json has times in it."""
    ours, theirs = contents(one), contents(other)
    assert "run.json" in ours and "checkpoint.pt" not in ours
    del ours["run.json"], theirs["run.json"]
    return ours == theirs


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): a run in this process gets a real SIGTERM in its n-th step."""
    should_save = Run.should_save

    def stop_at(step):
        def signalled(run, steps_done):
            if steps_done == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return should_save(run, steps_done)
        monkeypatch.setattr(Run, "should_save", signalled)
    return stop_at


@pytest.fixture
def stopped(arguments, stop_at, monkeypatch):
    """stopped(module, name, step) -> the arguments of a run in tmp_path / name.

    It was stopped, and has a checkpoint of this step."""
    def make(module, name, step=5):
        stop_at(step)
        message = f"{name}: stopped; the same command resumes from step {step}$"
        with pytest.raises(Interrupted, match=message):
            module.main(arguments(module, name))
        monkeypatch.undo()
        return arguments(module, name)
    return make


# ---- Killed and stopped ----

@pytest.mark.parametrize("module, seed", [(pretrain, 1), (pretrain, 2), (finetune, 3)])
def test_killed_at_any_moment_a_run_ends_in_the_same_bytes(arguments, tmp_path, module, seed):
    longer = {pretrain: ("--steps", 40), finetune: ("--epochs", 5)}[module]
    module.main(arguments(module, "whole", *longer))
    words = [sys.executable, ROOT / "tests" / "killed.py", module.__name__, str(seed),
             *arguments(module, "killed", "--checkpoint_steps", "2", *longer)]
    done = subprocess.run(words, capture_output=True, text=True)
    kills = [line for line in done.stdout.splitlines() if line.startswith("killed")]
    assert "not killed: it ended with 0" in done.stdout, done.stdout + done.stderr
    assert len(kills) >= 6 and len(set(kills)) >= 3, done.stdout
    assert same_run(tmp_path / "whole", tmp_path / "killed")
    resumed = json.loads((tmp_path / "killed" / "run.json").read_text())["resumed"]
    assert all(resume["changed"] == [] for resume in resumed)
    assert len({resume["from_step"] for resume in resumed}) >= 2


@pytest.mark.parametrize("module, number, status", [
    (pretrain, signal.SIGTERM, 143), (pretrain, signal.SIGINT, 130),
    (finetune, signal.SIGINT, 130)])
def test_after_a_signal_the_step_ends_and_a_checkpoint_is_written(arguments, tmp_path, module,
                                                                  number, status):
    module.main(arguments(module, "whole"))
    again = arguments(module, "stopped")
    done = run_signalled("step", 5, number, module, again)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert last_line(done.stderr) == (f"{module.__name__}.py: {tmp_path / 'stopped'}: stopped; "
                                      "the same command resumes from step 5")
    assert read_checkpoint(tmp_path / "stopped" / "checkpoint.pt")["step"] == 5
    assert not (tmp_path / "stopped" / "run.json").exists()
    done = run_command(module, again)
    assert done.returncode == 0 and "stopped: resumes from step 5\n" in done.stdout
    assert same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("lines", [1, 4])
def test_a_signal_at_any_moment_ends_the_run_with_a_hint(arguments, tmp_path, lines):
    """Around the first step: the line before it has the held-out losses. And in later ones."""
    process = start_command(pretrain, arguments(pretrain, "run", *ENDLESS))
    wait_until(lambda: lines_in(tmp_path / "run" / "log.jsonl") >= lines, process)
    process.send_signal(signal.SIGTERM)
    _, printed = output_of(process)
    assert process.returncode == 143 and "Traceback" not in printed
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    hint = "starts the run again"
    if checkpoint.exists():
        hint = f"resumes from step {read_checkpoint(checkpoint)['step']}"
    assert checkpoint.exists() or lines == 1
    assert last_line(printed) == (f"pretrain.py: {tmp_path / 'run'}: stopped; "
                                  f"the same command {hint}")


def test_a_signal_between_the_last_two_files_says_that_the_run_is_complete(arguments, tmp_path):
    again = arguments(pretrain, "run", "--checkpoint_steps", 3)
    done = run_signalled("after:run.json", 1, signal.SIGTERM, pretrain, again)
    assert done.returncode == 143
    assert last_line(done.stderr).endswith("run: stopped; the run is complete: the same command "
                                           "shows its result")
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert "run: done before\n" in run_command(pretrain, again).stdout
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_long_run_that_is_stopped_while_it_is_evaluated_need_not_train_again(
        arguments, tmp_path, monkeypatch, capsys):
    pretrain.main(arguments(pretrain, "whole"))
    should_save, train = Run.should_save, pretrain.train

    def after_two_minutes(run, steps_done):
        run.saved = time.monotonic() - 120
        return should_save(run, steps_done)

    def train_and_stop(*more):
        train(*more)
        raise Interrupted(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "should_save", after_two_minutes)
        patch.setattr("pretrain.train", train_and_stop)
        with pytest.raises(Interrupted, match="the same command resumes from step 14"):
            pretrain.main(arguments(pretrain, "stopped"))
    pretrain.main(arguments(pretrain, "stopped"))
    assert "resumes from step 14" in capsys.readouterr().out
    assert same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("file, number", [("corpus.txt", signal.SIGINT),
                                          ("train.tsv", signal.SIGTERM)])
def test_what_is_written_without_a_log_is_written_again_after_a_signal(tmp_path, file, number):
    folder = tmp_path / "language"
    words = [sys.executable, ROOT / "tests" / "signalled.py", f"after:{file}", "1", "0",
             str(int(number)), "support/toy.py", "--out_dir", folder]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 128 + number and (folder / "corpus.txt").exists()
    assert last_line(done.stderr).endswith("stopped; the same command starts the run again")
    toy.main(["--out_dir", str(folder)])
    assert (folder / "run.json").exists() and not (folder / "started.json").exists()
    assert not (folder / "log.jsonl").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_experiment_leaves_checkpoints_of_all_runs_in_progress(experiment, tmp_path,
                                                                         number, status):
    process = subprocess.Popen(experiment("--tasks", "cola,mrpc", "--jobs", "2"), text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               start_new_session=True)

    def in_progress():
        logs = (tmp_path / "runs").glob("*/seed0/*/log.jsonl")
        return [log.parent for log in logs
                if lines_in(log) > 3 and not (log.parent / "run.json").exists()]
    wait_until(lambda: len(in_progress()) >= 2, process)
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
    _, printed = output_of(process)
    assert process.returncode == status and "Traceback" not in printed
    assert last_line(printed) == ("ablation.py: interrupted; the same command resumes where the "
                                  "runs stopped")
    for folder in in_progress():
        assert read_checkpoint(folder / "checkpoint.pt")["step"] > 3


# ---- What a folder holds ----

def test_an_unfinished_run_is_not_mixed_with_another_one(stopped, arguments, tmp_path, refused):
    stopped(pretrain, "run")
    before, other = contents(tmp_path / "run"), ("--lr", "1e-3", "--seed", 7)
    line = refused(pretrain, *arguments(pretrain, "run", *other))
    assert re.search(r"run holds another run \(lr was 0.0005, is now 0.001; seed was 0, is now 7\)"
                     "; .*--overwrite", line)
    assert contents(tmp_path / "run") == before
    record = pretrain.main(arguments(pretrain, "run", *other, "--overwrite"))
    assert "resumed" not in record
    assert contents(tmp_path / "run~1") == before


def test_of_two_processes_in_one_folder_the_second_is_refused(arguments, tmp_path):
    words = arguments(pretrain, "run", *ENDLESS, "--checkpoint_steps", 1)
    first = start_command(pretrain, words)
    wait_until((tmp_path / "run" / "checkpoint.pt").exists, first)
    for more in ((), ("--overwrite", "--seed", 1)):
        second = run_command(pretrain, arguments(pretrain, "run", *ENDLESS, *more))
        assert second.returncode == 2
        assert last_line(second.stderr).endswith(
            "run: another process is at work in this folder; wait for it, or choose another "
            "--out_dir")
    first.kill()
    first.communicate()
    third = start_command(pretrain, words, stdout=subprocess.PIPE)
    assert "resumes from step" in third.stdout.readline()
    third.kill()
    third.communicate()


def test_of_two_experiments_in_one_folder_the_second_is_refused(experiment, tmp_path):
    words = experiment("--tasks", "cola", "--jobs", "1")
    first = subprocess.Popen(words, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until((tmp_path / "runs" / "commands.log").exists, first)
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 2
    assert "runs: another process is at work in this folder" in last_line(second.stderr)
    first.kill()
    first.communicate()


def test_a_folder_with_somebody_elses_model_is_left_alone(world, arguments, tmp_path, refused):
    shutil.copytree(world / "teacher", tmp_path / "downloaded")
    before = contents(tmp_path / "downloaded")
    line = refused(finetune, *arguments(finetune, "downloaded", "--overwrite"))
    assert ("downloaded: holds files that no run of this program made "
            "(config.json, model.safetensors") in line
    assert contents(tmp_path / "downloaded") == before


def flip_a_bit(data):
    return data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


@pytest.mark.parametrize("damage", [
    lambda data: data[:-50], lambda data: b"", flip_a_bit, lambda data: b"nonsense"],
    ids=["cut", "empty", "a bit", "nonsense"])
def test_a_damaged_checkpoint_is_noticed(stopped, tmp_path, refused, damage):
    again = stopped(pretrain, "run")
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    assert re.search("run/checkpoint.pt: cannot be read as weights: .*; delete it, or add "
                     "--overwrite, to start the run again", refused(pretrain, *again))
    assert "resumed" not in pretrain.main([*again, "--overwrite"])
    assert (tmp_path / "run~1" / "checkpoint.pt").exists()


def flat(value):
    """The plain values and tensors in nested tables and lists, in order."""
    if isinstance(value, dict):
        return [x for key in value for x in (key, *flat(value[key]))]
    if isinstance(value, (list, tuple)):
        return [x for y in value for x in flat(y)]
    return [value]


def test_a_flipped_bit_in_a_checkpoint_is_noticed_or_without_effect(stopped, tmp_path):
    stopped(finetune, "run")
    file = tmp_path / "run" / "checkpoint.pt"
    data, whole = file.read_bytes(), flat(read_torch_file(file))
    rng, noticed = random.Random(0), 0
    at_the_end = range(len(data) - 50, len(data))
    for place in (*rng.sample(range(len(data)), 100), *at_the_end):
        flipped = bytes([data[place] ^ 1 << rng.randrange(8)])
        file.write_bytes(data[:place] + flipped + data[place + 1:])
        try:
            read = flat(read_torch_file(file))
        except InputError:
            noticed += 1
            continue
        for x, y in zip(read, whole, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert noticed > 90


def test_a_run_that_resumes_under_other_conditions_says_so(stopped, tmp_path):
    again, threads = stopped(pretrain, "run"), torch.get_num_threads()
    other = 2 if threads == 1 else 1
    environment = {"OMP_NUM_THREADS": str(other), "MKL_NUM_THREADS": str(other)}
    done = run_command(pretrain, again, env={**os.environ, **environment})
    changed = f"threads was {threads}, is now {other}"
    assert done.returncode == 0
    assert (f"run: resumes from step 5 under other conditions ({changed}): not exactly the result "
            "of an uninterrupted run\n") in done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["resumed"] == [{"from_step": 5, "changed": [changed]}]


@pytest.mark.parametrize("module", [pretrain, finetune])
def test_a_run_killed_without_a_checkpoint_starts_again_and_stays_this_run(arguments, tmp_path,
                                                                           module, refused):
    """Killed between its last files, and then again before it could log anything."""
    module.main(arguments(module, "whole"))
    again = arguments(module, "run")
    for file in ("model.safetensors", "started.json"):
        done = run_signalled(f"after:{file}", 1, signal.SIGKILL, module, again)
        assert done.returncode == -signal.SIGKILL
        assert (tmp_path / "run" / "model.safetensors").exists()
    other = {pretrain: "steps", finetune: "epochs"}[module]
    line = refused(module, *arguments(module, "run", f"--{other}", 1))
    assert re.search(rf"run holds another run \({other} was \d+, is now 1\); choose another "
                     "--out_dir, or add --overwrite", line)
    module.main(again)
    assert same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", ["vocab.txt", "log.jsonl"])
def test_somebody_elses_files_are_left_alone(arguments, world, tmp_path, refused, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    line = refused(pretrain, *arguments(pretrain, "run", "--overwrite"))
    assert f"run: holds files that no run of this program made ({name})" in line
    assert contents(tmp_path / "run") == {name: b"mine"}


def test_a_run_is_not_written_into_what_it_reads(arguments, world, tmp_path, refused):
    shutil.copytree(world, tmp_path / "world")
    for out, corpus in (("world", "world/corpus.txt"), ("world/x", "world"), ("world", "world")):
        line = refused(pretrain, *arguments(pretrain, out, "--corpus", tmp_path / corpus))
        assert re.search(rf"--out_dir .*{out} contains, or lies in, .*{corpus}, which is read; "
                         "choose another", line)
    assert not (tmp_path / "world" / "x").exists()


def test_an_out_dir_that_cannot_be_is_refused(arguments, tmp_path, refused):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in refused(pretrain, *arguments(pretrain, "loop"))
    line = refused(pretrain, *arguments(pretrain, "x", "--out_dir", ""))
    assert "--out_dir: no name given" in line


# ---- Disks and memory ----

def test_a_full_disk_leaves_the_checkpoint_before(stopped, arguments, tmp_path):
    pretrain.main(arguments(pretrain, "whole"))
    again, folder = stopped(pretrain, "run"), tmp_path / "run"
    before = (folder / "checkpoint.pt").read_bytes()

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    done = run_command(pretrain, [*again, "--checkpoint_steps", "3"], preexec_fn=no_large_files)
    assert done.returncode == 2
    assert last_line(done.stderr) == (f"pretrain.py: error: {folder}/checkpoint.pt: File too "
                                      "large; fix that, and the same command resumes from step 5")
    assert (folder / "checkpoint.pt").read_bytes() == before and not list(folder.glob("*.tmp*"))
    assert run_command(pretrain, again).returncode == 0 and same_run(tmp_path / "whole", folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, which is full soon."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk(arguments, world, tmp_path, small_disk):
    for module in (pretrain, finetune):
        out_dir = f"disk/{module.__name__}"
        done = run_command(module, arguments(module, out_dir, "--checkpoint_steps", 3))
        assert done.returncode == 2
        assert re.search(rf"{out_dir}/checkpoint.pt: No space left on device; fix that, and the "
                         "same command starts the run again", last_line(done.stderr))
    large_corpus = ("--corpus", *[world / "corpus.txt"] * 40)
    words = arguments(pretrain, "run", "--cache_dir", small_disk, *large_corpus)
    done = run_command(pretrain, words)
    assert done.returncode == 2
    assert re.search(r"disk/tokens-[\w.-]+: No space left on device", last_line(done.stderr))
    # The parts that are done are there, and nothing half-written.
    assert {path.suffix for path in small_disk.glob("tokens*")} == {".part"}
    assert not (tmp_path / "run").exists()


def unprivileged():
    """Root may write anywhere: give that right up."""
    drop_capability, may_write_anywhere = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    if os.geteuid() == 0:
        if ctypes.CDLL(None).prctl(drop_capability, may_write_anywhere, 0, 0, 0):
            os._exit(77)


def test_a_read_only_folder(arguments, tmp_path):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(0o555)
    done = run_command(pretrain, arguments(pretrain, "sealed/run"), preexec_fn=unprivileged)
    if done.returncode == 77:
        pytest.skip("root may write anywhere, and cannot give that up here")
    assert done.returncode == 2
    line = f"pretrain.py: error: {tmp_path}/sealed/run: Permission denied"
    assert last_line(done.stderr) == line


def test_a_folder_that_vanishes(arguments, tmp_path):
    words = arguments(pretrain, "run", *ENDLESS, "--checkpoint_steps", 50)
    process = start_command(pretrain, words)
    wait_until((tmp_path / "run" / "checkpoint.pt").exists, process)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    _, printed = output_of(process)
    assert process.returncode == 2 and "Traceback" not in printed
    assert last_line(printed) == (
        f"pretrain.py: error: {tmp_path}/run/checkpoint.pt: No such file or directory; fix that, "
        "and the same command starts the run again")
    assert read_checkpoint(tmp_path / "elsewhere" / "checkpoint.pt")["step"] % 50 == 0


def test_too_little_memory_names_the_flags(arguments):
    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    words = arguments(pretrain, "run", "--batch_size", 30_000)
    done = run_command(pretrain, words, preexec_fn=little_memory)
    assert done.returncode == 2
    assert last_line(done.stderr) == (
        "pretrain.py: error: out of memory: lower --batch_size or --max_length (--max_length alone "
        "while predicting); pretrain.py also has --grad_accum and --chunk_tokens")


# ---- Losses that are not numbers ----

def ruin_the_loss(monkeypatch, first_bad_step):
    """From this step on the cosine loss is not a number."""
    steps_done, should_save = 0, Run.should_save

    def cosine(student_hidden):
        factor = float("nan") if steps_done >= first_bad_step else 1.0
        return student_hidden.square().mean() * factor

    def counted(run, count):
        nonlocal steps_done
        steps_done = count
        return should_save(run, count)
    monkeypatch.setitem(LOSSES, "cos", (cosine, 1.0))
    monkeypatch.setattr(Run, "should_save", counted)


def test_a_loss_that_is_not_finite_names_step_losses_and_checkpoint(arguments, tmp_path,
                                                                    monkeypatch):
    words = arguments(pretrain, "run", "--checkpoint_steps", 2, "--log_every", 1000)
    for _ in range(2):  # resumed from the checkpoint, it fails in the same way
        with monkeypatch.context() as patch:
            ruin_the_loss(patch, 7)
            with pytest.raises(InputError, match=(
                    r"^step 7: the loss is not a finite number any more \(cos nan, ce [\d.]+, "
                    r"mlm [\d.]+\); the last good checkpoint is that of step 6; "
                    r"lower --lr, with --overwrite or another --out_dir")):
                pretrain.main(words)
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint["step"] == 6
    assert all(x.isfinite().all() for x in checkpoint["model"].values())
    assert not {"run.json", "model.safetensors"} & contents(tmp_path / "run").keys()


def test_weights_that_are_not_finite_never_enter_a_checkpoint(arguments, tmp_path):
    """The step before the checkpoint ruins them: no loss has been computed with them yet."""
    words = arguments(pretrain, "run", "--checkpoint_steps", 1, "--lr", "1e38", "--clip", "1e38")
    message = "the weights are not .*there is no checkpoint yet; lower --lr"
    with pytest.raises(InputError, match=message):
        pretrain.main(words)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
