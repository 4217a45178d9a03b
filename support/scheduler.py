"""Runs the commands of an experiment side by side: which are pending, how long they take, progress.

A command is (module, arguments): pretrain, finetune or support.probe, and the arguments of its
main. Which commands make up the experiment is in ablation.py.
"""
import contextlib
import importlib
import itertools
import os
import shlex
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import torch
from tqdm import tqdm

import pretrain
from data import collate
from load_hf_weights import load_tokenizer
from support import probe, task_setup
from support.chunked_loss import ChunkedLoss, micro_batches
from support.device import autocast, wait_for_gpu
from support.errors import Interrupted, interrupt
from support.process_pool import process_pool
from support.run_folder import archived_versions, why_to_run
from support.seeds import DROPOUT


def pending(commands):
    """The commands whose run is missing or out of date.

    With a student that is to be distilled, all of its fine-tunings and probes are. An archived run
    that fits again, as after an edit that was undone, gets its place back first."""
    to_run, students = [], set()
    for module, arguments in commands:
        args = module.read_arguments(arguments)
        of_new_student = getattr(args, "model", None) in students
        if of_new_student or why_to_run(args, module.fingerprint(args)) != []:
            to_run.append((module, arguments))
            if module is pretrain:
                students.add(args.out_dir)
    return to_run


def shell_command(command):
    """A command as a reader would type it."""
    module, arguments = command
    in_package = "." in module.__name__
    script = ["-m", module.__name__] if in_package else [f"{module.__name__}.py"]
    return shlex.join(["python", *script, *arguments])


def option(name, arguments):
    """The value that follows the flag `name`; None without it."""
    return arguments[arguments.index(name) + 1] if name in arguments else None


# ---- How long it takes ----

def estimate_seconds(commands, teacher, jobs):
    """About how many seconds each command takes on its share of the cores.

    From one timed step of the first distillation, one of each task's fine-tuning, and one batch of
    each task's probe."""
    seconds, timed, threads = [], {}, torch.get_num_threads()
    torch.set_num_threads(threads_per_job(jobs))
    for module, arguments in commands:
        args = module.read_arguments(arguments)
        if module is pretrain:
            if pretrain not in timed:
                timed[pretrain] = time_distillation(args)
            seconds.append(timed[pretrain] * args.steps)
        else:
            if (module, args.task) not in timed:
                time_of_teacher = time_probe if module is probe else time_fine_tuning
                timed[module, args.task] = time_of_teacher(args, teacher)
            # A student has half of the teacher's layers.
            seconds.append(timed[module, args.task] * (1 if args.model == teacher else 0.5))
    torch.set_num_threads(threads)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for the runs, which are processes of their own
    return seconds


def time_distillation(args):
    """Seconds of one step, without the optimizer's part."""
    student, teacher, tokenizer = pretrain.load_models(args)
    objective = ChunkedLoss(student, teacher, args.weights, args.temperature, args.chunk_tokens,
                            args.precision)
    blocks, _ = pretrain.load_blocks(args, tokenizer)
    rows = args.batch_size // args.grad_accum
    batch = blocks.training_batch(0, rows, args.mlm_prob, args.seed)

    def step():
        for micro_batch in micro_batches(objective, *batch, 1, (DROPOUT,)):
            loss, _ = objective(*micro_batch)
            loss.backward()
    return args.grad_accum * time_warm(step)


def time_fine_tuning(args, teacher):
    """Seconds of fine-tuning the teacher, without the optimizer's part and the evaluation."""
    examples, _ = task_setup.load_data(args)
    some = examples[::max(1, len(examples) // (8 * args.batch_size))]
    rows, _ = task_setup.training_rows(args, some, load_tokenizer(teacher))
    rows.sort(key=lambda row: len(row[0]))
    batch = rows[len(rows) // 2:][:args.batch_size]  # of the middle length
    model = task_setup.new_model(teacher, args.task).to(args.device)
    inputs = [x.to(args.device) for x in collate(batch, model.config.pad_token_id)]

    def step():
        with autocast(torch.device(args.device), args.precision):
            model(*inputs).float().square().mean().backward()
    rows_in_all = args.epochs * len(examples) * len(rows) / len(some)
    return time_warm(step) * rows_in_all / len(batch)


def time_probe(args, teacher):
    """Seconds of the teacher's probe, without the linear model's part."""
    train_set, dev_sets = task_setup.load_data(args)
    examples = list(itertools.chain(train_set, *dev_sets.values()))
    some = examples[::max(1, len(examples) // 64)]
    model, tokenizer = probe.load_frozen(teacher, args.device), load_tokenizer(teacher)
    seconds = time_warm(lambda: probe.mean_states(args, model, some, tokenizer))
    return seconds * len(examples) / len(some)


def time_warm(step):
    """Seconds of a call. A first one warms up, and is not timed."""
    def run():
        step()
        wait_for_gpu()
    run()
    started = time.monotonic()
    run()
    return time.monotonic() - started


def threads_per_job(jobs):
    return max(1, torch.get_num_threads() // jobs)


# ---- Running them ----

def run_all(commands, seconds, jobs, log_path, verbose):
    """Run the commands, `jobs` at a time: a bar with the time left, a line per finished run.

    seconds: what estimate_seconds gives. The full commands, and what they print, go to log_path,
    a file in the experiment's folder; with verbose the commands are printed too."""
    # Students first: what is fine-tuned later waits for them.
    waiting = sorted(zip(commands, seconds), key=is_fine_tuning)
    unfinished = {option("--out_dir", arguments)
                  for module, arguments in commands if module is pretrain}
    killed_message = "one of the runs was killed, perhaps because memory ran out"
    if jobs > 1:
        killed_message += ": try --jobs 1"
    with process_pool(jobs, killed_message, start_job, threads_per_job(jobs)) as pool, \
            Progress(seconds, jobs) as progress:
        running = {}
        try:
            while waiting or running:
                for command, expected in list(waiting):
                    module, arguments = command
                    if option("--model", arguments) in unfinished:
                        continue
                    waiting.remove((command, expected))
                    future = pool.submit(run_job, module.__name__, arguments, log_path, verbose)
                    running[future] = (option("--out_dir", arguments), expected)
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    folder, expected = running.pop(future)
                    unfinished.discard(folder)
                    name = Path(folder).relative_to(log_path.parent)
                    progress.finished(f"{name}: {future.result()}", expected)
                progress.refresh()
        except Interrupted as stop:  # the runs end too, after a step and a checkpoint
            raise Interrupted(stop.number, "interrupted; the same command resumes where the runs "
                                           "stopped") from None


def is_fine_tuning(expected_command):
    (module, _), _ = expected_command
    return module is not pretrain


def run_job(module, arguments, log_path, verbose):
    """One command, in a process of the pool. Returns what its line in the terminal says.

    SIGTERM ends the process, after the step and a checkpoint."""
    signal.signal(signal.SIGTERM, interrupt)
    sys.stdout.reconfigure(errors="backslashreplace")  # as in cli.py
    module, started = importlib.import_module(module), time.monotonic()
    folder = option("--out_dir", arguments)
    archived_before = archived_versions(folder)
    command = f"$ {shell_command((module, arguments))}"
    if verbose:  # a line in one write: the other processes write to the same terminal
        print(f"{command}\n", end="", flush=True)
    try:
        with open(log_path, "a", buffering=1, encoding="utf-8",
                  errors="backslashreplace") as log, contextlib.redirect_stdout(log):
            print(command)
            outcome = module.main(arguments)
    except Interrupted:
        os._exit(143)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if module is pretrain:
        accuracy = outcome["heldout_after"]["mlm_accuracy"]
        text = f"fills in {100 * accuracy:.1f} % of the masked words of the held-out text"
    else:
        text = f"{outcome['data']} {outcome['score']:.1f}"
    text += f" ({time.monotonic() - started:.0f} s)"
    if archived := archived_versions(folder)[len(archived_before):]:
        text += f"; what it replaces is kept as {archived[-1]}"
    return text


def start_job(threads):
    """Prepare a process of the pool: it gets its share of the cores."""
    torch.set_num_threads(threads)
    # A lock between processes would be reported as leaked when this process is ended.
    tqdm.set_lock(threading.RLock())


class Progress:
    """One bar over all runs, with the time left, on stderr; and lines on stdout.

    The time left follows from the estimates, scaled by how long the finished runs really took."""

    def __init__(self, seconds, jobs):
        self.left, self.done, self.jobs = sum(seconds), 0.0, jobs
        self.runs_done = 0  # the bar does not count where the user has switched it off
        self.started = self.last_finish = time.monotonic()
        self.bar = tqdm(total=len(seconds), unit="run", leave=False,
                        bar_format="{n_fmt}/{total_fmt} runs |{bar}| {elapsed}{postfix}")

    def __enter__(self):
        self.refresh()
        return self

    def __exit__(self, *error):
        self.bar.close()

    def finished(self, line, expected):
        self.left, self.done = self.left - expected, self.done + expected
        self.last_finish = time.monotonic()
        self.bar.update()
        self.runs_done += 1
        self.bar.write(f"[{self.runs_done}/{self.bar.total}] {line}\n", end="")
        sys.stdout.flush()

    def refresh(self):
        speed = self.jobs  # estimated seconds of work per second
        if self.done:
            speed = self.done / (self.last_finish - self.started)
        left = self.left / speed - (time.monotonic() - self.last_finish)
        self.bar.set_postfix_str(f"about {max(1, round(left / 60))} min left")
