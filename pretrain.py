"""Distillation during pre-training: the student reads masked text beside its teacher, and learns from the triple loss.

    python pretrain.py --teacher FOLDER --corpus FILE_OR_FOLDER --out_dir FOLDER

On N GPUs of a machine: torchrun --nproc_per_node=N pretrain.py ..., the same run, N times as fast at best.
With --teacher none --config FOLDER it trains a BERT from scratch, on the MLM loss alone: that is how a teacher is made.
Sanh et al. 2019 (arXiv:1910.01108), section 3. Read next: finetune.py.
"""
import argparse
import collections
import inspect
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import PackedBlocks, prefetch
from load_hf_weights import (
    load_model,
    load_tokenizer,
    model_files,
    read_config,
    save_model,
)
from losses import LOSSES, WEIGHTS, cast_once, in_fp32, sum_over_chunks
from model import LAYER_CHOICES, MaskedLM, chosen_layers, make_student
from support.cli import Parser, add_common_arguments, command_line, in_range, resolve
from support.corpus import corpus_tokens, text_files
from support.device import autocast, compiler_works
from support.distributed import (
    RANK,
    WORLD_SIZE,
    all_reduce_sum,
    broadcast,
    no_sync,
    process_group,
    progress_bar,
    wrap_ddp,
)
from support.errors import InputError
from support.fingerprint import code_fingerprint, files_fingerprint
from support.run_folder import finished_run, open_run
from support.seeds import DROPOUT, HELDOUT_MASKS, NEW_WEIGHTS, seed_torch
from support.training_run import learning_rate

HELDOUT_BLOCKS = 128  # held-out text is measured on so many blocks, spread evenly over it


class TripleLoss(nn.Module):
    """The losses of one batch. What no active term needs is not computed: without CE only the masked positions go through
    the student's decoder and none through the teacher's; without CE and cosine the teacher is not run at all."""

    def __init__(self, student, teacher, weights, temperature=2.0, chunk_tokens=None, layers=None):
        """weights: {name of a term in losses.LOSSES: alpha}, of the active terms alone. layers: as make_student's; where a formula
        wants the states of all layers, the student's are compared with those of the teacher's that they were copied from.

        chunk_tokens: on how many tokens at a time the losses on logits are taken; 0: on all; None: a power of two of them
        whose logits fill 16 to 32 MB on a CPU, near its caches, and 256 to 512 MB on a GPU, which wants large products."""
        super().__init__()
        if chunk_tokens is None:
            logits = 2 ** (23 if student.head.bias.device.type == "cpu" else 27)
            chunk_tokens = 2 ** max(0, (logits // student.config.vocab_size).bit_length() - 1)
        self.student, self.weights, self.temperature, self.chunk_tokens = student, weights, temperature, chunk_tokens
        self.layers = chosen_layers(layers, teacher.config.num_hidden_layers) if teacher else []
        self.teacher = [teacher]  # in a list it is no part of this module: never trained, saved or put into training mode
        self.wants = {name: arguments_of(LOSSES[name][0]) for name in weights}
        self.on_logits = [name for name, wants in self.wants.items() if "student_logits" in wants]
        self.on_hidden = [name for name in weights if name not in self.on_logits]
        self.weights_on_logits = student.head.bias.new_tensor([weights[name] for name in self.on_logits])  # no buffer, which DDP would send around
        self.compiled = None  # terms_of_chunk, compiled for whole chunks
        if not self.on_logits:  # no loss trains the head, and DistributedDataParallel would wait for its gradients
            student.head.requires_grad_(False)

    def forward(self, input_ids, labels, tokens_in_step, masked_in_step):
        """(total, {term: value}) of input_ids and labels, (batch, length); labels on the CPU.

        Each term is the sum over this part's tokens divided by tokens_in_step or, where labels matter, by masked_in_step,
        what the whole optimizer step counts: the parts of a step add up to its means."""
        teacher, = self.teacher
        wanted = set().union(*self.wants.values())
        states = self.student.bert.hidden_states(input_ids)
        hidden = states[-1].flatten(0, 1)  # (tokens, hidden): blocks hold no padding, every token counts
        teacher_hidden = None
        if wanted & {"teacher_hidden", "teacher_logits", "teacher_states"}:
            with torch.no_grad():
                teacher_states = teacher.bert.hidden_states(input_ids)
                teacher_hidden = teacher_states[-1].flatten(0, 1)
        values = {"student_hidden": hidden, "teacher_hidden": teacher_hidden, "temperature": self.temperature}
        if wanted & {"student_states", "teacher_states"}:
            values["student_states"] = torch.stack(states[1:]).flatten(1, 2)  # (layers, tokens, hidden)
            values["teacher_states"] = torch.stack([teacher_states[layer + 1] for layer in self.layers]).flatten(1, 2)
        terms = {name: self.term(name, values) * (len(hidden) / tokens_in_step) for name in self.on_hidden}
        total = sum(self.weights[name] * term for name, term in terms.items())
        if self.on_logits:
            on_logits, of_each = self.losses_on_logits(hidden, teacher_hidden, labels.flatten(), tokens_in_step, masked_in_step)
            total = total + on_logits
            terms.update(zip(self.on_logits, of_each))
        return total, {name: term.detach() for name, term in terms.items()}

    def term(self, name, values):
        """The loss of this name; values: {what a formula can want: tensor}."""
        formula, _ = LOSSES[name]
        return formula(**{word: values[word] for word in self.wants[name]})

    def losses_on_logits(self, hidden, teacher_hidden, labels, tokens_in_step, masked_in_step):
        """(weighted sum, (losses,)) of the losses on logits, a chunk of tokens at a time."""
        teacher, = self.teacher
        is_masked = labels != -100
        if all("labels" in self.wants[name] for name in self.on_logits):  # then the masked positions are enough
            masked = is_masked.nonzero().squeeze(1)
            labels, is_masked, masked = labels[masked], is_masked[masked], masked.to(hidden.device, non_blocking=True)
            hidden, teacher_hidden = (x if x is None else x[masked] for x in (hidden, teacher_hidden))
        chunk_tokens = self.chunk_tokens or max(1, len(labels))
        # How much each chunk counts in the means over the step: (chunks, losses). Counted on the CPU, where the labels are.
        shares = torch.tensor([[int(part.sum()) / max(1, masked_in_step) if "labels" in self.wants[name] else len(part) / tokens_in_step
                                for name in self.on_logits] for part in is_masked.split(chunk_tokens)], dtype=self.weights_on_logits.dtype)
        shares_there, labels = (x.to(hidden.device, non_blocking=True) for x in (shares, labels))
        wants_teacher = any("teacher_logits" in self.wants[name] for name in self.on_logits)
        if wants_teacher:
            with torch.no_grad():
                teacher_transformed, teacher_decoder = teacher.head.transform(teacher_hidden), cast_once(*teacher.decoder())

        def terms(logits, rows):
            chunk = rows.start // chunk_tokens
            values = {"student_logits": logits, "labels": labels[rows], "temperature": self.temperature}
            if wants_teacher:
                with torch.no_grad():
                    values["teacher_logits"] = F.linear(teacher_transformed[rows], *teacher_decoder)
            active = tuple(name for name, share in zip(self.on_logits, shares[chunk].tolist()) if share)  # the others have no tokens here
            loss_of_chunk = self.compiled if self.compiled and len(logits) == chunk_tokens else self.loss_of_chunk
            return loss_of_chunk(active, shares_there[chunk], values)

        return sum_over_chunks(terms, self.weights_on_logits, self.chunk_tokens, self.student.head.transform(hidden),
                               *self.student.decoder())

    def loss_of_chunk(self, active, shares, values):
        """(losses,): the active ones times their shares, 0 for the others. The formulas, with nothing around them."""
        values = {word: in_fp32(value) if word.endswith("logits") else value for word, value in values.items()}
        return torch.stack([self.term(name, values) * share if name in active else torch.zeros_like(share)
                            for name, share in zip(self.on_logits, shares.unbind())])

    def compile(self, layers):
        """Fuse what stands between the matrix products: of the formulas, which saves the memory of their intermediate results,
        and, if asked, of the layers (one compilation serves them all)."""
        self.compiled = torch.compile(self.loss_of_chunk, dynamic=False)
        for model in filter(None, (self.student, *self.teacher) if layers else ()):
            for layer in model.bert.layers:
                layer.compile()


def arguments_of(formula):
    """The names of a formula's arguments. Raises InputError if there is one that no formula can be given."""
    names = set(inspect.signature(formula).parameters)
    for given in ({"student_logits", "teacher_logits", "labels"}, {"student_hidden", "teacher_hidden", "student_states", "teacher_states"}):
        if names <= given | {"temperature"}:
            return names
    raise InputError(f"losses.py: {formula.__name__} wants {', '.join(sorted(names))}; a formula can have student_logits, "
                     "teacher_logits and labels, or student_hidden, teacher_hidden, student_states and teacher_states, and temperature")


def train(args, student, teacher, blocks, device, run):
    """The loop, from the first step or from the run's checkpoint on. Raises InputError if the loss stops being a number."""
    triple_loss = TripleLoss(student, teacher, args.weights, args.temperature, args.chunk_tokens, args.layers).to(device)
    if triple_loss.chunk_tokens:
        check_chunks(triple_loss, *blocks.training_batch(0, min(4, args.batch_size), args.mlm_prob, args.seed), args)
    if (args.compile or args.compile is None and compiling_pays(args, student, device)) and compiler_works(device):
        triple_loss.compile(layers=device.type == "cuda" or args.compile == 1)
    # The authors' optimizer settings; the loss's mean is over the step, so the rate does not depend on --grad_accum.
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True)
    student.train()
    first_step, recent = run.resume(student, optimizer), []
    parallel = wrap_ddp(triple_loss)
    batches = prefetch((blocks.training_batch(step, args.batch_size, args.mlm_prob, args.seed, RANK, WORLD_SIZE)
                     for step in range(first_step, args.steps)), pin=device.type == "cuda")
    name = "/".join(Path(args.out_dir).parts[-2:])
    with run.defer_signals(), progress_bar(batches, total=args.steps, initial=first_step, desc=name, unit="step") as progress:
        for step, (input_ids, labels) in enumerate(progress, first_step):
            tokens, masked = args.batch_size * args.max_length, int(all_reduce_sum((labels != -100).sum()))  # of the whole step
            terms = collections.defaultdict(float)
            parts = zip(input_ids.tensor_split(args.grad_accum), labels.tensor_split(args.grad_accum))
            for part, (ids, part_labels) in enumerate(parts):
                seed_torch(DROPOUT, args.seed, step, part * WORLD_SIZE + RANK)
                with no_sync(parallel, last_part=part == args.grad_accum - 1):
                    with autocast(device, args.precision):
                        loss, part_terms = parallel(ids.to(device, non_blocking=True), part_labels, tokens, masked)
                    (loss * WORLD_SIZE).backward()  # the gradients' mean over the processes is then the gradient of the losses' sum
                for name, term in part_terms.items():
                    terms[name] = terms[name] + term
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
            nn.utils.clip_grad_norm_(student.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()

            recent.append(terms)  # they stay on the device, and are waited for only here:
            must_log, should_save = step % args.log_every == 0 or step == args.steps - 1, run.should_save(step + 1)
            if must_log or should_save:
                figures = run.check_losses(recent, step)
                recent.clear()
            if must_log:
                run.log.write(step=step, lr=optimizer.param_groups[0]["lr"], **figures)
                progress.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
            if should_save:
                run.save(step + 1, student, optimizer)


def compiling_pays(args, student, device):
    """On a GPU. On a CPU the layers gain nothing, and the formulas win back the seconds that it takes only after some 10^10 logits."""
    logits = args.steps * args.batch_size * args.max_length * student.config.vocab_size
    return device.type == "cuda" or (device.type == "cpu" and logits > 1e10)


@torch.no_grad()
def check_chunks(triple_loss, input_ids, labels, args):
    """Refuse a formula of losses.py that couples tokens: in chunks it would silently be another loss."""
    chunk_tokens, masked = triple_loss.chunk_tokens, max(1, int((labels != -100).sum()))

    def terms_in_chunks_of(tokens):
        triple_loss.chunk_tokens = tokens
        with autocast(torch.device(args.device), args.precision):
            return triple_loss.eval()(input_ids.to(args.device), labels, input_ids.numel(), masked)[1]
    in_chunks = terms_in_chunks_of(max(1, masked // 3))  # several chunks, even where only masked positions count
    at_once = terms_in_chunks_of(0)
    triple_loss.chunk_tokens = chunk_tokens
    for name in at_once:
        if not torch.isclose(in_chunks[name], at_once[name], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InputError(f"the loss {name} is {in_chunks[name]:.6g} in chunks of tokens, but {at_once[name]:.6g} on all "
                             "at once: its formula is no mean over tokens; use --chunk_tokens 0 (and --grad_accum 1)")


@torch.inference_mode()
def evaluate(student, teacher, blocks, args):
    """Figures on held-out blocks, masked with fixed random numbers, the same for every run: of the masked positions the MLM
    loss, the share of words the student fills in right, and the share on which it and the teacher agree; of all tokens the KL
    divergence from the teacher at temperature 1, and the cosine distance of the last hidden states.

    They are written out here, apart from losses.py: an edited loss is measured by the same yardstick as before.
    teacher may be None: then the student's own figures alone."""
    device = next(student.parameters()).device
    numbers = np.unique(np.linspace(0, blocks.count - 1, HELDOUT_BLOCKS, dtype=int))
    input_ids, labels = blocks.masked(numbers, 0.15, [(HELDOUT_MASKS, number) for number in numbers])
    masked, tokens = max(1, int((labels != -100).sum())), labels.numel()
    sums = collections.Counter()
    student.eval()
    for ids, ids_labels in zip(input_ids.to(device).split(4), labels.to(device).split(4)):
        with autocast(device, args.precision):
            hidden = [model.bert(ids) for model in (student, teacher) if model]
            logits = [F.linear(model.head.transform(states), *model.decoder()).flatten(0, 1).float()  # (tokens, vocab)
                      for model, states in zip((student, teacher), hidden)]
        true, chosen = ids_labels.flatten(), ids_labels.flatten() != -100
        guesses = [x.argmax(-1)[chosen] for x in logits]
        sums["mlm_loss"] += F.cross_entropy(logits[0], true, reduction="sum").item() / masked
        sums["mlm_accuracy"] += int((guesses[0] == true[chosen]).sum()) / masked
        if teacher:
            sums["teacher_mlm_accuracy"] += int((guesses[1] == true[chosen]).sum()) / masked
            sums["teacher_agreement"] += int((guesses[0] == guesses[1]).sum()) / masked
            log_probs = [x.log_softmax(-1) for x in logits]
            sums["kl"] += F.kl_div(*log_probs, log_target=True, reduction="sum").item() / tokens
            sums["cosine_distance"] += (1 - F.cosine_similarity(*hidden, dim=-1)).sum().item() / tokens
    return dict(sums)


def read_arguments(arguments):
    parser = Parser(__doc__)
    parser.add_argument("--teacher", required=True, help="folder of a BERT with its MLM head; none: train from scratch")
    parser.add_argument("--config", help="with --teacher none: folder with config.json and vocab.txt of the BERT to train")
    parser.add_argument("--corpus", nargs="+", required=True, help="text files, or folders; an empty line ends a document")
    parser.add_argument("--heldout", nargs="+", help="text to measure on; default: a hundredth of the corpus, not trained on")
    parser.add_argument("--out_dir", required=True)
    parser.add_argument("--cache_dir", default="runs/cache", help="where the tokenized corpus is kept")
    for term, (formula, weight) in LOSSES.items():
        parser.add_argument(f"--use_{term}", type=int, choices=(0, 1), default=1, help=f"{formula.__name__}; 0: not computed")
        parser.add_argument(f"--alpha_{term}", type=in_range(float, 0), default=weight, help="its weight")
    parser.add_argument("--init", choices=("teacher", "random"), default="teacher", help="of the student")
    parser.add_argument("--layers", type=layer_choice,
                        help="the teacher's layers that the student gets, such as 0,2,5, or 0,0,1,1 to grow it; even, odd, first, last: "
                             "a half of them; evenly:4: four, evenly spaced; default: half, evenly spaced with the first and the last")
    parser.add_argument("--steps", type=in_range(int, 1), default=1000)
    parser.add_argument("--batch_size", type=in_range(int, 1), default=32, help="sequences of one optimizer step")
    parser.add_argument("--grad_accum", type=in_range(int, 1), default=1, help="parts in which a step is worked through")
    parser.add_argument("--lr", type=in_range(float, 0, open_low=True), default=5e-4, help="peak learning rate")
    parser.add_argument("--warmup", type=in_range(float, 0, 1), default=0.05, help="share of the steps")
    parser.add_argument("--clip", type=in_range(float, 0, open_low=True), default=5.0, help="greatest norm of the gradient")
    parser.add_argument("--temperature", type=in_range(float, 0, 1e4, open_low=True), default=2.0)
    parser.add_argument("--max_length", type=in_range(int, 3), default=128, help="tokens of a block, [CLS] and [SEP] included")
    parser.add_argument("--mlm_prob", type=in_range(float, 0, 1), default=0.15)
    parser.add_argument("--chunk_tokens", type=in_range(int, 0),
                        help="evaluate the vocabulary losses on so many tokens at a time; 0: on all at once; "
                             "default: as many as fill 32 MB (on a GPU 512 MB) with logits")
    parser.add_argument("--compile", type=int, choices=(0, 1), help="torch.compile formulas and layers; default: on a GPU; on a CPU "
                        "the formulas alone, and in long runs with a large vocabulary")
    add_common_arguments(parser)
    args = resolve(parser.parse_args(arguments))
    if args.teacher == "none":
        if not args.config:
            raise InputError("--teacher none needs --config FOLDER, with config.json and vocab.txt of the BERT to train")
    elif args.config:
        raise InputError("--config goes with --teacher none alone: a student's configuration follows from its teacher's")
    args.weights = {}  # of the active terms; the others' flags say nothing of this run
    for term, (formula, _) in LOSSES.items():
        use, alpha = vars(args).pop(f"use_{term}"), vars(args).pop(f"alpha_{term}")
        wants_teacher = arguments_of(formula) & {"teacher_logits", "teacher_hidden", "teacher_states"}
        if use and alpha and not (wants_teacher and args.teacher == "none"):
            args.weights[term] = alpha
    if not args.weights:
        raise InputError(f"all losses are off: set {' or '.join(f'--use_{term}' for term in WEIGHTS)} to 1")
    if args.mlm_prob == 0 and all("labels" in arguments_of(LOSSES[term][0]) for term in args.weights):
        raise InputError("--mlm_prob 0 masks nothing, so the MLM loss has nothing to learn from")
    if args.grad_accum * WORLD_SIZE > args.batch_size:
        raise InputError(f"--grad_accum {args.grad_accum}{f' on {WORLD_SIZE} processes' if WORLD_SIZE > 1 else ''} is more parts than "
                         f"--batch_size {args.batch_size} has sequences")
    return args


def layer_choice(text):
    """A word of LAYER_CHOICES, evenly:N, or a list of numbers, as --layers has it."""
    if text in LAYER_CHOICES or re.fullmatch("evenly:[1-9][0-9]{0,3}", text):
        return text
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither {', '.join(LAYER_CHOICES)} nor evenly:4, nor a list of layers such as 0,2,5") from None


def fingerprint(args):
    """What the run depends on, besides its arguments: {what: digest}. A formula that is not in use is not among it."""
    used = tuple(LOSSES[name][0].__name__ for name in args.weights)
    source = "config" if args.teacher == "none" else "teacher"
    parts = {"code": code_fingerprint(__file__, used), "corpus": files_fingerprint(text_files(args.corpus)),
             source: files_fingerprint(model_files(getattr(args, source), weights=source == "teacher"))}
    return parts | ({"heldout": files_fingerprint(text_files(args.heldout))} if args.heldout else {})


def load_models(args):
    """(student, teacher or None, tokenizer). Raises InputError."""
    source = args.config if args.teacher == "none" else args.teacher
    config, tokenizer = read_config(source), load_tokenizer(source)
    if args.max_length > config.max_position_embeddings:
        raise InputError(f"--max_length {args.max_length}: {source} has {config.max_position_embeddings} positions")
    seed_torch(NEW_WEIGHTS, args.seed)
    if args.teacher == "none":
        return MaskedLM(config), None, tokenizer
    teacher = load_model(args.teacher).requires_grad_(False)
    try:
        student = make_student(teacher, args.layers, args.init)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    if args.precision == "bf16":  # autocast would cast the matrices of the teacher, which never change, at every step
        for module in (teacher.bert.embeddings.word, *(m for m in teacher.modules() if isinstance(m, nn.Linear))):
            module.weight.data = module.weight.data.bfloat16()
    return student, teacher, tokenizer


def load_blocks(args, tokenizer):
    """(training blocks, held-out blocks). Raises InputError."""
    blocks = PackedBlocks(corpus_tokens(args.corpus, tokenizer, args.cache_dir), tokenizer, args.max_length)
    if args.heldout:
        heldout = PackedBlocks(corpus_tokens(args.heldout, tokenizer, args.cache_dir), tokenizer, args.max_length)
    else:
        first = blocks.count - max(1, blocks.count // 100)
        heldout = PackedBlocks(blocks.tokens, tokenizer, args.max_length, first)
        blocks = PackedBlocks(blocks.tokens, tokenizer, args.max_length, 0, first)
    for name, some in (("--corpus", blocks), ("--heldout", heldout)):
        if some.count < 1:
            raise InputError(f"{name}: {len(some.tokens)} tokens are too few for blocks of --max_length {args.max_length}")
    return blocks, heldout


def main(arguments):
    """Run one distillation, unless --out_dir holds it already. Returns its record, what run.json holds."""
    args = read_arguments(arguments)
    sources, texts = fingerprint(args), (*args.corpus, *(args.heldout or ()))
    with process_group(args):
        record = broadcast(finished_run(args, sources, reads=(args.teacher, args.config), texts=texts) if RANK == 0 else None)
        return record or distil(args, sources)


def distil(args, sources):
    """The run that main was asked for. Returns its record."""
    with open_run(args, sources) as run:
        device = torch.device(args.device)
        student, teacher, tokenizer = load_models(args)
        blocks, heldout = load_blocks(args, tokenizer)
        student.to(device)
        if teacher:
            teacher.to(device)
        if "heldout_before" not in run.figures:  # else the run goes on, and knows it
            run.figures["heldout_before"] = evaluate(student, teacher, heldout, args)
            run.log.write(step=0, heldout=run.figures["heldout_before"])
        train(args, student, teacher, blocks, device, run)
        after = evaluate(student, teacher, heldout, args)
        run.log.write(step=args.steps, heldout=after)
        if not np.isfinite(sum(after.values())):  # the last step, which no loss has been taken of yet
            raise InputError(f"step {args.steps}: the held-out loss is not a finite number ({after}); {run.last_good()}")
        if RANK == 0:
            save_model(student, tokenizer, args.out_dir)
        record = run.finish(heldout_after=after, corpus_blocks=blocks.count, parameters=sum(p.numel() for p in student.parameters()))
    before = record["heldout_before"]
    print(f"{args.out_dir}: held out, " + ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after))
    return record


if __name__ == "__main__":
    command_line(main, several=True)
