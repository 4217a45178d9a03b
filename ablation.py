"""The experiment: what each part of the triple loss, and the teacher's initialisation, is worth.

    python ablation.py
    python ablation.py --preset mini --teacher FOLDER --corpus FILE_OR_FOLDER --data_dir FOLDER
    python ablation.py --preset base          # says what it will fetch, and fetches it

Distils one student per variant, fine-tunes the teacher and every student on every task, reads off
the frozen models what a linear classifier can (the probes), and reports the differences. Finished
runs are kept; after an edit, only what depends on it runs again.
Sanh et al. 2019 (arXiv:1910.01108), section 4.2 and Table 4. Read next: lesson.py, if you have not.
"""
import support.startup  # noqa: F401  # first: Ctrl-C while torch is loaded ends quietly

import argparse
import os
import re
import time
from pathlib import Path

import torch

import finetune
import pretrain
from support import probe, toy
from support.cli import (
    Parser,
    add_device_argument,
    command_line,
    in_range,
    list_of,
    one_of,
    shell_words,
)
from support.corpus import describe_files, text_files
from support.device import peak_memory, resolve_device
from support.errors import InputError
from support.experiment_inputs import fetch, validate
from support.files import locked_folder
from support.fingerprint import PROJECT
from support.outcomes import PROBE
from support.report import write_report
from support.scheduler import estimate_seconds, pending, run_all, threads_per_job
from support.statistics import describe_seeds, summarize
from support.tasks import TASKS

# name: (heading, what it changes against the baseline, as arguments of pretrain.py).
# Each line is one variant.
VARIANTS = {
    "full":        ("full (baseline)",       []),
    "no_cos":      ("no cosine loss",        ["--use_cos", "0"]),
    "no_ce":       ("no distillation loss",  ["--use_ce", "0"]),
    "no_mlm":      ("no MLM loss",           ["--use_mlm", "0"]),
    "random_init": ("random initialisation", ["--init", "random"]),
}
# More rows for the curious, with --variants extended. The baseline has weights 5, 2, 1, T = 2 and
# half of the layers, so depth_3 is the baseline again for a teacher of 6 layers, and depth_6 for
# one of 12.
EXTENDED = {
    "layers_even":  ("every second layer from the first on", ["--layers", "even"]),
    "layers_odd":   ("every second layer up to the last",    ["--layers", "odd"]),
    "layers_first": ("the first half of the layers",         ["--layers", "first"]),
    "layers_last":  ("the last half of the layers",          ["--layers", "last"]),
    "depth_3":      ("3 layers",                             ["--layers", "evenly:3"]),
    "depth_4":      ("4 layers",                             ["--layers", "evenly:4"]),
    "depth_6":      ("6 layers",                             ["--layers", "evenly:6"]),
    "T_1":          ("temperature 1",                        ["--temperature", "1"]),
    "T_4":          ("temperature 4",                        ["--temperature", "4"]),
    "T_8":          ("temperature 8",                        ["--temperature", "8"]),
    "weights_111":  ("weights 1, 1, 1",
                     ["--alpha_ce", "1", "--alpha_mlm", "1", "--alpha_cos", "1"]),
}
# Positive controls, with make controls: less distillation should score lower. An experiment that
# does not see this cannot see what a loss is worth (RESULTS.md, "The controls").
CONTROLS = {
    "steps_80": ("80 steps",               ["--steps", "80"]),
    "steps_40": ("40 steps",               ["--steps", "40"]),
    "steps_0":  ("copied, without a step", ["--steps", "0"]),
}
ALL_VARIANTS = {**VARIANTS, **EXTENDED, **CONTROLS}
BASELINE = "full"

PRESETS = {
    "toy": {  # the miniature language of support/toy.py, and a teacher from make toy-teacher
        "world": ["--out_dir", "runs/toy/world", "--seed", "1"],
        "teacher": os.path.relpath(PROJECT / "assets/toy-teacher"),
        "corpus": ["runs/toy/world/corpus.txt"],
        "heldout": ["runs/toy/world/heldout.txt"],
        "data_dir": "runs/toy/world",
        "jobs": torch.get_num_threads(),
        "pretrain": ["--steps", "160", "--batch_size", "16", "--max_length", "64",
                     "--lr", "3e-3", "--precision", "fp32"],
        "finetune": ["--epochs", "2", "--batch_size", "32", "--max_length", "64",
                     "--lr", "7e-4", "--precision", "fp32"],
    },
    "mini": {  # a small pretrained BERT on a CPU of two cores
        "pretrain": ["--steps", "200", "--batch_size", "16", "--lr", "5e-4", "--log_every", "5"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "1e-4",
                     "--attention_dropout", "0"],
    },
    "base": {  # bert-base-uncased on a GPU; what the command line does not name is fetched
        "hub_name": "google-bert/bert-base-uncased",
        "teacher": "runs/models/bert-base-uncased",
        "data_dir": "runs/data",
        "corpus": ["runs/data/wikitext-103-raw/wiki.train.raw"],
        "heldout": ["runs/data/wikitext-103-raw/wiki.valid.raw"],
        "pretrain": ["--steps", "10000", "--batch_size", "256", "--grad_accum", "4",
                     "--lr", "5e-4"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "2e-5"],
    },
}


def commands(args):
    """The experiment, step by step: a list of (module, arguments of its main)."""
    preset, steps = PRESETS[args.preset], []
    common = ["--device", args.device, "--overwrite"]
    if args.precision:
        common += ["--precision", args.precision]
    heldout = ["--heldout", *args.heldout] if args.heldout else []
    fixed_models = {"teacher": args.teacher, **args.also}
    for seed in args.seeds:
        for name in ("teacher", *args.variants, *args.also):
            folder = Path(args.out_dir, name, f"seed{seed}")
            if name in args.variants:
                _, changes = ALL_VARIANTS[name]
                steps.append((pretrain, [
                    "--teacher", args.teacher, "--corpus", *args.corpus, *heldout,
                    "--out_dir", str(folder), "--seed", str(seed),
                    *preset["pretrain"], *common, *args.pretrain_args,
                    *changes]))  # last: what the heading says must hold
            model = fixed_models.get(name, str(folder))
            for task in args.tasks:
                of_task = ["--model", model, "--task", task, "--data_dir", args.data_dir]
                steps.append((finetune, [
                    *of_task, "--out_dir", str(folder / task), "--seed", str(seed),
                    *preset["finetune"], *common, *args.finetune_args]))
                if task in probe.PROBED:  # without a seed: a model has one score
                    steps.append((probe, [
                        *of_task, "--out_dir", str(folder / f"{task}{PROBE}"),
                        "--device", args.device, "--overwrite"]))
    return steps


def run_experiment(args):
    """Run what is pending. Raises InputError before anything runs if an input is wrong."""
    steps = commands(args)
    if args.to_fetch:
        fetch(args, PRESETS[args.preset], steps)
    validate(args, steps)
    # Another experiment in this folder would move these runs, or archived ones, meanwhile.
    with locked_folder(args.out_dir):
        to_run = pending(steps)
        models = 1 + len(args.variants) + len(args.also)
        print(f"{len(args.variants)} students to distil from {args.teacher}, {models} models to "
              f"fine-tune and probe on {', '.join(args.tasks)}, with {describe_seeds(args.seeds)}: "
              f"{len(steps)} runs, of which {len(to_run)} are to do. Text: "
              f"{describe_files(text_files(args.corpus))}. Results: {args.out_dir}", flush=True)
        if len(args.seeds) == 1:
            print("A smoke test: one seed gives no intervals, and nothing can be concluded from "
                  "it.", flush=True)
        run_pending(args, to_run)


def run_pending(args, to_run):
    """Run these commands, if any, with a line that says first how long they take.

    The caller has locked args.out_dir."""
    if not to_run:
        return
    log = Path(args.out_dir, "commands.log")
    seconds = estimate_seconds(to_run, args.teacher, args.jobs)
    minutes = max(1, round(sum(seconds) / min(args.jobs, len(to_run)) / 60))
    print(f"About {minutes} minutes on this machine ({args.jobs} at a time, with "
          f"{threads_per_job(args.jobs)} thread(s) each). Full commands: {log}", flush=True)
    run_all(to_run, seconds, args.jobs, log, args.verbose)


# ---- The command ----

def named_folder(text):
    """An argparse type: (NAME, FOLDER) of NAME=FOLDER.

    The name becomes a folder of --out_dir beside the variants', and a heading of the report."""
    name, _, folder = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not folder:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER, with a name of letters, digits, - and _")
    headings = [heading for heading, _ in ALL_VARIANTS.values()]
    if name in ("teacher", "world", *ALL_VARIANTS, *headings):
        raise argparse.ArgumentTypeError(f"the name {name} is taken; choose another")
    return name, folder


def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--preset", type=one_of(PRESETS, "preset"), default="toy", help=", ".join(PRESETS))
    add("--teacher", help="folder of a BERT with its MLM head, in Hugging Face's layout; default: "
                          "the preset's")
    add("--corpus", nargs="+", help="text files, or folders of them; default: the preset's")
    add("--heldout", nargs="+",
        help="text to measure on; default: the preset's; with --corpus, or without one in the "
             "preset, a slice of the corpus, left out of the training")
    add("--data_dir", help="folder that holds CoLA/, MNLI/, ... or glue_data/, aclImdb/, squad/; "
                           "default: the preset's")
    add("--out_dir", help="folder for all runs and the report; default: runs/PRESET")
    add("--seeds", type=in_range(int, 1), default=5,
        help="how often everything is repeated; with 1 there are no intervals: a smoke test")
    add("--first_seed", type=in_range(int, 0), default=0,
        help="the seeds are this one and those that follow it")
    add("--tasks", type=list_of(TASKS, "task"), default="cola,sst2,mnli",
        help="separated by commas")
    add("--variants", type=list_of((*ALL_VARIANTS, "extended"), "variant"),
        default=",".join(VARIANTS),
        help="separated by commas; extended: all but the positive controls")
    add("--also", type=named_folder, nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
        help="further models to fine-tune and compare, such as distilbert-base-uncased")
    add("--report_only", action="store_true", help="report what is done, run nothing")
    add("--verbose", action="store_true", help="print the full command of each run")
    add("--pretrain_args", type=shell_words, default=[],
        help='more arguments for pretrain.py: --pretrain_args="--steps 5"')
    add("--finetune_args", type=shell_words, default=[],
        help='more arguments for finetune.py: --finetune_args="--epochs 1"')
    add("--jobs", type=in_range(int, 1),
        help="runs side by side, each with its share of the cores; default: one per core for "
             "preset toy on a CPU, else 1")
    add_device_argument(parser)
    add("--precision", choices=("auto", "fp32", "bf16"),
        help="of the matrix products; default: the preset's, or auto")
    return complete(parser.parse_args(arguments))


def complete(args):
    """args with what follows from the preset. Raises InputError if something is missing."""
    preset = PRESETS[args.preset]
    on_cpu = resolve_device(args.device) == "cpu"
    args.jobs = args.jobs or (preset.get("jobs", 1) if on_cpu else 1)
    args.world = None if args.corpus and args.data_dir else preset.get("world")
    if not args.heldout and not args.corpus:
        args.heldout = preset.get("heldout")
    needed = ("teacher", "corpus", "data_dir")
    absent = [name for name in needed if not getattr(args, name)]
    args.to_fetch = absent if "hub_name" in preset else []
    for name in absent:
        if name not in preset:
            raise InputError(f"--{name}: missing; preset {args.preset} needs --teacher, --corpus "
                             "and --data_dir")
        setattr(args, name, preset[name])
    args.out_dir = args.out_dir or f"runs/{args.preset}"
    args.seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    if len(dict(args.also)) < len(args.also):
        raise InputError("--also: two models have the same name")
    args.also = dict(args.also)
    if "extended" in args.variants:
        wanted = {*args.variants, *VARIANTS, *EXTENDED}
        args.variants = [name for name in ALL_VARIANTS if name in wanted]
    if BASELINE not in args.variants:
        raise InputError(f"--variants must contain {BASELINE}: the others are compared with it")
    return args


def main(arguments):
    started, args = time.monotonic(), read_arguments(arguments)
    if not args.report_only:
        if args.world:
            toy.main([*args.world, "--overwrite"])
        run_experiment(args)
    titles = {"teacher": "teacher"}
    titles.update({name: ALL_VARIANTS[name][0] for name in args.variants})
    titles.update({name: name for name in args.also})
    summary = summarize(args.out_dir, args.data_dir, titles, BASELINE, args.tasks, args.seeds,
                        args.also)
    write_report(args.out_dir, summary,
                 f"What each part of the loss is worth: preset {args.preset}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes, {peak_memory():.1f} GiB of memory at "
          "the peak of the first process")


if __name__ == "__main__":
    command_line(main)
