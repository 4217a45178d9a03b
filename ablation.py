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
from load_hf_weights import load_model
from report import summarize, write_report
from run import InputError, Parser, command_line, number

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

def commands(args):
    """Every step of the experiment in order, each (module, its arguments)."""
    on = ["--device", args.device, "--precision", args.precision]
    for seed in range(args.seeds):
        for name in ("teacher", *args.variants):
            folder = Path(args.out_dir, name, f"seed{seed}")
            if name != "teacher":
                yield pretrain, ["--teacher", args.teacher, "--corpus", *args.corpus,
                                 *(["--heldout", *args.heldout] if args.heldout else []),
                                 "--out_dir", str(folder), "--seed", str(seed), *PRESETS[args.preset]["pretrain"],
                                 *VARIANTS[name][1], *on, *args.pretrain_args]
            for task in args.tasks:
                yield finetune, ["--model", args.teacher if name == "teacher" else str(folder), "--task", task,
                                 "--data_dir", args.data_dir, "--out_dir", str(folder / task), "--seed", str(seed),
                                 *PRESETS[args.preset]["finetune"], *on, *args.finetune_args]


def check(args):
    """Raise InputError now for what would otherwise stop the experiment hours later."""
    for module, arguments in commands(args):
        module.read_arguments(arguments)
    load_model(args.teacher), text_files(args.corpus + (args.heldout or []))
    for task in args.tasks:
        read_train(task, args.data_dir), read_dev(task, args.data_dir)


def run(args):
    """Run in this process what is not done yet, each step shown as a reader would type it."""
    for module, arguments in commands(args):
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


def words(text):
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def list_of(known, what):
    return lambda text: [one_of(known, what)(name) for name in text.split(",")]


def read_arguments(arguments):
    parser = Parser(__doc__)
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
    parser.add_argument("--pretrain_args", type=words, default=[], help='more for pretrain.py: --pretrain_args="--steps 5"')
    parser.add_argument("--finetune_args", type=words, default=[], help='more for finetune.py: --finetune_args="--epochs 1"')
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
        check(args)
        print(f"Seeds: {args.seeds}. For each, {len(args.variants)} students to distil, {1 + len(args.variants)} models to "
              f"fine-tune on {', '.join(args.tasks)}. What is done is kept. Results: {args.out_dir}", flush=True)
        run(args)
    titles = {"teacher": "teacher", **{variant: VARIANTS[variant][0] for variant in args.variants}}
    summary = summarize(args.out_dir, args.data_dir, titles, BASELINE, args.tasks, args.seeds)
    write_report(args.out_dir, summary, f"What each part of the loss is worth: preset {args.preset}")


if __name__ == "__main__":
    command_line(main)
