"""Speed and memory, each beside a plain loop, as ratios taken in one run.

    python bench.py                                                the sizes of the miniature language
    python bench.py --config BERT --corpus TEXT --data_dir DATA    a real BERT's size, on real text

First the plain loops: what everybody writes first. Then the measurements: the loops of a comparison run in processes of their
own and take turns, so that what else the machine does falls on all of them. Weights are random: speed does not depend on them.
"""
import argparse
import os
import resource
import sys
import time
from contextlib import nullcontext, suppress
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
from load_hf_weights import load_model, load_tokenizer, model_files, read_config, save_model
from losses import WEIGHTS, cosine_loss, distillation_loss, mlm_loss
from model import Classifier, MaskedLM, chosen_layers, make_student
from support import toy
from support.cli import Parser, command_line, in_range, list_of, resolve, shell_words
from support.corpus import corpus_tokens, text_files
from support.device import autocast, peak_memory, peak_memory_of
from support.errors import InputError
from support.run_folder import open_run
from support.seeds import seed_torch
from support.tasks import Example, read_dev, read_train, task_title

# ---- The plain loops: every line padded to max_length, fp32, full logits of both models, eager. Not to be improved. ----


def padded(rows, max_length, pad):
    """collate, but to max_length whatever the rows' lengths."""
    longest = ([pad] * max_length, [0] * max_length)
    return [x[:-1] for x in collate([*rows, longest], pad)]


def plain_distillation(args, log):
    """Distil on the corpus's non-empty lines, one after the other in random order."""
    config, tokenizer, rng = read_config(args.config), load_tokenizer(args.config), np.random.default_rng(0)
    lines = [line for file in text_files(args.corpus) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    special = [tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")]
    teacher = MaskedLM(config).to(args.device).requires_grad_(False).eval()
    student = make_student(teacher).to(args.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    while True:
        tokens = 0
        for _ in range(args.steps_a_turn):
            chosen = [Example(lines[i], None, 0) for i in rng.integers(len(lines), size=args.batch_size)]
            ids, attention_mask, _ = padded(encode(chosen, tokenizer, args.max_length), args.max_length, config.pad_token_id)
            input_ids, labels = mask_tokens(ids.numpy(), rng, 0.15, special, tokenizer.token_to_id("[MASK]"), config.vocab_size)
            input_ids, labels = (torch.from_numpy(x).to(args.device) for x in (input_ids, labels))
            attention_mask = attention_mask.to(args.device)
            real = attention_mask.bool()

            with torch.no_grad():
                teacher_hidden = teacher.bert(input_ids, attention_mask)
                teacher_logits = F.linear(teacher.head.transform(teacher_hidden), *teacher.decoder())
            student_hidden = student.bert(input_ids, attention_mask)
            student_logits = F.linear(student.head.transform(student_hidden), *student.decoder())
            loss = (WEIGHTS["ce"] * distillation_loss(student_logits[real], teacher_logits[real], 2.0)
                    + WEIGHTS["mlm"] * mlm_loss(student_logits.flatten(0, 1), labels.flatten())
                    + WEIGHTS["cos"] * cosine_loss(student_hidden[real], teacher_hidden[real]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            tokens += int(real.sum())
        log.write(tokens=tokens, loss=loss.item())


def plain_finetuning(args, log):
    """Fine-tune on CoLA, its rows in random order."""
    config, tokenizer, rng = read_config(args.config), load_tokenizer(args.config), np.random.default_rng(0)
    train = read_train("cola", args.data_dir)
    model = Classifier(config).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    while True:
        for _ in range(args.steps_a_turn):
            chosen = [train[i] for i in rng.integers(len(train), size=args.batch_size)]
            inputs = padded(encode(chosen, tokenizer, args.max_length), args.max_length, config.pad_token_id)
            targets = torch.tensor([example.label for example in chosen], device=args.device)
            loss = F.cross_entropy(model(*(x.to(args.device) for x in inputs)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        log.write(examples=args.steps_a_turn * args.batch_size, loss=loss.item())


def plain_evaluation(args, log):
    """Predict the labels of rows of CoLA's dev set, in the order of the file."""
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    rows = encode(read_dev("cola", args.data_dir)["dev"], tokenizer, args.max_length)
    model, start = Classifier(config).to(args.device).eval(), 0
    while True:
        predictions = []
        for _ in range(args.steps_a_turn):
            inputs = padded(rows[start:start + args.batch_size], args.max_length, config.pad_token_id)
            with torch.no_grad():
                predictions += model(*(x.to(args.device) for x in inputs)).argmax(-1).tolist()
            start = start + args.batch_size if start + args.batch_size < len(rows) else 0
        log.write(examples=len(predictions))


# ---- Our loops: those of pretrain.py and finetune.py, whose log is written to after every turn ----

def unkept(args):
    """For runs that never end, and leave nothing."""
    return "--out_dir", f"{args.cache_dir}/{os.getpid()}", "--checkpoint_minutes", "1e6"


def pretrain_arguments(args, steps):
    return pretrain.read_arguments([
        "--teacher", args.config, "--corpus", *map(str, args.corpus), "--cache_dir", args.cache_dir,
        "--steps", str(steps), "--batch_size", str(args.batch_size), "--max_length", str(args.max_length),
        "--log_every", str(args.steps_a_turn), "--device", args.device, "--precision", args.precision, *unkept(args), *args.more])


def our_distillation(args, log):
    endless = pretrain_arguments(args, steps=1_000_000)
    student, teacher, tokenizer = pretrain.load_models(endless)
    blocks, _ = pretrain.load_blocks(endless, tokenizer)
    with open_run(endless, {}) as run:
        run.log, run.defer_signals = log, nullcontext
        pretrain.train(endless, student.to(args.device), teacher.to(args.device), blocks, torch.device(args.device), run)


def our_finetuning(args, log):
    endless = finetune.read_arguments([
        "--model", args.config, "--task", "cola", "--data_dir", args.data_dir, "--epochs", "1000000",
        "--batch_size", str(args.batch_size), "--max_length", str(args.max_length), "--log_every", str(args.steps_a_turn),
        "--device", args.device, "--precision", args.precision, "--train_rows",
        str(args.steps_a_turn * args.batch_size), *unkept(args)])
    train, _ = finetune.load_data(endless)
    model = load_model(args.config, Classifier, new=("pooler", "classifier"), num_labels=2)
    with open_run(endless, {}) as run:
        run.log, run.defer_signals = log, nullcontext
        finetune.train(endless, model.to(args.device), encode(train, load_tokenizer(args.config), endless.max_length),
                       [example.label for example in train], model.config.pad_token_id, torch.device(args.device), run)


def our_evaluation(args, log):
    """All of CoLA's dev set in a turn."""
    model = load_model(args.config, Classifier, new=("pooler", "classifier"), num_labels=2).to(args.device)
    rows = encode(read_dev("cola", args.data_dir)["dev"], load_tokenizer(args.config), args.max_length)
    while True:
        finetune.predict(model, rows, model.config.pad_token_id, torch.device(args.device), args.precision)
        log.write(examples=len(rows))


def full_pass(args, log):
    """All of a task's dev rows, one at a time, in a turn."""
    config = read_config(args.config)
    model = Classifier(replace(config, num_hidden_layers=args.layers or config.num_hidden_layers), num_labels=1).to(args.device).eval()
    rows = encode([example for of_set in read_dev(args.task, args.data_dir).values() for example in of_set], load_tokenizer(args.config), args.max_length)
    while True:
        with torch.inference_mode():
            for row in rows:
                with autocast(torch.device(args.device), args.precision):
                    model(*(x.to(args.device) for x in collate([row], config.pad_token_id)))
        log.write(examples=len(rows), parameters=sum(p.numel() for p in model.parameters()))


def parts_of_a_step(args, log):
    """A step of distillation, each part run alone."""
    device, run = torch.device(args.device), pretrain_arguments(args, steps=1_000_000)
    student, teacher, tokenizer = pretrain.load_models(run)
    loss = pretrain.TripleLoss(student.to(device), teacher.to(device), run.weights, run.temperature, run.chunk_tokens,
                               run.layers).to(device).train()
    if pretrain.compiling_pays(run, student, device):
        loss.compile(layers=device.type == "cuda")
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    blocks, _ = pretrain.load_blocks(run, tokenizer)
    ids, labels = blocks.training_batch(0, args.batch_size, run.mlm_prob, 0)
    input_ids, tokens, masked = ids.to(device), ids.numel(), int((labels != -100).sum())

    @torch.no_grad()
    def teacher_body():
        teacher.bert(input_ids)

    def student_body():
        states = student.bert(input_ids)
        states.backward(torch.ones_like(states))

    def heads_and_losses():
        hidden, teacher_hidden = torch.randn(2, tokens, student.config.hidden_size, device=device).unbind()
        loss.losses_on_logits(hidden.requires_grad_(), teacher_hidden, labels.flatten(), tokens, masked)[0].backward()

    def update():
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()

    def whole_step():
        loss(input_ids, labels, tokens, masked)[0].backward()
        update()
        optimizer.zero_grad()

    def seconds(part):
        started = time.perf_counter()
        with autocast(device, args.precision):
            part()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started
    while True:
        log.write(**{part.__name__: seconds(part) for part in (teacher_body, student_body, heads_and_losses, update, whole_step)})


def matrix_products(args, log):
    """The ceiling: square matrix products in the precision that our loops multiply in."""
    size = 2048 if args.device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=args.device, dtype=torch.bfloat16 if args.precision == "bf16" else torch.float32)
    while True:
        for _ in range(16):
            a @ b
        log.write(flops=16 * 2 * size ** 3)


def tokenizing_alone(args, log):
    """The tokenizers library on text in memory, its ids thrown away."""
    tokenizer, texts = load_tokenizer(args.config), Path(args.corpus[0]).read_text(encoding="utf-8").split("\n")
    while True:
        for start in range(0, len(texts), 10_000):
            tokenizer.encode_batch_fast(texts[start:start + 10_000], add_special_tokens=False)
        log.write(bytes=os.path.getsize(args.corpus[0]))


def tokenizing_a_corpus(args, log):
    """From the text to the array on disk."""
    tokenizer = load_tokenizer(args.config)
    while True:
        for file in Path(args.cache_dir).glob("tokens-*"):
            file.unlink()
        tokens = corpus_tokens(args.corpus, tokenizer, args.cache_dir)
        log.write(bytes=os.path.getsize(args.corpus[0]), tokens=len(tokens), peak=max(peak_memory(), peak_memory_of(resource.RUSAGE_CHILDREN)))


# ---- Taking turns ----

class Turns:
    """What a loop logs to: every write ends a turn, and waits until it is this loop's turn again."""

    def __init__(self, args, connection):
        self.cuda, self.connection, self.started = args.device == "cuda", connection, time.perf_counter()

    def write(self, **figures):
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        peak = torch.cuda.max_memory_allocated() / 2 ** 30 if self.cuda else peak_memory()
        self.connection.send({"seconds": seconds, "peak": peak, **figures})
        if not self.connection.recv():
            sys.exit()
        self.started = time.perf_counter()


def work(loop, args, connection):
    loop(args, Turns(args, connection))


def interleave(args, loops, warm=True):
    """{name: [the figures of each turn]} of loops, {name: (function, {argument: value})}, each in a process of its own.

    The first turn, the slowest (it loads and perhaps compiles), is left out if warm. Raises InputError if a process ends."""
    context, processes, connections, turns = get_context("spawn"), [], {}, {name: [] for name in loops}
    try:
        for name, (loop, changes) in loops.items():
            connections[name], theirs = context.Pipe()
            processes.append(context.Process(target=work, args=(loop, argparse.Namespace(**{**vars(args), **changes}), theirs)))
            processes[-1].start()  # no daemon: tokenizing starts processes of its own
            theirs.close()
            turns[name].append(connections[name].recv())
        for _ in range(args.rounds - (not warm)):
            for name, connection in connections.items():
                connection.send(True)
                turns[name].append(connection.recv())
    except BaseException as error:
        for process in processes:
            process.terminate()
        if isinstance(error, EOFError):
            raise InputError(f"the measurement of {name} ended before its time; what it said stands above") from None
        raise
    for connection in connections.values():
        connection.send(False)
    return {name: of_name[warm:] for name, of_name in turns.items()}


def median(turns, figure):
    return float(np.median([turn[figure] for turn in turns]))


def rate(turns, figure):
    """So many a second: the median over the turns."""
    return float(np.median([turn[figure] / turn["seconds"] for turn in turns]))


# ---- Arithmetic: of one token, a multiplication and an addition counting two; backward is twice forward ----

def layer_flops(config, length):
    return 2 * (4 * config.hidden_size ** 2 + 2 * config.hidden_size * config.intermediate_size) + 4 * length * config.hidden_size


def distillation_flops(config, length, terms=("ce", "mlm", "cos"), mlm_prob=0.15):
    """{part of a step of distillation into half the layers: its arithmetic}: what the terms need, and no more."""
    head = 2 * config.hidden_size ** 2 + 2 * config.hidden_size * config.vocab_size
    through_head = 1 if "ce" in terms else mlm_prob * (length - 2) / length if "mlm" in terms else 0
    return {"teacher_body": config.num_hidden_layers * layer_flops(config, length) if {"ce", "cos"} & set(terms) else 0,
            "student_body": 3 * max(1, config.num_hidden_layers // 2) * layer_flops(config, length),
            "heads_and_losses": (3 * through_head + ("ce" in terms)) * head}


# ---- The measurements; each prints a table ----

def table(header, *rows):
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def distillation(args):
    """Against the plain loop, both beside the ceiling."""
    turns = interleave(args, {"matrix products": (matrix_products, {}), "plain": (plain_distillation, {}), "ours": (our_distillation, {})})
    positions = args.batch_size * args.max_length * args.steps_a_turn
    for turn in turns["ours"]:
        turn["tokens"] = positions  # blocks hold no padding
    flops = sum(distillation_flops(read_config(args.config), args.max_length).values())
    ceiling, tokens = rate(turns["matrix products"], "flops"), {name: rate(turns[name], "tokens") for name in ("plain", "ours")}
    print(f"Distillation, {args.batch_size} sequences of {args.max_length} a step. The arithmetic is {flops / 1e6:.3g} MFLOP a token; square matrix "
          f"products in {args.precision} run at {ceiling / 1e9:.4g} GFLOP/s, so the ceiling is {ceiling / flops:.4g} real tokens a second, "
          f"{ceiling / flops / tokens['plain']:.1f} times the plain loop.\n")
    table(["", "real tokens a second", "seconds a step", "real tokens, share of positions", "share of the ceiling", "peak memory, GiB"], *[
        [name, f"{tokens[name]:.4g}", f"{median(turns[name], 'seconds') / args.steps_a_turn:.3g}", f"{100 * median(turns[name], 'tokens') / positions:.0f} %",
         f"{100 * tokens[name] * flops / ceiling:.0f} %", f"{median(turns[name], 'peak'):.2f}"] for name in tokens],
        ["ratio", f"**{tokens['ours'] / tokens['plain']:.2f}**", "", "", "", f"**{median(turns['ours'], 'peak') / median(turns['plain'], 'peak'):.2f}**"])
    if args.device == "cuda":
        print(f"The paper's training, three times about 4.4 billion tokens, would take {3 * 4.4e9 / tokens['ours'] / 3600:.0f} hours of this GPU.\n")


def profile(args):
    """Where the time of a step goes."""
    turns = interleave(args, {"matrix products": (matrix_products, {}), "step": (parts_of_a_step, {})})
    ceiling, flops = rate(turns["matrix products"], "flops"), distillation_flops(read_config(args.config), args.max_length)
    seconds = {part: median(turns["step"], part) for part in (*flops, "update", "whole_step")}
    seconds["the_rest"] = seconds["whole_step"] - sum(seconds[part] for part in (*flops, "update"))
    print("A step of distillation, its parts run alone.\n")
    table(["part", "seconds", "share of the step", "its rate, share of the ceiling"], *[
        [part.replace("_", " "), f"{seconds[part]:.3g}", f"{100 * seconds[part] / seconds['whole_step']:.0f} %",
         f"{100 * args.batch_size * args.max_length * flops[part] / seconds[part] / ceiling:.0f} %" if part in flops else ""]
        for part in (*flops, "update", "the_rest")])


def variants(args):
    """What each variant of the ablation, and the MLM loss alone, costs."""
    import ablation  # here, so that the loops' processes do not hold its plotting libraries
    flags = {**{name: flags for name, (_, flags) in ablation.VARIANTS.items()}, "no_ce, no_cos": ["--use_ce", "0", "--use_cos", "0"]}
    turns = interleave(args, {name: (our_distillation, {"more": [*args.more, *more]}) for name, more in flags.items()})
    flops = {name: sum(distillation_flops(read_config(args.config), args.max_length, [term for term in WEIGHTS if f"no_{term}" not in name]).values())
             for name in flags}
    print("The variants, each paying for what it uses.\n")
    table(["variant", "time, share of full", "arithmetic, share of full"], *[
        [name, f"{100 * median(turns[name], 'seconds') / median(turns['full'], 'seconds'):.0f} %", f"{100 * flops[name] / flops['full']:.0f} %"]
        for name in flags])


def lengths(args):
    """Speed against sequence length."""
    config, tokens = read_config(args.config), args.batch_size * args.max_length
    turns = interleave(args, {length: (our_distillation, {"max_length": length, "batch_size": max(1, tokens // length)})
                              for length in (64, 128, 256, 512) if length <= config.max_position_embeddings})
    print(f"Distillation against sequence length, {tokens} tokens a step.\n")
    rows = {length: tokens * args.steps_a_turn / median(of_length, "seconds") for length, of_length in turns.items()}
    flops = {length: sum(distillation_flops(config, length).values()) for length in rows}
    table(["length", "tokens a second", "MFLOP a token", "GFLOP/s"], *[
        [str(length), f"{rows[length]:.4g}", f"{flops[length] / 1e6:.3g}", f"{rows[length] * flops[length] / 1e9:.3g}"] for length in rows])


def finetuning(args):
    """On CoLA, against the plain loop."""
    batch, steps = 32, 16  # 16 batches: as many as shuffled_batches sorts by length at once
    compare(args, f"Fine-tuning on CoLA, {batch} rows a step", {"plain": (plain_finetuning, {"batch_size": batch, "steps_a_turn": 1}),
                                                              "ours": (our_finetuning, {"batch_size": batch, "steps_a_turn": steps})}, batch * steps)


def evaluation(args):
    """On CoLA's dev set, against the plain loop."""
    compare(args, "Evaluation on CoLA's dev set", {"plain": (plain_evaluation, {"batch_size": 64, "steps_a_turn": 2}), "ours": (our_evaluation, {})})


def inference(args):
    """Table 3 of Sanh et al. 2019: parameters, and the time of one pass over a task's dev set at batch size 1; on the GPU too, if that is
    the device."""
    for task in ("stsb", "mrpc", "cola"):
        with suppress(InputError):  # not there
            found = task_title(task, args.data_dir)
            break
    layers = len(chosen_layers(None, read_config(args.config).num_hidden_layers))
    for device in dict.fromkeys(("cpu", args.device)):
        on = argparse.Namespace(**{**vars(args), "device": device, "precision": args.precision if device == args.device else "fp32", "task": task,
                                   "rounds": min(3, args.rounds)})
        turns = interleave(on, {"teacher": (full_pass, {"layers": None}), "student": (full_pass, {"layers": layers})})
        seconds = {name: median(of_name, "seconds") for name, of_name in turns.items()}
        print(f"One pass over the dev set of {found}, {turns['student'][0]['examples']} rows, one at a time, on {device} in {on.precision}. The paper's, over "
              "STS-B's 1,500 rows: 668 s and 410 s.\n")
        table(["", "parameters", "seconds", "milliseconds a row", "share of the teacher's time", "in the paper"], *[
            [name, f"{turns[name][0]['parameters']:,}", f"{seconds[name]:.3g}", f"{1000 * seconds[name] / turns[name][0]['examples']:.3g}",
             f"{100 * seconds[name] / seconds['teacher']:.0f} %", {"teacher": "", "student": "61 %"}[name]] for name in seconds])


def compare(args, title, loops, examples=None):
    """examples: of a turn of ours, where its log does not say."""
    turns = interleave(args, loops)
    for turn in turns["ours"]:
        turn.setdefault("examples", examples)
    rates = {name: rate(turns[name], "examples") for name in loops}
    print(f"{title}; the plain loop pads to {args.max_length}.\n")
    table(["", "examples a second", "peak memory, GiB"], *[[name, f"{rates[name]:.4g}", f"{median(turns[name], 'peak'):.2f}"] for name in rates],
          ["ratio", f"**{rates['ours'] / rates['plain']:.2f}**", f"{median(turns['ours'], 'peak') / median(turns['plain'], 'peak'):.2f}"])


def tokenizing(args):
    """A corpus of growing size: from text to tokens, and then distillation on it."""
    text = b"\n".join(file.read_bytes() for file in text_files(args.corpus))
    changes = {}
    for megabytes in (size for size in (16, 256, 2048) if size <= args.largest):
        file = Path(args.out_dir, f"corpus-{megabytes}MB.txt")
        with open(file, "wb") as out:
            while out.tell() < megabytes * 1e6:
                out.write(text[:int(megabytes * 1e6) - out.tell()].rpartition(b"\n")[0] + b"\n")
        changes[megabytes] = {"corpus": [file], "cache_dir": str(Path(args.out_dir, f"cache-{megabytes}MB"))}
    both = interleave(args, {"alone": (tokenizing_alone, changes[16]), "ours": (tokenizing_a_corpus, changes[16])})
    print(f"Tokenizing runs at {100 * rate(both['ours'], 'bytes') / rate(both['alone'], 'bytes'):.0f} % of the speed of the tokenizers library alone, "
          "on the same text in memory.\n")
    once = argparse.Namespace(**{**vars(args), "rounds": 1})
    made = {megabytes: interleave(once, {"ours": (tokenizing_a_corpus, change)}, warm=False)["ours"][0] for megabytes, change in changes.items()}
    table(["corpus, MB", "million tokens", "MB a second", "peak memory of its largest process, GiB"], *[
        [str(megabytes), f"{turn['tokens'] / 1e6:.1f}", f"{turn['bytes'] / turn['seconds'] / 1e6:.2f}", f"{turn['peak']:.2f}"] for megabytes, turn in made.items()])
    turns, tokens = interleave(args, {size: (our_distillation, change) for size, change in changes.items()}), args.batch_size * args.max_length * args.steps_a_turn
    print("Distillation against the size of the corpus, and over the steps.\n")
    table(["corpus, MB", "tokens a second", "first half of the steps", "second half", "peak memory, GiB"], *[
        [str(size), *(f"{tokens / median(some, 'seconds'):.4g}" for some in (of_size, of_size[:args.rounds // 2], of_size[-(args.rounds // 2):])),
         f"{median(of_size, 'peak'):.2f}"] for size, of_size in turns.items()])


MEASUREMENTS = {part.__name__: part for part in (distillation, profile, variants, lengths, finetuning, evaluation, inference, tokenizing)}


def main(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--config", help="folder with config.json and vocab.txt of the BERT to measure; default: the miniature language's")
    parser.add_argument("--corpus", nargs="+", help="text files, or folders of them")
    parser.add_argument("--data_dir", help="folder that holds CoLA/, or glue_data/CoLA/")
    parser.add_argument("--only", type=list_of(MEASUREMENTS, "measurement"), default=list(MEASUREMENTS),
                        help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--out_dir", default="runs/bench", help="where the random teacher and the corpora to tokenize are put")
    parser.add_argument("--batch_size", type=in_range(int, 1), help="sequences of a step of distillation; default 8, of the miniature model 32")
    parser.add_argument("--max_length", type=in_range(int, 5), default=128)
    parser.add_argument("--steps_a_turn", type=in_range(int, 1), help="default 1, of the miniature model 10")
    parser.add_argument("--rounds", type=in_range(int, 2), default=5, help="turns that each loop takes")
    parser.add_argument("--largest", type=in_range(int, 16), default=16, help="MB of the largest corpus to tokenize: 16, 256 or 2048")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our loops; the plain ones run in fp32")
    parser.add_argument("--pretrain_args", type=shell_words, default=[], dest="more", help='more for pretrain.py: --pretrain_args="--compile 1"')
    args = resolve(parser.parse_args(arguments))
    if len({bool(args.config), bool(args.corpus), bool(args.data_dir)}) == 2:
        raise InputError("--config, --corpus and --data_dir go together; without them, the miniature language's are measured")
    args.batch_size = args.batch_size or (8 if args.config else 32)
    args.steps_a_turn = args.steps_a_turn or (1 if args.config else 10)
    if not args.config:
        world = Path(args.out_dir, "world")
        toy.main(["--out_dir", str(world), "--seed", "1", "--overwrite"])
        args.config, args.corpus, args.data_dir = str(Path(__file__).parent.parent / "assets/toy-teacher"), [str(world / "corpus.txt")], str(world)
    model_files(args.config, weights=False), text_files(args.corpus), read_train("cola", args.data_dir)
    config, tokenizer = read_config(args.config), load_tokenizer(args.config)
    os.environ["TQDM_DISABLE"] = "1"  # read by the loops' processes: no progress bars between the tables
    args.max_length = min(args.max_length, config.max_position_embeddings)
    seed_torch(0)
    model, args.config = MaskedLM(config), str(Path(args.out_dir, "random-teacher"))
    parameters = [sum(p.numel() for p in x.parameters()) for x in (model, make_student(model))]
    save_model(model, tokenizer, args.config)
    del model
    args.cache_dir = str(Path(args.out_dir, "cache"))
    print(f"{config.num_hidden_layers} layers of width {config.hidden_size}, {parameters[0]:,} parameters; student {parameters[1]:,}. {args.device}, "
          f"{args.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}. Medians of {args.rounds} turns.\n", flush=True)
    for name in args.only:
        MEASUREMENTS[name](args)


if __name__ == "__main__":
    command_line(main)
