"""Measures speed and memory against plain loops, as ratios taken in one run.

    python -m support.bench                                 at the size of the miniature language
    python -m support.bench --config BERT --corpus TEXT --data_dir DATA      at a real BERT's size

Weights are random: speed does not depend on them. The loops, and how they take turns, are in
bench_loops.py; here are the arithmetic that they need, the measurements and the command.
"""
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from load_hf_weights import load_tokenizer, model_files, read_config, save_model
from losses import WEIGHTS
from model import MaskedLM, chosen_layers, count_parameters, make_student
from support import toy
from support.bench_loops import (
    changed,
    full_pass,
    interleave,
    matrix_products,
    our_distillation,
    our_evaluation,
    our_finetuning,
    parts_of_a_step,
    plain_distillation,
    plain_evaluation,
    plain_finetuning,
    tokenizing_a_corpus,
    tokenizing_alone,
)
from support.cli import (
    Parser,
    add_device_argument,
    command_line,
    in_range,
    list_of,
    resolve,
    shell_words,
)
from support.corpus import text_files
from support.errors import InputError
from support.fingerprint import PROJECT
from support.seeds import seed_torch
from support.tasks import read_train, task_title

if __name__ != "__mp_main__":
    # The loops' processes load this module under that name. They are to be measured without the
    # plotting libraries that ablation.py imports.
    import ablation


# ---- Arithmetic per token, in FLOP: a multiplication and an addition count as two ----

def layer_flops(config, length):
    """Of one layer, forward. Backward is twice as much."""
    hidden = config.hidden_size
    matrices = 4 * hidden ** 2 + 2 * hidden * config.intermediate_size
    return 2 * matrices + 4 * length * hidden


def distillation_flops(config, length, losses=("ce", "mlm", "cos"), mlm_prob=0.15):
    """{part of a step of distillation into half the layers: its arithmetic per token}.

    What these losses need, and no more."""
    layer = layer_flops(config, length)
    head = 2 * config.hidden_size ** 2 + 2 * config.hidden_size * config.vocab_size
    student_layers = max(1, config.num_hidden_layers // 2)
    runs_teacher = "ce" in losses or "cos" in losses
    through_head = 0  # share of the tokens
    if "ce" in losses:
        through_head = 1
    elif "mlm" in losses:
        through_head = mlm_prob * (length - 2) / length
    return {"teacher_body": config.num_hidden_layers * layer if runs_teacher else 0,
            "student_body": 3 * student_layers * layer,
            "heads_and_losses": (3 * through_head + ("ce" in losses)) * head}


# ---- Tables of what the turns logged ----

def median(turns, name):
    return float(np.median([turn[name] for turn in turns]))


def rate(turns, name):
    """So much per second: the median over the turns."""
    return float(np.median([turn[name] / turn["seconds"] for turn in turns]))


def percent(share):
    return f"{100 * share:.0f} %"


def table(header, *rows):
    """Print a table in Markdown."""
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def compare(args, title, loops, examples=None):
    """Print the table of a plain loop and ours.

    examples: how many a turn of ours has, if its log does not say."""
    turns = interleave(args, loops)
    for turn in turns["ours"]:
        turn.setdefault("examples", examples)
    rates = {name: rate(turns[name], "examples") for name in loops}
    peaks = {name: median(turns[name], "peak") for name in loops}
    print(f"{title}; the plain loop pads to {args.max_length}.\n")
    rows = [[name, f"{rates[name]:.4g}", f"{peaks[name]:.2f}"] for name in loops]
    speed, memory = rates["ours"] / rates["plain"], peaks["ours"] / peaks["plain"]
    table(["", "examples a second", "peak memory, GiB"],
          *rows, ["ratio", f"**{speed:.2f}**", f"{memory:.2f}"])


# ---- The measurements; each prints a table ----

def distillation(args):
    """Against the plain loop, both beside the ceiling."""
    turns = interleave(args, {"matrix products": (matrix_products, {}),
                              "plain": (plain_distillation, {}),
                              "ours": (our_distillation, {})})
    positions = args.batch_size * args.max_length * args.steps_a_turn
    for turn in turns["ours"]:
        turn["tokens"] = positions  # blocks have no padding
    products = rate(turns.pop("matrix products"), "flops")
    flops = sum(distillation_flops(read_config(args.config), args.max_length).values())
    ceiling = products / flops
    tokens = {name: rate(turns[name], "tokens") for name in turns}
    peaks = {name: median(turns[name], "peak") for name in turns}
    print(f"Distillation, {args.batch_size} sequences of {args.max_length} a step. "
          f"The arithmetic is {flops / 1e6:.3g} MFLOP a token; square matrix products in "
          f"{args.precision} run at {products / 1e9:.4g} GFLOP/s, so the ceiling is "
          f"{ceiling:.4g} real tokens a second, {ceiling / tokens['plain']:.1f} times the plain "
          "loop.\n")
    rows = []
    for name in turns:
        seconds = median(turns[name], "seconds") / args.steps_a_turn
        real = percent(median(turns[name], "tokens") / positions)
        rows.append([name, f"{tokens[name]:.4g}", f"{seconds:.3g}", real,
                     percent(tokens[name] / ceiling), f"{peaks[name]:.2f}"])
    speed, memory = tokens["ours"] / tokens["plain"], peaks["ours"] / peaks["plain"]
    table(["", "real tokens a second", "seconds a step", "real tokens, share of positions",
           "share of the ceiling", "peak memory, GiB"],
          *rows, ["ratio", f"**{speed:.2f}**", "", "", "", f"**{memory:.2f}**"])
    if args.device == "cuda":
        hours = 3 * 4.4e9 / tokens["ours"] / 3600
        print("The paper's training, three times about 4.4 billion tokens, would take "
              f"{hours:.0f} hours of this GPU.\n")


def profile(args):
    """Where the time of a step goes."""
    turns = interleave(args, {"matrix products": (matrix_products, {}),
                              "step": (parts_of_a_step, {})})
    products = rate(turns["matrix products"], "flops")
    flops = distillation_flops(read_config(args.config), args.max_length)
    tokens = args.batch_size * args.max_length
    seconds = {part: median(turns["step"], part) for part in (*flops, "update")}
    whole_step = median(turns["step"], "whole_step")
    seconds["the_rest"] = whole_step - sum(seconds.values())
    print("A step of distillation, its parts run alone.\n")
    rows = []
    for part, time in seconds.items():
        of_ceiling = percent(tokens * flops[part] / time / products) if part in flops else ""
        rows.append([part.replace("_", " "), f"{time:.3g}", percent(time / whole_step),
                     of_ceiling])
    table(["part", "seconds", "share of the step", "its rate, share of the ceiling"], *rows)


def variants(args):
    """What each variant of the ablation, and the MLM loss alone, costs."""
    flags = {name: changes for name, (_, changes) in ablation.VARIANTS.items()}
    flags["no_ce, no_cos"] = ["--use_ce", "0", "--use_cos", "0"]
    turns = interleave(args, {name: (our_distillation, {"more": [*args.more, *changes]})
                              for name, changes in flags.items()})
    config = read_config(args.config)
    flops = {}
    for name in flags:
        losses = [loss for loss in WEIGHTS if f"no_{loss}" not in name]
        flops[name] = sum(distillation_flops(config, args.max_length, losses).values())
    seconds = {name: median(turns[name], "seconds") for name in flags}
    print("The variants, each paying for what it uses.\n")
    table(["variant", "time, share of full", "arithmetic, share of full"],
          *([name, percent(seconds[name] / seconds["full"]), percent(flops[name] / flops["full"])]
            for name in flags))


def lengths(args):
    """Speed against sequence length."""
    config, tokens = read_config(args.config), args.batch_size * args.max_length
    loops = {}
    for length in (64, 128, 256, 512):
        if length <= config.max_position_embeddings:
            changes = {"max_length": length, "batch_size": max(1, tokens // length)}
            loops[length] = (our_distillation, changes)
    turns = interleave(args, loops)
    print(f"Distillation against sequence length, about {tokens} tokens a step.\n")
    rows = []
    for length, (_, changes) in loops.items():
        tokens_a_turn = changes["batch_size"] * length * args.steps_a_turn
        speed = tokens_a_turn / median(turns[length], "seconds")
        flops = sum(distillation_flops(config, length).values())
        rows.append([str(length), f"{speed:.4g}", f"{flops / 1e6:.3g}",
                     f"{speed * flops / 1e9:.3g}"])
    table(["length", "tokens a second", "MFLOP a token", "GFLOP/s"], *rows)


def finetuning(args):
    """On CoLA, against the plain loop."""
    batch = 32
    steps = 16  # batches: as many as length_bucketed_batches sorts by length at once
    compare(args, f"Fine-tuning on CoLA, {batch} rows a step", {
        "plain": (plain_finetuning, {"batch_size": batch, "steps_a_turn": 1}),
        "ours": (our_finetuning, {"batch_size": batch, "steps_a_turn": steps}),
    }, batch * steps)


def evaluation(args):
    """On CoLA's dev set, against the plain loop."""
    compare(args, "Evaluation on CoLA's dev set", {
        "plain": (plain_evaluation, {"batch_size": 64, "steps_a_turn": 2}),
        "ours": (our_evaluation, {}),
    })


def inference(args):
    """Table 3 of Sanh et al. 2019: parameters, and the time of one pass over a task's dev set at
    batch size 1. On the CPU, and on the GPU if that is the device."""
    for task in ("stsb", "mrpc", "cola"):
        with suppress(InputError):  # the task's files do not exist
            title = task_title(task, args.data_dir)
            break
    for device in dict.fromkeys(("cpu", args.device)):
        precision = args.precision if device == args.device else "fp32"
        dev_pass(changed(args, device=device, precision=precision, task=task,
                         rounds=min(3, args.rounds)), title)


def dev_pass(args, title):
    """One pass over the dev set of args.task, of which `title` says what it is."""
    layers = len(chosen_layers(None, read_config(args.config).num_hidden_layers))
    turns = interleave(args, {"teacher": (full_pass, {"layers": None}),
                              "student": (full_pass, {"layers": layers})})
    examples = turns["student"][0]["examples"]
    print(f"One pass over the dev set of {title}, {examples} rows, one at a time, on "
          f"{args.device} in {args.precision}. The paper's, over STS-B's 1,500 rows: 668 s and "
          "410 s.\n")
    of_teacher = median(turns["teacher"], "seconds")
    rows = []
    for name, in_paper in (("teacher", ""), ("student", "61 %")):
        seconds = median(turns[name], "seconds")
        rows.append([name, f"{turns[name][0]['parameters']:,}", f"{seconds:.3g}",
                     f"{1000 * seconds / examples:.3g}", percent(seconds / of_teacher), in_paper])
    table(["", "parameters", "seconds", "milliseconds a row", "share of the teacher's time",
           "in the paper"], *rows)


def tokenizing(args):
    """A corpus of growing size: from text to tokens, and then distillation on it."""
    corpora = growing_corpora(args)
    both = interleave(args, {"alone": (tokenizing_alone, corpora[16]),
                             "ours": (tokenizing_a_corpus, corpora[16])})
    share = rate(both["ours"], "bytes") / rate(both["alone"], "bytes")
    print(f"Tokenizing runs at {percent(share)} of the speed of the tokenizers library alone, on "
          "the same text in memory.\n")

    once, rows = changed(args, rounds=1), []
    for megabytes, changes in corpora.items():
        turns = interleave(once, {"ours": (tokenizing_a_corpus, changes)}, warm=False)
        turn, = turns["ours"]
        rows.append([str(megabytes), f"{turn['tokens'] / 1e6:.1f}",
                     f"{turn['bytes'] / turn['seconds'] / 1e6:.2f}", f"{turn['peak']:.2f}"])
    table(["corpus, MB", "million tokens", "MB a second",
           "peak memory of its largest process, GiB"], *rows)

    turns = interleave(args, {megabytes: (our_distillation, changes)
                              for megabytes, changes in corpora.items()})
    tokens, half = args.batch_size * args.max_length * args.steps_a_turn, args.rounds // 2
    print("Distillation against the size of the corpus, and over the steps.\n")
    rows = []
    for megabytes, of_size in turns.items():
        periods = (of_size, of_size[:half], of_size[-half:])
        speeds = [f"{tokens / median(period, 'seconds'):.4g}" for period in periods]
        rows.append([str(megabytes), *speeds, f"{median(of_size, 'peak'):.2f}"])
    table(["corpus, MB", "tokens a second", "first half of the steps", "second half",
           "peak memory, GiB"], *rows)


def growing_corpora(args):
    """{megabytes: the arguments that name it} of corpora that repeat args.corpus."""
    text = b"\n".join(file.read_bytes() for file in text_files(args.corpus))
    corpora = {}
    for megabytes in (16, 256, 2048):
        if megabytes > args.largest:
            break
        path = Path(args.out_dir, f"corpus-{megabytes}MB.txt")
        size = megabytes * 10 ** 6
        with open(path, "wb") as file:
            while file.tell() < size:
                whole_lines, _, _ = text[:size - file.tell()].rpartition(b"\n")
                part = whole_lines or text[:size - file.tell() - 1]  # a line longer than the rest
                file.write(part + b"\n")
        cache_dir = Path(args.out_dir, f"cache-{megabytes}MB")
        corpora[megabytes] = {"corpus": [path], "cache_dir": str(cache_dir)}
    return corpora


MEASUREMENTS = {measurement.__name__: measurement for measurement in (
    distillation, profile, variants, lengths, finetuning, evaluation, inference, tokenizing)}


# ---- The command ----

def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config", help="folder with config.json and vocab.txt of the BERT to measure; default: "
                         "that of the miniature language")
    add("--corpus", nargs="+", help="text files, or folders of them")
    add("--data_dir", help="folder that holds CoLA/, or glue_data/CoLA/")
    add("--only", type=list_of(MEASUREMENTS, "measurement"), default=list(MEASUREMENTS),
        help=f"separated by commas; default: all of {', '.join(MEASUREMENTS)}")
    add("--out_dir", default="runs/bench",
        help="folder for the random teacher and the corpora to tokenize")
    add("--batch_size", type=in_range(int, 1),
        help="sequences per step of distillation; default: 8, of the miniature model 32")
    add("--max_length", type=in_range(int, 5), default=128, help="tokens per sequence, at most")
    add("--steps_a_turn", type=in_range(int, 1),
        help="steps that a loop makes in a turn; default: 1, of the miniature model 10")
    add("--rounds", type=in_range(int, 2), default=5, help="turns that each loop takes")
    add("--largest", type=in_range(int, 16), default=16,
        help="MB of the largest corpus to tokenize: 16, 256 or 2048")
    add_device_argument(parser)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of our loops; the plain ones run in fp32; auto: bf16 where the hardware has it")
    add("--pretrain_args", type=shell_words, default=[], dest="more",
        help='more arguments for pretrain.py: --pretrain_args="--compile 1"')
    args = resolve(parser.parse_args(arguments))
    if len({bool(args.config), bool(args.corpus), bool(args.data_dir)}) == 2:
        raise InputError("--config, --corpus and --data_dir go together; without them, the "
                         "miniature language is measured")
    args.batch_size = args.batch_size or (8 if args.config else 32)
    args.steps_a_turn = args.steps_a_turn or (1 if args.config else 10)
    args.cache_dir = str(Path(args.out_dir, "cache"))
    return args


def use_miniature_language(args):
    world = Path(args.out_dir, "world")
    toy.main(["--out_dir", str(world), "--seed", "1", "--overwrite"])
    args.config, args.data_dir = str(PROJECT / "assets/toy-teacher"), str(world)
    args.corpus = [str(world / "corpus.txt")]


def check_inputs(args):
    """Raise InputError if a file is missing or wrong, before anything is written."""
    model_files(args.config, weights=False)
    text_files(args.corpus)
    read_train("cola", args.data_dir)


def main(arguments):
    args = read_arguments(arguments)
    if not args.config:
        use_miniature_language(args)
    check_inputs(args)
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    # The loops' processes read it: no progress bars between the tables.
    os.environ["TQDM_DISABLE"] = "1"
    args.max_length = min(args.max_length, config.max_position_embeddings)
    seed_torch(0)
    teacher = MaskedLM(config)
    student = make_student(teacher)
    sizes = [count_parameters(model) for model in (teacher, student)]
    args.config = str(Path(args.out_dir, "random-teacher"))
    save_model(teacher, tokenizer, args.config)
    del teacher, student  # their memory belongs to the loops
    print(f"{config.num_hidden_layers} layers of width {config.hidden_size}, {sizes[0]:,} "
          f"parameters; student {sizes[1]:,}. {args.device}, {args.precision}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}. Medians of "
          f"{args.rounds} turns.\n", flush=True)
    for name in args.only:
        MEASUREMENTS[name](args)


if __name__ == "__main__":
    command_line(main)
