"""Distillation during pre-training: the student learns to do what its teacher does with a text.

    python pretrain.py --teacher FOLDER --corpus FILE_OR_FOLDER --out_dir FOLDER

With --teacher none --config FOLDER it trains a BERT from scratch, on the MLM loss alone: that is
how a teacher is made. Several GPUs: torchrun --nproc_per_node=N pretrain.py ...
Sanh et al. 2019 (arXiv:1910.01108), sections 2 and 3. Read next: finetune.py.
"""
import support.startup  # noqa: F401  # first: Ctrl-C while torch is loaded ends quietly

import argparse
import re
from math import isfinite

import torch
from torch import nn

from data import PackedBlocks, prefetch
from load_hf_weights import load_model, load_tokenizer, model_files, read_config, save_model
from losses import LOSSES, WEIGHTS
from model import LAYER_CHOICES, MaskedLM, count_parameters, make_student
from support.chunked_loss import ChunkedLoss, arguments_of, compiling_pays, micro_batches
from support.cli import Parser, add_common_arguments, command_line, in_range, resolve
from support.corpus import corpus_tokens, describe_corpus, text_files
from support.device import compiler_works
from support.distributed import RANK, WORLD_SIZE, broadcast, process_group, wrap_ddp
from support.errors import InputError
from support.fingerprint import code_fingerprint, files_fingerprint
from support.heldout import evaluate
from support.run_folder import finished_run, open_run
from support.seeds import DROPOUT, NEW_WEIGHTS, seed_torch
from support.training_run import learning_rate

# ---- The loop ----

def train(args, objective, blocks, run):
    """Train the student of `objective`, from the first step or from the run's checkpoint.

    objective: the triple loss (losses.py), as support/chunked_loss.py evaluates it: called on
    masked text, it runs teacher and student. Raises InputError if a loss is not finite."""
    student = objective.student
    # The authors' settings. Each loss is a mean over the whole step, so the learning rate need
    # not change with --grad_accum.
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, betas=(0.9, 0.98), eps=1e-6,
                                  weight_decay=0.0, fused=True)
    first_step = run.resume(student, optimizer)
    batches = (blocks.training_batch(step, args.batch_size, args.mlm_prob, args.seed,
                                     RANK, WORLD_SIZE)
               for step in range(first_step, args.steps))
    batches = prefetch(batches, pin=args.device == "cuda")
    objective.train()  # dropout in the student; the teacher is no submodule, and stays without
    objective = wrap_ddp(objective)

    with run.steps(batches, first_step, args.steps) as numbered_batches:
        for step, (input_ids, labels) in numbered_batches:
            losses = {}
            # tokens, masked: counts of the whole step, by which each micro-batch's sums are
            # divided. Dropout follows from (seed, step): a resumed run draws the same.
            for ids, ids_labels, tokens, masked in micro_batches(
                    objective, input_ids, labels, args.grad_accum, (DROPOUT, args.seed, step)):
                loss, parts = objective(ids, ids_labels, tokens, masked)
                loss.backward()
                losses = {name: losses.get(name, 0) + part for name, part in parts.items()}
            optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
            nn.utils.clip_grad_norm_(student.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.after_step(step, losses)  # log, checkpoint, stop after a signal


# ---- What the loop needs ----

def load_models(args):
    """(student, teacher or None, tokenizer). Raises InputError."""
    source = args.config if args.teacher == "none" else args.teacher
    config, tokenizer = read_config(source), load_tokenizer(source)
    if args.max_length > config.max_position_embeddings:
        raise InputError(f"--max_length {args.max_length}: {source} has "
                         f"{config.max_position_embeddings} positions")
    seed_torch(NEW_WEIGHTS, args.seed)
    if args.teacher == "none":
        return MaskedLM(config).to(args.device), None, tokenizer
    teacher = load_model(args.teacher).requires_grad_(False)
    try:
        student = make_student(teacher, args.layers, args.init)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    if args.precision == "bf16":
        # The teacher never changes: cast its matrices once, which autocast would do every step.
        # The word embeddings are the decoder's matrix, so their look-up is rounded with it.
        linear = [module for module in teacher.modules() if isinstance(module, nn.Linear)]
        for module in (teacher.bert.embeddings.word, *linear):
            module.weight.data = module.weight.data.bfloat16()
    return student.to(args.device), teacher.to(args.device), tokenizer


def load_blocks(args, tokenizer):
    """(training blocks, held-out blocks), PackedBlocks. Raises InputError."""
    tokens = corpus_tokens(args.corpus, tokenizer, args.cache_dir)
    blocks = PackedBlocks(tokens, tokenizer, args.max_length)
    if args.heldout:
        tokens = corpus_tokens(args.heldout, tokenizer, args.cache_dir)
        heldout = PackedBlocks(tokens, tokenizer, args.max_length)
    else:
        first = blocks.count - max(1, blocks.count // 100)
        heldout = PackedBlocks(tokens, tokenizer, args.max_length, first)
        blocks = PackedBlocks(tokens, tokenizer, args.max_length, 0, first)
    for flag, part in (("--corpus", blocks), ("--heldout", heldout)):
        if part.count < 1:
            held_out = "" if args.heldout else ", one of which is held out; give --heldout"
            raise InputError(f"{flag}: {len(part.tokens)} tokens are too few for blocks of "
                             f"--max_length {args.max_length}{held_out}")
    return blocks, heldout


def build_objective(args, student, teacher, blocks):
    """The ChunkedLoss that train needs: checked on some rows, and compiled where it pays.

    Raises InputError if chunks are on and a loss is not a mean over tokens."""
    objective = ChunkedLoss(student, teacher, args.weights, args.temperature, args.chunk_tokens,
                            args.precision)
    if objective.chunk_tokens:
        some_rows = min(4, args.batch_size)
        batch = blocks.training_batch(0, some_rows, args.mlm_prob, args.seed)
        objective.check_chunks(*batch)
    device = torch.device(args.device)
    compiles = args.compile
    if compiles is None:
        compiles = compiling_pays(args.steps, args.batch_size * args.max_length,
                                  student.config.vocab_size, device)
    if compiles and compiler_works(device):
        objective.compile(layers=device.type == "cuda" or args.compile == 1)
    return objective


def fingerprint(args):
    """What the run depends on, besides its arguments: {what: digest}.

    Of losses.py, only the formulas in use count, and what they call."""
    formulas = tuple(LOSSES[name][0].__name__ for name in args.weights)
    parts = {"code": code_fingerprint(__file__, formulas),
             "corpus": files_fingerprint(text_files(args.corpus))}
    if args.teacher == "none":
        parts["config"] = files_fingerprint(model_files(args.config, weights=False))
    else:
        parts["teacher"] = files_fingerprint(model_files(args.teacher))
    if args.heldout:
        parts["heldout"] = files_fingerprint(text_files(args.heldout))
    return parts


# ---- The command ----

def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--teacher", required=True,
        help="folder of a BERT with its MLM head; none: train from scratch")
    add("--config", help="with --teacher none: folder with config.json and vocab.txt")
    add("--corpus", nargs="+", required=True,
        help="text files, or folders of them; an empty line ends a document")
    add("--heldout", nargs="+",
        help="text to measure on; default: a hundredth of the corpus, left out of the training")
    add("--out_dir", required=True, help="folder for the student and its log")
    add("--cache_dir", default="runs/cache", help="where the tokenized corpus is kept")
    add_loss_arguments(parser)
    add("--init", choices=("teacher", "random"), default="teacher",
        help="where the student's weights come from")
    add("--layers", type=layer_choice,
        help="the teacher's layers that the student copies: numbers such as 0,2,5 (or 0,0,1,1 to "
             "grow it); even, odd, first or last: a half of them; evenly:4: four, evenly spaced; "
             "default: half of them, evenly spaced with the first and the last")
    add("--steps", type=in_range(int, 0), default=1000, help="optimizer steps; 0: no training")
    add("--batch_size", type=in_range(int, 1), default=32,
        help="sequences per optimizer step, over all processes")
    add("--grad_accum", type=in_range(int, 1), default=1,
        help="micro-batches per optimizer step: less memory, the same gradient")
    add("--lr", type=in_range(float, 0, open_low=True), default=5e-4, help="peak learning rate")
    add("--warmup", type=in_range(float, 0, 1), default=0.05,
        help="share of the steps in which the learning rate rises")
    add("--clip", type=in_range(float, 0, open_low=True), default=5.0,
        help="largest norm of the gradient")
    add("--temperature", type=in_range(float, 0, 1e4, open_low=True), default=2.0,
        help="T of the distillation loss")
    add("--max_length", type=in_range(int, 3), default=128,
        help="tokens per block, with [CLS] and [SEP]")
    add("--mlm_prob", type=in_range(float, 0, 1), default=0.15, help="share of masked tokens")
    add("--chunk_tokens", type=in_range(int, 0),
        help="tokens whose logits exist at a time; 0: all; default: as many as fill 32 MB (on a "
             "GPU 512 MB) with logits")
    add("--compile", type=int, choices=(0, 1),
        help="torch.compile formulas and layers; default: on a GPU; on a CPU the formulas alone, "
             "in long runs with a large vocabulary")
    add_common_arguments(parser)
    args = resolve(parser.parse_args(arguments))
    choose_losses(args)
    check_arguments(args)
    return args


def add_loss_arguments(parser):
    """The flags --use_X and --alpha_X of each loss, which choose_losses reads."""
    for name, (formula, weight) in LOSSES.items():
        parser.add_argument(f"--use_{name}", type=int, choices=(0, 1), default=1,
                            help=f"{formula.__name__}; 0: not computed")
        parser.add_argument(f"--alpha_{name}", type=in_range(float, 0), default=weight,
                            help=f"weight of {formula.__name__}; 0: not computed")


def choose_losses(args):
    """Replace the flags --use_X and --alpha_X by args.weights, {name: weight} of active losses.

    The flags of a loss that is off say nothing about the run."""
    args.weights = {}
    for name, (formula, _) in LOSSES.items():
        used, weight = vars(args).pop(f"use_{name}"), vars(args).pop(f"alpha_{name}")
        needs_teacher = arguments_of(formula) & {"teacher_logits", "teacher_hidden"}
        if used and weight and not (needs_teacher and args.teacher == "none"):
            args.weights[name] = weight


def check_arguments(args):
    """Raise InputError for arguments that contradict each other."""
    if args.teacher == "none" and not args.config:
        raise InputError("--teacher none needs --config FOLDER, with config.json and vocab.txt of "
                         "the BERT to train")
    if args.teacher != "none" and args.config:
        raise InputError("--config works with --teacher none only: a student's configuration "
                         "follows from its teacher's")
    if args.teacher == "none" and args.layers:
        raise InputError("--layers chooses a teacher's layers; with --teacher none the number of "
                         "layers is that of --config")
    if not args.weights:
        flags = " or ".join(f"--alpha_{name}" for name in WEIGHTS)
        raise InputError(f"all losses are off: one needs a weight above 0 ({flags}), and --use_X 1")
    all_need_masks = all("labels" in arguments_of(LOSSES[name][0]) for name in args.weights)
    if args.mlm_prob == 0 and all_need_masks:
        raise InputError("--mlm_prob 0 masks nothing, so the MLM loss has nothing to learn from")
    if args.grad_accum * WORLD_SIZE > args.batch_size:
        on_ranks = f" on {WORLD_SIZE} processes" if WORLD_SIZE > 1 else ""
        raise InputError(f"--grad_accum {args.grad_accum}{on_ranks} is more micro-batches than "
                         f"--batch_size {args.batch_size} has sequences")


def layer_choice(text):
    """An argparse type: what --layers takes."""
    if text in LAYER_CHOICES or re.fullmatch("evenly:[1-9][0-9]{0,3}", text):
        return text
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is neither {', '.join(LAYER_CHOICES)} nor evenly:4, nor a list of layers "
            "such as 0,2,5") from None


def main(arguments):
    """Run one distillation, unless --out_dir holds it already. Returns what run.json holds."""
    args = read_arguments(arguments)
    depends_on = fingerprint(args)
    models = (args.teacher, args.config)
    texts = (*args.corpus, *(args.heldout or ()))
    with process_group(args):
        record = finished_run(args, depends_on, models, texts) if RANK == 0 else None
        record = broadcast(record)
        return record or distil(args, depends_on)


def distil(args, depends_on):
    """Distil, resuming if a checkpoint exists. Returns the run's record."""
    with open_run(args, depends_on) as run:
        student, teacher, tokenizer = load_models(args)
        blocks, heldout = load_blocks(args, tokenizer)
        describe_corpus(args.corpus, blocks.tokens, tokenizer)
        if "heldout_before" not in run.record:  # a resumed run knows it
            run.record["heldout_before"] = evaluate(student, teacher, heldout, args.precision)
            run.log.write(step=0, heldout=run.record["heldout_before"])
        objective = build_objective(args, student, teacher, blocks)
        train(args, objective, blocks, run)
        after = evaluate(student, teacher, heldout, args.precision)
        run.log.write(step=args.steps, heldout=after)
        if not isfinite(sum(after.values())):  # no loss follows the last update
            raise InputError(f"step {args.steps}: the held-out loss is not a finite number "
                             f"({after}); {run.last_good()}")
        if RANK == 0:
            save_model(student, tokenizer, args.out_dir)
        record = run.finish(heldout_after=after, corpus_blocks=blocks.count,
                            parameters=count_parameters(student))
    before = record["heldout_before"]
    changes = [f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after]
    print(f"{args.out_dir}: held out, {', '.join(changes)}")
    return record


if __name__ == "__main__":
    command_line(main, under_torchrun=True)
