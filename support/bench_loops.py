"""The loops that bench.py measures: plain ones, ours, and how they take turns.

A plain loop is what everybody writes first: every line padded to max_length, fp32, the logits of
a whole batch at once, eager. Do not improve them. Ours are those of pretrain.py and finetune.py.
Each loop runs in a process of its own and never ends: it logs once per turn, then waits for its
next turn. So whatever else the machine does slows all of them. Read next: bench.py.
"""
import argparse
import os
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import finetune
import pretrain
from data import collate, encode, mask_tokens
from load_hf_weights import load_tokenizer, read_config
from losses import triple_loss
from model import Classifier, MaskedLM, count_parameters, make_student
from support.corpus import corpus_tokens, text_files
from support.device import autocast, peak_memory, peak_memory_of, wait_for_gpu
from support.errors import InputError
from support.run_folder import open_run
from support.task_setup import load_data, new_model, training_rows
from support.tasks import Example, read_dev, read_train

# ---- The plain loops ----

def padded(rows, max_length, pad):
    """collate, but padded to max_length however long the rows are."""
    longest = ([pad] * max_length, [0] * max_length)
    return [x[:-1] for x in collate([*rows, longest], pad)]


def plain_distillation(args, log):
    """Distil on the corpus's non-empty lines, drawn at random."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    rng = np.random.default_rng(0)
    lines = nonempty_lines(args.corpus)
    special = [tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")]
    mask = tokenizer.token_to_id("[MASK]")
    teacher = MaskedLM(config).to(args.device).requires_grad_(False).eval()
    student = make_student(teacher).to(args.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6,
                                  weight_decay=0.0)
    while True:
        tokens = 0
        for _ in range(args.steps_a_turn):
            numbers = rng.integers(len(lines), size=args.batch_size)
            examples = [Example(lines[i], None, 0) for i in numbers]
            rows = encode(examples, tokenizer, args.max_length)
            ids, attention_mask, _ = padded(rows, args.max_length, config.pad_token_id)
            input_ids, labels = mask_tokens(ids.numpy(), rng, 0.15, special, mask,
                                            config.vocab_size)
            input_ids = torch.from_numpy(input_ids).to(args.device)
            labels = torch.from_numpy(labels).to(args.device)
            attention_mask = attention_mask.to(args.device)

            loss, _ = triple_loss(student, teacher, input_ids, labels,
                                  attention_mask=attention_mask)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            tokens += int(attention_mask.sum())
        log.write(tokens=tokens, loss=loss.item())


def nonempty_lines(corpus):
    """The lines of the corpus's files that are not blank."""
    texts = [file.read_text(encoding="utf-8") for file in text_files(corpus)]
    return [line for text in texts for line in text.split("\n") if line.strip()]


def plain_finetuning(args, log):
    """Fine-tune on rows of CoLA, drawn at random."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    rng = np.random.default_rng(0)
    train_set = read_train("cola", args.data_dir)
    model = Classifier(config).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    while True:
        for _ in range(args.steps_a_turn):
            examples = [train_set[i] for i in rng.integers(len(train_set), size=args.batch_size)]
            rows = encode(examples, tokenizer, args.max_length)
            inputs = padded(rows, args.max_length, config.pad_token_id)
            logits = model(*(x.to(args.device) for x in inputs))
            targets = torch.tensor([example.label for example in examples], device=args.device)
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        log.write(examples=args.steps_a_turn * args.batch_size, loss=loss.item())


def plain_evaluation(args, log):
    """Predict the labels of rows of CoLA's dev set, in the order of the file."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    rows = encode(read_dev("cola", args.data_dir)["dev"], tokenizer, args.max_length)
    model = Classifier(config).to(args.device).eval()
    start = 0
    while True:
        predictions = []
        for _ in range(args.steps_a_turn):
            batch = rows[start:start + args.batch_size]
            inputs = padded(batch, args.max_length, config.pad_token_id)
            with torch.no_grad():
                logits = model(*(x.to(args.device) for x in inputs))
            predictions += logits.argmax(-1).tolist()
            start += args.batch_size
            if start >= len(rows):
                start = 0
        log.write(examples=len(predictions))


# ---- Our loops: those of pretrain.py and finetune.py, with a turn-taker as their log ----

def endless_run(args):
    """Arguments that pretrain.py and finetune.py share, of a run that never ends and leaves
    nothing."""
    return ["--batch_size", str(args.batch_size), "--max_length", str(args.max_length),
            "--log_every", str(args.steps_a_turn),
            "--device", args.device, "--precision", args.precision,
            "--out_dir", f"{args.cache_dir}/{os.getpid()}", "--checkpoint_minutes", "1e6"]


def endless_pretraining(args):
    """The arguments of pretrain.py."""
    return pretrain.read_arguments([
        "--teacher", args.config, "--corpus", *map(str, args.corpus),
        "--cache_dir", args.cache_dir, "--steps", "1000000", *endless_run(args), *args.more])


def our_distillation(args, log):
    endless = endless_pretraining(args)
    student, teacher, tokenizer = pretrain.load_models(endless)
    blocks, _ = pretrain.load_blocks(endless, tokenizer)
    objective = pretrain.build_objective(endless, student, teacher, blocks)
    with open_run(endless, {}) as run:
        attach(run, log)
        pretrain.train(endless, objective, blocks, run)


def our_finetuning(args, log):
    endless = finetune.read_arguments([
        "--model", args.config, "--task", "cola", "--data_dir", args.data_dir,
        "--epochs", "1000000", "--train_rows", str(args.steps_a_turn * args.batch_size),
        *endless_run(args)])
    train_set, _ = load_data(endless)
    model = new_model(args.config, "cola").to(args.device)
    rows, labels = training_rows(endless, train_set, load_tokenizer(args.config))
    with open_run(endless, {}) as run:
        attach(run, log)
        finetune.train(endless, model, rows, labels, run)


def attach(run, log):
    """Make a Run log to `log`, and let signals end it at once: there is nothing to save."""
    run.log, run.defer_signals = log, nullcontext


def our_evaluation(args, log):
    """All of CoLA's dev set per turn."""
    model = new_model(args.config, "cola").to(args.device)
    examples = read_dev("cola", args.data_dir)["dev"]
    rows = encode(examples, load_tokenizer(args.config), args.max_length)
    while True:
        finetune.predict(model, rows, model.config.pad_token_id, torch.device(args.device),
                         args.precision)
        log.write(examples=len(rows))


def full_pass(args, log):
    """All of a task's dev rows per turn, one at a time. args.layers: None for all layers."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    layers = args.layers or config.num_hidden_layers
    model = Classifier(replace(config, num_hidden_layers=layers), num_labels=1)
    model.to(args.device).eval()
    dev_sets = read_dev(args.task, args.data_dir).values()
    examples = [example for dev_set in dev_sets for example in dev_set]
    rows = encode(examples, tokenizer, args.max_length)
    parameters = count_parameters(model)
    while True:
        with torch.inference_mode():
            for row in rows:
                with autocast(torch.device(args.device), args.precision):
                    model(*(x.to(args.device) for x in collate([row], config.pad_token_id)))
        log.write(examples=len(rows), parameters=parameters)


def parts_of_a_step(args, log):
    """A step of distillation, each part run alone: its seconds, by the part's name."""
    device, run = torch.device(args.device), endless_pretraining(args)
    student, teacher, tokenizer = pretrain.load_models(run)
    blocks, _ = pretrain.load_blocks(run, tokenizer)
    objective = pretrain.build_objective(run, student, teacher, blocks).train()
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    ids, labels = blocks.training_batch(0, args.batch_size, run.mlm_prob, 0)
    input_ids = ids.to(device)
    tokens, masked = labels.numel(), int((labels != -100).sum())

    @torch.no_grad()
    def teacher_body():
        teacher.bert(input_ids)

    def student_body():
        hidden = student.bert(input_ids)
        hidden.backward(torch.ones_like(hidden))

    def heads_and_losses():
        shape = 2, tokens, student.config.hidden_size
        hidden, teacher_hidden = torch.randn(shape, device=device)
        loss, _ = objective.losses_on_logits(hidden.requires_grad_(), teacher_hidden,
                                             labels.flatten(), tokens, masked)
        loss.backward()

    def update():
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()

    def whole_step():
        loss, _ = objective(input_ids, labels, tokens, masked)
        loss.backward()
        update()
        optimizer.zero_grad()

    def seconds(part):
        started = time.perf_counter()
        with autocast(device, args.precision):
            part()
        wait_for_gpu()
        return time.perf_counter() - started
    parts = (teacher_body, student_body, heads_and_losses, update, whole_step)
    while True:
        log.write(**{part.__name__: seconds(part) for part in parts})


# ---- Upper bounds, and the corpus ----

def matrix_products(args, log):
    """The ceiling: square matrix products in the precision of our loops."""
    size = 2048 if args.device == "cpu" else 8192
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=args.device, dtype=dtype)
    while True:
        for _ in range(16):
            a @ b
        log.write(flops=16 * 2 * size ** 3)


def tokenizing_alone(args, log):
    """The tokenizers library on text in memory; its ids are thrown away."""
    tokenizer, file = load_tokenizer(args.config), Path(args.corpus[0])
    texts = file.read_text(encoding="utf-8").split("\n")
    while True:
        for start in range(0, len(texts), 10_000):
            some = texts[start:start + 10_000]
            tokenizer.encode_batch_fast(some, add_special_tokens=False)
        log.write(bytes=file.stat().st_size)


def tokenizing_a_corpus(args, log):
    """From the text to the array on disk."""
    tokenizer, size = load_tokenizer(args.config), os.path.getsize(args.corpus[0])
    while True:
        for file in Path(args.cache_dir).glob("tokens-*"):
            file.unlink()
        tokens = corpus_tokens(args.corpus, tokenizer, args.cache_dir)
        peak = max(peak_memory(), peak_memory_of(resource.RUSAGE_CHILDREN))
        log.write(bytes=size, tokens=len(tokens), peak=peak)


# ---- Taking turns ----

class Turns:
    """What a loop logs to: each write ends a turn, and waits for this loop's next one."""

    def __init__(self, args, connection):
        self.on_gpu, self.connection = args.device == "cuda", connection
        self.started = time.perf_counter()

    def write(self, **values):
        """Send the turn's seconds, its process's peak memory in GiB, and these values."""
        wait_for_gpu()
        seconds = time.perf_counter() - self.started
        peak = torch.cuda.max_memory_allocated() / 2 ** 30 if self.on_gpu else peak_memory()
        self.connection.send({"seconds": seconds, "peak": peak, **values})
        if not self.connection.recv():
            sys.exit()
        self.started = time.perf_counter()


def work(loop, args, connection):
    """What a loop's process runs."""
    loop(args, Turns(args, connection))


def changed(args, **changes):
    """A copy of the arguments with these changes."""
    return argparse.Namespace(**{**vars(args), **changes})


def interleave(args, loops, warm=True):
    """Run loops in turns, each in a process of its own: {name: [what each turn logged]}.

    loops: {name: (function, {argument: value})}, the arguments in which a loop differs from args.
    warm: leave out the first turn, which loads and perhaps compiles. Each loop has args.rounds
    turns. Raises InputError if a process ends too early."""
    spawn = get_context("spawn")
    processes, connections = [], {}
    turns = {name: [] for name in loops}
    try:
        for name, (loop, changes) in loops.items():
            connections[name], theirs = spawn.Pipe()
            process = spawn.Process(target=work, args=(loop, changed(args, **changes), theirs))
            process.start()  # not a daemon: tokenizing starts processes of its own
            processes.append(process)
            theirs.close()
            turns[name].append(connections[name].recv())
        for _ in range(args.rounds if warm else args.rounds - 1):
            for name, connection in connections.items():
                connection.send(True)
                turns[name].append(connection.recv())
    except BaseException as error:
        for process in processes:
            process.terminate()
        if isinstance(error, EOFError):
            raise InputError(f"the measurement of {name} ended too early; its own message is "
                             "above") from None
        raise
    for connection in connections.values():
        connection.send(False)
    return {name: of_loop[1:] if warm else of_loop for name, of_loop in turns.items()}
