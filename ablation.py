"""The experiment: what each part of the triple loss, and the teacher's initialisation, is worth.

    python ablation.py --preset mini --teacher FOLDER --corpus FILE_OR_FOLDER --data_dir FOLDER

Distils one student per variant, fine-tunes the teacher and every student on every task, and reports the differences.
What is done already is not done again. Sanh et al. 2019 (arXiv:1910.01108), section 4.2 and Table 4.
"""
import argparse
import difflib
import shlex
from pathlib import Path

import finetune
import pretrain
from data import TASKS, read_dev, read_train, text_files
from load_hf_weights import read_config
from report import summarize, write_report
from run import InputError, command_line, number

# name: (heading, what it changes against the baseline, as arguments of pretrain.py). A line more is a variant more.
VARIANTS = {
    "full":        ("full (baseline)",       []),
    "no_cos":      ("no cosine loss",        ["--use_cos", "0"]),
    "no_ce":       ("no distillation loss",  ["--use_ce", "0"]),
    "no_mlm":      ("no MLM loss",           ["--use_mlm", "0"]),
    "random_init": ("random initialisation", ["--init", "random"]),
}
BASELINE = "full"

PRESETS = {
    "mini": {  # a small pretrained BERT on a CPU of two cores
        "pretrain": ["--steps", "200", "--batch_size", "16", "--lr", "5e-4", "--log_every", "5"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "1e-4", "--attention_dropout", "0"],
    },
    "base": {  # bert-base-uncased on a GPU
        "pretrain": ["--steps", "10000", "--batch_size", "256", "--grad_accum", "4", "--lr", "5e-4"],
        "finetune": ["--epochs", "3", "--batch_size", "32", "--lr", "2e-5"],
    },
}


# ---- Running what is missing ----

def run_experiment(args):
    for seed in range(args.seeds):
        fine_tune(args, "teacher", args.teacher, seed)
        for variant in args.variants:
            student = Path(args.out_dir, variant, f"seed{seed}")
            call(pretrain, ["--teacher", args.teacher, "--corpus", *args.corpus,
                            *(["--heldout", *args.heldout] if args.heldout else []),
                            "--out_dir", str(student), "--seed", str(seed),
                            *PRESETS[args.preset]["pretrain"], *VARIANTS[variant][1],
                            "--device", args.device, "--precision", args.precision, *shlex.split(args.pretrain_args)])
            fine_tune(args, variant, student, seed)


def fine_tune(args, name, model, seed):
    for task in args.tasks:
        call(finetune, ["--model", str(model), "--task", task, "--data_dir", args.data_dir,
                        "--out_dir", str(Path(args.out_dir, name, f"seed{seed}", task)), "--seed", str(seed),
                        *PRESETS[args.preset]["finetune"], "--device", args.device, "--precision", args.precision,
                        *shlex.split(args.finetune_args)])


def call(module, arguments):
    """Run a command in this process, and show it as a reader would type it."""
    print(f"\n$ {shlex.join(['python', f'{module.__name__}.py', *arguments])}", flush=True)
    module.main(arguments)


# ---- The command ----

def one_of(known, what):
    """An argparse type: a name out of `known`, or the nearest one suggested."""
    def parse(text):
        if text not in known:
            near = difflib.get_close_matches(text, known, 1)
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}; " + (f"did you mean {near[0]}? " if near else "")
                                             + f"Known: {', '.join(known)}")
        return text
    return parse


def list_of(known, what):
    return lambda text: [one_of(known, what)(name) for name in text.split(",")]


def read_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", type=one_of(PRESETS, "preset"), default="mini", help=", ".join(PRESETS))
    parser.add_argument("--teacher", required=True, help="folder of a BERT with its MLM head, in Hugging Face's layout")
    parser.add_argument("--corpus", nargs="+", required=True, help="text files, or folders of them")
    parser.add_argument("--heldout", nargs="+", help="text to measure on; default: a slice of the corpus, not trained on")
    parser.add_argument("--data_dir", required=True, help="folder that holds CoLA/, MNLI/, ... or glue_data/, and aclImdb/")
    parser.add_argument("--out_dir", help="default: runs/PRESET")
    parser.add_argument("--seeds", type=number(int, 1), default=1, help="repeat everything with seeds 0 to N - 1")
    parser.add_argument("--tasks", type=list_of(TASKS, "task"), default=["cola", "mnli", "mrpc", "imdb"],
                        help="separated by commas")
    parser.add_argument("--variants", type=list_of(VARIANTS, "variant"), default=list(VARIANTS),
                        help="separated by commas")
    parser.add_argument("--report_only", action="store_true", help="report what is done, run nothing")
    parser.add_argument("--pretrain_args", default="", help='more arguments for pretrain.py, in quotes: "--steps 5"')
    parser.add_argument("--finetune_args", default="", help='more arguments for finetune.py, in quotes: "--epochs 1"')
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args(arguments)
    args.out_dir = args.out_dir or f"runs/{args.preset}"
    if BASELINE not in args.variants:
        raise InputError(f"--variants must hold {BASELINE}: the others are compared with it")
    return args


def main(arguments):
    args = read_arguments(arguments)
    if not args.report_only:
        read_config(args.teacher), text_files(args.corpus)  # what is missing shows now, not hours later
        for task in args.tasks:
            read_train(task, args.data_dir), read_dev(task, args.data_dir)
        print(f"Seeds: {args.seeds}. For each, {len(args.variants)} students to distil, {1 + len(args.variants)} models to "
              f"fine-tune on {', '.join(args.tasks)}. What is done is kept. Results: {args.out_dir}", flush=True)
        run_experiment(args)
    titles = {"teacher": "teacher", **{variant: VARIANTS[variant][0] for variant in args.variants}}
    summary = summarize(args.out_dir, args.data_dir, titles, BASELINE, args.tasks, args.seeds)
    write_report(args.out_dir, summary, f"What each part of the loss is worth: preset {args.preset}")


if __name__ == "__main__":
    command_line(main)
