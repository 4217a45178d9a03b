"""The folder of a run: what it holds, whose it is, which of its results are up to date."""
import contextlib
import json
import os
import re
from pathlib import Path

from support.distributed import (
    LOST_CONNECTION,
    RANK,
    broadcast,
    is_lost_connection,
)
from support.errors import InputError, Interrupted
from support.files import lock_file, read_json, write_json
from support.training_run import OTHER_CODE, Run, git_commit, read_checkpoint

# Arguments that do not change what a run computes.
ELSEWHERE = ("out_dir", "cache_dir", "log_every", "overwrite", "checkpoint_steps", "checkpoint_minutes", "predict")


def differences(record, args, fingerprint):
    """How a run differs from this one: a list of reasons. record: what its run.json or its checkpoint holds.

    made_of: {"code" or the name of an argument that names files: digest of what the run depends on}; the other arguments are
    compared as they are."""
    old, new, old_made_of = record.get("arguments"), json.loads(json.dumps(vars(args))), record.get("made_of")
    if not isinstance(old, dict) or not isinstance(old_made_of, dict):
        return ["its record does not say what was run"]
    return [f"{key} was {old.get(key)!r}, is now {new.get(key)!r}" for key in sorted(old.keys() | new.keys())
            if key not in (*ELSEWHERE, *fingerprint) and old.get(key) != new.get(key)] + [
        f"the {key} has changed" for key in sorted(old_made_of.keys() | fingerprint) if old_made_of.get(key) != fingerprint.get(key)]


def why_outdated(args, fingerprint):
    """Why args.out_dir does not hold this very run, finished: a list of reasons, empty if it does; None if no run is finished
    there. made_of: see differences."""
    path = Path(args.out_dir) / "run.json"
    try:
        return differences(read_json(path), args, fingerprint) if path.exists() else None
    except InputError as error:
        return [str(error)]


def finished_run(args, fingerprint, reads=(), texts=()):
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
    reasons = why_outdated(args, fingerprint)
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


def archived_versions(folder):
    """The outdated versions of a run's folder, oldest first: FOLDER~1, FOLDER~2, ..."""
    found = []
    while (aside := Path(f"{folder}~{len(found) + 1}")).exists():
        found.append(aside)
    return found


@contextlib.contextmanager
def open_run(args, fingerprint):
    """The Run in args.out_dir, held for this process alone. One that was interrupted goes on; another one is set aside.
    Under torchrun the first process holds the folder, and is the only one to write; the others learn from it where the run stands.

    made_of: see differences. If the run ends before it has logged anything, no folder is left behind.
    Raises InputError if another process is at work in the folder; if it holds another run and args.overwrite is not set, or files
    that no run made; and, for what goes wrong with files meanwhile, with the way on."""
    folder = Path(args.out_dir)
    if RANK:
        run = Run(args, fingerprint, None, broadcast(None))
        with explained(run):
            yield run
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    log, fresh = lock_file(folder / "log.jsonl"), False
    try:
        checkpoint, reasons = find_run(folder, args, fingerprint)
        if reasons:
            if not args.overwrite:
                raise InputError(another_run(folder, reasons))
            aside = folder.rename(f"{folder}~{len(archived_versions(folder)) + 1}")
            print(f"{folder}: out of date ({'; '.join(reasons)}); kept as {aside}", flush=True)
            folder.mkdir()
            checkpoint, old_log, log = None, log, lock_file(folder / "log.jsonl")
            old_log.close()
        for path in folder.iterdir():
            if is_leftover(path):
                path.unlink()
        fresh = not (folder / "started.json").exists()
        write_json(folder / "started.json", {"arguments": vars(args), "made_of": fingerprint})
        run = Run(args, fingerprint, log, broadcast(checkpoint))
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
        raise Interrupted(stop.number, f"{run.path.parent}: stopped; {run.resume_hint()}") from None
    except OSError as error:  # a full disk, a read-only folder, a folder that vanished
        raise InputError(f"{error.filename or run.path.parent}: {error.strerror or error}; mend that, and {run.resume_hint()}") from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise InputError(f"{run.path.parent}: {LOST_CONNECTION}; {run.resume_hint()}") from None


def find_run(folder, args, fingerprint):
    """(the checkpoint to go on from or None, reasons why what is there is another run). started.json says whose an unfinished run
    is, from before its first step on."""
    reasons, path = why_outdated(args, fingerprint), folder / "checkpoint.pt"
    if reasons == []:
        raise InputError(f"{folder}: another process has just finished this run; the same command shows it")
    if reasons is None and path.exists():
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            if not args.overwrite:
                raise InputError(f"{error}; delete it, or add --overwrite, to start the run again") from None
            return None, [str(error)]
        reasons = differences(checkpoint, args, fingerprint)
        # Edited code goes on, marked as mixed, if that was asked for by typing the command again; an experiment starts anew.
        return checkpoint, [] if reasons == [OTHER_CODE] and not args.overwrite else reasons
    if reasons is None and (folder / "started.json").exists():
        try:
            reasons = differences(read_json(folder / "started.json"), args, fingerprint)
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
