"""The experiment: what each part of the triple loss, and the teacher's initialisation, is worth.

    python ablation.py
    python ablation.py --preset mini --teacher FOLDER --corpus FILE_OR_FOLDER --data_dir FOLDER
    python ablation.py --preset base          # says what it will fetch, and fetches it

Distils one student per variant, fine-tunes the teacher and every student on every task, and reports the differences.
What is up to date is not done again. Sanh et al. 2019 (arXiv:1910.01108), section 4.2 and Table 4.
"""
import argparse
import os
import re
import shlex
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import torch
from tqdm import tqdm

import finetune
import pretrain
from data import collate
from load_hf_weights import load_model, load_tokenizer, read_config
from model import chosen_layers
from support import download, toy
from support.cli import Parser, command_line, in_range, list_of, one_of, shell_words
from support.corpus import text_files
from support.device import autocast, peak_memory, resolve_device
from support.errors import InputError, Interrupted, interrupt
from support.files import lock_file
from support.process_pool import process_pool
from support.report import summarize, write_report
from support.run_folder import why_outdated
from support.tasks import TASKS

# name: (heading, what it changes against the baseline, as arguments of pretrain.py). A line more is a variant more.
VARIANTS = {
    "full":        ("full (baseline)",       []),
    "no_cos":      ("no cosine loss",        ["--use_cos", "0"]),
    "no_ce":       ("no distillation loss",  ["--use_ce", "0"]),
    "no_mlm":      ("no MLM loss",           ["--use_mlm", "0"]),
    "random_init": ("random initialisation", ["--init", "random"]),
}
# More rows for the curious, with --variants extended. The weights (5, 2, 1), T = 2 and half of the layers are the baseline's: of a
# teacher of 12 layers depth_6 is the baseline once more, of one of 6 depth_3.
EXTENDED = {
    "layers_even":  ("every second layer from the first on",  ["--layers", "even"]),
    "layers_odd":   ("every second layer, the last with it",  ["--layers", "odd"]),
    "layers_first": ("the first half of the layers",          ["--layers", "first"]),
    "layers_last":  ("the last half of the layers",           ["--layers", "last"]),
    "depth_3":      ("3 layers",                              ["--layers", "evenly:3"]),
    "depth_4":      ("4 layers",                              ["--layers", "evenly:4"]),
    "depth_6":      ("6 layers",                              ["--layers", "evenly:6"]),
    "T_1":          ("temperature 1",                         ["--temperature", "1"]),
    "T_4":          ("temperature 4",                         ["--temperature", "4"]),
    "T_8":          ("temperature 8",                         ["--temperature", "8"]),
    "ce_masked":    ("KL at masked positions only",           ["--use_ce", "0", "--alpha_ce_masked", "5"]),
    "cos_all":      ("cosine over all layers",                ["--use_cos", "0", "--alpha_cos_all", "1"]),
    "weights_111":  ("weights 1, 1, 1",                       ["--alpha_ce", "1", "--alpha_mlm", "1", "--alpha_cos", "1"]),
}
ALL_VARIANTS = {**VARIANTS, **EXTENDED}
BASELINE = "full"

PRESETS = {
    "toy": {  # the miniature language of toy.py, and a teacher that make toy-teacher made
        "world": ["--out_dir", "runs/toy/world", "--seed", "1"],
        "teacher": os.path.relpath(Path(__file__).parent / "assets/toy-teacher"), "corpus": ["runs/toy/world/corpus.txt"],
        "heldout": ["runs/toy/world/heldout.txt"], "data_dir": "runs/toy/world", "jobs": torch.get_num_threads(),
        "pretrain": ["--steps", "200", "--batch_size", "32", "--max_length", "64", "--lr", "1e-3", "--precision", "fp32"],
        "finetune": ["--epochs", "8", "--batch_size", "32", "--max_length", "64", "--lr", "2e-4", "--precision", "fp32"],
    },
    "mini": {  # a small pretrained BERT on a CPU of two cores
        "pretrain": ["--steps", "200", "--batch_size", "16", "--lr", "5e-4", "--log_every", "5"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "1e-4", "--attention_dropout", "0"],
    },
    "base": {  # bert-base-uncased on a GPU; what of the three folders the command line does not name is fetched
        "hub_name": "google-bert/bert-base-uncased", "teacher": "runs/models/bert-base-uncased", "data_dir": "runs/data",
        "corpus": ["runs/data/wikitext-103-raw/wiki.train.raw"], "heldout": ["runs/data/wikitext-103-raw/wiki.valid.raw"],
        "pretrain": ["--steps", "10000", "--batch_size", "256", "--grad_accum", "4", "--lr", "5e-4"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "2e-5"],
    },
}


# ---- Fetching what preset base needs ----

def fetch(args):
    """Fetch what of the teacher, the tasks and WikiText-103 is neither named on the command line nor there. Raises InputError."""
    preset = PRESETS[args.preset]
    wanted = (args.tasks if "data_dir" in args.fetched else []) + (["wikitext-103"] if "corpus" in args.fetched else [])
    data_sets = download.missing(wanted, preset["data_dir"])
    teacher = "teacher" in args.fetched and not Path(args.teacher).exists()
    said = [f"{preset['hub_name']} (440 MB) into {args.teacher}"] if teacher else []
    said += [f"{download.what_and_how_much(data_sets)}, into {preset['data_dir']}"] if data_sets else []
    if said:
        for module, arguments in commands(args):
            module.read_arguments(arguments)  # what is wrong with them is said before, not after
        print(f"To be fetched first: {'; '.join(said)}", flush=True)
    if teacher:
        download.fetch_model(preset["hub_name"], args.teacher)
    download.download_tasks(data_sets, preset["data_dir"])


# ---- Running what is missing ----

def commands(args):
    """Every step of the experiment in order, each (module, its arguments)."""
    on = ["--device", args.device, "--overwrite", *(["--precision", args.precision] if args.precision else [])]
    preset = PRESETS[args.preset]
    for seed in range(args.seeds):
        for name in ("teacher", *args.variants, *args.also):
            folder = Path(args.out_dir, name, f"seed{seed}")
            if name in args.variants:
                yield pretrain, ["--teacher", args.teacher, "--corpus", *args.corpus,
                                 *(["--heldout", *args.heldout] if args.heldout else []),
                                 "--out_dir", str(folder), "--seed", str(seed), *preset["pretrain"], *ALL_VARIANTS[name][1], *on,
                                 *args.pretrain_args]
            for task in args.tasks:
                yield finetune, ["--model", {"teacher": args.teacher, **args.also}.get(name, str(folder)), "--task", task,
                                 "--data_dir", args.data_dir, "--out_dir", str(folder / task), "--seed", str(seed),
                                 *preset["finetune"], *on, *args.finetune_args]


def check(args):
    """Raise InputError now for what would otherwise stop the experiment hours later."""
    depth = read_config(args.teacher).num_hidden_layers
    for module, arguments in commands(args):
        run = module.read_arguments(arguments)
        try:
            chosen_layers(getattr(run, "layers", None), depth)
        except ValueError as error:
            raise InputError(f"{run.out_dir}: {error}; leave this variant out of --variants") from None
    for folder in args.also.values():
        finetune.new_model(folder, args.tasks[0]), load_tokenizer(folder)
    load_model(args.teacher), text_files(args.corpus + (args.heldout or []))
    for task in args.tasks:
        reader = finetune.reader(task)
        reader.read_train(task, args.data_dir), reader.read_dev(task, args.data_dir)


def missing(args):
    """The commands whose run is not there, or is made of other things than it would be now."""
    to_do, students = [], set()  # students: the folders of those still to be distilled, whose fine-tunings must follow
    for module, arguments in commands(args):
        run = module.read_arguments(arguments)
        if getattr(run, "model", None) in students or why_outdated(run, module.fingerprint(run)) != []:
            to_do.append((module, arguments))
            students |= {run.out_dir} if module is pretrain else set()
    return to_do


def estimate(args, to_do):
    """About how many seconds these commands take here, from one timed step of the baseline and one of each fine-tuning."""
    timed, seconds, threads = {}, 0.0, torch.get_num_threads()
    torch.set_num_threads(threads_of_a_job(args.jobs))
    for module, arguments in to_do:
        run = module.read_arguments(arguments)
        if module is pretrain:
            if "distillation" not in timed:
                timed["distillation"] = time_distillation(run)
            seconds += timed["distillation"] * run.steps
        else:
            if run.task not in timed:
                timed[run.task] = time_fine_tuning(run, args.teacher)
            # A student has half of the teacher's layers.
            seconds += timed[run.task] * (1 if run.model == args.teacher else 0.5)
    torch.set_num_threads(threads)
    return seconds / min(args.jobs, len(to_do))


def time_distillation(run):
    """Seconds of one step, the optimizer's part left out."""
    student, teacher, tokenizer = pretrain.load_models(run)
    device = torch.device(run.device)
    loss = pretrain.TripleLoss(student.to(device), teacher.to(device), run.weights, run.temperature, run.chunk_tokens,
                               run.layers).to(device)
    input_ids, labels = pretrain.load_blocks(run, tokenizer)[0].training_batch(0, run.batch_size // run.grad_accum, run.mlm_prob, 0)

    def step():
        with autocast(device, run.precision):
            loss(input_ids.to(device), labels, labels.numel(), labels.numel())[0].backward()
    return run.grad_accum * timed_once_warm(step)


def time_fine_tuning(run, teacher):
    """Seconds of fine-tuning the teacher, the optimizer's part and the evaluation left out."""
    examples, _ = finetune.load_data(run)
    some = examples[::max(1, len(examples) // (8 * run.batch_size))]
    rows, _ = finetune.training_rows(run, some, load_tokenizer(teacher))
    rows.sort(key=lambda row: len(row[0]))
    model = finetune.new_model(teacher, run.task).to(run.device)
    inputs = [x.to(run.device) for x in collate(rows[len(rows) // 2:][:run.batch_size], 0)]  # of the middle length

    def step():
        with autocast(torch.device(run.device), run.precision):
            model(*inputs).float().square().mean().backward()
    return timed_once_warm(step) * run.epochs * len(examples) * len(rows) / len(some) / len(inputs[0])


def timed_once_warm(step):
    step()
    started = time.monotonic()
    step()
    return time.monotonic() - started


def run(to_do, jobs):
    """Run these commands, each shown as a reader would type it: in this process one after the other, or `jobs` side by side."""
    if jobs == 1:
        for number, command in enumerate(to_do, 1):
            run_one(f"{number}/{len(to_do)}", command[0].__name__, command[1])
        return
    # Students first: what is fine-tuned later waits for them.
    waiting = sorted(enumerate(to_do, 1), key=lambda numbered: numbered[1][0] is not pretrain)
    os.environ["TQDM_DISABLE"] = "1"  # progress bars of several runs would write over each other
    with process_pool(jobs, "one of the runs was killed, perhaps for want of memory: try --jobs 1", begin_job, threads_of_a_job(jobs)) as pool:
        undone, running = {option("--out_dir", arguments) for module, arguments in to_do if module is pretrain}, {}
        try:
            while waiting or running:
                ready = [numbered for numbered in waiting if option("--model", numbered[1][1]) not in undone]
                waiting = [numbered for numbered in waiting if numbered not in ready]
                for number, (module, arguments) in ready:
                    running[pool.submit(run_job, f"{number}/{len(to_do)}", module.__name__, arguments)] = option("--out_dir", arguments)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    undone.discard(running.pop(future))
        except Interrupted as stop:  # the runs end too, after a step and a checkpoint
            raise Interrupted(stop.number, "interrupted; the same command goes on where the runs stopped") from None


def run_one(number, module, arguments):
    print(f"\n[{number}] $ {shlex.join(['python', f'{module}.py', *arguments])}", flush=True)
    sys.modules[module].main(arguments)


def run_job(*command):
    """run_one, in one of several processes: SIGTERM ends the process, after the step and the checkpoint."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run_one(*command)
    except Interrupted:
        os._exit(143)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begin_job(threads):
    """Make this process one of several side by side, with its share of the cores."""
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own, between processes, would be missed with a warning when this process is ended


def threads_of_a_job(jobs):
    return max(1, torch.get_num_threads() // jobs)


def option(name, arguments):
    """The value that follows the flag `name`; None if it is not there."""
    return arguments[arguments.index(name) + 1] if name in arguments else None


# ---- The command ----

def named_folder(text):
    """(NAME, FOLDER) of NAME=FOLDER; the name becomes a folder of --out_dir beside the variants', and a heading of the report."""
    name, _, folder = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, with a name of letters, digits, - and _")
    if name in {"teacher", "world", *ALL_VARIANTS, *(heading for heading, _ in ALL_VARIANTS.values())}:
        raise argparse.ArgumentTypeError(f"the name {name} is taken; choose another")
    return name, folder


def read_arguments(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--preset", type=one_of(PRESETS, "preset"), default="toy", help=", ".join(PRESETS))
    parser.add_argument("--teacher", help="folder of a BERT with its MLM head, in Hugging Face's layout")
    parser.add_argument("--corpus", nargs="+", help="text files, or folders of them")
    parser.add_argument("--heldout", nargs="+", help="text to measure on; default: a slice of the corpus, not trained on")
    parser.add_argument("--data_dir", help="folder that holds CoLA/, MNLI/, ... or glue_data/, aclImdb/, squad/")
    parser.add_argument("--out_dir", help="default: runs/PRESET")
    parser.add_argument("--seeds", type=in_range(int, 1), default=1, help="repeat everything with seeds 0 to N - 1")
    parser.add_argument("--tasks", type=list_of(TASKS, "task"), default=["cola", "mnli", "mrpc", "imdb"],
                        help="separated by commas")
    parser.add_argument("--variants", type=list_of((*ALL_VARIANTS, "extended"), "variant"), default=list(VARIANTS),
                        help="separated by commas; extended: all there are")
    parser.add_argument("--also", type=named_folder, nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
                        help="further models to fine-tune and compare, such as distilbert-base-uncased")
    parser.add_argument("--report_only", action="store_true", help="report what is done, run nothing")
    parser.add_argument("--pretrain_args", type=shell_words, default=[], help='more for pretrain.py: --pretrain_args="--steps 5"')
    parser.add_argument("--finetune_args", type=shell_words, default=[], help='more for finetune.py: --finetune_args="--epochs 1"')
    parser.add_argument("--jobs", type=in_range(int, 1), help="runs side by side, each with its share of the cores; default: "
                        "as many as there are cores for small models (preset toy), else 1")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="default: as the preset says, or auto")
    args = parser.parse_args(arguments)
    preset = PRESETS[args.preset]
    args.jobs = args.jobs or (preset.get("jobs", 1) if resolve_device(args.device) == "cpu" else 1)
    args.world = None if args.corpus and args.data_dir else preset.get("world")
    args.heldout = args.heldout or (None if args.corpus else preset.get("heldout"))
    needed = ("teacher", "corpus", "data_dir")
    args.fetched = [name for name in needed if not getattr(args, name)] if "hub_name" in preset else []
    for name in needed:
        if not getattr(args, name) and name not in preset:
            raise InputError(f"--{name}: missing; preset {args.preset} needs --teacher, --corpus and --data_dir")
        setattr(args, name, getattr(args, name) or preset[name])
    args.out_dir = args.out_dir or f"runs/{args.preset}"
    if len(dict(args.also)) < len(args.also):
        raise InputError("--also: two models of the same name")
    args.also = dict(args.also)
    if "extended" in args.variants:
        args.variants = list(ALL_VARIANTS)
    if BASELINE not in args.variants:
        raise InputError(f"--variants must hold {BASELINE}: the others are compared with it")
    return args


def main(arguments):
    started, args = time.monotonic(), read_arguments(arguments)
    if args.world:
        toy.main([*args.world, "--overwrite"])
    if not args.report_only:
        if args.fetched:
            fetch(args)
        check(args)
        to_do = missing(args)
        print(f"{len(args.variants)} students to distil from {args.teacher}, {1 + len(args.variants) + len(args.also)} models to "
              f"fine-tune on {', '.join(args.tasks)}, with {args.seeds} seed(s): {len(list(commands(args)))} runs, of which {len(to_do)} are to "
              f"do. Results: {args.out_dir}", flush=True)
        if to_do:
            print(f"About {max(1, round(estimate(args, to_do) / 60))} minutes on this machine ({args.jobs} at a time, with "
                  f"{threads_of_a_job(args.jobs)} thread(s) each).", flush=True)
            Path(args.out_dir).mkdir(parents=True, exist_ok=True)
            with lock_file(Path(args.out_dir, ".lock")):  # two experiments in one folder would get into each other's runs
                run(to_do, args.jobs)
    titles = {"teacher": "teacher", **{variant: ALL_VARIANTS[variant][0] for variant in args.variants},
              **{name: name for name in args.also}}
    summary = summarize(args.out_dir, args.data_dir, titles, BASELINE, args.tasks, args.seeds, args.also)
    write_report(args.out_dir, summary, f"What each part of the loss is worth: preset {args.preset}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes, {peak_memory():.1f} GiB of memory at the peak of the first process")


if __name__ == "__main__":
    command_line(main)
