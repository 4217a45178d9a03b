"""Fine-tunes a teacher or a student on a task, and scores it with metrics written by hand.

    python finetune.py --model STUDENT --task cola --data_dir DATA --out_dir OUT

The encoder is kept, the MLM head is left out.
A classifier starts at random, and so does the pooler below it where the folder has none.
Everything is trained.
With --teacher FOLDER, a model fine-tuned on the same task, the student also learns from its
logits: the second distillation (Sanh et al. 2019, section 4.1, and "(D)" in its Table 2).
BERT's fine-tuning: Devlin et al. 2018 (arXiv:1810.04805), section 4.1; GLUE: Wang et al. 2018
(arXiv:1804.07461); SQuAD: support/squad.py. Read next: ablation.py.
"""
import support.startup  # noqa: F401  # first: Ctrl-C while torch is loaded ends quietly

import itertools
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import collate, encode, length_bucketed_batches, prefetch, sorted_batches
from load_hf_weights import load_model, load_tokenizer, model_files, read_config, save_model
from losses import distillation_loss
from model import Classifier
from support import squad, task_setup, tasks
from support.cli import Parser, add_common_arguments, command_line, in_range, one_of, resolve
from support.corpus import describe_files
from support.device import autocast
from support.distributed import (
    RANK,
    WORLD_SIZE,
    all_gather,
    broadcast,
    process_group,
    shard,
    wrap_ddp,
)
from support.errors import InputError
from support.files import write_json
from support.fingerprint import PROJECT, code_fingerprint, files_fingerprint
from support.predictions import table_of_predictions, write_predictions, write_submission
from support.run_folder import finished_run, open_run
from support.seeds import DROPOUT, NEW_WEIGHTS, seed_torch
from support.task_setup import label_names, load_data, load_teacher, new_model, training_rows
from support.tasks import TASKS
from support.training_run import learning_rate

# ---- Metrics: (predictions, targets) -> float; arrays of class numbers, or of scores ----

def accuracy(predictions, targets):
    """The share of predictions that are right."""
    return float(np.mean(np.equal(predictions, targets)))


def f1(predictions, targets):
    """The harmonic mean of precision and recall of class 1; 0 if class 1 never occurs."""
    true_pos, false_pos, false_neg, _ = confusion(predictions, targets)
    return 2 * true_pos / (2 * true_pos + false_pos + false_neg) if true_pos else 0.0


def matthews(predictions, targets):
    """Matthews' correlation of two binary variables, -1 to 1; 0 if either is constant."""
    true_pos, false_pos, false_neg, true_neg = confusion(predictions, targets)
    margins = ((true_pos + false_pos) * (true_pos + false_neg)
               * (true_neg + false_pos) * (true_neg + false_neg))
    return (true_pos * true_neg - false_pos * false_neg) / sqrt(margins) if margins else 0.0


def confusion(predictions, targets):
    """(true positives, false positives, false negatives, true negatives).

    Python's int: products of four of them may pass 2**63."""
    predicted, actual = np.equal(predictions, 1), np.equal(targets, 1)
    cells = (predicted & actual, predicted & ~actual, ~predicted & actual, ~predicted & ~actual)
    return tuple(int(cell.sum()) for cell in cells)


def pearson(predictions, targets):
    """The linear correlation, -1 to 1; 0 if either is constant."""
    if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return 0.0
    x = np.asarray(predictions, float) - np.mean(predictions, dtype=float)
    y = np.asarray(targets, float) - np.mean(targets, dtype=float)
    return float(x @ y) / sqrt((x @ x) * (y @ y))


def spearman(predictions, targets):
    """The linear correlation of the ranks; 0 if either is constant."""
    return pearson(ranks(predictions), ranks(targets))


def ranks(values):
    """1 for the smallest; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {
    "cola": (matthews,), "mnli": (accuracy,), "mrpc": (f1, accuracy), "qnli": (accuracy,),
    "qqp": (f1, accuracy), "rte": (accuracy,), "sst2": (accuracy,), "stsb": (pearson, spearman),
    "wnli": (accuracy,), "imdb": (accuracy,), "squad": (squad.exact_match, squad.f1),
}


def headline_metrics(task):
    """The metrics whose mean is a task's score: all; of SQuAD F1 alone, as is usual."""
    return (squad.f1,) if task == "squad" else METRICS[task]


def score(task, sets):
    """A task's score, out of 100: the mean over its metrics and dev sets, as GLUE's leaderboard.

    sets: {name of the dev set: (predictions, targets)}."""
    values = [metric(*pair) for pair in sets.values() for metric in headline_metrics(task)]
    return 100 * float(np.mean(values))


# ---- The loop ----

def train(args, model, rows, labels, run, teacher=None):
    """Fine-tune the model, from the first step or from the run's checkpoint.

    rows: (input_ids, token_type_ids) of each. labels: their targets. teacher: a model of the same
    task, or None. AdamW without weight decay, 10 % warm-up, then linear decay.
    Raises InputError if a loss is not finite."""
    device = torch.device(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    steps_per_epoch = -(-len(rows) // args.batch_size)
    steps = steps_per_epoch * args.epochs
    first_step = run.resume(model, optimizer)
    batches = training_batches(args, rows, labels, model.config.pad_token_id, first_step)
    batches = prefetch(batches, pin=device.type == "cuda")
    model.train()
    ddp_model = wrap_ddp(model)

    with run.steps(batches, first_step, steps) as numbered_batches:
        for step, batch in numbered_batches:
            *inputs, targets, weight = (x.to(device, non_blocking=True) for x in batch)
            seed_torch(DROPOUT, args.seed, step, RANK)
            with autocast(device, args.precision):
                # (batch, classes). SQuAD: (batch, 2, length) -> (2 batch, length), starts and ends
                logits = ddp_model(*inputs).flatten(0, -2).float()
            # hard: with the labels, soft: with the teacher's distribution. weight: training_batches
            hard = total = weight * task_loss(logits, targets.flatten())
            losses = {"loss": hard}
            if teacher:
                with torch.no_grad(), autocast(device, args.precision):
                    teacher_logits = teacher(*inputs).flatten(0, -2).float()
                soft = weight * distillation_loss(logits, teacher_logits, args.temperature)
                total = (1 - args.alpha_ce) * hard + args.alpha_ce * soft
                losses = {"loss": total, "hard": hard, "soft": soft}
            total.backward()
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, args.lr, warmup=0.1)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            run.after_step(step, losses, epoch=step // steps_per_epoch)  # log, checkpoint, stop


def training_batches(args, rows, labels, pad, first_step):
    """Yields (input_ids, attention_mask, token_type_ids, targets, weight) of this rank's rows.

    weight: 1; under torchrun how much this rank's mean counts (support/distributed.py, shard)."""
    batches = itertools.chain.from_iterable(
        length_bucketed_batches(rows, args.batch_size, args.seed, epoch)
        for epoch in range(args.epochs))
    for batch in itertools.islice(batches, first_step, None):
        own, weight = shard(batch)
        targets = torch.tensor([labels[i] for i in own])
        yield *collate([rows[i] for i in own], pad), targets, torch.tensor(weight)


def task_loss(logits, targets):
    """Cross-entropy, or the squared error for a regression.

    logits: (rows, classes), where the classes of a span are the positions. targets: (rows), class
    numbers, or scores if logits are (rows, 1)."""
    if targets.is_floating_point():
        return F.mse_loss(logits.squeeze(1), targets)
    return F.cross_entropy(logits, targets)


# ---- Predictions ----

def predict(model, rows, pad, device, precision, batch_size=64):
    """(rows): the class number of every row; its score, if the model has one output."""
    logits = np.stack(compute_outputs(model, rows, pad, device, precision, batch_size))
    return logits[:, 0].astype(float) if logits.shape[1] == 1 else logits.argmax(-1)


@torch.inference_mode()
def compute_outputs(model, rows, pad, device, precision, batch_size=64):
    """A list of what the model gives for each row: a Classifier's logits (classes), a SpanModel's
    (2, length of its batch), a probe's mean state (hidden). Raises InputError if they are not
    finite."""
    order = sorted_batches(rows, batch_size)[RANK::WORLD_SIZE]  # each rank predicts some batches

    def padded(batch):
        return collate([rows[i] for i in batch], pad)
    outputs = []
    for batch in prefetch(map(padded, order), pin=device.type == "cuda"):
        inputs = [x.to(device, non_blocking=True) for x in batch]
        with autocast(device, precision):
            outputs += list(model(*inputs).float().cpu().numpy())
    outputs = all_gather(outputs)
    order = all_gather([row for batch in order for row in batch])
    if not all(np.isfinite(of_row).all() for of_row in outputs):
        # The last update may diverge, and no loss follows it.
        raise InputError("the model's outputs are not finite numbers; after fine-tuning: lower "
                         "--lr")
    return [outputs[i] for i in np.argsort(order)]  # in the order of `rows` again


def predictions_and_targets(args, model, examples, tokenizer):
    """Class numbers or scores, two arrays; of SQuAD the answers and the gold answers, two lists."""
    device, pad = torch.device(args.device), model.config.pad_token_id
    if args.task == "squad":
        windows = list(squad.windows(examples, tokenizer, args.max_length, args.stride))
        rows = [window.row for window in windows]
        logits = compute_outputs(model, rows, pad, device, args.precision)
        answers = squad.best_answers(examples, windows, logits)
        return answers, [question.gold_answers for question in examples]
    rows = encode(examples, tokenizer, args.max_length)
    predictions = predict(model, rows, pad, device, args.precision)
    return predictions, np.array([example.label for example in examples])


def fingerprint(args):
    """What the run depends on, besides its arguments: {what: digest}."""
    parts = task_setup.fingerprint(__file__, args)
    if args.teacher:
        parts["teacher"] = files_fingerprint(model_files(args.teacher))
        formula = (distillation_loss.__name__,)
        parts["formula"] = code_fingerprint(PROJECT / "losses.py", formula)
    return parts


# ---- The command ----

def read_arguments(arguments):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder of a teacher or student")
    add("--task", required=True, type=one_of(TASKS, "task"), help=", ".join(TASKS))
    add("--data_dir", required=True,
        help="folder that holds CoLA/, MNLI/, ... or glue_data/, aclImdb/, squad/")
    add("--out_dir", required=True, help="folder for the fine-tuned model and its results")
    add("--epochs", type=in_range(int, 1), default=3,
        help="passes over the training rows; for squad Devlin et al. used --epochs 2 --lr 3e-5, "
             "and BERT's code --batch_size 12")
    add("--batch_size", type=in_range(int, 1), default=32,
        help="rows per optimizer step, over all processes")
    add("--lr", type=in_range(float, 0, open_low=True), default=2e-5, help="peak learning rate")
    add("--max_length", type=in_range(int, 5),
        help="longest row, in tokens; default: 128, for imdb 256, for squad 384")
    add("--stride", type=in_range(int, 1),
        help="for squad: tokens from a window's start to the next one's; default: 128")
    add("--attention_dropout", type=in_range(float, 0, 0.99),
        help="0 allows a CPU's fused attention, faster on long texts; default: as in config.json")
    add("--train_rows", type=in_range(int, 1),
        help="train on a random sample of so many rows (of squad: questions); default: all")
    add("--teacher",
        help="folder of a model fine-tuned on the same task, to learn from as well; default: none")
    add("--alpha_ce", type=in_range(float, 0, 1),
        help="with --teacher: the share of its loss; default: 0.5")
    add("--temperature", type=in_range(float, 0, 1e4, open_low=True),
        help="with --teacher: T of its loss; default: 2")
    add("--tune", action="store_true",
        help="for choosing settings: train on nine tenths of the training rows, score on the "
             "last tenth, and never open the dev set")
    add("--predict", action="store_true",
        help="also predict GLUE's test files, in its layout: OUT_DIR/submission/*.tsv")
    add_common_arguments(parser)
    return complete(resolve(parser.parse_args(arguments)))


def complete(args):
    """args with what follows from the task. Raises InputError for flags that do not fit it."""
    args.max_length = args.max_length or TASKS[args.task].max_length
    if args.task == "squad":
        args.stride = args.stride or 128
    elif args.stride:
        raise InputError("--stride works with --task squad only")
    if args.teacher:
        if TASKS[args.task].labels is None:
            raise InputError(f"--teacher: {args.task} is a regression; a single score is not a "
                             "distribution that could be distilled")
        args.alpha_ce = 0.5 if args.alpha_ce is None else args.alpha_ce
        args.temperature = args.temperature or 2.0
    elif args.alpha_ce is not None or args.temperature is not None:
        raise InputError("--alpha_ce and --temperature work with --teacher only")
    return args


def main(arguments):
    """Run one fine-tuning, unless --out_dir holds it already. Returns what results.json holds."""
    args = read_arguments(arguments)
    depends_on = fingerprint(args)
    test_sets = tasks.read_test(args.task, args.data_dir) if args.predict else {}
    with process_group(args):
        reads = (args.model, args.teacher, args.data_dir)
        record = finished_run(args, depends_on, reads) if RANK == 0 else None
        record = broadcast(record)
        record = record or fine_tune(args, depends_on)
        for name, rows in test_sets.items():
            predict_test_set(args, name, *zip(*rows))
    return record["results"]


def fine_tune(args, depends_on):
    """Fine-tune, resuming if a checkpoint exists. Returns the run's record."""
    with open_run(args, depends_on) as run:
        check_length(args)
        train_set, dev_sets = load_data(args)
        files = tasks.task_files(args.task, args.data_dir, train_only=args.tune)
        print(f"{args.data_dir}, {args.task}: {describe_files(files)}", flush=True)
        seed_torch(NEW_WEIGHTS, args.seed)
        model = new_model(args.model, args.task).to(args.device)
        tokenizer = load_tokenizer(args.model)
        teacher = None
        if args.teacher:
            teacher = load_teacher(args.teacher, args.task, tokenizer).to(args.device)
        if args.attention_dropout is not None:
            for layer in model.bert.layers:
                layer.attention_dropout = args.attention_dropout

        train(args, model, *training_rows(args, train_set, tokenizer), run, teacher)

        model.eval()
        sets = {name: predictions_and_targets(args, model, examples, tokenizer)
                for name, examples in dev_sets.items()}
        results = {"seed": args.seed, **results_of(args, train_set, sets)}
        if RANK == 0:
            write_results(args, model, tokenizer, dev_sets, sets, results)
        record = run.finish(results=results)
    print(f"{args.out_dir}: {results['data']} {results['score']:.1f} ({results['sets']})")
    return record


def results_of(args, train_set, sets):
    """What results.json holds. sets: {name of the dev set: (predictions, targets)}."""
    metrics = {}
    for name, pair in sets.items():
        values = {metric.__name__: metric(*pair) for metric in METRICS[args.task]}
        metrics[name] = {"rows": len(pair[1]), **values}
    return {"task": args.task, "data": tasks.task_title(args.task, args.data_dir),
            "score": score(args.task, sets), "train_rows": len(train_set), "sets": metrics}


def check_length(args):
    """Raise InputError if a model has fewer positions than --max_length."""
    for folder in filter(None, (args.model, args.teacher)):
        positions = read_config(folder).max_position_embeddings
        if args.max_length > positions:
            raise InputError(f"--max_length {args.max_length}: {folder} has {positions} positions")


def write_results(args, model, tokenizer, dev_sets, sets, results):
    """The fine-tuned model, predictions.tsv and results.json."""
    names, regression = label_names(args.task), TASKS[args.task].labels is None
    id2label = None if args.task == "squad" else dict(enumerate(names))
    problem_type = "regression" if regression else None
    model.config = replace(model.config, id2label=id2label, problem_type=problem_type)
    save_model(model, tokenizer, args.out_dir)
    if args.task == "squad":
        rows = squad.write_answers(args.out_dir, dev_sets, sets)
    else:
        rows = table_of_predictions(sets, None if regression else names)
    write_predictions(args.out_dir, rows)
    write_json(Path(args.out_dir) / "results.json", results)


def predict_test_set(args, name, indices, examples):
    """Write the fine-tuned model's predictions on one of GLUE's test files."""
    model, device = load_model(args.out_dir, Classifier), torch.device(args.device)
    rows = encode(examples, load_tokenizer(args.out_dir), args.max_length)
    pad = model.config.pad_token_id
    predictions = predict(model.to(device), rows, pad, device, args.precision)
    if RANK == 0:
        write_submission(args.out_dir, args.task, name, indices, predictions)


if __name__ == "__main__":
    command_line(main, under_torchrun=True)
