"""A run in progress: its log, checkpoints, signals. The same for both loops."""
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
    all_reduce_sum,
    barrier,
    broadcast,
)
from support.errors import InputError, Interrupted
from support.files import atomic_write, write_all, write_json
from support.weight_files import read_torch_file

OTHER_CODE = "the code has changed"


def learning_rate(step, steps, peak, warmup):
    """The rate of step 0 .. steps - 1: linear from 0 to peak over the share `warmup` of the steps, then linear to 0."""
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (steps - step) / max(1, steps - warmup_steps)


def read_checkpoint(path):
    """What Run.save wrote. Raises InputError if it is damaged."""
    checkpoint = read_torch_file(path)
    wanted = {"step": int, "model": dict, "optimizer": dict, "log_bytes": int, "seconds": float, "figures": dict, "sittings": list,
              "made_with": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), kind) for key, kind in wanted.items()):
        raise InputError(f"{path}: is no checkpoint of this program")
    return checkpoint


class Log:
    """log.jsonl: one JSON object a line. file: None, if another process writes it."""

    def __init__(self, file):
        self.file = file

    def write(self, **values):
        if self.file:
            write_all(self.file, (json.dumps(values) + "\n").encode())


class Run:
    """A run in progress. log: its log.jsonl. figures: what it must not forget, kept in the checkpoint and in run.json."""

    def __init__(self, args, fingerprint, log_file, checkpoint):
        self.args, self.fingerprint, self.checkpoint, self.log = args, fingerprint, checkpoint, Log(log_file)
        self.path = Path(args.out_dir) / "checkpoint.pt"
        self.came = self.signal = 0  # the number of a signal that came to this process, and that the processes have agreed on
        self.step = None  # that of the checkpoint on disk
        self.figures, self.resumes, self.started = {}, [], time.monotonic()
        if checkpoint:
            self.step, self.figures, self.resumes = checkpoint["step"], checkpoint["figures"], checkpoint["sittings"]
            self.started -= checkpoint["seconds"]
            self.note_what_changed()
        if log_file:
            log_file.truncate(min(checkpoint["log_bytes"] if checkpoint else 0, os.fstat(log_file.fileno()).st_size))
        self.saved = time.monotonic()

    def note_what_changed(self):
        """Under other code, another torch, other threads the rounding is another: say so, now and in run.json."""
        then, now, old_code = self.checkpoint["made_with"], environment(self.args), self.checkpoint["made_of"].get("code", "")
        changed = [f"{key} was {then.get(key)}, is now {now[key]}" for key in ("torch", "device", "cpu", "threads", "processes") if then.get(key) != now[key]]
        if old_code.split()[-1:] != self.fingerprint.get("code", "").split():
            changed.append(OTHER_CODE)
        if old_code != self.fingerprint.get("code", ""):  # neither this code's run nor the other's: up to date for none
            self.fingerprint = {**self.fingerprint, "code": old_code + (f" {self.fingerprint['code']}" if OTHER_CODE in changed else "")}
        self.resumes.append({"from_step": self.step, "changed": changed})
        print(f"{self.args.out_dir}: goes on from step {self.step}" + (
            f" under other conditions ({'; '.join(changed)}): no longer exactly the uninterrupted run" if changed else ""), flush=True)

    def resume(self, model, optimizer):
        """Load the checkpoint, if there is one. Returns how many steps are done."""
        if not self.checkpoint:
            return 0
        try:
            model.load_state_dict(self.checkpoint["model"])
            optimizer.load_state_dict(self.checkpoint["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: does not fit this run ({error}); delete it, or add --overwrite, to start again") from None
        self.checkpoint = None  # its memory is free again
        return self.step

    @contextlib.contextmanager
    def defer_signals(self):
        """Within, SIGINT or SIGTERM lets the step end, and must_save is true (of all processes, if one of them gets it). One that
        comes later than a second after it does not wait (at once, it is the same one: a process can get it from its group and from
        the process that started it)."""
        came = None

        def remember(number, frame):
            nonlocal came
            came = came or time.monotonic()
            if time.monotonic() - came > 1 and not multiprocessing.parent_process():  # one of several runs side by side gets more
                raise Interrupted(number)
            self.came = number
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.signal, = all_reduce_max(self.came)
        if self.signal:  # it came after the last step
            raise Interrupted(self.signal)

    def should_save(self, steps_done):
        """Whether it is time for a checkpoint: one answer of all processes."""
        by_steps = self.args.checkpoint_steps and steps_done % self.args.checkpoint_steps == 0
        self.signal, by_time = all_reduce_max(self.came, time.monotonic() - self.saved >= 60 * self.args.checkpoint_minutes)
        return bool(self.signal or by_steps or by_time)

    def save(self, steps_done, model, optimizer):
        """Write checkpoint.pt, whole or not at all. Raises Interrupted if a signal asked for the end of the run, and InputError
        if the weights are not finite: the last checkpoint is a good one."""
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise InputError(f"step {steps_done - 1}: the weights are not finite numbers any more; {self.last_good()}")
        if self.log.file:
            os.fsync(self.log.file.fileno())
            with atomic_write(self.path) as file:
                torch.save({"step": steps_done, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "log_bytes": os.fstat(self.log.file.fileno()).st_size, "seconds": time.monotonic() - self.started,
                            "figures": self.figures, "sittings": self.resumes, "arguments": json.loads(json.dumps(vars(self.args))),
                            "made_of": self.fingerprint, "made_with": environment(self.args)}, file)
        barrier()  # nobody goes on, or ends and has torchrun end the others, before it is written
        self.step, self.saved = steps_done, time.monotonic()
        if self.signal:
            raise Interrupted(self.signal)

    def check_losses(self, recent, step):
        """{term: number} of `step`. recent: [{term: scalar tensor, of this process's rows}] of the last steps, that one being the last.

        This is where the device is waited for. Raises InputError if a loss is not finite."""
        table = all_reduce_sum(torch.stack([torch.stack([*terms.values()]) for terms in recent])).tolist()
        for number, row in enumerate(table, step - len(recent) + 1):
            if not all(map(math.isfinite, row)):
                figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(recent[0], row))
                raise InputError(f"step {number}: the loss is not a finite number any more ({figures}); {self.last_good()}")
        return dict(zip(recent[0], table[-1]))

    def last_good(self):
        return (f"the last good checkpoint is that of {self.step} steps" if self.step else "there is no checkpoint yet") + (
            "; lower --lr, with --overwrite or another --out_dir")

    def resume_hint(self):
        return f"the same command goes on from step {self.step}" if self.step and self.path.exists() else "the same command starts the run again"

    def finish(self, **figures):
        """Write run.json, the last file of a run: its presence says that the run is complete. Returns what it holds."""
        record = {"arguments": vars(self.args), "made_of": self.fingerprint, **self.figures, **figures,
                  "seconds": round(time.monotonic() - self.started, 1), "made_with": environment(self.args)}
        if self.resumes:
            record["resumed"] = self.resumes
        if self.log.file:
            write_json(self.path.parent / "run.json", record)
            for name in ("checkpoint.pt", "started.json"):
                (self.path.parent / name).unlink(missing_ok=True)
        return broadcast(record)  # and with it the others know that all is written


def environment(args):
    """What a run's rounding depends on, besides its arguments and its code."""
    device = vars(args).get("device", "cpu")
    return {"commit": git_commit(), "python": platform.python_version(), "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(), "processes": WORLD_SIZE}


@functools.cache
def git_commit():
    """The commit of the code, "+" behind it if files differ from it; None outside a git checkout."""
    def git(*words):
        command = ("git", "-C", Path(__file__).parent, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
