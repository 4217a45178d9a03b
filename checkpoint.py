"""The folder of a run: one process at a time works in it, one experiment lives in it, and what is interrupted goes on.

What is special: batches, masks and dropout follow from seed and step, so a checkpoint is the weights, the optimizer's state
and a step; a run that was killed, at any moment and any number of times, ends in the same bytes as one that was not.
Nothing here is about distillation; skip it on a first reading.
"""
import contextlib
import functools
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import time
from pathlib import Path

import torch

from load_hf_weights import read_torch_file
from run import (LOST_CONNECTION, RANK, WORLD_SIZE, InputError, Interrupted, agreed, hold, is_lost_connection, of_the_first, read_json,
                 sum_over_processes, wait_for_all, write_all, write_json, written_whole)

# Arguments that do not change what a run computes.
ELSEWHERE = ("out_dir", "cache_dir", "log_every", "overwrite", "checkpoint_steps", "checkpoint_minutes", "predict")
OTHER_CODE = "the code has changed"


# ---- What a folder holds ----

def differences(record, args, made_of):
    """How a run differs from this one: a list of reasons. record: what its run.json or its checkpoint holds.

    made_of: {"code" or the name of an argument that names files: digest of what the run depends on}; the other arguments are
    compared as they are."""
    old, new, old_made_of = record.get("arguments"), json.loads(json.dumps(vars(args))), record.get("made_of")
    if not isinstance(old, dict) or not isinstance(old_made_of, dict):
        return ["its record does not say what was run"]
    return [f"{key} was {old.get(key)!r}, is now {new.get(key)!r}" for key in sorted(old.keys() | new.keys())
            if key not in (*ELSEWHERE, *made_of) and old.get(key) != new.get(key)] + [
        f"the {key} has changed" for key in sorted(old_made_of.keys() | made_of) if old_made_of.get(key) != made_of.get(key)]


def outdated(args, made_of):
    """Why args.out_dir does not hold this very run, finished: a list of reasons, empty if it does; None if no run is finished
    there. made_of: see differences."""
    path = Path(args.out_dir) / "run.json"
    try:
        return differences(read_json(path), args, made_of) if path.exists() else None
    except InputError as error:
        return [str(error)]


def finished_run(args, made_of, reads=(), texts=()):
    """The record of the run in args.out_dir, or None if it is not there, or is to be set aside.

    made_of: see differences. reads: files and folders that the run reads; texts: those of which it reads all that is in them.
    Raises InputError if out_dir holds another run and args.overwrite is not set, or holds or is one of `reads` or `texts`, or
    lies in one of `texts`: nothing is lost."""
    git_commit()  # now, not at the end: the code may have been edited by then
    out_dir, own = Path(args.out_dir), Path(os.path.realpath(args.out_dir))
    if not args.out_dir:
        raise InputError("--out_dir: no name given")
    for path in filter(None, (*reads, *texts)):
        there = Path(os.path.realpath(path))
        if own in (there, *there.parents) or (path in texts and there in own.parents):
            raise InputError(f"--out_dir {out_dir} holds, or lies in, {path}, which is read; choose another")
    reasons = outdated(args, made_of)
    if reasons == []:
        print(f"{out_dir}: done before", flush=True)
        with contextlib.suppress(OSError):  # there, if the run was killed between its last two breaths
            for name in ("started.json", "checkpoint.pt"):
                (out_dir / name).unlink(missing_ok=True)
        return read_json(out_dir / "run.json")
    if reasons and not args.overwrite:
        raise InputError(another_run(out_dir, reasons))
    return None


def another_run(folder, reasons):
    return (f"{folder} holds another run ({'; '.join(reasons)}); choose another --out_dir, or add --overwrite to set that run aside")


def set_aside(folder):
    """The outdated versions of a run's folder, oldest first: FOLDER~1, FOLDER~2, ..."""
    found = []
    while (aside := Path(f"{folder}~{len(found) + 1}")).exists():
        found.append(aside)
    return found


# ---- A run ----

@contextlib.contextmanager
def begin(args, made_of):
    """The Run in args.out_dir, held for this process alone. One that was interrupted goes on; another one is set aside.
    Under torchrun the first process holds the folder, and is the only one to write; the others learn from it where the run stands.

    made_of: see differences. If the run ends before it has logged anything, no folder is left behind.
    Raises InputError if another process is at work in the folder; if it holds another run and args.overwrite is not set, or files
    that no run made; and, for what goes wrong with files meanwhile, with the way on."""
    folder = Path(args.out_dir)
    if RANK:
        run = Run(args, made_of, None, of_the_first(None))
        with explained(run):
            yield run
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    log, fresh = hold(folder / "log.jsonl"), False
    try:
        checkpoint, reasons = find_run(folder, args, made_of)
        if reasons:
            if not args.overwrite:
                raise InputError(another_run(folder, reasons))
            aside = folder.rename(f"{folder}~{len(set_aside(folder)) + 1}")
            print(f"{folder}: out of date ({'; '.join(reasons)}); kept as {aside}", flush=True)
            folder.mkdir()
            checkpoint, old_log, log = None, log, hold(folder / "log.jsonl")
            old_log.close()
        for path in folder.iterdir():
            if is_leftover(path):
                path.unlink()
        fresh = not (folder / "started.json").exists()
        write_json(folder / "started.json", {"arguments": vars(args), "made_of": made_of})
        run = Run(args, made_of, log, of_the_first(checkpoint))
        del checkpoint  # the run's alone: when it has been resumed from, its memory is free
        with explained(run):
            yield run
    finally:
        nothing_done = os.fstat(log.fileno()).st_size == 0
        if nothing_done:
            (folder / "log.jsonl").unlink(missing_ok=True)
        if nothing_done and fresh:
            (folder / "started.json").unlink(missing_ok=True)
        log.close()
        for path in new if nothing_done else ():
            with contextlib.suppress(OSError):  # somebody has put something into it
                path.rmdir()


@contextlib.contextmanager
def explained(run):
    """Whatever ends the run before its time says how to go on."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(stop.number, f"{run.path.parent}: stopped; {run.way_on()}") from None
    except OSError as error:  # a full disk, a read-only folder, a folder that vanished
        raise InputError(f"{error.filename or run.path.parent}: {error.strerror or error}; mend that, and {run.way_on()}") from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise InputError(f"{run.path.parent}: {LOST_CONNECTION}; {run.way_on()}") from None


def find_run(folder, args, made_of):
    """(the checkpoint to go on from or None, reasons why what is there is another run). started.json says whose an unfinished run
    is, from before its first step on."""
    reasons, path = outdated(args, made_of), folder / "checkpoint.pt"
    if reasons == []:
        raise InputError(f"{folder}: another process has just finished this run; the same command shows it")
    if reasons is None and path.exists():
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            if not args.overwrite:
                raise InputError(f"{error}; delete it, or add --overwrite, to start the run again") from None
            return None, [str(error)]
        reasons = differences(checkpoint, args, made_of)
        # Edited code goes on, marked as mixed, if that was asked for by typing the command again; an experiment starts anew.
        return checkpoint, [] if reasons == [OTHER_CODE] and not args.overwrite else reasons
    if reasons is None and (folder / "started.json").exists():
        try:
            reasons = differences(read_json(folder / "started.json"), args, made_of)
        except InputError as error:
            return None, [str(error)]
        return None, [] if reasons == [OTHER_CODE] else reasons
    strays = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "log.jsonl" and not is_leftover(path))
    if reasons is None and strays:
        raise InputError(f"{folder}: holds what no run of this program made ({', '.join(strays[:5])}); choose another --out_dir")
    return None, reasons


def is_leftover(path):
    """Whether written_whole left it behind in a process that was killed."""
    return path.is_file() and re.fullmatch(r".+\.(json|pt|safetensors|tsv|txt)\.tmp\d+", path.name) is not None


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

    def __init__(self, args, made_of, log_file, checkpoint):
        self.args, self.made_of, self.checkpoint, self.log = args, made_of, checkpoint, Log(log_file)
        self.path = Path(args.out_dir) / "checkpoint.pt"
        self.came = self.signal = 0  # the number of a signal that came to this process, and that the processes have agreed on
        self.step = None  # that of the checkpoint on disk
        self.figures, self.sittings, self.started = {}, [], time.monotonic()
        if checkpoint:
            self.step, self.figures, self.sittings = checkpoint["step"], checkpoint["figures"], checkpoint["sittings"]
            self.started -= checkpoint["seconds"]
            self.note_what_changed()
        if log_file:
            log_file.truncate(min(checkpoint["log_bytes"] if checkpoint else 0, os.fstat(log_file.fileno()).st_size))
        self.saved = time.monotonic()

    def note_what_changed(self):
        """Under other code, another torch, other threads the rounding is another: say so, now and in run.json."""
        then, now, old_code = self.checkpoint["made_with"], made_with(self.args), self.checkpoint["made_of"].get("code", "")
        changed = [f"{key} was {then.get(key)}, is now {now[key]}" for key in ("torch", "device", "cpu", "threads", "processes") if then.get(key) != now[key]]
        if old_code.split()[-1:] != self.made_of.get("code", "").split():
            changed.append(OTHER_CODE)
        if old_code != self.made_of.get("code", ""):  # neither this code's run nor the other's: up to date for none
            self.made_of = {**self.made_of, "code": old_code + (f" {self.made_of['code']}" if OTHER_CODE in changed else "")}
        self.sittings.append({"from_step": self.step, "changed": changed})
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
    def signals_wait(self):
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
        self.signal, = agreed(self.came)
        if self.signal:  # it came after the last step
            raise Interrupted(self.signal)

    def must_save(self, steps_done):
        """Whether it is time for a checkpoint: one answer of all processes."""
        by_steps = self.args.checkpoint_steps and steps_done % self.args.checkpoint_steps == 0
        self.signal, by_time = agreed(self.came, time.monotonic() - self.saved >= 60 * self.args.checkpoint_minutes)
        return bool(self.signal or by_steps or by_time)

    def save(self, steps_done, model, optimizer):
        """Write checkpoint.pt, whole or not at all. Raises Interrupted if a signal asked for the end of the run, and InputError
        if the weights are not finite: the last checkpoint is a good one."""
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise InputError(f"step {steps_done - 1}: the weights are not finite numbers any more; {self.last_good()}")
        if self.log.file:
            os.fsync(self.log.file.fileno())
            with written_whole(self.path) as file:
                torch.save({"step": steps_done, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "log_bytes": os.fstat(self.log.file.fileno()).st_size, "seconds": time.monotonic() - self.started,
                            "figures": self.figures, "sittings": self.sittings, "arguments": json.loads(json.dumps(vars(self.args))),
                            "made_of": self.made_of, "made_with": made_with(self.args)}, file)
        wait_for_all()  # nobody goes on, or ends and has torchrun end the others, before it is written
        self.step, self.saved = steps_done, time.monotonic()
        if self.signal:
            raise Interrupted(self.signal)

    def check_losses(self, recent, step):
        """{term: number} of `step`. recent: [{term: scalar tensor, of this process's rows}] of the last steps, that one being the last.

        This is where the device is waited for. Raises InputError if a loss is not finite."""
        table = sum_over_processes(torch.stack([torch.stack([*terms.values()]) for terms in recent])).tolist()
        for number, row in enumerate(table, step - len(recent) + 1):
            if not all(map(math.isfinite, row)):
                figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(recent[0], row))
                raise InputError(f"step {number}: the loss is not a finite number any more ({figures}); {self.last_good()}")
        return dict(zip(recent[0], table[-1]))

    def last_good(self):
        return (f"the last good checkpoint is that of {self.step} steps" if self.step else "there is no checkpoint yet") + (
            "; lower --lr, with --overwrite or another --out_dir")

    def way_on(self):
        return f"the same command goes on from step {self.step}" if self.step and self.path.exists() else "the same command starts the run again"

    def finish(self, **figures):
        """Write run.json, the last file of a run: its presence says that the run is complete. Returns what it holds."""
        record = {"arguments": vars(self.args), "made_of": self.made_of, **self.figures, **figures,
                  "seconds": round(time.monotonic() - self.started, 1), "made_with": made_with(self.args)}
        if self.sittings:
            record["resumed"] = self.sittings
        if self.log.file:
            write_json(self.path.parent / "run.json", record)
            for name in ("checkpoint.pt", "started.json"):
                (self.path.parent / name).unlink(missing_ok=True)
        return of_the_first(record)  # and with it the others know that all is written


def made_with(args):
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
