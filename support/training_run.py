"""A run in progress: its log, its checkpoints, signals. The bookkeeping of both training loops.

    first_step = run.resume(model, optimizer)
    with run.steps(batches, first_step, steps) as progress:
        for step, batch in progress:
            ...
            run.after_step(step, losses)

Batches, masks and dropout follow from seed and step. So a checkpoint is the weights, the
optimizer's state and a step; a run that was killed, at any moment and any number of times, ends in
the same bytes as one that was not. The run's folder, and what may be in it: run_folder.py.
"""
import contextlib
import functools
import json
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import time
from pathlib import Path

import torch

from support.distributed import (
    WORLD_SIZE,
    all_reduce_max,
    all_reduce_mean,
    barrier,
    broadcast,
    progress_bar,
)
from support.errors import InputError, Interrupted
from support.files import atomic_write, write_all, write_json
from support.weight_files import read_torch_file

OTHER_CODE = "the code has changed"
CHECKPOINT_FIELDS = {"step": int, "model": dict, "optimizer": dict, "log_bytes": int,
                     "seconds": float, "figures": dict, "sittings": list, "made_with": dict}


def learning_rate(step, steps, peak, warmup):
    """The rate of step 0 .. steps - 1: linear warm-up over a share of the steps, then linear decay.

    warmup: this share, 0 to 1. peak: the highest rate."""
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (steps - step) / max(1, steps - warmup_steps)


class Run:
    """A run in progress in the folder args.out_dir.

    record: facts that must survive an interruption; they are kept in the checkpoint and end up in
    run.json. On ranks other than 0, log_file is None, and nothing is written."""

    def __init__(self, args, fingerprint, log_file, checkpoint):
        """fingerprint: see run_folder.differences. checkpoint: what read_checkpoint gives, or
        None."""
        self.args, self.fingerprint, self.checkpoint = args, fingerprint, checkpoint
        self.path = Path(args.out_dir) / "checkpoint.pt"
        self.log = Log(log_file)
        self.signal_here = 0  # the number of a signal that reached this process
        self.signal = 0       # and of one that all ranks know of
        self.step = None      # of the last checkpoint
        self.record, self.resumes = {}, []
        self.started = self.saved = time.monotonic()
        self.recent_losses = []
        if checkpoint:
            self.step, self.record = checkpoint["step"], checkpoint["figures"]
            self.resumes = checkpoint["sittings"]
            self.started -= checkpoint["seconds"]
            self.note_what_changed()
        if log_file:
            length = checkpoint["log_bytes"] if checkpoint else 0
            log_file.truncate(min(length, os.fstat(log_file.fileno()).st_size))

    def note_what_changed(self):
        """Other code, another torch or other threads round differently: say so, and record it."""
        then, now = self.checkpoint["made_with"], environment(self.args)
        changed = [f"{key} was {then.get(key)}, is now {now[key]}"
                   for key in ("torch", "device", "cpu", "threads", "processes")
                   if then.get(key) != now[key]]
        old_code = self.checkpoint["made_of"].get("code", "")
        new_code = self.fingerprint.get("code", "")
        if old_code.split()[-1:] != new_code.split():
            changed.append(OTHER_CODE)
        if old_code != new_code:  # a mixture: up to date for neither code
            mixture = old_code + (f" {new_code}" if OTHER_CODE in changed else "")
            self.fingerprint = {**self.fingerprint, "code": mixture}
        self.resumes.append({"from_step": self.step, "changed": changed})
        message = f"{self.args.out_dir}: resumes from step {self.step}"
        if changed:
            message += (f" under other conditions ({'; '.join(changed)}): not exactly the result "
                        "of an uninterrupted run")
        print(message, flush=True)

    # -- In the loop --

    def resume(self, model, optimizer):
        """Load the checkpoint, if there is one. Returns the number of steps done."""
        self.model, self.optimizer = model, optimizer
        if not self.checkpoint:
            return 0
        try:
            model.load_state_dict(self.checkpoint["model"])
            optimizer.load_state_dict(self.checkpoint["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: does not fit this run ({error}); delete it, or add "
                             "--overwrite, to start again") from None
        self.checkpoint = None  # frees its memory
        return self.step

    @contextlib.contextmanager
    def steps(self, batches, first_step, steps):
        """Gives the iterable of (step, batch), with a progress bar; signals wait for after_step."""
        self.last_step = steps - 1
        name = "/".join(Path(self.args.out_dir).parts[-3:])
        with self.defer_signals(), progress_bar(batches, total=steps, initial=first_step,
                                                desc=name, unit="step") as self.progress:
            yield enumerate(self.progress, first_step)

    def after_step(self, step, losses, **also_logged):
        """Log the step, write a checkpoint, end the run after a signal: each when it is time.

        losses: {name: scalar tensor}, the same names at every step. They stay on the device; only
        a line of the log or a checkpoint waits for them. also_logged: more for the log's line.
        Raises InputError if a loss or a weight is not finite, Interrupted after a signal."""
        self.recent_losses.append({name: loss.detach() for name, loss in losses.items()})
        should_log = step % self.args.log_every == 0 or step == self.last_step
        should_save = self.should_save(step + 1)
        if should_log or should_save:
            values = self.check_losses(step)
        if should_log:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log.write(step=step, **also_logged, lr=lr, **values)
            shown = {name: f"{value:.3f}" for name, value in values.items()}
            self.progress.set_postfix(shown, refresh=False)
        if should_save:
            self.save(step + 1)

    def check_losses(self, step):
        """{name: loss} of `step`, as numbers: the mean over the ranks.

        Raises InputError if a loss of this or an earlier step is not finite."""
        recent, self.recent_losses = self.recent_losses, []
        names = list(recent[0])
        rows = [torch.stack(list(losses.values())) for losses in recent]
        table = all_reduce_mean(torch.stack(rows))
        for number, row in enumerate(table, step - len(recent) + 1):
            if not all(map(math.isfinite, row)):
                values = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row))
                raise InputError(f"step {number}: the loss is not a finite number any more "
                                 f"({values}); {self.last_good()}")
        return dict(zip(names, table[-1]))

    # -- Signals --

    @contextlib.contextmanager
    def defer_signals(self):
        """Within the block SIGINT and SIGTERM let the step end; should_save is then true.

        A second signal more than a second later ends the process at once. (Within a second it
        is the same one: it may come from the process group and from the parent.)"""
        first_came = None

        def remember(number, frame):
            nonlocal first_came
            first_came = first_came or time.monotonic()
            in_pool = multiprocessing.parent_process()  # the parent repeats the signal
            if time.monotonic() - first_came > 1 and not in_pool:
                raise Interrupted(number)
            self.signal_here = number
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.signal, = all_reduce_max(self.signal_here)
        if self.signal:  # it came after the last step
            raise Interrupted(self.signal)

    # -- Checkpoints --

    def should_save(self, steps_done):
        """Whether it is time for a checkpoint. All ranks get the same answer."""
        every = self.args.checkpoint_steps
        minutes = (time.monotonic() - self.saved) / 60
        is_last = steps_done == self.last_step + 1  # what follows, the evaluation, may be long too
        is_late = minutes >= self.args.checkpoint_minutes or (is_last and minutes >= 1)
        self.signal, is_late = all_reduce_max(self.signal_here, is_late)
        return bool(self.signal or is_late or (every and steps_done % every == 0))

    def save(self, steps_done):
        """Write checkpoint.pt, whole or not at all.

        Raises Interrupted if a signal asked for the end of the run, and InputError if the weights
        are not finite: the checkpoint on disk stays a good one."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise InputError(f"step {steps_done - 1}: the weights are not finite numbers any "
                             f"more; {self.last_good()}")
        if self.log.file:
            os.fsync(self.log.file.fileno())
            checkpoint = {
                "step": steps_done,
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "log_bytes": os.fstat(self.log.file.fileno()).st_size,
                "seconds": time.monotonic() - self.started,
                "figures": self.record, "sittings": self.resumes,
                "arguments": json.loads(json.dumps(vars(self.args))),
                "made_of": self.fingerprint, "made_with": environment(self.args)}
            with atomic_write(self.path) as file:
                torch.save(checkpoint, file)
        barrier()  # no rank may end, and have torchrun end the others, before it is written
        self.step, self.saved = steps_done, time.monotonic()
        if self.signal:
            raise Interrupted(self.signal)

    def last_good(self):
        """How to recover from a diverged run."""
        where = "there is no checkpoint yet"
        if self.step:
            where = f"the last good checkpoint is that of step {self.step}"
        return f"{where}; lower --lr, with --overwrite or another --out_dir"

    def resume_hint(self):
        """What the same command would do, by what is on disk.

        Another rank may have written files that this one has not heard of."""
        if (self.path.parent / "run.json").exists():
            return "the run is complete: the same command shows its result"
        step = step_on_disk(self.path)
        if step:
            return f"the same command resumes from step {step}"
        return "the same command starts the run again"

    def finish(self, **results):
        """Write run.json, the last file of a run: its presence says that the run is complete.

        Returns what it holds."""
        record = {"arguments": vars(self.args), "made_of": self.fingerprint, **self.record,
                  **results, "seconds": round(time.monotonic() - self.started, 1),
                  "made_with": environment(self.args)}
        if self.resumes:
            record["resumed"] = self.resumes
        if self.log.file:
            write_json(self.path.parent / "run.json", record)
            for name in ("checkpoint.pt", "started.json"):
                (self.path.parent / name).unlink(missing_ok=True)
        return broadcast(record)  # by which the other ranks know that all is written


class Log:
    """log.jsonl: one JSON object per line. file: None on ranks other than 0."""

    def __init__(self, file):
        self.file = file

    def write(self, **values):
        if self.file:
            write_all(self.file, (json.dumps(values) + "\n").encode())


def read_checkpoint(path):
    """What Run.save wrote. Raises InputError if it is damaged."""
    checkpoint = read_torch_file(path)
    if isinstance(checkpoint, dict):
        fits = all(isinstance(checkpoint.get(name), kind)
                   for name, kind in CHECKPOINT_FIELDS.items())
        if fits:
            return checkpoint
    raise InputError(f"{path}: not a checkpoint of this program")


def step_on_disk(path):
    """The step of the checkpoint in this file; None if there is none that can be read.

    Memory-mapped, so that the weights are not read; and not sent to a GPU."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"]
    except Exception:  # torch raises many kinds; this only words a message
        return None


def environment(args):
    """What a run's rounding depends on, besides its arguments and its code."""
    device = vars(args).get("device", "cpu")
    return {"commit": git_commit(), "python": platform.python_version(),
            "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
            "processes": WORLD_SIZE}


@functools.cache
def git_commit():
    """The commit of the code, with "+" if files differ from it; None outside a git checkout."""
    def git(*words):
        command = ("git", "-C", Path(__file__).parent, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
