"""The folder of a run: which run it holds, and whether that one is up to date.

One process at a time works in a folder, one run lives in it, and what was interrupted resumes. A
run that is out of date is kept beside the new one, as FOLDER~1, FOLDER~2, ...
Files: started.json while a run is unfinished, run.json when it is finished (both with "arguments"
and "made_of", what the run depends on), log.jsonl, checkpoint.pt. Read next: training_run.py.
"""
import contextlib
import json
import os
import re
from pathlib import Path

from support.distributed import (
    LOST_CONNECTION,
    RANK,
    broadcast,
    ignore_signals_of_torchrun,
    is_lost_connection,
)
from support.errors import InputError, Interrupted
from support.files import kept_if_used, lock_file, read_json, write_json
from support.training_run import OTHER_CODE, Run, git_commit, read_checkpoint

# Arguments that do not change what a run computes.
NOT_COMPARED = ("out_dir", "cache_dir", "log_every", "overwrite", "checkpoint_steps",
                "checkpoint_minutes", "predict")


# ---- Is it this run? ----

def differences(record, args, fingerprint):
    """How a recorded run differs from the one asked for: a list of reasons.

    record: what run.json, started.json or a checkpoint holds. fingerprint: {"code", or the name
    of an argument that names files: digest}; the other arguments are compared as they are."""
    old_arguments, old_fingerprint = record.get("arguments"), record.get("made_of")
    if not isinstance(old_arguments, dict) or not isinstance(old_fingerprint, dict):
        return ["its record does not say what was run"]
    arguments = json.loads(json.dumps(vars(args)))
    reasons = []
    for key in sorted(old_arguments.keys() | arguments.keys()):
        old, new = old_arguments.get(key), arguments.get(key)
        if key not in NOT_COMPARED and key not in fingerprint and old != new:
            reasons.append(f"{key} was {old!r}, is now {new!r}")
    for key in sorted(old_fingerprint.keys() | fingerprint.keys()):
        if old_fingerprint.get(key) != fingerprint.get(key):
            reasons.append(f"the {key} has changed")
    return reasons


def why_outdated(args, fingerprint):
    """Why args.out_dir does not hold this very run, finished: a list of reasons.

    The list is empty if it does. None if no run is finished there."""
    path = Path(args.out_dir) / "run.json"
    try:
        return differences(read_json(path), args, fingerprint) if path.exists() else None
    except InputError as error:
        return [str(error)]


def why_to_run(args, fingerprint):
    """why_outdated, once an archived version that is this very run has its place back.

    Only args.overwrite allows that."""
    reasons = why_outdated(args, fingerprint)
    if reasons != [] and args.overwrite and take_back(args, fingerprint):
        return []
    return reasons


def finished_run(args, fingerprint, reads=(), texts=()):
    """The record of this very run in args.out_dir; None if it is yet to be run.

    reads: files and folders that the run reads. texts: those of which it reads all files.
    Raises InputError if out_dir holds another run and args.overwrite is not set, or if out_dir
    and what is read overlap."""
    git_commit()  # now, not at the end: the code may have been edited by then
    if not args.out_dir:
        raise InputError("--out_dir: no name given")
    check_overlap(args.out_dir, reads, texts)
    out_dir = Path(args.out_dir)
    reasons = why_to_run(args, fingerprint)
    if reasons == []:
        print(f"{out_dir}: done before", flush=True)
        with contextlib.suppress(OSError):  # left by a run that was killed just before its cleanup
            for name in ("started.json", "checkpoint.pt"):
                (out_dir / name).unlink(missing_ok=True)
        return read_json(out_dir / "run.json")
    if reasons and not args.overwrite:
        raise InputError(another_run(out_dir, reasons))
    return None


def check_overlap(out_dir, reads, texts):
    """Raise InputError if out_dir contains what is read, or lies in a folder of texts."""
    own = Path(os.path.realpath(out_dir))
    for path in filter(None, (*reads, *texts)):
        read = Path(os.path.realpath(path))
        contains_it = own in (read, *read.parents)
        lies_in_it = path in texts and read in own.parents
        if contains_it or lies_in_it:
            raise InputError(f"--out_dir {out_dir} contains, or lies in, {path}, which is read; "
                             "choose another")


def another_run(folder, reasons):
    """The message about a folder that holds another run."""
    return (f"{folder} holds another run ({'; '.join(reasons)}); choose another --out_dir, or add "
            "--overwrite to archive that run")


def archived_versions(folder):
    """The outdated versions of a run's folder, oldest first: FOLDER~1, FOLDER~2, ..."""
    prefix = Path(f"{folder}~")
    paths = prefix.parent.iterdir() if prefix.parent.exists() else ()
    name = re.compile(re.escape(prefix.name) + "[1-9][0-9]*")
    return sorted((path for path in paths if name.fullmatch(path.name)), key=version_number)


def version_number(version):
    return int(version.name.rpartition("~")[2])


def next_version(folder):
    """The name under which the folder's next outdated version is kept."""
    last = max(map(version_number, archived_versions(folder)), default=0)
    return Path(f"{folder}~{last + 1}")


def take_back(args, fingerprint):
    """Whether an archived version is this very run, finished, as after an edit that was undone.

    If so, it gets its place again, and what was there is archived in its stead. Raises InputError
    if another process is at work in the folder."""
    folder = Path(args.out_dir)
    versions = archived_versions(folder)
    for place, version in reversed(list(enumerate(versions))):
        try:
            if differences(read_json(version / "run.json"), args, fingerprint):
                continue
        except InputError:  # it was not finished
            continue
        spare = next_version(folder)
        if folder.exists():
            with lock_file(folder / "log.jsonl"):
                folder.rename(spare)
        version.rename(folder)
        for old, new in zip((*versions[place + 1:], spare), versions[place:]):
            if old.exists():
                old.rename(new)  # so that the latest keeps the highest number
        print(f"{folder}: up to date again; taken back from {version}", flush=True)
        return True
    return False


# ---- Opening it ----

@contextlib.contextmanager
def open_run(args, fingerprint):
    """The Run in args.out_dir, locked for this process. An interrupted one resumes, another one
    is archived. Under torchrun rank 0 owns the folder, and the others learn from it.

    fingerprint: see differences. A run that ends before it has logged anything leaves no folder.
    Raises InputError if another process is at work in the folder; if it holds another run and
    args.overwrite is not set, or files that no run made; and, if files fail, with a resume hint."""
    folder = Path(args.out_dir)
    if RANK:
        run = Run(args, fingerprint, None, broadcast(None))
        with errors_explained(run):
            yield run
        return
    with kept_if_used(folder):
        log, is_fresh = lock_file(folder / "log.jsonl"), False
        try:
            checkpoint, reasons = find_run(folder, args, fingerprint)
            if reasons:
                if not args.overwrite:
                    raise InputError(another_run(folder, reasons))
                checkpoint, log = None, archive(folder, reasons, log)
            for path in folder.iterdir():
                if is_leftover(path):
                    path.unlink()
            is_fresh = not (folder / "started.json").exists()
            write_json(folder / "started.json", {"arguments": vars(args), "made_of": fingerprint})
            run = Run(args, fingerprint, log, broadcast(checkpoint))
            del checkpoint  # so that its memory is free once the run has resumed from it
            with errors_explained(run):
                yield run
        finally:
            close_folder(folder, log, is_fresh)


def archive(folder, reasons, log):
    """Rename the folder to its next archived name and start an empty one. Returns its log."""
    archived = folder.rename(next_version(folder))
    print(f"{folder}: out of date ({'; '.join(reasons)}); kept as {archived}", flush=True)
    folder.mkdir()
    new_log = lock_file(folder / "log.jsonl")
    log.close()
    return new_log


def close_folder(folder, log, is_fresh):
    """Unlock the folder; leave no file of ours if nothing was logged or written in it.

    What was written without a log keeps its started.json: without it, the next run would take these
    files for somebody else's."""
    nothing_logged = os.fstat(log.fileno()).st_size == 0
    if nothing_logged:
        (folder / "log.jsonl").unlink(missing_ok=True)
        written = [path for path in folder.iterdir()
                   if path.name != "started.json" and not is_leftover(path)]
        if is_fresh and not written:
            (folder / "started.json").unlink(missing_ok=True)
    log.close()


@contextlib.contextmanager
def errors_explained(run):
    """Whatever ends the run too early says how to resume it.

    After a lost connection torchrun soon sends SIGTERM, which may interrupt any of these lines:
    so Interrupted is caught outside of all others."""
    folder = run.path.parent
    try:
        try:
            yield
        except BaseException:
            ignore_signals_of_torchrun()
            raise
    except Interrupted as stop:
        raise Interrupted(stop.number, f"{folder}: stopped; {run.resume_hint()}") from None
    except OSError as error:  # a full disk, a read-only folder, a folder that vanished
        raise InputError(f"{error.filename or folder}: {error.strerror or error}; fix that, and "
                         f"{run.resume_hint()}") from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise InputError(f"{folder}: {LOST_CONNECTION}; {run.resume_hint()}") from None


def find_run(folder, args, fingerprint):
    """(the checkpoint to resume from or None, reasons why the folder holds another run).

    started.json says which run an unfinished one is, even before its first step. With edited code
    the same command resumes an unfinished run, which is then marked as mixed; an experiment, which
    passes --overwrite, starts it anew."""
    reasons, path = why_outdated(args, fingerprint), folder / "checkpoint.pt"
    if reasons == []:
        raise InputError(f"{folder}: another process has just finished this run; the same command "
                         "shows it")
    if reasons is not None:
        return None, reasons
    if path.exists():
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            if not args.overwrite:
                raise InputError(f"{error}; delete it, or add --overwrite, to start the run "
                                 "again") from None
            return None, [str(error)]
        reasons = differences(checkpoint, args, fingerprint)
        resumes = reasons == [OTHER_CODE] and not args.overwrite
        return checkpoint, [] if resumes else reasons
    if (folder / "started.json").exists():
        try:
            reasons = differences(read_json(folder / "started.json"), args, fingerprint)
        except InputError as error:
            return None, [str(error)]
        return None, [] if reasons == [OTHER_CODE] else reasons
    strangers = sorted(path.name for path in folder.iterdir() if is_stranger(path))
    if strangers:
        raise InputError(f"{folder}: holds files that no run of this program made "
                         f"({', '.join(strangers[:5])}); choose another --out_dir")
    return None, None


def is_stranger(path):
    """Whether a file in a folder without a run is somebody else's.

    Ours are an empty log, which open_run has just made, and leftovers."""
    is_empty_log = path.name == "log.jsonl" and path.stat().st_size == 0
    return path.is_file() and not is_empty_log and not is_leftover(path)


def is_leftover(path):
    """Whether atomic_write left this file behind in a process that was killed."""
    name = r".+\.(json|pt|safetensors|tsv|txt)\.tmp\d+"
    return path.is_file() and re.fullmatch(name, path.name) is not None
